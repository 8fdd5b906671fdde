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

AT_ONCE = 256  # clips, at most, that a stage of form "shard" is given
# No disk, no share of it, no memory: whatever the clip.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
BEGAN, ENDED, PASSED = "began", "ended", "passed"
Tell = Callable[[tuple], None]


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


_LEFT_OUT = {
  "clips": lambda value: (
    isinstance(value, dict)
    and all(
      isinstance(why, list)
      and len(why) == 2
      and all(map(shard_store.is_text, why))
      for why in value.values()
    )
  ),
  "alone": lambda value: isinstance(value, bool),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
  """Clips of a shard that a stage is not given any more.

  Attributes:
    clips: id -> (reason, detail); the process that worked on them had to be
      ended, or ended by itself.
    alone: the stage is given each clip by itself, to find the one.
  """

  clips: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  alone: bool = False

  @classmethod
  def read(cls, files: shard_store.Files) -> "LeftOut":
    """What earlier tries found."""
    found = shard_store.stored_json(files.left_out, _LEFT_OUT)
    return cls(**found) if found else cls()

  def write(self, files: shard_store.Files) -> None:
    """Keep it, so that every later try ends in the same bytes."""
    text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)
    storage.write(files.left_out, text.encode() + b"\n")


@dataclasses.dataclass(kw_only=True)
class _Step:
  """A stage at work on a shard."""

  stage: curation_settings.Stage
  function: Callable
  files: shard_store.Files
  opened: shard_store.Open
  left_out: LeftOut
  tell: Tell
  came: int = 0
  seconds: float = 0.0

  @contextlib.contextmanager
  def timed(self, ids: Sequence[str]):
    """Say what is being worked on, and count the seconds it takes."""
    self.tell((BEGAN, self.stage.name, tuple(ids)))
    began = time.perf_counter()
    try:
      yield
    finally:
      self.seconds += time.perf_counter() - began
      self.tell((ENDED,))


class _Kept(dict[str, bytes]):
  """What is kept of a clip: new names here, older ones where they lie."""

  def __init__(self, clip: clips.Clip, keeper: shard_store.Keeper):
    super().__init__()
    self._clip, self._keeper = clip, keeper

  def __missing__(self, name: str) -> bytes:
    return self._keeper(self._clip, name)


class _Remote(os.PathLike):
  """A file that is copied here when it is asked for."""

  def __init__(self, place: str):
    self._place, self._stack = place, contextlib.ExitStack()
    self._path = ""

  def __fspath__(self) -> str:
    if not self._path:
      self._path = self._stack.enter_context(storage.local(self._place))
    return self._path


def load(part: curation_settings.Pass) -> list[Callable]:
  """The functions of a pass; ValueError names what one needs and has not."""
  return [stage.load() for stage in part.stages]


def is_done(
  settings: curation_settings.Settings, place: int, shard: int
) -> bool:
  """Whether a stage has done a shard, of what now stands before it."""
  found = shard_store.mark(settings.files(place, shard))
  before = shard_store.mark(settings.files(place - 1, shard))
  return bool(found and before and found.source == before.digest)


def undone(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  shard: int,
) -> int | None:
  """Place of the first stage of a pass that has not done a shard, if any."""
  places_of_part = range(part.first, part.first + len(part.stages))
  return next(
    (i for i in places_of_part if not is_done(settings, i, shard)), None
  )


def say_why(files: shard_store.Files, problem: str) -> None:
  """Write down why a shard could not be done."""
  text = f"{problem.strip()}\n"
  storage.write(files.failed, text.encode(errors="replace"))


def media(
  clip: clips.Clip, keeper: shard_store.Keeper
) -> tuple[stages.Media, dict[str, bytes]]:
  """The media of a clip, nothing read yet, and what will be kept of it."""
  kept = _Kept(clip, keeper)
  remote = storage.is_remote(clip.path)
  path = _remote(clip.path) if remote else clip.path
  return clip_media.Media(clip, path, kept), kept


@functools.lru_cache(maxsize=1)
def _remote(place: str) -> _Remote:
  """A remote file; windows of one, in a row, share its copy."""
  return _Remote(place)


def work(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  functions: Sequence[Callable],
  shard: int,
  tell: Tell = lambda _: None,
) -> Result:
  """Take a shard through the stages of a pass that have not done it.

  Args:
    settings: of the run.
    part: a pass with stages of form "clip", or one of form "shard".
    functions: of its stages.
    shard: number.
    tell: called with (BEGAN, stage, ids of clips), (ENDED,) and
      (PASSED, clips) along the way.

  Raises:
    OSError: the disk is full, or a folder is not writable.
    ValueError: a file of an earlier pass is damaged or missing.
  """
  first, end = undone(settings, part, shard), part.first + len(part.stages)
  if first is None:
    return Result(shard=shard)
  before = settings.files(first - 1, shard)
  source = shard_store.mark(before)
  came = list(shard_store.survivors(before))
  assert source is not None, "survivors are read of what is done"
  with contextlib.ExitStack() as stack:
    folders = [settings.files(i, shard).folder for i in range(first)]
    keeper = stack.enter_context(shard_store.keeper(folders, shard))
    steps = [
      _step(stack, settings, place, shard, functions[place - part.first], tell)
      for place in range(first, end)
    ]
    try:
      if part.kind == curation_settings.SHARD:
        _together(steps[0], came, keeper, tell)
      else:
        for clip in came:
          _through(steps, clip, keeper)
          tell((PASSED, 1))
    except stages.Unavailable as error:
      say_why(settings.files(first, shard), str(error))
      return Result(shard=shard, failure=str(error), unavailable=True)
    failure = _commit(steps, source.digest, settings.quota)
  seconds = {step.stage.name: (step.came, step.seconds) for step in steps}
  return Result(shard=shard, seconds=seconds, failure=failure)


def _step(
  stack: contextlib.ExitStack,
  settings: curation_settings.Settings,
  place: int,
  shard: int,
  function: Callable,
  tell: Tell,
) -> _Step:
  """A stage with its files opened."""
  files = settings.files(place, shard)
  return _Step(
    stage=settings.stages[place],
    function=function,
    files=files,
    opened=stack.enter_context(shard_store.writing(files)),
    left_out=LeftOut.read(files),
    tell=tell,
  )


def _commit(steps: Sequence[_Step], source: str, quota: float) -> str:
  """Let the files stand, stage by stage, up to one that failed too often."""
  for step in steps:
    writer = step.opened.writer
    allowed = math.ceil(quota * step.came)
    if writer.failed > allowed:
      problem = (
        f"{step.stage.name} failed for {writer.failed} of {step.came} clips,"
        f" {allowed} are allowed; the first:"
      )
      say_why(step.files, "\n\n".join([problem, *writer.tracebacks]))
      last = writer.tracebacks[0].strip().splitlines()[-1]
      return f"{problem} {last} (see {step.files.failed})"
    storage.remove(step.files.failed)
    source = step.opened.commit(source).digest
  return ""


def _through(
  steps: Sequence[_Step], clip: clips.Clip, keeper: shard_store.Keeper
) -> None:
  """Take a clip, and the clips it is cut into, through stages."""
  of_clip, kept = media(clip, keeper)
  for position, step in enumerate(steps):
    before = dict(kept)
    lines = _outcome(step, clip, of_clip)
    new = {n: v for n, v in kept.items() if before.get(n) is not v}
    step.opened.writer.add(clip, lines, new)
    found = [line for line in lines if isinstance(line, clips.Clip)]
    if len(found) != 1 or _window(found[0]) != _window(clip):
      for each in found:
        _through(steps[position + 1 :], each, keeper)
      return
    clip = found[0]


def _window(clip: clips.Clip) -> tuple[str, float, float]:
  """What a clip's media depend on."""
  return clip.id, clip.start, clip.seconds


def _outcome(
  step: _Step, clip: clips.Clip, of_clip: stages.Media
) -> Sequence[shard_store.Line]:
  """What a stage of form "clip" makes of a clip."""
  step.came += 1
  if clip.id in step.left_out.clips:
    return [_left_out(step, clip)]
  with step.timed([clip.id]):
    try:
      outcome = step.function(clip, of_clip)
      single = isinstance(outcome, clips.Clip | clips.Reject)
      return _checked([outcome] if single else outcome)
    except stages.Unavailable:
      raise
    # Stages run decoders and users' code on files of any kind: whatever one
    # clip raises is kept as its reject, with the traceback, and counts
    # against the quota. What is the machine's fault goes on up.
    except Exception as error:
      _stop_if_full(step, clip, error)
      return [_failure(step, clip, error)]


def _together(
  step: _Step,
  came: Sequence[clips.Clip],
  keeper: shard_store.Keeper,
  tell: Tell,
) -> None:
  """Give a stage of form "shard" its clips, and write what it makes of them."""
  size = 1 if step.left_out.alone else AT_ONCE
  for start in range(0, len(came), size):
    chunk = came[start : start + size]
    opened = [media(clip, keeper) for clip in chunk]
    pairs = [
      (clip, of_clip)
      for clip, (of_clip, _) in zip(chunk, opened, strict=True)
      if clip.id not in step.left_out.clips
    ]
    lines = iter(_outcomes(step, pairs))
    for clip, (_, kept) in zip(chunk, opened, strict=True):
      out = clip.id in step.left_out.clips
      line = _left_out(step, clip) if out else next(lines)
      step.opened.writer.add(clip, [line], kept)
    step.came += len(chunk)
    tell((PASSED, len(chunk)))


def _outcomes(
  step: _Step, pairs: Sequence[tuple[clips.Clip, stages.Media]]
) -> list[shard_store.Line]:
  """What a stage makes of clips together; of halves where that fails."""
  if not pairs:
    return []
  with step.timed([clip.id for clip, _ in pairs]):
    try:
      lines = _checked(step.function(pairs))
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
        _stop_if_full(step, pairs[0][0], error)
      if len(pairs) == 1:
        return [_failure(step, pairs[0][0], error)]
  middle = len(pairs) // 2
  return _outcomes(step, pairs[:middle]) + _outcomes(step, pairs[middle:])


def _checked(lines: Any) -> list[shard_store.Line]:
  """The lines as they are read again; errors if they are none."""
  wrong = [x for x in lines if not isinstance(x, clips.Clip | clips.Reject)]
  if wrong or not lines:
    raise ValueError(
      "the stage must return a Clip, a Reject, or clips, at least one; got"
      f" {lines!r}"
    )
  return [shard_store.decode(shard_store.encode(line)) for line in lines]


def _left_out(step: _Step, clip: clips.Clip) -> clips.Reject:
  """The reject of a clip that is not tried any more."""
  reason, detail = step.left_out.clips[clip.id]
  name = step.stage.name
  return clips.Reject(
    clip=clip, stage=name, reason=reason, detail=detail, failed=True
  )


def _stop_if_full(step: _Step, clip: clips.Clip, error: Exception) -> None:
  """OSError if it is the machine's fault that a stage failed: it is full."""
  full = isinstance(error, OSError) and error.errno in _FULL
  if full or isinstance(error, MemoryError):
    # Without a number: who writes files has words of his own for those.
    raise OSError(
      f"the machine is full, said {step.stage.name} of clip {clip.id}"
      f" ({clip.path}): {error}; make room and run again"
    ) from error


def _failure(step: _Step, clip: clips.Clip, error: Exception) -> clips.Reject:
  """The reject of a clip that a stage failed on."""
  return clips.Reject(
    clip=clip,
    stage=step.stage.name,
    reason=f"failed: {type(error).__name__}",
    detail=failures.told(error),
    failed=True,
  )
