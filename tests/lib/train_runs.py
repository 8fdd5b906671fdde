"""Small runs of train.py as processes, to be killed and resumed."""

import contextlib
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from ovi_jax import storage
from ovi_jax.checkpoint import reader
from ovi_jax.data import builder
from ovi_jax.modality import AV
from ovi_jax.training import logs
from ovi_jax.training import trainer as stages
from tests.lib import child_env
from tests.lib import small_training

ROOT = child_env.ROOT
# The towers of each stage.
STAGES = {
  "audio_pretrain": AV(None, "scratch"),
  "audio_finetune": AV(None, "scratch"),
  "video_pretrain": AV("scratch", None),
  "fusion": AV("scratch", "scratch"),
}
SMALL = {
  "data.video_buckets": (small_training.CLIP,),
  "data.audio_buckets": (small_training.SOUND,),
  "batch_size": 4,
  "optimizer.warmup_steps": 2,
  # Low: AdamW steps by the sign where a gradient is all rounding, and a high
  # rate lets what two orders of a sum differ by grow from step to step.
  "optimizer.learning_rate": 1e-3,
  "optimizer.schedule": "constant",  # does not know how long a run will be
  "log_every": 1,
}
SMALL_TOWER = {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 48}
LONGEST = 300  # seconds that anything waited for may take


def dataset(path: pathlib.Path, count: int = 12) -> pathlib.Path:
  """Write clips with sound: random latents and a prompt."""
  builder.write(
    path,
    {"train": [small_training.record(number) for number in range(count)]},
    geometry=small_training.SIZES,
    null_text=np.full((1, 48), 0.5, np.float32),
  )
  return path


def command(
  stage: str, source: pathlib.Path, workdir: Any, **changes: Any
) -> list[str]:
  """The command of a small run; `changes` are fields, `__` for a dot."""
  fields = {"data.sources": (str(source),)} | SMALL
  for name, initial in STAGES[stage].present().items():
    fields |= {f"model.{name}.{n}": v for n, v in SMALL_TOWER.items()}
    fields[f"init_from.{name}"] = initial
  fields |= {n.replace("__", "."): v for n, v in changes.items()}
  return [
    sys.executable,
    str(ROOT / "train.py"),
    f"--config={ROOT}/configs/{stage}.py:mini",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]


def towers(source: pathlib.Path, root: pathlib.Path) -> dict[str, str]:
  """Train both towers a little: changes of a fusion's command.

  A random tower's last layer is zero, and fusion does not train it.
  """
  workdir = root / "towers"
  words = command("fusion", source, workdir, num_train_steps=4, trainable="all")
  code, said = run(words)
  assert code == 0, said
  checkpoints = str(workdir / stages.CHECKPOINTS)
  return {f"init_from__{name}": checkpoints for name in AV._fields}


def limited(words: list[str], kibibytes: int) -> list[str]:
  """The command where files cannot grow further, as on a disk that is full."""
  return ["bash", "-c", f'ulimit -f {kibibytes}; exec "$@"', "limited", *words]


def run(words: list[str], devices: int = 1) -> tuple[int, str]:
  """Run to the end; returns the exit code and the output."""
  done = subprocess.run(
    words,
    cwd=ROOT,
    env=child_env.environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=LONGEST,
  )
  return done.returncode, done.stdout


class Started:
  """A started run; its output goes to a file.

  Attributes:
    process: train.py, the leader of its own session.
    workdir: of the run.
    began: when, by `time.monotonic`.
  """

  def __init__(
    self,
    words: list[str],
    log: pathlib.Path,
    devices: int = 1,
    folder: pathlib.Path = ROOT,
    **more: Any,
  ):
    name = words[3].removeprefix("--workdir=")
    self.workdir = storage.path(name)
    if not storage.is_remote(name):
      self.workdir = folder / name
    self._log = log
    self._lines = len(_lines(self.workdir))
    with open(log, "w") as file:
      self.process = subprocess.Popen(
        words,
        cwd=folder,
        env=child_env.environment(devices, **more),
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    self.began = time.monotonic()

  @property
  def said(self) -> str:
    return self._log.read_text()

  @property
  def logged(self) -> int:
    """How many steps this start has logged."""
    return len(_lines(self.workdir)) - self._lines

  def wait(self, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, while the run continues."""
    until = time.monotonic() + LONGEST
    while not condition():
      assert self.process.poll() is None, f"it ended: {self.said}"
      assert time.monotonic() < until, f"it takes too long: {self.said}"
      time.sleep(0.003)

  def end(self, number: int = signal.SIGKILL) -> int:
    """Send train.py a signal; the exit code. Nothing else of it may stay."""
    self.process.send_signal(number)
    code = self.process.wait(LONGEST)
    until = time.monotonic() + LONGEST
    while (left := processes(self.process.pid)) and time.monotonic() < until:
      time.sleep(0.02)
    assert not left, f"still running of a run that was ended: {left}"
    return code


@contextlib.contextmanager
def started(words: list[str], log: pathlib.Path) -> Iterator[Started]:
  """A run that ends with the block at the latest."""
  with group([words], log) as (going,):
    yield going


@contextlib.contextmanager
def group(
  commands: Sequence[list[str]],
  log: pathlib.Path,
  devices: int = 1,
  variables: Sequence[Mapping[str, str]] = (),
  folders: Sequence[pathlib.Path] = (),
) -> Iterator[list[Started]]:
  """Processes of one run, one a command; they end with the block.

  Args:
    commands: of each process.
    log: what they say; with a number behind it, if they are several.
    devices: of each process.
    variables: further environment variables of each process.
    folders: working directory of each process; by default the repository's.
  """
  places: list[dict[str, Any]] = [{}]
  if len(commands) > 1:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    places = [
      {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": len(commands),
        "JAX_PROCESS_ID": number,
        "OVI_JAX_JOIN_SECONDS": 120,
        "OVI_JAX_HEARTBEAT_SECONDS": 10,
      }
      for number in range(len(commands))
    ]
  going: list[Started] = []
  try:
    for number, (words, place) in enumerate(zip(commands, places)):
      file = log.with_name(f"{log.name}{number}") if place else log
      more = variables[number] if variables else {}
      folder = folders[number] if folders else ROOT
      going.append(Started(words, file, devices, folder, **place, **more))
    yield going
  finally:
    for each in going:
      if each.process.poll() is None:
        each.process.kill()
        each.process.wait()


def processes(session: int) -> dict[int, str]:
  """The processes of a session that run: number -> command, on Linux."""
  found = {}
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      # Behind the name, which may have blanks: state, parent, group, session.
      words = (path / "stat").read_text().rpartition(")")[2].split()
      if int(words[3]) == session and words[0] != "Z":
        line = (path / "cmdline").read_text().replace("\0", " ")
        found[int(path.name)] = line
  return found


def newest(workdir: epath.Path | pathlib.Path) -> int:
  """The step of the newest checkpoint; 0 if there is none."""
  return max(reader.steps(workdir / stages.CHECKPOINTS), default=0)


def contents(
  workdir: epath.Path | pathlib.Path, step: int = 0
) -> tuple[dict[str, np.ndarray], Any]:
  """What a checkpoint holds, verified: arrays by path, state of the data.

  Args:
    workdir: of the run.
    step: of the checkpoint; 0 for the newest.
  """
  name = str(step or newest(workdir))
  found = reader.read_info(workdir / stages.CHECKPOINTS / name)
  reader.verify(found)
  wanted = {p: np.zeros(k.shape, k.dtype) for p, k in found.leaves.items()}
  return reader.read(found, wanted), found.iterators


def losses(workdir: pathlib.Path) -> list[dict[str, float]]:
  """What depends on records and state alone, of each step that was saved."""
  return [
    {n: v for n, v in line.items() if n == "step" or n.startswith("train/")}
    for line in logs.read(workdir)
    if line["step"] <= newest(workdir)
  ]


def assert_same(ours: pathlib.Path, theirs: pathlib.Path) -> None:
  """Two runs ended at the same step, in the same state, bit by bit."""
  assert_same_states(ours, theirs)
  assert losses(ours) == losses(theirs)
  # Where nothing is learnt, nothing can differ.
  assert all(line["train/grad_norm"] > 0 for line in losses(ours))


def assert_same_states(
  ours: epath.Path | pathlib.Path, theirs: epath.Path | pathlib.Path
) -> None:
  """The newest checkpoints of two runs are equal, bit by bit."""
  assert newest(ours) == newest(theirs)
  (mine, place), (other, there) = contents(ours), contents(theirs)
  assert {"step", "key"} <= mine.keys() and len(mine) > 50
  assert mine.keys() == other.keys()
  different = [p for p in mine if mine[p].tobytes() != other[p].tobytes()]
  assert not different, different
  assert place == there


def assert_close(
  ours: pathlib.Path,
  theirs: pathlib.Path,
  share: float,
) -> None:
  """Two runs ended at the same step, their states within a share of the range.

  The second moments of gradients are compared by their roots, which have the
  units of gradients: the relative error of a square is twice that of its root.

  Args:
    ours: directory of a run.
    theirs: of another.
    share: of the largest value of each array that they may differ by.
  """
  assert newest(ours) == newest(theirs)
  (mine, place), (other, there) = contents(ours), contents(theirs)
  # Every process has the same, however many there are.
  assert all(each == there[0] for each in (*place, *there))
  assert mine.keys() == other.keys()

  def values(path: str, array: np.ndarray) -> np.ndarray:
    array = array.astype("f8")
    return np.sqrt(array) if "/nu/" in path else array

  errors = {}
  for path, array in other.items():
    expected = values(path, array)
    error = np.abs(values(path, mine[path]) - expected).max()
    errors[path] = error / max(np.abs(expected).max(), 1e-30)
  far = {path: error for path, error in errors.items() if not error <= share}
  assert not far, far


def _lines(workdir: epath.Path | pathlib.Path) -> list[str]:
  path = workdir / logs.FILE
  return path.read_text().splitlines() if path.exists() else []
