"""Connects the processes of a run, synchronizes and compares them.

JAX's cluster detection finds the other processes, or the variables in
`cluster_env` name them. A run of one process connects to nothing.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ovi_jax import cli
from ovi_jax import console
from ovi_jax.sharding import cluster_env
from ovi_jax.sharding import logical_axes

_log = logging.getLogger(__name__)
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Files that determine compiled programs, besides the config. Weights are
# compared by the digests in their manifest.
_SOURCES = ("*.py", "*.json")
_WEIGHTS = "weights"
_LIBRARIES = ("jax", "jaxlib", "flax")
_STOPPING = {
  signal.SIGINT: b"\ninterrupted: this step is finished and the state saved;"
  b" Ctrl-C again ends at once, without saving\n",
  signal.SIGTERM: b"\nSIGTERM: this step is finished and the state saved;"
  b" Ctrl-C ends at once, without saving\n",
}
_MORE_SECONDS = 60
# Errors of cluster detection (variables, a package, the metadata server).
_JOIN_ERRORS = (ImportError, KeyError, OSError, RuntimeError, ValueError)
# JAX's error message if it detects no cluster.
_NOT_DETECTED = "coordinator_address should be defined"
_ALONE = f"{cluster_env.COUNT}=1 starts one process alone"


def initialize() -> None:
  """Connect the processes that JAX's cluster detection finds, if any.

  JAX detects TPU VMs (metadata server, GKE, several slices), Kubernetes Jobs,
  Slurm and Open MPI; `cluster_env` names the variables that override it. After
  this call, process 0 logs, and the others log warnings only. If not all
  processes connect within `OVI_JAX_JOIN_SECONDS`, the process prints one line
  and exits.

  Raises:
    ValueError: variables are invalid, a launcher's variable indicates more
      processes than JAX found, or the processes cannot connect.
  """
  told = cluster_env.read(needs_coordinator=True)
  alone = told.count == 1 and not told.address
  if alone or jax.distributed.is_initialized():
    return
  config: Any = jax.config  # options are not declared attributes
  on_cpu = config.jax_platforms == "cpu"
  if not told.variable and (on_cpu or not cli.has_tpu()):
    return
  if on_cpu and told.on_tpu:
    raise ValueError(_missing(told, 1))  # JAX would wait for the other hosts
  given: dict[str, Any] = {}
  if told.is_override:
    given = {
      "coordinator_address": told.address,
      "num_processes": told.count,
      "process_id": told.index,
      "cluster_detection_method": "deactivate",
    }
    if told.index == 0:
      _check_port(told)
  _log.info("joining %s", _expected(told))
  try:
    with _time_limit(told):
      jax.distributed.initialize(
        # JAX's own timeout aborts with a stack trace, so it is longer.
        initialization_timeout=math.ceil(told.seconds) + _MORE_SECONDS,
        heartbeat_timeout_seconds=told.heartbeat,
        **given,
      )
  except _JOIN_ERRORS as error:
    if _NOT_DETECTED not in str(error):
      raise ValueError(
        f"cannot join {_expected(told)}: {_first_line(error)}; {_ALONE}"
      ) from error
    if told.variable:
      raise ValueError(_missing(told, 1)) from error
    return
  if jax.process_count() < (told.count or 1):
    raise ValueError(_missing(told, jax.process_count()))
  if jax.process_index():
    logging.getLogger("ovi_jax").setLevel(logging.WARNING)


def process_info() -> tuple[int, int]:
  """Index of this process and number of processes, connected or not.

  Raises:
    ValueError: variables are invalid, or indicate several processes without
      giving their number and the index of this one.
  """
  if jax.process_count() > 1:
    return jax.process_index(), jax.process_count()
  told = cluster_env.read(needs_coordinator=False)
  if not told.variable or told.count == 1:
    return 0, 1
  if told.count is None or told.index is None:
    raise ValueError(_missing(told, 1))
  return told.index, told.count


def _expected(told: cluster_env.ClusterEnv) -> str:
  """The expected processes and the variables that give them, for messages."""
  if told.is_override:
    return (
      f"{told.count} processes at {told.address} as process {told.index}"
      f" ({cluster_env.COUNT}, {cluster_env.ADDRESS}, {cluster_env.INDEX})"
    )
  said = f" ({told.variable})" if told.variable else ""
  return f"{told.count or 'the'} processes of this cluster{said}"


def _missing(told: cluster_env.ClusterEnv, found: int) -> str:
  return (
    f"expected {told.count or 'several'} processes ({told.variable}), found"
    f" {found}; start all with a launcher that JAX detects (srun, mpirun of"
    " Open MPI 4, TPU hosts, a Kubernetes Job with the package kubernetes"
    f" installed), or set {cluster_env.ADDRESS}, {cluster_env.COUNT} and"
    f" {cluster_env.INDEX}; {_ALONE}"
  )


def _check_port(told: cluster_env.ClusterEnv) -> None:
  """Check that the coordinator's port is free; JAX would crash otherwise.

  Raises:
    ValueError: the port is in use.
  """
  if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
    return
  port = int((told.address or "").rpartition(":")[2])
  try:
    socket.create_server(("", port)).close()
  except OSError as error:
    raise ValueError(
      f"process 0 cannot listen at port {port} ({error.strerror}); choose a"
      f" free port of this machine in {cluster_env.ADDRESS}"
    ) from error


@contextlib.contextmanager
def _time_limit(told: cluster_env.ClusterEnv) -> Iterator[None]:
  """Exit with a one-line error if the processes do not connect in time."""

  def expire() -> None:
    console.error(
      f"not all processes connected within {told.seconds:.0f} s, expected"
      f" {_expected(told)}; start all of them, or set {cluster_env.TIMEOUT} to"
      f" wait longer; {_ALONE}"
    )
    os._exit(1)

  timer = threading.Timer(told.seconds, expire)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _first_line(error: BaseException) -> str:
  return str(error).strip().partition("\n")[0] or type(error).__name__


def gather(value: Any) -> list[Any]:
  """Gather a JSON value from every process, in the order of their indices."""
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


def broadcast(function: Callable[[], Any]) -> Any:
  """Call a function in process 0; its JSON value, in every process.

  Raises:
    ValueError: the function's error; in process 0 also an OSError.
  """
  value, error = None, None
  if jax.process_index() == 0:
    try:
      value = function()
    except (OSError, ValueError) as caught:
      error = caught
  value, said = gather([value, None if error is None else str(error)])[0]
  if error is not None:
    raise error
  if said is not None:
    raise ValueError(f"process 0: {said}")
  return value


def barrier(name: str) -> None:
  """Wait for the other processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"ovi_jax_{name}")


@contextlib.contextmanager
def preemption_watcher(
  grace_seconds: float = 0.0, exit_code: int = 1
) -> Iterator[Callable[[int], bool]]:
  """Yield a function that says, before each step, whether to stop.

  SIGTERM and the first Ctrl-C (SIGINT) request a stop; Ctrl-C after either ends
  the process at once, also while a program is compiled, when Python's own
  handlers do not run. More SIGTERMs change nothing: a platform may send one
  with its notice and another when the notice ends, while the state is saved.
  With several processes, JAX's preemption sync point handles SIGTERM: all
  processes stop before the same step, whichever was signalled.

  Args:
    grace_seconds: time from SIGTERM after which the process exits even if a
      save is not complete; 0 for no limit. With several processes, the time
      starts when they agree to stop.
    exit_code: code with which it exits then.
  """
  told: list[int] = []
  said: list[int] = []
  timers: list[threading.Timer] = []

  def stopping() -> None:
    if grace_seconds and not timers:
      timers.append(
        threading.Timer(grace_seconds, _expire, (grace_seconds, exit_code))
      )
      timers[0].daemon = True
      timers[0].start()

  def arrived(number: int) -> None:
    if said:
      return
    said.append(number)
    # Not `print`: the signal may have interrupted one.
    with contextlib.suppress(OSError):
      os.write(2, _STOPPING[signal.Signals(number)])
    if number == signal.SIGTERM:
      stopping()

  def terminated(number: int, frame: Any) -> None:
    del frame
    arrived(number)
    told.append(number)

  def interrupted(number: int, frame: Any) -> None:
    del frame
    arrived(number)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    told.append(number)

  def asked(step: int) -> bool:
    if jax.process_count() == 1:
      return bool(told)
    reached = multihost_utils.reached_preemption_sync_point(step)
    if reached:
      stopping()
    return reached

  handlers: dict[int, Any] = {signal.SIGINT: interrupted}
  if jax.process_count() == 1:
    handlers[signal.SIGTERM] = terminated
  before = {n: signal.signal(n, handler) for n, handler in handlers.items()}
  try:
    with _arrivals(frozenset(handlers), arrived):
      yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    for timer in timers:
      timer.cancel()


@contextlib.contextmanager
def _arrivals(
  numbers: Collection[int], arrived: Callable[[int], None]
) -> Iterator[None]:
  """Watch for signals in a thread; Ctrl-C after another ends the process.

  Args:
    numbers: signals that have a handler in Python.
    arrived: called with the first.
  """

  def watch() -> None:
    first = True
    while data := os.read(reading, 1):
      number = data[0]
      if number not in numbers:
        continue
      if first:
        arrived(number)
      elif number == signal.SIGINT:
        os._exit(128 + number)
      first = False

  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(writing)
    thread.join()
    os.close(reading)


def _expire(seconds: float, code: int) -> None:
  """Exit although something, such as a save, is not complete."""
  console.error(
    f"preemption_grace_seconds={seconds:g} have passed since SIGTERM, and the"
    " last checkpoint is not complete; the same command resumes from the newest"
    " complete one"
  )
  os._exit(code)


@contextlib.contextmanager
def collective_errors() -> Iterator[None]:
  """Raise an error of one process in all processes.

  Otherwise the other processes would wait forever for the one that ended.

  Raises:
    ValueError: the error of another process. An error of this process is raised
      unchanged.
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
      raise ValueError(f"process {number} cannot start: {words}")


def assert_equal_across_hosts(config: Mapping[str, Any]) -> None:
  """Check that all processes run the same code and libraries with one config.

  Args:
    config: nested mapping of JSON values that must be equal.

  Raises:
    ValueError: in every process; names each difference from process 0.
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
  """A digest of the package's source files and JSON tables."""
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
  """Versions of the libraries that determine the compiled programs."""
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
  """The part of each batch that this process reads: (part, number of parts).

  Processes whose devices hold the same examples read the same part.

  Raises:
    ValueError: the examples on this process's devices are not contiguous.
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
      f"process {jax.process_index()} holds batch shards {mine} of {groups},"
      " which are not contiguous; choose mesh.data and mesh.fsdp so that the"
      " devices of each host hold consecutive batch shards, for example a"
      " multiple of"
      f" the {jax.local_device_count()} devices of a host"
    )
  return first // count, groups // count
