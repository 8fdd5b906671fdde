"""Files cut into clips by processes, each result kept on disk.

A result is a zip archive under a name that follows from the file and the
settings: `meta.json`, and `0000.mp4`, `0000.pcm`, `0000.png` of each window. It
is there whole or not at all, so that an import can be resumed.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import json
import multiprocessing
import pathlib
import signal
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import process as process_pools
from typing import Any

from ovi_jax import cli
from ovi_jax import files
from ovi_jax.data.from_files import listing
from ovi_jax.data.from_files import settings as settings_lib
from ovi_jax.data.from_files import windows
from ovi_jax.media import container as containers

# Settings that decide what is cut out of a file.
_DECIDING = (
  "audio_only",
  "height",
  "width",
  "fit",
  "frames",
  "seconds",
  "short_clips",
  "long_clips",
  "require_audio",
  "max_upscale",
)
_META = "meta.json"
# No disk, no share of it, no memory: whatever the file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)


def deciding(settings: settings_lib.Settings) -> dict[str, Any]:
  """The settings that determine clips, as JSON."""
  return {
    "version": windows.VERSION,
    **{name: getattr(settings, name) for name in _DECIDING},
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A file to cut.

  Attributes:
    name: of the file, for messages.
    path: of the file.
    target: of the result.
    settings: of the import.
  """

  name: str
  path: pathlib.Path
  target: pathlib.Path
  settings: settings_lib.Settings


def job(
  file: listing.File, folder: pathlib.Path, settings: settings_lib.Settings
) -> Job:
  """The job of a file; its name is a hash of what determines the result."""
  decided = [file.name, file.size, file.modified, deciding(settings)]
  text = json.dumps(decided, sort_keys=True)
  name = hashlib.sha256(text.encode()).hexdigest()[:32]
  return Job(
    name=file.name,
    path=file.path,
    target=folder / f"{name}.zip",
    settings=settings,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """The clips made from a file.

  Attributes:
    path: of the archive.
    digest: sha256 of the file; "" where it was refused.
    facts: of `probe.Facts`.
    windows: of each clip its start, frames, height, width, seconds, and
      whether it has video and audio.
    refused: (where, reason, advice) of the file, or of windows of it.
  """

  path: pathlib.Path
  digest: str
  facts: dict[str, Any]
  windows: tuple[dict[str, Any], ...]
  refused: tuple[tuple[str, str, str], ...]

  @classmethod
  def read(cls, path: pathlib.Path) -> "Result":
    """Read the metadata of a result's archive."""
    with zipfile.ZipFile(path) as archive:
      meta = json.loads(archive.read(_META))
    return cls(
      path=path,
      digest=meta["digest"],
      facts=meta["facts"],
      windows=tuple(meta["windows"]),
      refused=tuple(tuple(each) for each in meta["refused"]),
    )

  def load(self, number: int, kind: str) -> bytes | None:
    """The mp4, pcm or png of a window; `None` if it has none."""
    with zipfile.ZipFile(self.path) as archive:
      name = f"{number:04d}.{kind}"
      return archive.read(name) if name in archive.namelist() else None


def make(job: Job) -> None:
  """Cut a file and write its result.

  Raises:
    OSError: the disk or the memory is full.
  """
  with (
    files.atomic_path(job.target) as temporary,
    zipfile.ZipFile(temporary, "w") as archive,
  ):
    meta = _cut(job, archive)
    archive.writestr(_META, json.dumps(meta, sort_keys=True))


def _cut(job: Job, archive: zipfile.ZipFile) -> dict[str, Any]:
  """Write the windows of a file; returns what is said of them."""
  meta: dict[str, Any] = {
    "digest": "",
    "facts": {},
    "windows": [],
    "refused": [],
  }
  try:
    plan = windows.plan(job.path, job.settings)
    meta["facts"] = dataclasses.asdict(plan.facts)
    for span in plan.spans:
      number = len(meta["windows"])
      try:
        window = windows.cut(job.path, span, job.settings)
      except windows.Unfit as unfit:
        where = f"at {span[0]:.2f} s" if len(plan.spans) > 1 else ""
        meta["refused"].append((where, unfit.reason, unfit.advice))
        continue
      for kind, value in (
        ("mp4", window.video),
        ("pcm", window.audio),
        ("png", window.picture),
      ):
        if value is not None:
          archive.writestr(f"{number:04d}.{kind}", value)
      meta["windows"].append(
        {
          "start": window.start,
          "frames": window.frames,
          "height": window.height,
          "width": window.width,
          "seconds": window.seconds,
          "video": window.video is not None,
          "audio": window.audio is not None,
        }
      )
    meta["digest"] = containers.digest(job.path)
  except windows.Unfit as unfit:
    meta["refused"].append(("", unfit.reason, unfit.advice))
  except OSError as error:
    if error.errno in _FULL:
      raise
    said = error.strerror or str(error)
    refusal = ("", f"cannot be read: {said}", "make it readable, or copy it")
    meta["refused"], meta["windows"] = [refusal], []
  return meta


def run(
  jobs: Sequence[Job],
  num_workers: int,
  done: Callable[[], None] = lambda: None,
  work: Callable[[Job], None] = make,
) -> None:
  """Do all work that is left.

  A process that ends within a decoder ends no import: its file is tried once
  more alone, and refused if it ends its process again.

  Args:
    jobs: those whose target has clips are skipped; refused files are tried
      again.
    num_workers: processes; 0 works in this one.
    done: called for each file.
    work: does a job.

  Raises:
    OSError: the disk or the memory is full.
  """
  left = []
  for each in jobs:
    if _has_clips(each.target):
      done()
    else:
      each.target.unlink(missing_ok=True)
      left.append(each)
  if not num_workers:
    for each in left:
      work(each)
      done()
    return
  for each in list(_together(left, min(num_workers, len(left)), done, work)):
    if list(_together([each], 1, done, work)):
      _refuse(each, "its decoder crashed", "convert it to mp4 with ffmpeg")
      done()


def _has_clips(path: pathlib.Path) -> bool:
  """Whether a result is there, whole, and holds a clip."""
  try:
    return bool(Result.read(path).windows)
  except (FileNotFoundError, KeyError, ValueError, zipfile.BadZipFile):
    return False


def _together(
  jobs: Sequence[Job],
  num_workers: int,
  done: Callable[[], None],
  work: Callable[[Job], None],
) -> Iterator[Job]:
  """Do jobs by processes; yields those under way when one ended."""
  waiting = list(reversed(jobs))
  while waiting:
    running: dict[concurrent.futures.Future, Job] = {}
    with _pool(num_workers) as pool, contextlib.ExitStack() as stack:
      stack.callback(pool.shutdown, wait=False, cancel_futures=True)
      try:
        while waiting or running:
          while waiting and len(running) < num_workers:
            each = waiting.pop()
            running[pool.submit(work, each)] = each
          finished, _ = concurrent.futures.wait(
            running, return_when=concurrent.futures.FIRST_COMPLETED
          )
          for future in finished:
            future.result()
            del running[future]
            done()
      except process_pools.BrokenProcessPool:
        yield from [e for e in running.values() if not e.target.exists()]
        for each in running.values():
          if each.target.exists():
            done()


def _pool(num_workers: int) -> concurrent.futures.ProcessPoolExecutor:
  return concurrent.futures.ProcessPoolExecutor(
    num_workers,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
  )


def _start_worker() -> None:
  """Ctrl-C goes to all processes; the parent says what becomes of it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  cli.exit_with_parent()


def _refuse(job: Job, reason: str, advice: str) -> None:
  """Write the result of a file that nothing is made of."""
  meta = {
    "digest": "",
    "facts": {},
    "windows": [],
    "refused": [("", reason, advice)],
  }
  with (
    files.atomic_path(job.target) as temporary,
    zipfile.ZipFile(temporary, "w") as archive,
  ):
    archive.writestr(_META, json.dumps(meta, sort_keys=True))
