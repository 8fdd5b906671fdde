"""Several processes that run one program; with one process, nothing.

A process is told of the others by its `environment`; `roll_call` finds who does
not come.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import signal
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ovi_jax.sharding import cluster_env
from ovi_jax.sharding import logical_axes
from ovi_jax.sharding import roll_call

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# What programs are made of, besides the config. Weights have digests.
_SOURCES = ("*.py", "*.json")
_WEIGHTS = "weights"
_LIBRARIES = ("jax", "jaxlib", "flax")
_INTERRUPTED = (
  b"\ninterrupted: this step is finished and the state saved; Ctrl-C again ends"
  b" at once, without saving\n"
)
_SERVICE = 60.0  # seconds that JAX's own service may need when all have come


def initialize() -> None:
  """Join the other processes, if the environment tells of any.

  Process 0 logs from now on; the others log warnings only.

  Raises:
    ValueError: what it says cannot be, or the others do not come within the
      time; names who is missing.
  """
  told = cluster_env.read(meets=True)
  if told.count == 1 and told.address is None:
    return
  given: dict[str, Any] = {}
  if told.address:
    _call_roll(told, told.address)
    given = {
      "coordinator_address": os.environ[cluster_env.ADDRESS].strip(),
      "num_processes": told.count,
      "process_id": told.index,
    }
  seconds = max(told.seconds, _SERVICE)
  try:
    jax.distributed.initialize(
      initialization_timeout=int(seconds),
      heartbeat_timeout_seconds=told.heartbeat,
      **given,
    )
  except (RuntimeError, ValueError) as error:
    where = given.get("coordinator_address", "found by the cluster's settings")
    raise ValueError(
      f"the processes did not meet within {seconds:.0f} s (coordinator"
      f" {where}, {cluster_env.TIMEOUT} sets the time): {_first_line(error)}"
    ) from error
  if jax.process_index():
    logging.getLogger("ovi_jax").setLevel(logging.WARNING)


def process_info() -> tuple[int, int]:
  """The number of this process, and of how many, whether they met or not.

  Raises:
    ValueError: what the environment says cannot be.
  """
  if jax.process_count() > 1:
    return jax.process_index(), jax.process_count()
  told = cluster_env.read(meets=False)
  return told.index, told.count


def _call_roll(told: cluster_env.ClusterEnv, address: tuple[str, int]) -> None:
  """Wait until all have come; JAX, which waits too, would not say for whom."""
  more_time = cluster_env.TIMEOUT
  if told.index == 0:
    bind = told.bind or ("", address[1])
    roll_call.lead(bind, told.count, told.seconds, more_time)
    return
  roll_call.answer(address, told.index, told.count, told.seconds, more_time)
  until = time.monotonic() + _SERVICE
  roll_call.reach(address, until, _SERVICE, more_time).close()


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


def barrier(name: str) -> None:
  """Wait for the other processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"ovi_jax_{name}")


@contextlib.contextmanager
def preemption_watcher() -> Iterator[Callable[[int], bool]]:
  """Whether a stop was requested; checked before each step.

  SIGTERM and the first Ctrl-C (SIGINT) stop it; the second Ctrl-C ends the
  process at once. Several processes all stop before the same step, whichever
  was told: JAX handles SIGTERM itself then.
  """
  told: list[int] = []

  def interrupted(number: int, frame: Any) -> None:
    del frame
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Not `print`: the signal may have come in the middle of one.
    with contextlib.suppress(OSError):
      os.write(2, _INTERRUPTED)
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    told.append(number)

  handlers: dict[int, Any] = {signal.SIGINT: interrupted}
  if jax.process_count() > 1:
    asked = multihost_utils.reached_preemption_sync_point
  else:
    handlers[signal.SIGTERM] = lambda number, _: told.append(number)
    asked = lambda _: bool(told)  # noqa: E731
  before = {n: signal.signal(n, handler) for n, handler in handlers.items()}
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def collective_errors() -> Iterator[None]:
  """What one finds wrong before it begins is wrong for all.

  Without it the others would wait for one that ended, and it for them.

  Raises:
    ValueError: of another process. An error of this one stays as it is.
  """
  mine: OSError | ValueError | None = None
  try:
    yield
  except (OSError, ValueError) as error:
    mine = error
  said = gather(None if mine is None else str(mine))
  if mine is not None:
    raise mine
  for number, words in enumerate(said):
    if words is not None:
      raise ValueError(f"process {number} cannot begin: {words}")


def assert_equal_across_hosts(config: Mapping[str, Any]) -> None:
  """See that all processes run the same code with the same config.

  Args:
    config: what must be the same, as plain values, possibly nested.

  Raises:
    ValueError: in every process, with what differs from process 0 and where.
  """
  if jax.process_count() == 1:
    return
  mine = {"code": code_digest(), **_versions(), **_flat(config)}
  first, *others = gather(mine)
  problems = []
  for number, theirs in enumerate(others, 1):
    problems += [
      f"process {number} has {name} {theirs.get(name, 'not set')}, process 0"
      f" {first.get(name, 'not set')}"
      for name in first | theirs  # in the order given: code comes first
      if first.get(name) != theirs.get(name)
    ]
  if problems:
    listed = "".join(f"\n  {line}" for line in problems[:20])
    raise ValueError(
      "the processes of a run need the same code and config; start all with"
      f" the same command and version:{listed}"
    )


def code_digest() -> str:
  """A digest of what the package makes programs of: source and tables."""
  digest = hashlib.sha256()
  found = {path for kind in _SOURCES for path in _PACKAGE.rglob(kind)}
  for path in sorted(found):
    if path.parent.name == _WEIGHTS:
      continue
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    digest.update(
      f"{path.relative_to(_PACKAGE).as_posix()} {content}\n".encode()
    )
  return digest.hexdigest()[:16]


def _versions() -> dict[str, str]:
  """Of the libraries that make the programs."""
  return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
  flat: dict[str, str] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = json.dumps(value)
  return flat


def data_shard(mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """Which part of each batch this process reads: (part, of how many).

  Processes whose devices hold the same examples read the same part.

  Raises:
    ValueError: its devices hold examples that are not neighbours.
  """
  split = [mesh.shape[axis] for axis in logical_axes.ACTIVATIONS["B"]]
  groups = int(np.prod(split))
  batch_axes = [mesh.axis_names.index(a) for a in logical_axes.ACTIVATIONS["B"]]
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
