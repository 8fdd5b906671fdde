"""The report on a folder of clips: what was asked for, seen and heard.

Every `*.mp4` has its recipe beside it, as `sample.py` writes it; only the
prompt in it is read. All else is from the mp4.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from ovi_jax.media import mp4
from ovi_jax.sampling import outputs
from ovi_jax.synthetic.evaluation import audio_detectors
from ovi_jax.synthetic.evaluation import prompt_parser as facts_lib
from ovi_jax.synthetic.evaluation import scores
from ovi_jax.synthetic.evaluation import sync
from ovi_jax.synthetic.evaluation import video_detectors
from ovi_jax.synthetic.world import scene

# Of a clip's frames, decoded: 121 of 832x832. Scoring makes several copies of
# them in float32.
_MAX_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """A clip: what was asked for, what is seen, what is heard."""

  name: str
  prompt: str
  facts: facts_lib.Facts
  seen: video_detectors.Seen
  detected_sounds: tuple[audio_detectors.DetectedSound, ...]
  seconds: float

  @property
  def track(self) -> sync.Track:
    return sync.Track(
      kind=str(self.facts.kind),
      events=self.seen.events,
      sounds=tuple(each.seconds for each in self.detected_sounds),
      seconds=self.seconds,
    )


def read(folder: pathlib.Path) -> list[Clip]:
  """Look at and listen to all clips of a folder, by name.

  Raises:
    ValueError: there are none, some lack a recipe or a prompt of the world, or
      some are no films of square pictures, or too large or long; all of those
      are named.
  """
  if not folder.is_dir():
    raise ValueError(f"{folder}: there is no such folder of clips")
  paths = sorted(folder.glob("*.mp4"))
  if not paths:
    raise ValueError(f"{folder} has no *.mp4; make some with sample.py")
  prompts, problems = {}, []
  for path in paths:
    try:
      prompts[path] = outputs.prompt_of(path)
      facts_lib.facts(prompts[path])
    except ValueError as error:
      problems.append(str(error))
  if problems:
    raise ValueError("; ".join(problems))
  clips = []
  for path, prompt in prompts.items():
    try:
      clips.append(_clip(path, prompt))
    except ValueError as error:
      problems.append(str(error))
  if problems:
    raise ValueError("; ".join(problems))
  return clips


def _clip(path: pathlib.Path, prompt: str) -> Clip:
  """A clip; ValueError with the file's name if it is none that is scored."""
  frames_THWC, fps, wave_A, rate = mp4.read(path, max_bytes=_MAX_BYTES)
  count, rows, columns, _ = frames_THWC.shape
  if count < video_detectors.SHORTEST or rows != columns:
    raise ValueError(
      f"{path}: expected square pictures of at least"
      f" {video_detectors.SHORTEST} pixels, got"
      f" {count} of {rows}x{columns}"
    )
  seconds = len(frames_THWC) / fps
  if wave_A is not None and rate:
    seconds = min(seconds, len(wave_A) / rate)
  return Clip(
    name=path.stem,
    prompt=prompt,
    facts=facts_lib.facts(prompt),
    seen=video_detectors.look(frames_THWC, fps),
    detected_sounds=audio_detectors.listen(wave_A, rate) if rate else (),
    seconds=seconds,
  )


def score(clips: Sequence[Clip], seed: int = 0) -> list[scores.Score]:
  """Score clips; `seed` decides whose sound each gets when they are swapped."""
  table = [
    scores.score(name, [part(clip) for clip in clips])
    for name, part in _PARTS.items()
  ]
  tracks = [clip.track for clip in clips]
  own = [sync.count(track) for track in tracks]
  sets = {
    "sync F1": own,
    "sync F1, sound of another": sync.swapped(tracks, seed),
  }
  for name, counts in sets.items():
    for kind in ("", *scene.KINDS):
      parts = [
        f1_part(count) if kind in ("", track.kind) else None
        for count, track in zip(counts, tracks)
      ]
      table.append(scores.score(f"{name}, {kind}" if kind else name, parts))
  table += [
    scores.score(
      "sounds that are seen", [scores.Part(c.matched, c.sounds) for c in own]
    ),
    scores.score(
      "events that are heard", [scores.Part(c.matched, c.events) for c in own]
    ),
    scores.mean("sound later than picture", [*map(sync.offsets, tracks)]),
  ]
  return table


def f1_part(count: sync.Count | None) -> scores.Part | None:
  """What a clip adds to F1: partners, of all events and sounds."""
  if count is None:
    return None
  return scores.Part(2 * count.matched, count.events + count.sounds)


Judge = Callable[[Clip], scores.Part | None]


def _judge(
  applies: Callable[[facts_lib.Facts], object], right: Callable[[Clip], bool]
) -> Judge:
  """Whether a clip is right, of those whose prompt says anything of it."""

  def part(clip: Clip) -> scores.Part | None:
    return scores.Part(right(clip), 1) if applies(clip.facts) else None

  return part


def _sound_of(kind: str) -> Judge:
  """Whether most sounds are of this kind, and of the right one."""

  def right(clip: Clip) -> bool:
    usual = audio_detectors.usual(clip.detected_sounds)
    name = usual and usual.kind == kind and (usual.voice or usual.name)
    return name == clip.facts.sound

  return _judge(lambda f: f.kind == kind and f.sound is not None, right)


def _words(clip: Clip, given: Sequence[str]) -> scores.Part | None:
  """Whether words are those that are asked for."""
  asked = clip.facts.vowels
  if not asked:
    return None
  # One too many counts like one that is wrong.
  of = max(len(asked), len(given))
  return scores.Part(scores.aligned(asked, given), of)


# Without a colour the prompt says nothing of a picture.
_PARTS: dict[str, Judge] = {
  "kind": _judge(lambda f: f.colours, lambda c: c.seen.kind == c.facts.kind),
  "colour": _judge(
    lambda f: f.colours, lambda c: set(c.seen.colours) == set(c.facts.colours)
  ),
  "something happens": _judge(
    lambda f: f.colours and f.count != 0 and not f.silent,
    lambda c: bool(c.seen.events) and bool(c.detected_sounds),
  ),
  "number of events seen": _judge(
    lambda f: f.colours and f.count is not None,
    lambda c: len(c.seen.events) == c.facts.count,
  ),
  "number of sounds heard": _judge(
    lambda f: f.silent or f.count is not None,
    lambda c: (
      len(c.detected_sounds) == (0 if c.facts.silent else c.facts.count)
    ),
  ),
  "material": _sound_of(scene.BALL),
  "pitch": _sound_of(scene.LAMP),
  "voice": _sound_of(scene.FACE),
  "vowels heard": lambda clip: _words(
    clip, [h.sound.name for h in clip.detected_sounds]
  ),
  "vowels seen": lambda clip: _words(clip, clip.seen.shapes),
}


def parts(clip: Clip) -> dict[str, scores.Part]:
  """What a clip adds to each score that applies to it."""
  found = {name: part(clip) for name, part in _PARTS.items()}
  found["sync F1"] = f1_part(sync.count(clip.track))
  return {name: part for name, part in found.items() if part and part.of}


def plain(clips: Sequence[Clip], table: Sequence[scores.Score]) -> Any:
  """Scores and clips as what JSON can hold; NaN becomes null."""

  def valid(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: valid(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
      return [valid(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value

  return valid(
    {
      "scores": [dataclasses.asdict(each) for each in table],
      "clips": [dataclasses.asdict(clip) for clip in clips],
    }
  )


def markdown(table: Sequence[scores.Score]) -> str:
  """The scores as a table."""
  lines = ["| score | | 95 % | clips | of |", "|---|---|---|---|---|"]
  for each in table:
    if not each.clips:
      continue
    scale, digits = (100, 1) if each.unit == "%" else (1, 1)
    value, low, high = (
      f"{number * scale:.{digits}f}"
      for number in (each.value, each.low, each.high)
    )
    lines.append(
      f"| {each.name} | {value} {each.unit} | {low} to {high} |"
      f" {each.clips} | {each.of:.0f} |"
    )
  return "\n".join(lines) + "\n"
