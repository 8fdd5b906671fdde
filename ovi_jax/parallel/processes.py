"""Several processes that run one program; with one process, nothing.

A process is told of the others by its environment: `JAX_COORDINATOR_ADDRESS`,
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or what Slurm, Open MPI and TPU hosts
set themselves.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import socket
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ovi_jax import axes

TIMEOUT = "OVI_JAX_JOIN_SECONDS"  # how long to wait for others, 300 by default
HEARTBEAT = "OVI_JAX_HEARTBEAT_SECONDS"  # until a silent one is lost, 100
ADDRESS, COUNT, INDEX = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
# Where starters of processes say which one of how many this is.
_PLACES = (
  (INDEX, COUNT),
  ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
  ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
_TRY_AGAIN = 1.0  # seconds
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def join() -> None:
  """Join the other processes, if the environment tells of any.

  Raises:
    ValueError: what it says is not complete, or the others do not come within
      the time; names whom was waited for.
  """
  if not _others():
    return
  seconds = float(os.environ.get(TIMEOUT, "300"))
  given: dict[str, Any] = {}
  if address := os.environ.get(ADDRESS):
    missing = [n for n in (COUNT, INDEX) if not os.environ.get(n)]
    if missing:
      raise ValueError(
        f"{ADDRESS} is set, but not {' and '.join(missing)}; set all three, or"
        " none"
      )
    index, count = int(os.environ[INDEX]), int(os.environ[COUNT])
    if index:
      _reach(address, seconds)
    given = {
      "coordinator_address": address,
      "num_processes": count,
      "process_id": index,
    }
  try:
    jax.distributed.initialize(
      initialization_timeout=int(seconds),
      heartbeat_timeout_seconds=int(os.environ.get(HEARTBEAT, "100")),
      **given,
    )
  except (RuntimeError, ValueError) as error:
    where = given.get("coordinator_address", "found by the cluster's settings")
    raise ValueError(
      f"the processes did not meet within {seconds:.0f} s (coordinator"
      f" {where}, {TIMEOUT} sets the time): {_first_line(error)}"
    ) from error


def place() -> tuple[int, int]:
  """The number of this process, and of how many, whether they met or not."""
  if jax.process_count() > 1:
    return jax.process_index(), jax.process_count()
  for index, count in _PLACES:
    if int(os.environ.get(count) or 1) > 1:
      return int(os.environ[index]), int(os.environ[count])
  return 0, 1


def _others() -> bool:
  """Whether the environment tells of other processes."""
  if os.environ.get(ADDRESS):
    return True
  several = any(int(os.environ.get(name) or 1) > 1 for _, name in _PLACES[1:])
  hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
  return several or len(hosts.split(",")) > 1


def _reach(address: str, seconds: float) -> None:
  """Wait until somebody listens at an address.

  Raises:
    ValueError: nobody does.
  """
  host, _, port = address.rpartition(":")
  end = time.monotonic() + seconds
  while True:
    try:
      left = max(0.1, min(5.0, end - time.monotonic()))
      with socket.create_connection((host, int(port)), timeout=left):
        return
    except (OSError, ValueError) as error:
      if time.monotonic() + _TRY_AGAIN > end:
        raise ValueError(
          f"the coordinator at {address} could not be reached within"
          f" {seconds:.0f} s ({error}); start process 0 there, or set"
          f" {ADDRESS} and, for more time, {TIMEOUT}"
        ) from error
      time.sleep(_TRY_AGAIN)


def _first_line(error: BaseException) -> str:
  return str(error).strip().splitlines()[0] if str(error).strip() else ""


def gather(value: Any) -> list[Any]:
  """A JSON value of every process, in the order of processes."""
  if jax.process_count() == 1:
    return [value]
  raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.asarray(raw.size))
  padded = np.zeros(int(np.max(sizes)), np.uint8)
  padded[: raw.size] = raw
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [
    json.loads(row[: int(size)].tobytes()) for row, size in zip(rows, sizes)
  ]


def meet(name: str) -> None:
  """Wait for the other processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"ovi_jax_{name}")


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[int], bool]]:
  """Whether the run was told to stop (SIGTERM), asked before each step.

  Several processes all stop before the same step, whichever was told: JAX
  listens for the signal itself then.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  told: list[int] = []
  before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
  try:
    yield lambda _: bool(told)
  finally:
    signal.signal(signal.SIGTERM, before)


def agree(config: Mapping[str, Any]) -> None:
  """See that all processes run the same code with the same config.

  Raises:
    ValueError: in every process, with what differs from process 0 and where.
  """
  if jax.process_count() == 1:
    return
  mine = {"code": code(), **_flat(config)}
  first, *others = gather(mine)
  problems = []
  for number, theirs in enumerate(others, 1):
    problems += [
      f"process {number} has {name} {theirs.get(name, 'not set')}, process 0"
      f" {first.get(name, 'not set')}"
      for name in sorted(first.keys() | theirs.keys())
      if first.get(name) != theirs.get(name)
    ]
  if problems:
    listed = "".join(f"\n  {line}" for line in problems[:20])
    raise ValueError(
      "the processes of a run need the same code and config; start all with"
      f" the same command and version:{listed}"
    )


def code() -> str:
  """A digest of the package's source."""
  digest = hashlib.sha256()
  for path in sorted(_PACKAGE.rglob("*.py")):
    digest.update(path.relative_to(_PACKAGE).as_posix().encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
  flat: dict[str, str] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = json.dumps(value)
  return flat


def rows(mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """Which part of each batch this process reads: (part, of how many).

  Processes whose devices hold the same examples read the same part.

  Raises:
    ValueError: its devices hold examples that are not neighbours.
  """
  split = [mesh.shape[axis] for axis in axes.ACTIVATIONS["B"]]
  groups = int(np.prod(split))
  batch_axes = [mesh.axis_names.index(a) for a in axes.ACTIVATIONS["B"]]
  others = [i for i in range(mesh.devices.ndim) if i not in batch_axes]
  by_group = mesh.devices.transpose(*batch_axes, *others).reshape(groups, -1)
  mine = [
    number
    for number, devices in enumerate(by_group)
    if any(d.process_index == jax.process_index() for d in devices)
  ]
  count = len(mine)
  first = mine[0]
  neighbours = mine == list(range(first, first + count))
  if not neighbours or groups % count or first % count:
    raise ValueError(
      f"the devices of process {jax.process_index()} hold parts {mine} of"
      f" {groups} of a batch, which are no even run; choose a mesh in which"
      " data and fsdp follow the processes"
    )
  return first // count, groups // count
