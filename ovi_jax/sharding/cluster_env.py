"""What the environment tells of the processes of a run, checked at once.

Ours are three variables and two times; Slurm, Open MPI and TPU hosts set their
own, and JAX finds their coordinator itself.
"""

import dataclasses
import hashlib
import math
import os
import re

ADDRESS, COUNT, INDEX = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
BIND = "JAX_COORDINATOR_BIND_ADDRESS"
TIMEOUT = "OVI_JAX_JOIN_SECONDS"  # how long to wait for others, 300 by default
HEARTBEAT = "OVI_JAX_HEARTBEAT_SECONDS"  # until a silent one is lost, 100
TOKEN = "OVI_JAX_RUN_TOKEN"  # a shared secret of a run's processes; optional
# Where starters of processes say which one of how many this is.
_STARTERS = (
  ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
  ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
_TPU_INDEX, _TPU_HOSTS = "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^][]+)\]|(?P<name>[^][:]*)):(?P<port>\d+)")
_PORTS = 1, 65535
_EXAMPLE = "a host and a port, such as host0:1234"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterEnv:
  """What was told.

  Attributes:
    index: of this process, from 0.
    count: of processes.
    address: host and port of the coordinator; `None` if JAX is to find it, or
      none is needed.
    bind: host and port where the coordinator listens.
    seconds: to wait for the others.
    heartbeat: seconds until a process that is silent counts as lost.
  """

  index: int = 0
  count: int = 1
  address: tuple[str, int] | None = None
  bind: tuple[str, int] | None = None
  seconds: float = 300.0
  heartbeat: int = 100


def read(meets: bool) -> ClusterEnv:
  """What the environment says.

  Args:
    meets: whether the processes are to meet; they need a coordinator then.

  Raises:
    ValueError: what it says cannot be, or is not complete; lists everything.
  """
  problems: list[str] = []
  seconds = _seconds(TIMEOUT, 300.0, problems)
  heartbeat = int(_seconds(HEARTBEAT, 100.0, problems))
  ours = [name for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)]
  found = _ours(meets, problems) if ours else _of_starter(meets, problems)
  if problems:
    listed = "".join(f"\n  {line}" for line in problems)
    raise ValueError(
      f"what the environment says of processes cannot be:{listed}\n"
      f"Set {ADDRESS} (the same for all), {COUNT} and {INDEX} (0 to one less"
      " than their number), or none of them for one process alone"
    )
  return dataclasses.replace(found, seconds=seconds, heartbeat=heartbeat)


def run_token() -> str:
  """What shows that a process is one of this run: a digest of `TOKEN`.

  Without that variable it is the same for all runs.
  """
  secret = os.environ.get(TOKEN, "").strip()
  return hashlib.sha256(f"ovi_jax run {secret}".encode()).hexdigest()


def _ours(meets: bool, problems: list[str]) -> ClusterEnv:
  """What the three variables say, of which some are set."""
  address = _address(ADDRESS, problems)
  bind = _address(BIND, problems) or ("", address[1] if address else 0)
  count, index = _number(COUNT, 1, problems), _number(INDEX, 0, problems)
  if count == 1 and not os.environ.get(ADDRESS) and not index:
    return ClusterEnv()
  # Who does not meet needs to know only which one of how many it is.
  wanted = (ADDRESS, COUNT, INDEX) if meets else (COUNT, INDEX)
  given = [n for n in (ADDRESS, COUNT, INDEX) if os.environ.get(n)]
  for name in wanted:
    if name not in given:
      problems.append(
        f"{name} is not set, but {' and '.join(given)}"
        f" {'is' if len(given) == 1 else 'are'}"
      )
  _check_place(INDEX, index, COUNT, count, problems)
  return ClusterEnv(
    index=index or 0, count=count or 1, address=address, bind=bind
  )


def _of_starter(meets: bool, problems: list[str]) -> ClusterEnv:
  """What Slurm, Open MPI or a TPU host says, if one of them speaks."""
  for place, total in _STARTERS:
    count = _number(total, 1, problems)
    if count and count > 1:
      index = _number(place, 0, problems)
      if index is None and not os.environ.get(place):
        problems.append(f"{place} is not set, but {total} is {count}")
      _check_place(place, index, total, count, problems)
      return ClusterEnv(index=index or 0, count=count)
  count = len(os.environ.get(_TPU_HOSTS, "").split(","))
  if count == 1:
    return ClusterEnv()
  index = _number(_TPU_INDEX, 0, problems)
  if index is None and not os.environ.get(_TPU_INDEX) and not meets:
    problems.append(f"{_TPU_INDEX} is not set, but {_TPU_HOSTS} names {count}")
  _check_place(_TPU_INDEX, index, _TPU_HOSTS, count, problems)
  return ClusterEnv(index=index or 0, count=count)


def _check_place(
  place: str,
  index: int | None,
  total: str,
  count: int | None,
  problems: list[str],
) -> None:
  if index is not None and count is not None and index >= count:
    problems.append(
      f"{place} is {index}, expected 0 to {count - 1}: {total} says {count}"
    )


def _number(name: str, least: int, problems: list[str]) -> int | None:
  """A whole number; `None` if it is not set, or is none."""
  text = os.environ.get(name, "").strip()
  if not text:
    return None
  if not re.fullmatch(r"\d+", text, re.ASCII) or int(text) < least:
    problems.append(
      f"{name} is {text!r}, expected a whole number from {least} on"
    )
    return None
  return int(text)


def _seconds(name: str, default: float, problems: list[str]) -> float:
  text = os.environ.get(name, "").strip()
  try:
    value = float(text or default)
  except ValueError:
    value = math.nan
  if not 1 <= value < math.inf:
    problems.append(f"{name} is {text!r}, expected seconds, at least 1")
    return default
  return value


def _address(name: str, problems: list[str]) -> tuple[str, int] | None:
  """Host and port; `None` if it is not set, or is none."""
  text = os.environ.get(name, "").strip()
  if not text:
    return None
  match = _ADDRESS.fullmatch(text)
  host = (match["v6"] or match["name"]) if match else ""
  if match is None or not (host or name == BIND):
    problems.append(f"{name} is {text!r}, expected {_EXAMPLE}")
    return None
  low, high = _PORTS
  if not low <= int(match["port"]) <= high:
    problems.append(f"{name} is {text!r}, expected a port from {low} to {high}")
    return None
  return host, int(match["port"])
