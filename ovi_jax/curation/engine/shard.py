"""The work of a pass on one shard, in this process.

In: the lines that the stage before left. Out: lines, kept bytes and a mark for
each stage, or why the shard could not be done. Clips go through a pass one
after another, so that a clip's media are decoded once and then forgotten; a
stage of form "shard" gets them together.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage as stages
from ovi_jax.curation.engine import failures
from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import storage
from ovi_jax.curation.media import clip_media

MAX_BATCH_CLIPS = 256  # clips, at most, that a stage of form "shard" is given
# No disk, no share of it, no memory: whatever the clip.
_RESOURCE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
STARTED, FINISHED, PROGRESS = "began", "ended", "passed"
Notify = Callable[[tuple], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What became of a shard.

  Attributes:
    shard: its number.
    seconds: stage -> (clips it was given, seconds they took).
    failure: why it is not done; empty if it is.
    unavailable: something that all shards need is away.
  """

  shard: int
  seconds: Mapping[str, tuple[int, float]] = dataclasses.field(
    default_factory=dict
  )
  failure: str = ""
  unavailable: bool = False


_EXCLUDED_FIELDS = {
  "clips": lambda value: (
    isinstance(value, dict)
    and all(
      isinstance(why, list)
      and len(why) == 2
      and all(map(shard_store.is_text, why))
      for why in value.values()
    )
  ),
  "one_by_one": lambda value: isinstance(value, bool),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExcludedClips:
  """Clips of a shard that a stage is not given any more.

  Attributes:
    clips: id -> (reason, detail); the process that worked on them had to be
      ended, or ended by itself.
    one_by_one: the stage is given each clip by itself, to find the one.
  """

  clips: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  one_by_one: bool = False

  @classmethod
  def read(cls, files: shard_store.ShardFiles) -> "ExcludedClips":
    """What earlier tries found."""
    found = shard_store.read_stored_json(files.excluded, _EXCLUDED_FIELDS)
    return cls(**found) if found else cls()

  def write(self, files: shard_store.ShardFiles) -> None:
    """Keep it, so that every later try ends in the same bytes."""
    text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)
    storage.write(files.excluded, text.encode() + b"\n")


@dataclasses.dataclass(kw_only=True)
class _StageRun:
  """A stage at work on a shard."""

  stage: curation_settings.Stage
  function: Callable
  files: shard_store.ShardFiles
  opened: shard_store.ShardOutput
  excluded: ExcludedClips
  notify: Notify
  num_input: int = 0
  seconds: float = 0.0

  @contextlib.contextmanager
  def timed(self, ids: Sequence[str]):
    """Say what is being worked on, and count the seconds it takes."""
    self.notify((STARTED, self.stage.name, tuple(ids)))
    began = time.perf_counter()
    try:
      yield
    finally:
      self.seconds += time.perf_counter() - began
      self.notify((FINISHED,))


class _Artifacts(dict[str, bytes]):
  """What is kept of a clip: new names here, older ones where they lie."""

  def __init__(self, clip: clips.Clip, keeper: shard_store.ArtifactReader):
    super().__init__()
    self._clip, self._keeper = clip, keeper

  def __missing__(self, name: str) -> bytes:
    return self._keeper(self._clip, name)


class _LazyCopy(os.PathLike):
  """A file that is copied here when it is asked for."""

  def __init__(self, place: str):
    self._place, self._stack = place, contextlib.ExitStack()
    self._path = ""

  def __fspath__(self) -> str:
    if not self._path:
      self._path = self._stack.enter_context(storage.local_copy(self._place))
    return self._path


def load(part: curation_settings.Pass) -> list[Callable]:
  """The functions of a pass; ValueError names what one needs and has not."""
  return [stage.load() for stage in part.stages]


def is_done(
  settings: curation_settings.Settings, place: int, shard: int
) -> bool:
  """Whether a stage has done a shard, of what now stands before it."""
  found = shard_store.read_marker(settings.shard_files(place, shard))
  before = shard_store.read_marker(settings.shard_files(place - 1, shard))
  return bool(found and before and found.input_hash == before.digest)


def first_pending(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  shard: int,
) -> int | None:
  """Place of the first stage of a pass that has not done a shard, if any."""
  places_of_part = range(part.first_stage, part.first_stage + len(part.stages))
  return next(
    (i for i in places_of_part if not is_done(settings, i, shard)), None
  )


def write_error(files: shard_store.ShardFiles, problem: str) -> None:
  """Write down why a shard could not be done."""
  text = f"{problem.strip()}\n"
  storage.write(files.failed, text.encode(errors="replace"))


def open_media(
  clip: clips.Clip, keeper: shard_store.ArtifactReader
) -> tuple[stages.Media, dict[str, bytes]]:
  """The media of a clip, nothing read yet, and what will be kept of it."""
  kept = _Artifacts(clip, keeper)
  remote = storage.is_remote(clip.path)
  path = _cached_copy(clip.path) if remote else clip.path
  return clip_media.Media(clip, path, kept), kept


@functools.lru_cache(maxsize=1)
def _cached_copy(place: str) -> _LazyCopy:
  """A remote file; windows of one, in a row, share its copy."""
  return _LazyCopy(place)


def process(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  functions: Sequence[Callable],
  shard: int,
  notify: Notify = lambda _: None,
) -> Result:
  """Take a shard through the stages of a pass that have not done it.

  Args:
    settings: of the run.
    part: a pass with stages of form "clip", or one of form "shard".
    functions: of its stages.
    shard: number.
    notify: called with (BEGAN, stage, ids of clips), (ENDED,) and
      (PASSED, clips) along the way.

  Raises:
    OSError: the disk is full, or a folder is not writable.
    ValueError: a file of an earlier pass is damaged or missing.
  """
  first, end = (
    first_pending(settings, part, shard),
    part.first_stage + len(part.stages),
  )
  if first is None:
    return Result(shard=shard)
  before = settings.shard_files(first - 1, shard)
  source = shard_store.read_marker(before)
  came = list(shard_store.read_clips(before))
  assert source is not None, "survivors are read of what is done"
  with contextlib.ExitStack() as stack:
    folders = [settings.shard_files(i, shard).folder for i in range(first)]
    keeper = stack.enter_context(shard_store.open_artifacts(folders, shard))
    steps = [
      _open_stage(
        stack,
        settings,
        place,
        shard,
        functions[place - part.first_stage],
        notify,
      )
      for place in range(first, end)
    ]
    try:
      if part.kind == curation_settings.BATCH:
        _process_batch(steps[0], came, keeper, notify)
      else:
        for clip in came:
          _process_clip(steps, clip, keeper)
          notify((PROGRESS, 1))
    except stages.Unavailable as error:
      write_error(settings.shard_files(first, shard), str(error))
      return Result(shard=shard, failure=str(error), unavailable=True)
    failure = _commit(steps, source.digest, settings.max_failure_rate)
  seconds = {step.stage.name: (step.num_input, step.seconds) for step in steps}
  return Result(shard=shard, seconds=seconds, failure=failure)


def _open_stage(
  stack: contextlib.ExitStack,
  settings: curation_settings.Settings,
  place: int,
  shard: int,
  function: Callable,
  tell: Notify,
) -> _StageRun:
  """A stage with its files opened."""
  files = settings.shard_files(place, shard)
  return _StageRun(
    stage=settings.stages[place],
    function=function,
    files=files,
    opened=stack.enter_context(shard_store.open_output(files)),
    excluded=ExcludedClips.read(files),
    notify=tell,
  )


def _commit(steps: Sequence[_StageRun], source: str, quota: float) -> str:
  """Let the files stand, stage by stage, up to one that failed too often."""
  for step in steps:
    writer = step.opened.writer
    allowed = math.ceil(quota * step.num_input)
    if writer.failed > allowed:
      problem = (
        f"{step.stage.name} failed for {writer.failed} of {step.num_input} clips,"
        f" {allowed} are allowed; the first:"
      )
      write_error(step.files, "\n\n".join([problem, *writer.tracebacks]))
      last = writer.tracebacks[0].strip().splitlines()[-1]
      return f"{problem} {last} (see {step.files.failed})"
    storage.remove(step.files.failed)
    source = step.opened.commit(source).digest
  return ""


def _process_clip(
  steps: Sequence[_StageRun],
  clip: clips.Clip,
  keeper: shard_store.ArtifactReader,
) -> None:
  """Take a clip, and the clips it is cut into, through stages."""
  of_clip, kept = open_media(clip, keeper)
  for position, step in enumerate(steps):
    before = dict(kept)
    lines = _run_stage(step, clip, of_clip)
    new = {n: v for n, v in kept.items() if before.get(n) is not v}
    step.opened.writer.add(clip, lines, new)
    found = [line for line in lines if isinstance(line, clips.Clip)]
    if len(found) != 1 or _window(found[0]) != _window(clip):
      for each in found:
        _process_clip(steps[position + 1 :], each, keeper)
      return
    clip = found[0]


def _window(clip: clips.Clip) -> tuple[str, float, float]:
  """What a clip's media depend on."""
  return clip.id, clip.start, clip.seconds


def _run_stage(
  step: _StageRun, clip: clips.Clip, of_clip: stages.Media
) -> Sequence[shard_store.Line]:
  """What a stage of form "clip" makes of a clip."""
  step.num_input += 1
  if clip.id in step.excluded.clips:
    return [_excluded_reject(step, clip)]
  with step.timed([clip.id]):
    try:
      outcome = step.function(clip, of_clip)
      single = isinstance(outcome, clips.Clip | clips.Reject)
      return _validate([outcome] if single else outcome)
    except stages.Unavailable:
      raise
    # Stages run decoders and users' code on files of any kind: whatever one
    # clip raises is kept as its reject, with the traceback, and counts
    # against the quota. What is the machine's fault goes on up.
    except Exception as error:
      _raise_if_out_of_resources(step, clip, error)
      return [_failure_reject(step, clip, error)]


def _process_batch(
  step: _StageRun,
  came: Sequence[clips.Clip],
  keeper: shard_store.ArtifactReader,
  tell: Notify,
) -> None:
  """Give a stage of form "shard" its clips, and write what it makes of them."""
  size = 1 if step.excluded.one_by_one else MAX_BATCH_CLIPS
  for start in range(0, len(came), size):
    chunk = came[start : start + size]
    opened = [open_media(clip, keeper) for clip in chunk]
    pairs = [
      (clip, of_clip)
      for clip, (of_clip, _) in zip(chunk, opened, strict=True)
      if clip.id not in step.excluded.clips
    ]
    lines = iter(_run_batch(step, pairs))
    for clip, (_, kept) in zip(chunk, opened, strict=True):
      out = clip.id in step.excluded.clips
      line = _excluded_reject(step, clip) if out else next(lines)
      step.opened.writer.add(clip, [line], kept)
    step.num_input += len(chunk)
    tell((PROGRESS, len(chunk)))


def _run_batch(
  step: _StageRun, pairs: Sequence[tuple[clips.Clip, stages.Media]]
) -> list[shard_store.Line]:
  """What a stage makes of clips together; of halves where that fails."""
  if not pairs:
    return []
  with step.timed([clip.id for clip, _ in pairs]):
    try:
      lines = _validate(step.function(pairs))
      if len(lines) != len(pairs):
        raise ValueError(f"{len(lines)} outcomes for {len(pairs)} clips")
      return lines
    except stages.Unavailable:
      raise
    # As above: what the clips raise is kept. Here of all at once, so they are
    # tried again in halves, until it is known whose fault it is.
    except Exception as error:
      # Half as many clips take less memory, one of them no less disk.
      if len(pairs) == 1 or not isinstance(error, MemoryError):
        _raise_if_out_of_resources(step, pairs[0][0], error)
      if len(pairs) == 1:
        return [_failure_reject(step, pairs[0][0], error)]
  middle = len(pairs) // 2
  return _run_batch(step, pairs[:middle]) + _run_batch(step, pairs[middle:])


def _validate(lines: Any) -> list[shard_store.Line]:
  """The lines as they are read again; errors if they are none."""
  wrong = [x for x in lines if not isinstance(x, clips.Clip | clips.Reject)]
  if wrong or not lines:
    raise ValueError(
      "the stage must return a Clip, a Reject, or clips, at least one; got"
      f" {lines!r}"
    )
  return [shard_store.decode(shard_store.encode(line)) for line in lines]


def _excluded_reject(step: _StageRun, clip: clips.Clip) -> clips.Reject:
  """The reject of a clip that is not tried any more."""
  reason, detail = step.excluded.clips[clip.id]
  name = step.stage.name
  return clips.Reject(
    clip=clip, stage=name, reason=reason, detail=detail, failed=True
  )


def _raise_if_out_of_resources(
  step: _StageRun, clip: clips.Clip, error: Exception
) -> None:
  """OSError if it is the machine's fault that a stage failed: it is full."""
  full = isinstance(error, OSError) and error.errno in _RESOURCE_ERRNOS
  if full or isinstance(error, MemoryError):
    # Without a number: who writes files has words of his own for those.
    raise OSError(
      f"the machine is full, said {step.stage.name} of clip {clip.id}"
      f" ({clip.path}): {error}; make room and run again"
    ) from error


def _failure_reject(
  step: _StageRun, clip: clips.Clip, error: Exception
) -> clips.Reject:
  """The reject of a clip that a stage failed on."""
  return clips.Reject(
    clip=clip,
    stage=step.stage.name,
    reason=f"failed: {type(error).__name__}",
    detail=failures.format_error(error),
    failed=True,
  )
