"""A cartoon face with a hat that says vowels, its mouth in their shapes."""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from ovi_jax.synthetic.world import draw
from ovi_jax.synthetic.world import scene

COUNTS = (2, 3, 4)
TALKATIVE = (3, 4)
VOWEL = 0.36  # seconds
MOUTH = 0.19  # rows of the mouth below the face's centre
# Half height and half width of the open mouth.
SHAPES = {"ah": (0.095, 0.085), "oh": (0.075, 0.050), "ee": (0.032, 0.125)}
_CLOSED = (0.009, 0.075)
_OPENING = 0.05  # seconds
_SKIN = {"pale": (240, 200, 168), "brown": (160, 106, 72)}
_WALL = {
  "cream": (226, 216, 190),
  "sky": (178, 204, 226),
  "grey": (200, 200, 204),
}
VOICES = {"low": (105, 130), "high": (195, 240)}  # Hz
# High voices of 210 to 226 Hz stay high behind the small model's codecs; of the
# others, a third become low.
CLEAR_VOICES = VOICES | {"high": (210, 226)}
_LIPS, _THROAT, _INK = (176, 52, 60), (58, 10, 20), (34, 26, 30)


def sample(
  random: np.random.Generator,
  seconds: float,
  still: bool,
  counts: Sequence[int] = COUNTS,
  voices: Mapping[str, tuple[float, float]] = VOICES,
) -> scene.Scene:
  """Draw a scene of a face, which keeps quiet or speaks.

  Args:
    random: draws it.
    seconds: of the clip.
    still: whether it keeps quiet.
    counts: numbers of vowels that are drawn from.
    voices: range of the pitch of each of `scene.VOICES`, Hz.
  """
  voice = str(random.choice(scene.VOICES))
  hz = random.uniform(*voices[voice])
  row, column = random.uniform(0.53, 0.57), random.uniform(0.4, 0.6)
  count = 0 if still else int(random.choice(counts))
  events = tuple(
    scene.Event(
      seconds=float(begin),
      kind="mouth",
      row=row + MOUTH,
      column=column,
      sound=str(random.choice(scene.VOWELS)),
      strength=0.8,
      length=VOWEL,
      tone=hz,
    )
    for begin in scene.event_times(random, count, VOWEL, seconds)
  )
  return scene.Scene(
    kind=scene.FACE,
    sound=voice,
    colour=str(random.choice(list(scene.COLOURS))),
    seconds=seconds,
    wall=str(random.choice(scene.WALLS)),
    row=row,
    column=column,
    skin=str(random.choice(scene.SKINS)),
    events=events,
  )


def mouth(events: tuple[scene.Event, ...], seconds_T: np.ndarray):
  """How open the mouth is [T], and half height and half width if open."""
  open_T = np.zeros(len(seconds_T))
  height_T, width_T = (np.full(len(seconds_T), n) for n in _CLOSED)
  for event in events:
    since = seconds_T - event.seconds
    rise = np.clip((since + 1 / 48) / _OPENING, 0, 1)
    fall = np.clip((event.length - since) / _OPENING, 0, 1)
    share = np.minimum(rise, fall)
    tall, wide = SHAPES[event.sound]
    now = share > 0
    open_T = np.where(now, share, open_T)
    height_T = np.where(now, _CLOSED[0] + share * (tall - _CLOSED[0]), height_T)
    width_T = np.where(now, _CLOSED[1] + share * (wide - _CLOSED[1]), width_T)
  return open_T, height_T, width_T


def render(shown: scene.Scene, seconds_T: np.ndarray, size: int) -> np.ndarray:
  """frames_THWC of a scene at the times `seconds_T`, uint8."""
  canvas = draw.Canvas(len(seconds_T), size, _WALL[shown.wall])
  row, column, colour = shown.row, shown.column, scene.COLOURS[shown.colour]
  shirt = canvas.ellipse(1.08, column, 0.2, 0.3)
  canvas.paint(shirt, (104, 104, 116))
  canvas.paint(canvas.ellipse(row, column, 0.36, 0.29), _SKIN[shown.skin])
  # The hat: a crown and a brim over the forehead.
  crown = canvas.ellipse(row - 0.2, column, 0.25, 0.25)
  canvas.paint(crown.above(canvas, row - 0.18), colour)
  brim = canvas.box(row - 0.21, column - 0.34, row - 0.15, column + 0.34)
  canvas.paint(brim, draw.shaded(colour, 0.75))
  for side in (-0.115, 0.115):
    eye = canvas.ellipse(row - 0.045, column + side, 0.045, 0.045)
    canvas.paint(eye, (250, 250, 250))
    pupil = canvas.ellipse(row - 0.04, column + side, 0.024, 0.024)
    canvas.paint(pupil, _INK)
  open_T, height_T, width_T = (
    x[:, None, None] for x in mouth(shown.events, seconds_T)
  )
  at = row + MOUTH, column
  lips = canvas.ellipse(*at, height_T + 0.014, width_T + 0.014)
  canvas.paint(lips, _LIPS)
  throat = canvas.ellipse(*at, height_T, width_T)
  canvas.paint(throat, _THROAT, np.clip(2 * open_T, 0, 1))
  return canvas.pixels()
