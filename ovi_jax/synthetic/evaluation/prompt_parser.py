"""Parses prompts of the synthetic world, in any wording and tags."""

import dataclasses
import re

from ovi_jax import prompt as prompts
from ovi_jax.synthetic.world import captions
from ovi_jax.synthetic.world import scene

_COLOUR = re.compile(rf"\b({'|'.join(scene.COLOURS)})\b")
_THINGS = {
  scene.BALL: re.compile(r"\bballs?\b"),
  scene.LAMP: re.compile(r"\blamp\b"),
  scene.FACE: re.compile(r"\bface\b"),
}
_SOUNDS = {
  scene.BALL: re.compile(r"\b(knock|tap|clang|ping|ring|thud|thump)s\b"),
  scene.LAMP: re.compile(r"\bbeeps\b"),
  scene.FACE: re.compile(r"\bvoice\b"),
}
_MATERIALS = {
  "wood": re.compile(r"\bwood"),
  "metal": re.compile(r"\bmetal"),
  # Thuds are of rubber, also where nothing says so.
  "rubber": re.compile(r"\brubber\b|\bthuds\b"),
}
_PITCH = re.compile(rf"\b({'|'.join(scene.PITCHES)}) beeps\b")
_VOICES = {
  "low": re.compile(r"\b(low|deep) voice\b"),
  "high": re.compile(r"\b(high|bright) voice\b"),
}
_NUMBER = re.compile(
  rf"\b({'|'.join(captions.NUMBERS)}) (?:times|(?:\w+ )?beeps)\b"
)
_STILL = re.compile(
  r"\blies? still\b|\bstays dark\b|\bdoes not flash\b|\bkeeps quiet\b"
  r"|\bis silent\b"
)
_SILENCE = re.compile(r"\b(silence|nothing|no sound)\b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
  """Contents of a prompt.

  Attributes:
    kind: of `scene.KINDS`; `None` where silence is all that is said.
    colours: of one ball or two, the lamp or the hat; empty without a picture.
    sound: of `scene.MATERIALS`, `PITCHES` or `VOICES`; `None` if unsaid.
    vowels: that are said, in order.
    count: of flashes or vowels, or 0 where nothing happens; `None` if unsaid.
    silent: whether silence is asked for.
  """

  kind: str | None
  colours: tuple[str, ...] = ()
  sound: str | None = None
  vowels: tuple[str, ...] = ()
  count: int | None = None
  silent: bool = False


def facts(prompt: str) -> Facts:
  """Read a prompt.

  Raises:
    ValueError: it is no prompt of the world.
  """
  parts = prompts.parse(prompt)
  sound_text = " ".join(p.text for p in parts if p.is_sound).lower()
  seen = " ".join(p.text for p in parts if not p.tag).lower()
  speech = next((p.text for p in parts if p.tag == prompts.SPEECH), "")
  kind = _first(_THINGS, seen) or _first(_SOUNDS, f"{seen} {sound_text}")
  silent = bool(_SILENCE.search(sound_text))
  vowels = tuple(speech.split())
  if (kind is None and not silent) or set(vowels) - set(scene.VOWELS):
    raise ValueError(
      f"{prompt!r} is no prompt of the world; expected one such as"
      ' "A red lamp flashes two times. Audio: low beeps."; make some with'
      " `python -m ovi_jax.synthetic.evaluation prompts`, or score clips of"
      " any prompt with `python -m ovi_jax.evaluation run`"
    )
  return Facts(
    kind=kind,
    colours=tuple(dict.fromkeys(_COLOUR.findall(seen))),
    sound=_sound(kind, seen, sound_text),
    vowels=vowels,
    count=_count(seen, sound_text, vowels),
    silent=silent,
  )


def _sound(kind: str | None, seen: str, sound_text: str) -> str | None:
  """Material, pitch or voice."""
  if kind == scene.BALL:
    return _first(_MATERIALS, f"{seen} {sound_text}")
  if kind == scene.FACE:
    return _first(_VOICES, sound_text)
  pitch = _PITCH.search(sound_text)
  return pitch[1] if pitch else None


def _count(seen: str, sound_text: str, vowels: tuple[str, ...]) -> int | None:
  if _STILL.search(seen):
    return 0
  number = _NUMBER.search(seen) or _NUMBER.search(sound_text)
  if number:
    return captions.NUMBERS.index(number[1])
  return len(vowels) or None


def _first(patterns: dict[str, re.Pattern[str]], text: str) -> str | None:
  """The name of the first pattern that is in a text."""
  return next((n for n, p in patterns.items() if p.search(text)), None)
