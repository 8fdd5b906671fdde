"""A lamp that flashes; each flash comes with a beep of one pitch."""

import numpy as np

from ovi_jax.synthetic.world import draw
from ovi_jax.synthetic.world import scene

FLASH = 0.24  # seconds
COUNTS = (2, 3, 4, 5)
EXPOSURE = 1 / 24  # seconds that a picture is taken over
_OUT = 0.04  # seconds in which a flash fades
_ROOM, _TABLE = (44, 46, 66), (98, 70, 50)
_RADIUS = 0.15


def sample(
  random: np.random.Generator, seconds: float, still: bool
) -> scene.Scene:
  """Draw a scene of a lamp, which stays dark or flashes."""
  pitch = str(random.choice(scene.PITCHES))
  row, column = random.uniform(0.34, 0.44), random.uniform(0.3, 0.7)
  count = 0 if still else int(random.choice(COUNTS))
  events = tuple(
    scene.Event(
      seconds=float(begin),
      kind="flash",
      row=row,
      column=column,
      sound=pitch,
      strength=0.6,
      length=FLASH,
    )
    for begin in scene.event_times(random, count, FLASH, seconds)
  )
  return scene.Scene(
    kind=scene.LAMP,
    sound=pitch,
    colour=str(random.choice(list(scene.COLOURS))),
    seconds=seconds,
    row=row,
    column=column,
    events=events,
  )


def brightness(events: tuple[scene.Event, ...], seconds_T: np.ndarray):
  """How bright the lamp is at each time, 0 to 1."""
  bright_T = np.zeros(len(seconds_T))
  for event in events:
    since = seconds_T - event.seconds
    fading = np.clip(1 - (since - event.length) / _OUT, 0, 1)
    # Over the time of a frame: the flash itself is on at once.
    rising = np.clip(since / EXPOSURE + 0.5, 0, 1)
    bright_T = np.maximum(bright_T, np.minimum(rising, fading))
  return bright_T


def render(shown: scene.Scene, seconds_T: np.ndarray, size: int) -> np.ndarray:
  """frames_THWC of a scene at the times `seconds_T`, uint8."""
  canvas = draw.Canvas(len(seconds_T), size, _ROOM)
  row, column = shown.row, shown.column
  canvas.paint(canvas.box(0.82, -1, 2, 2), _TABLE)
  canvas.paint(
    canvas.box(row, column - 0.02, 0.82, column + 0.02), (150, 150, 158)
  )
  canvas.paint(
    canvas.box(0.78, column - 0.13, 0.83, column + 0.13), (120, 120, 128)
  )
  bright = brightness(shown.events, seconds_T)[:, None, None]
  colour = scene.COLOURS[shown.colour]
  canvas.paint(canvas.glow(row, column, 0.42), colour, 0.6 * bright)
  bulb = canvas.ellipse(row, column, _RADIUS, _RADIUS)
  canvas.paint(bulb, draw.shaded(colour, 0.42))
  canvas.paint(bulb, colour, bright)
  core = canvas.glow(row, column, 0.07)
  canvas.paint(core, (255, 250, 235), 0.75 * bright)
  return canvas.pixels()
