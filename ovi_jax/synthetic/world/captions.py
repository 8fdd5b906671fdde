"""Captions of scenes, in varied wording and both tag formats.

A caption tells what is seen, then what is said (between `<S>` and `<E>`), then
what is heard: after `Audio:`, or between `<AUDCAP>` and `<ENDAUDCAP>`.
"""

from collections.abc import Sequence

import numpy as np

from ovi_jax import prompt as prompts
from ovi_jax.synthetic.world import scene

NUMBERS = ("no", "one", "two", "three", "four", "five")
_FLOOR = {
  "wood": ("a wooden floor", "wood", "wooden planks"),
  "metal": ("a metal floor", "metal", "a metal plate"),
  "rubber": ("a rubber floor", "rubber", "a rubber mat"),
}
_KNOCKS = {
  "wood": ("dull wooden knocks", "hollow knocks on wood", "wooden taps"),
  "metal": ("ringing metal clangs", "bright metallic pings", "metal rings"),
  "rubber": ("soft rubber thuds", "low rubber thumps", "deep soft thuds"),
}
_VOICE = {
  "low": ("a low voice", "a deep voice", "vowels in a low voice"),
  "high": ("a high voice", "a bright voice", "vowels in a high voice"),
}
_UNNAMED_VOICE = ("a voice", "vowels in a voice")
_SILENCE = ("silence", "nothing", "no sound")


def caption(
  shown: scene.Scene,
  random: np.random.Generator,
  *,
  tagged: bool,
  seen: bool = True,
  has_sound: bool = True,
  names_voice: bool = True,
) -> str:
  """Describe a scene.

  Args:
    shown: the scene.
    random: picks the words.
    tagged: the sound between tags; else after `Audio:`.
    seen: whether there is a picture to describe.
    has_sound: whether there is a sound to describe.
    names_voice: whether it is told which voice speaks.
  """
  picture = {scene.BALL: _balls, scene.LAMP: _lamp, scene.FACE: _face}
  parts = []
  if seen:
    parts.append(picture[shown.kind](shown, random))
  elif shown.kind == scene.FACE and shown.events:
    parts.append(
      f"{_pick(random, ('Somebody', 'A voice'))} says {_said(shown)}."
    )
  if has_sound:
    sound = _sound(shown, random, names_voice)
    parts.append(
      prompts.sound(f"{sound[0].upper()}{sound[1:]}.", prompts.SOUND)
      if tagged
      else prompts.sound(f"{sound}.", prompts.SOUND_LINE)
    )
  return " ".join(parts)


def _balls(shown: scene.Scene, random: np.random.Generator) -> str:
  named = [_ball(ball, random) for ball in shown.balls]
  floor = _pick(random, _FLOOR[shown.sound])
  things = " and ".join(named)
  many = len(named) > 1
  if not shown.events:
    text = f"{things} {'lie' if many else 'lies'} still on {floor}."
  elif random.random() < 0.75:
    verb = _pick(random, ("bounce", "jump", "hop"), (0.7, 0.15, 0.15))
    text = f"{things} {verb if many else verb + 's'} on {floor}."
  else:
    text = f"On {floor} {'bounce' if many else 'bounces'} {things}."
  return text[0].upper() + text[1:]


def _ball(ball: scene.Ball, random: np.random.Generator) -> str:
  size = f"{ball.size} " if random.random() < 0.5 else ""
  article = "an" if not size and ball.colour == "orange" else "a"
  return f"{article} {size}{ball.colour} ball"


def _lamp(shown: scene.Scene, random: np.random.Generator) -> str:
  article = "An" if shown.colour == "orange" else "A"
  if not shown.events:
    text = _pick(random, ("stays dark", "does not flash"))
  else:
    count = NUMBERS[len(shown.events)]
    verb = _pick(random, ("flashes", "blinks", "lights up"), (0.6, 0.2, 0.2))
    text = f"{verb} {count} times"
  return f"{article} {shown.colour} lamp {text}."


def _face(shown: scene.Scene, random: np.random.Generator) -> str:
  article = "an" if shown.colour == "orange" else "a"
  face = _pick(random, ("A face", "A cartoon face"))
  wearing = f"{_pick(random, ('with', 'in'))} {article} {shown.colour} hat"
  if not shown.events:
    return f"{face} {wearing} {_pick(random, ('keeps quiet', 'is silent'))}."
  return f"{face} {wearing} says {_said(shown)}."


def _said(shown: scene.Scene) -> str:
  return f"{prompts.SPEECH}{' '.join(shown.words)}{prompts.SPEECH_END}"


def _sound(
  shown: scene.Scene, random: np.random.Generator, names_voice: bool
) -> str:
  if not shown.events:
    return _pick(random, _SILENCE)
  match shown.kind:
    case scene.BALL:
      return _pick(random, _KNOCKS[shown.sound])
    case scene.LAMP:
      count = NUMBERS[len(shown.events)]
      beeps = f"{count} {shown.sound} beeps"
      return _pick(random, (beeps, f"{shown.sound} beeps"), (0.6, 0.4))
  named = _VOICE[shown.sound] if names_voice else _UNNAMED_VOICE
  return _pick(random, named)


def _pick(
  random: np.random.Generator,
  words: Sequence[str],
  shares: Sequence[float] | None = None,
) -> str:
  return words[int(random.choice(len(words), p=shares))]
