"""Runs a pass on one shard, in this process.

Reads the lines of the previous stage. Writes lines, artifacts and a `.done`
marker for each stage, or the error of the shard. Clips pass through all stages
of a pass one by one, so that a clip's media is decoded once and then freed. A
"batch" stage receives up to `MAX_BATCH_CLIPS` clips at once.
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

MAX_BATCH_CLIPS = 256  # per call of a "batch" stage
# Disk full, quota exceeded, out of memory: independent of the clip.
_RESOURCE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
STARTED, FINISHED, PROGRESS = "started", "finished", "progress"
Notify = Callable[[tuple], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """The result of processing a shard.

  Attributes:
    shard: shard index.
    seconds: stage -> (number of clips, seconds).
    failure: error message; empty if the shard is complete.
    unavailable: a dependency of all shards is unavailable.
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
  """Clips of a shard that a stage does not process any more.

  Attributes:
    clips: id -> (reason, detail) of clips that hung or crashed the worker.
    one_by_one: process clips singly, to find the one that crashes.
  """

  clips: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  one_by_one: bool = False

  @classmethod
  def read(cls, files: shard_store.ShardFiles) -> "ExcludedClips":
    """The excluded clips recorded by earlier attempts."""
    found = shard_store.read_stored_json(files.excluded, _EXCLUDED_FIELDS)
    return cls(**found) if found else cls()

  def write(self, files: shard_store.ShardFiles) -> None:
    """Record them, so that later attempts give the same bytes."""
    text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)
    storage.write(files.excluded, text.encode() + b"\n")


@dataclasses.dataclass(kw_only=True)
class _StageRun:
  """A stage and its open output for one shard."""

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
    """Notify start and finish, and add up the seconds."""
    self.notify((STARTED, self.stage.name, tuple(ids)))
    start = time.perf_counter()
    try:
      yield
    finally:
      self.seconds += time.perf_counter() - start
      self.notify((FINISHED,))


class _Artifacts(dict[str, bytes]):
  """Artifacts of a clip: new ones in memory, earlier ones read on demand."""

  def __init__(
    self, clip: clips.Clip, read_artifact: shard_store.ArtifactReader
  ):
    super().__init__()
    self._clip, self._read_artifact = clip, read_artifact

  def __missing__(self, name: str) -> bytes:
    return self._read_artifact(self._clip, name)


class _LazyCopy(os.PathLike):
  """A remote file that is copied to this machine on first use."""

  def __init__(self, stage_index: str):
    self._place, self._stack = stage_index, contextlib.ExitStack()
    self._path = ""

  def __fspath__(self) -> str:
    if not self._path:
      copy = self._stack.enter_context(storage.local_copy(self._place))
      self._path = str(copy)
    return self._path


def load(pass_: curation_settings.Pass) -> list[Callable]:
  """The stage functions of a pass; ValueError if a requirement is missing."""
  return [stage.load() for stage in pass_.stages]


def is_done(
  settings: curation_settings.Settings, stage_index: int, shard: int
) -> bool:
  """Whether a stage has completed a shard for its current input."""
  found = shard_store.read_marker(settings.shard_files(stage_index, shard))
  before = shard_store.read_marker(settings.shard_files(stage_index - 1, shard))
  return bool(found and before and found.input_hash == before.digest)


def first_pending(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  shard: int,
) -> int | None:
  """Index of the first stage of a pass that has not completed a shard."""
  stage_indices = range(
    pass_.first_stage, pass_.first_stage + len(pass_.stages)
  )
  return next(
    (i for i in stage_indices if not is_done(settings, i, shard)), None
  )


def write_error(files: shard_store.ShardFiles, problem: str) -> None:
  """Write the error of a shard to its `.failed` file."""
  text = f"{problem.strip()}\n"
  storage.write(files.failed, text.encode(errors="replace"))


def open_media(
  clip: clips.Clip, read_artifact: shard_store.ArtifactReader
) -> tuple[stages.Media, dict[str, bytes]]:
  """The media of a clip, decoded on demand, and its artifacts."""
  kept = _Artifacts(clip, read_artifact)
  remote = storage.is_remote(clip.path)
  path = _cached_copy(clip.path) if remote else clip.path
  return clip_media.Media(clip, path, kept), kept


@functools.lru_cache(maxsize=1)
def _cached_copy(stage_index: str) -> _LazyCopy:
  """A remote file; consecutive windows of it share one copy."""
  return _LazyCopy(stage_index)


def process(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  functions: Sequence[Callable],
  shard: int,
  notify: Notify = lambda _: None,
) -> Result:
  """Run the pending stages of a pass on a shard.

  Args:
    settings: settings of the run.
    pass_: a pass of "clip" stages, or of one "batch" stage.
    functions: functions of its stages.
    shard: shard index.
    notify: called with (STARTED, stage, clip ids), (FINISHED,) and
      (PROGRESS, number of clips).

  Raises:
    OSError: the disk is full, or a folder is not writable.
    ValueError: a file of an earlier pass is damaged or missing.
  """
  first, end = (
    first_pending(settings, pass_, shard),
    pass_.first_stage + len(pass_.stages),
  )
  if first is None:
    return Result(shard=shard)
  before = settings.shard_files(first - 1, shard)
  marker = shard_store.read_marker(before)
  input_clips = list(shard_store.read_clips(before))
  assert marker is not None, "read_clips raises without a marker"
  with contextlib.ExitStack() as stack:
    folders = [settings.shard_files(i, shard).folder for i in range(first)]
    read_artifact = stack.enter_context(
      shard_store.open_artifacts(folders, shard)
    )
    steps = [
      _open_stage(
        stack,
        settings,
        stage_index,
        shard,
        functions[stage_index - pass_.first_stage],
        notify,
      )
      for stage_index in range(first, end)
    ]
    try:
      if pass_.kind == curation_settings.BATCH:
        _process_batch(steps[0], input_clips, read_artifact, notify)
      else:
        for clip in input_clips:
          _process_clip(steps, clip, read_artifact)
          notify((PROGRESS, 1))
    except stages.Unavailable as error:
      write_error(settings.shard_files(first, shard), str(error))
      return Result(shard=shard, failure=str(error), unavailable=True)
    failure = _commit(steps, marker.digest, settings.max_failure_rate)
  seconds = {step.stage.name: (step.num_input, step.seconds) for step in steps}
  return Result(shard=shard, seconds=seconds, failure=failure)


def _open_stage(
  stack: contextlib.ExitStack,
  settings: curation_settings.Settings,
  stage_index: int,
  shard: int,
  function: Callable,
  notify: Notify,
) -> _StageRun:
  """Open the output of a stage."""
  files = settings.shard_files(stage_index, shard)
  return _StageRun(
    stage=settings.stages[stage_index],
    function=function,
    files=files,
    opened=stack.enter_context(shard_store.open_output(files)),
    excluded=ExcludedClips.read(files),
    notify=notify,
  )


def _commit(
  steps: Sequence[_StageRun], input_hash: str, max_failure_rate: float
) -> str:
  """Publish outputs, stage by stage, up to one with too many failures."""
  for step in steps:
    writer = step.opened.writer
    allowed = math.ceil(max_failure_rate * step.num_input)
    if writer.failed > allowed:
      problem = (
        f"{step.stage.name} failed for {writer.failed} of {step.num_input}"
        f" clips, {allowed} are allowed; first error:"
      )
      write_error(step.files, "\n\n".join([problem, *writer.tracebacks]))
      last = writer.tracebacks[0].strip().splitlines()[-1]
      return f"{problem} {last} (see {step.files.failed})"
    storage.remove(step.files.failed)
    input_hash = step.opened.commit(input_hash).digest
  return ""


def _process_clip(
  steps: Sequence[_StageRun],
  clip: clips.Clip,
  read_artifact: shard_store.ArtifactReader,
) -> None:
  """Run stages on a clip, and on the clips it is split into."""
  media, kept = open_media(clip, read_artifact)
  for position, step in enumerate(steps):
    before = dict(kept)
    lines = _run_stage(step, clip, media)
    new = {n: v for n, v in kept.items() if before.get(n) is not v}
    step.opened.writer.add(clip, lines, new)
    found = [line for line in lines if isinstance(line, clips.Clip)]
    if len(found) != 1 or _window(found[0]) != _window(clip):
      for each in found:
        _process_clip(steps[position + 1 :], each, read_artifact)
      return
    clip = found[0]


def _window(clip: clips.Clip) -> tuple[str, float, float]:
  """The fields that determine a clip's media."""
  return clip.id, clip.start, clip.seconds


def _run_stage(
  step: _StageRun, clip: clips.Clip, media: stages.Media
) -> Sequence[shard_store.Line]:
  """The output of a "clip" stage for a clip."""
  step.num_input += 1
  if clip.id in step.excluded.clips:
    return [_excluded_reject(step, clip)]
  with step.timed([clip.id]):
    try:
      outcome = step.function(clip, media)
      single = isinstance(outcome, clips.Clip | clips.Reject)
      return _validate([outcome] if single else outcome)
    except stages.Unavailable:
      raise
    # Stages run decoders and user code on arbitrary files: any exception of a
    # clip becomes its reject, with the traceback, and counts towards
    # `max_failure_rate`. Resource errors are raised.
    except Exception as error:
      _raise_if_out_of_resources(step, clip, error)
      return [_failure_reject(step, clip, error)]


def _process_batch(
  step: _StageRun,
  input_clips: Sequence[clips.Clip],
  read_artifact: shard_store.ArtifactReader,
  notify: Notify,
) -> None:
  """Run a "batch" stage on the clips, and write its output."""
  size = 1 if step.excluded.one_by_one else MAX_BATCH_CLIPS
  for start in range(0, len(input_clips), size):
    chunk = input_clips[start : start + size]
    opened = [open_media(clip, read_artifact) for clip in chunk]
    pairs = [
      (clip, media)
      for clip, (media, _) in zip(chunk, opened, strict=True)
      if clip.id not in step.excluded.clips
    ]
    lines = iter(_run_batch(step, pairs))
    for clip, (_, kept) in zip(chunk, opened, strict=True):
      is_excluded = clip.id in step.excluded.clips
      line = _excluded_reject(step, clip) if is_excluded else next(lines)
      step.opened.writer.add(clip, [line], kept)
    step.num_input += len(chunk)
    notify((PROGRESS, len(chunk)))


def _run_batch(
  step: _StageRun, pairs: Sequence[tuple[clips.Clip, stages.Media]]
) -> list[shard_store.Line]:
  """The output of a stage for a batch; bisected where the batch fails."""
  if not pairs:
    return []
  with step.timed([clip.id for clip, _ in pairs]):
    try:
      lines = _validate(step.function(pairs))
      if len(lines) != len(pairs):
        raise ValueError(f"{len(lines)} results for {len(pairs)} clips")
      return lines
    except stages.Unavailable:
      raise
    # As in `_run_stage`. The batch is bisected to find the failing clip.
    except Exception as error:
      # A smaller batch needs less memory, but no less disk.
      if len(pairs) == 1 or not isinstance(error, MemoryError):
        _raise_if_out_of_resources(step, pairs[0][0], error)
      if len(pairs) == 1:
        return [_failure_reject(step, pairs[0][0], error)]
  middle = len(pairs) // 2
  return _run_batch(step, pairs[:middle]) + _run_batch(step, pairs[middle:])


def _validate(lines: Any) -> list[shard_store.Line]:
  """The lines after a JSON round trip; ValueError if they are invalid."""
  wrong = [x for x in lines if not isinstance(x, clips.Clip | clips.Reject)]
  if wrong or not lines:
    raise ValueError(
      "the stage must return a Clip, a Reject, or clips, at least one; got"
      f" {lines!r}"
    )
  return [shard_store.decode(shard_store.encode(line)) for line in lines]


def _excluded_reject(step: _StageRun, clip: clips.Clip) -> clips.Reject:
  """The reject of an excluded clip."""
  reason, detail = step.excluded.clips[clip.id]
  name = step.stage.name
  return clips.Reject(
    clip=clip, stage=name, reason=reason, detail=detail, failed=True
  )


def _raise_if_out_of_resources(
  step: _StageRun, clip: clips.Clip, error: Exception
) -> None:
  """OSError if a stage failed because disk or memory is exhausted."""
  full = isinstance(error, OSError) and error.errno in _RESOURCE_ERRNOS
  if full or isinstance(error, MemoryError):
    # Without an errno, so that the message is printed unchanged.
    raise OSError(
      f"out of disk or memory in {step.stage.name}, clip {clip.id}"
      f" ({clip.path}): {error}; free some and run again"
    ) from error


def _failure_reject(
  step: _StageRun, clip: clips.Clip, error: Exception
) -> clips.Reject:
  """The reject of a clip that raised an exception."""
  return clips.Reject(
    clip=clip,
    stage=step.stage.name,
    reason=f"failed: {type(error).__name__}",
    detail=failures.format_error(error),
    failed=True,
  )
