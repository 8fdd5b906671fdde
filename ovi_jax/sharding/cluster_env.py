"""Reads and checks the environment variables that describe a run's processes.

JAX's cluster detection finds the processes (`distributed.initialize`). Three
variables override it: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
`JAX_PROCESS_ID`. The variables of launchers (Slurm, MPI, TPU hosts, indexed
Kubernetes Jobs) serve two purposes: they are compared with what JAX finds, and
they divide work among processes that do not connect.
"""

import dataclasses
import math
import os
import re

ADDRESS, COUNT, INDEX = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
TIMEOUT = "OVI_JAX_JOIN_SECONDS"  # how long to wait for others, 300 by default
HEARTBEAT = "OVI_JAX_HEARTBEAT_SECONDS"  # until declared dead, 100 by default
# Variables with the number of processes and the index of this one, the
# innermost launcher first. No index: a Slurm job outside of `srun`.
_LAUNCHERS = (
  ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
  ("PMI_SIZE", "PMI_RANK"),
  ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
  ("SLURM_NTASKS", ""),
  ("WORLD_SIZE", "RANK"),
)
_TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_TPU_INDEX = "TPU_WORKER_ID"
_SLICES, _SLICE = "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"
_POD = "JOB_COMPLETION_INDEX"  # of an indexed Job; does not give the number
_ADDRESS = re.compile(r"(?:\[[^][]+\]|[^][:]+):(\d{1,5})", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterEnv:
  """The processes that the environment describes.

  Attributes:
    variable: name of the variable that gives the number of processes, or shows
      that there are several; empty if there is none.
    count: number of processes; `None` if unknown.
    index: index of this process, from 0; `None` if unknown.
    address: `host:port` of the coordinator; only from the three variables.
    on_tpu: whether `variable` is one of TPU hosts.
    seconds: time to wait for other processes.
    heartbeat: seconds without heartbeat after which a process is declared dead.
  """

  variable: str = ""
  count: int | None = None
  index: int | None = None
  address: str | None = None
  on_tpu: bool = False
  seconds: float = 300.0
  heartbeat: int = 100

  @property
  def is_override(self) -> bool:
    """Whether the three variables are set, which disables detection."""
    return self.variable == COUNT


def read(needs_coordinator: bool) -> ClusterEnv:
  """Read the environment variables.

  Args:
    needs_coordinator: whether the processes are going to connect.

  Raises:
    ValueError: values are invalid or incomplete; lists all of them.
  """
  problems: list[str] = []
  seconds = _seconds(TIMEOUT, 300.0, problems)
  heartbeat = int(_seconds(HEARTBEAT, 100.0, problems))
  found = _override(needs_coordinator, problems) or _launcher(problems)
  if found.index is not None and found.index >= (found.count or math.inf):
    problems.append(
      f"the index of this process is {found.index}, expected 0 to"
      f" {(found.count or 0) - 1}: {found.variable} says {found.count}"
    )
  if problems:
    listed = "".join(f"\n  {line}" for line in problems)
    raise ValueError(
      f"invalid environment variables:{listed}\n"
      f"Set {ADDRESS} (the same for all), {COUNT} and {INDEX} (0 to one less"
      " than their number), or none of them for one process alone"
    )
  return dataclasses.replace(found, seconds=seconds, heartbeat=heartbeat)


def _override(
  needs_coordinator: bool, problems: list[str]
) -> ClusterEnv | None:
  """The values of the three variables; `None` if none of them is set."""
  given = [n for n in (ADDRESS, COUNT, INDEX) if os.environ.get(n, "").strip()]
  if not given:
    return None
  address = os.environ.get(ADDRESS, "").strip() or None
  count, index = _number(COUNT, 1, problems), _number(INDEX, 0, problems)
  port = _ADDRESS.fullmatch(address or "")
  if address and not (port and 1 <= int(port[1]) <= 65535):
    problems.append(
      f"{ADDRESS} is {address!r}, expected a host and a port from 1 to 65535,"
      " such as host0:1234"
    )
  if count == 1 and not address and not index:
    return ClusterEnv(variable=COUNT, count=1, index=0)
  # Processes that do not connect only divide work.
  wanted = (ADDRESS, COUNT, INDEX) if needs_coordinator else (COUNT, INDEX)
  problems += [
    f"{name} is not set, but {' and '.join(given)}"
    f" {'is' if len(given) == 1 else 'are'}"
    for name in wanted
    if name not in given
  ]
  return ClusterEnv(variable=COUNT, count=count, index=index, address=address)


def _launcher(problems: list[str]) -> ClusterEnv:
  """The values of the innermost launcher's variables."""
  for total, place in _LAUNCHERS:
    if (count := _number(total, 1, problems)) is not None:
      index = _number(place, 0, problems) if place else None
      return ClusterEnv(variable=total, count=count, index=index)
  hosts = next((n for n in _TPU_HOSTS if os.environ.get(n)), "")
  slices = _number(_SLICES, 1, problems)
  if hosts or slices:
    in_slice = len(os.environ.get(hosts, "").split(","))
    worker = _number(_TPU_INDEX, 0, problems)
    before = in_slice * (_number(_SLICE, 0, problems) or 0)
    return ClusterEnv(
      variable=" and ".join(
        name for name in (hosts, _SLICES if slices else "") if name
      ),
      count=in_slice * (slices or 1),
      index=None if worker is None else before + worker,
      on_tpu=True,
    )
  pod = _number(_POD, 0, problems)
  return ClusterEnv() if pod is None else ClusterEnv(variable=_POD, index=pod)


def _number(name: str, least: int, problems: list[str]) -> int | None:
  """An integer variable; `None` if it is unset or invalid."""
  text = os.environ.get(name, "").strip()
  if not text:
    return None
  if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < least:
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
