"""Scenes of the synthetic world: objects, words and events.

A `Scene` says all that a clip shows and sounds; pictures, sound and captions
are made of it and of nothing else. Lengths are shares of the picture's side,
with rows downwards; times are seconds.
"""

import dataclasses

import numpy as np

COLOURS = {
  "red": (214, 36, 36),
  "green": (38, 168, 60),
  "blue": (40, 84, 222),
  "yellow": (246, 218, 40),
  "purple": (148, 48, 188),
  "orange": (246, 128, 24),
}
# Colours of balls that no clip of `World` has: something new to learn.
NEW_COLOURS = {"dark": (30, 30, 36)}
MATERIALS = ("wood", "metal", "rubber")
PITCHES = ("low", "middle", "high")
VOWELS = ("ah", "oh", "ee")
VOICES = ("low", "high")
SIZES = ("small", "big")
SKINS = ("pale", "brown")
WALLS = ("cream", "sky", "grey")
BALL, LAMP, FACE = "ball", "lamp", "face"
KINDS = (BALL, LAMP, FACE)

# Pairs of a colour and what it sounds like that training never sees.
HELD_OUT = frozenset(
  [
    ("orange", "metal"),
    ("purple", "wood"),
    ("green", "rubber"),
    ("blue", "high"),
    ("yellow", "low"),
    ("purple", "middle"),
  ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
  """Something that is seen and heard at one moment.

  Attributes:
    seconds: when it begins.
    kind: "impact", "flash" or "mouth".
    row: where, from the top.
    column: where, from the left.
    sound: of `MATERIALS`, `PITCHES` or `VOWELS`.
    strength: loudness, 1 for the loudest.
    length: of the sound, for those that are held; 0 for an impact.
    tone: factor of the sound's frequencies, or Hz of a voice.
  """

  seconds: float
  kind: str
  row: float
  column: float
  sound: str
  strength: float = 1.0
  length: float = 0.0
  tone: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ball:
  """A ball that falls at `start` from where it hangs, and bounces.

  Attributes:
    colour: of `COLOURS` or `NEW_COLOURS`.
    size: of `SIZES`.
    column: of its centre at time 0.
    drift: columns a second.
    height: of its lowest point over the floor at time 0; 0 lies still.
    start: when it begins to fall.
  """

  colour: str
  size: str
  column: float
  drift: float
  height: float
  start: float

  @property
  def rgb(self) -> tuple[int, int, int]:
    return (COLOURS | NEW_COLOURS)[self.colour]

  @property
  def radius(self) -> float:
    return {"small": 0.085, "big": 0.125}[self.size]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """Everything about a clip.

  Attributes:
    kind: of `KINDS`.
    sound: material of the floor, pitch of the lamp, or the face's voice.
    wall: of `WALLS`, behind balls and faces.
    balls: one or two, for "ball".
    colour: of the lamp, of the face's hat, or of the first ball.
    row: of the lamp's or the face's centre.
    column: likewise.
    skin: of `SKINS`.
    events: in order of time; none in a clip that is still and silent.
    seconds: length of the clip.
  """

  kind: str
  sound: str
  colour: str
  seconds: float
  wall: str = WALLS[0]
  balls: tuple[Ball, ...] = ()
  row: float = 0.5
  column: float = 0.5
  skin: str = SKINS[0]
  events: tuple[Event, ...] = ()

  @property
  def words(self) -> tuple[str, ...]:
    """What is said, or the names of the sounds."""
    return tuple(event.sound for event in self.events)

  @property
  def pairs(self) -> frozenset[tuple[str, str]]:
    """Colours with what they sound like."""
    colours = [ball.colour for ball in self.balls] or [self.colour]
    return frozenset((colour, self.sound) for colour in colours)


_JITTER = 0.12  # seconds, either way
_LEAD = (0.25, 0.8)  # seconds before the first
_TAIL = 0.15  # seconds kept after the last has ended


def event_times(
  random: np.random.Generator, count: int, length: float, seconds: float
) -> np.ndarray:
  """Begins of `count` events, each `length` long, that fit into `seconds`.

  They are at least `length` plus 0.2 s apart.
  """
  if not count:
    return np.zeros(0)
  first = random.uniform(*_LEAD)
  room = seconds - first - length - _TAIL
  shortest = length + 0.2 + _JITTER
  period = random.uniform(0.65, 1.05)
  if count > 1:
    period = max(shortest, min(period, room / (count - 0.5)))
  begins = first + period * np.arange(count)
  begins[1:] += random.uniform(-_JITTER, _JITTER, count - 1) / 2
  return begins[begins + length + _TAIL / 2 < seconds]
