"""Logs of a run: one JSON object a line, and TensorBoard event files.

Both hold the same scalars under the same names (`train/loss`); TensorBoard has
frames and sound of samples too. For a run in an object store they are written
to local files, which `flush` uploads. A run that is restarted from an earlier
step logs those steps again; readers take the last.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from typing import Self

import einops
import numpy as np
import tensorboardX
from tensorboardX.proto import summary_pb2

from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.media import wav

FRAMES = 8  # of a clip that are shown
SIDE = 128  # pixels that a shown frame's sides are at most, about
FILE = "metrics.jsonl"
EVENTS = "tensorboard"
_log = logging.getLogger(__name__)


class Writer:
  """Takes the scalars and clips of a run, and drops them.

  Of several processes the first writes (`Logs`), the others have a `Writer`.
  """

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    pass

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    pass

  def event(self, step: int, name: str, values: Mapping[str, Any]) -> None:
    pass

  def clip(
    self,
    step: int,
    name: str,
    frames_THWC: np.ndarray | None,
    wave_A: np.ndarray | None,
  ) -> None:
    pass

  def flush(self) -> None:
    pass


class Logs(Writer):
  """Writes scalars; use it in a `with` block."""

  def __init__(self, directory: str | os.PathLike[str]):
    """Open the files of a run, to add to them.

    Raises:
      OSError: the directory cannot be made or written.
    """
    self._target = storage.locate(directory)
    self._spool = contextlib.ExitStack()
    self._uploaded: dict[pathlib.Path, int] = {}
    if isinstance(self._target, pathlib.Path):
      path = self._target
    else:
      path = self._spool.enter_context(storage.spool())
      self._fetch(self._target, path)
    path.mkdir(parents=True, exist_ok=True)
    self._folder = path
    _end_with_a_line(path / FILE)
    self._lines = open(path / FILE, "a", buffering=1)  # noqa: SIM115
    # tensorboardX names files by seconds: a quick restart would replace one.
    self._events = tensorboardX.SummaryWriter(
      str(path / EVENTS), filename_suffix=f".{secrets.token_hex(4)}"
    )

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    try:
      self._lines.close()
      self._events.close()
      self._upload()
    except OSError:
      # What ended the block says more.
      if kind is None:
        raise
    finally:
      self._spool.close()

  @staticmethod
  def _fetch(source: storage.AnyPath, folder: pathlib.Path) -> None:
    """Copy the lines of an earlier start, which are added to."""
    with (
      contextlib.suppress(FileNotFoundError),
      storage.local_copy(source / FILE) as copy,
    ):
      shutil.copyfile(copy, folder / FILE)

  def _upload(self) -> None:
    """Copy the files that have grown to an object store."""
    if not storage.is_remote(self._target):
      return
    for file in sorted(p for p in self._folder.rglob("*") if p.is_file()):
      size = file.stat().st_size
      if size != self._uploaded.get(file):
        name = file.relative_to(self._folder).as_posix()
        storage.upload(file, self._target / name)
        self._uploaded[file] = size

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    """Write the values of a step; those that are `None` are left out."""
    kept = {n: float(v) for n, v in values.items() if v is not None}
    # JSON has no NaN; non-finite values are written as strings.
    plain = {n: v if math.isfinite(v) else str(v) for n, v in kept.items()}
    self._write_line(step, plain)
    with self._named_errors():
      for name, value in kept.items():
        self._events.add_scalar(name, value, step)

  def event(self, step: int, name: str, values: Mapping[str, Any]) -> None:
    """Write something that happened at a step, as JSON under its name."""
    self._write_line(step, {name: dict(values)})

  def _write_line(self, step: int, values: Mapping[str, Any]) -> None:
    line = {"step": step, "time": round(time.time(), 3)} | dict(values)
    with self._named_errors():
      self._lines.write(json.dumps(line) + "\n")

  @contextlib.contextmanager
  def _named_errors(self) -> Iterator[None]:
    """Add the run's directory, which the system does not name."""
    try:
      yield
    except OSError as error:
      raise OSError(error.errno, error.strerror, str(self._target)) from error

  def clip(
    self,
    step: int,
    name: str,
    frames_THWC: np.ndarray | None,
    wave_A: np.ndarray | None,
  ) -> None:
    """Show a clip in TensorBoard: its frames side by side, and its sound.

    Args:
      step: that it was made at.
      name: of the clip.
      frames_THWC: uint8, some of its frames; `None` without video.
      wave_A: in [-1, 1] at 16 kHz; `None` without sound.
    """
    if frames_THWC is not None:
      strip_HWC = einops.rearrange(frames_THWC, "T H W C -> H (T W) C")
      self._events.add_image(name, strip_HWC, step, dataformats="HWC")
    if wave_A is not None:
      self._add_sound(step, name, wave_A)

  def _add_sound(self, step: int, name: str, wave_A: np.ndarray) -> None:
    """tensorboardX's own `add_audio` needs another library to write a wave."""
    sound = _summary().Audio(
      sample_rate=geometry.SAMPLE_RATE,
      num_channels=1,
      length_frames=len(wave_A),
      encoded_audio_string=wav.encode(wave_A),
      content_type="audio/wav",
    )
    value = _summary().Value(tag=name, audio=sound)
    summary = _summary()(value=[value])
    events: Any = self._events.file_writer
    events.add_summary(summary, step)

  def flush(self) -> None:
    """Bring everything to the disk, or to the object store.

    If the upload fails, the next one repeats it; only the last must succeed.
    """
    self._lines.flush()
    self._events.flush()
    try:
      self._upload()
    except OSError as error:
      _log.warning("logs are not uploaded, trying again later: %s", error)


def _summary() -> Any:
  """TensorBoard's message; protobuf makes its class when it is imported."""
  return getattr(summary_pb2, "Summary")  # noqa: B009  unknown to checkers


class Preview:
  """Passes frames on and keeps a few of them, small, to be shown.

  Attributes:
    kept: uint8 frames, in their order.
  """

  def __init__(self, count: int):
    """`count`: frames there will be."""
    self._every = max(1, count // FRAMES)
    self._seen = 0
    self.kept: list[np.ndarray] = []

  def through(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The chunks of frames_THWC, unchanged."""
    for chunk_THWC in chunks:
      for frame_HWC in chunk_THWC:
        if self._seen % self._every == 0 and len(self.kept) < FRAMES:
          stride = -(-max(frame_HWC.shape[:2]) // SIDE)
          self.kept.append(np.array(frame_HWC[::stride, ::stride]))
        self._seen += 1
      yield chunk_THWC


def read(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """What a run's log says of each step, sorted; of each name the last value.

  A last line that a kill cut short is left out. Without a file, as before the
  first upload of a run in an object store, the result is empty.

  Raises:
    OSError: the file cannot be read.
  """
  path = storage.locate(directory) / FILE
  latest: dict[int, dict[str, Any]] = {}
  try:
    with storage.read_errors(path):
      text = path.read_text()
  except FileNotFoundError:
    return []
  for line in text.splitlines():
    try:
      values = json.loads(line)
    except json.JSONDecodeError:
      continue
    latest.setdefault(values["step"], {}).update(values)
  return [latest[step] for step in sorted(latest)]


def _end_with_a_line(path: pathlib.Path) -> None:
  """Finish a line that a kill cut short, so the next is one of its own."""
  if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
    with open(path, "a") as file:
      file.write("\n")
