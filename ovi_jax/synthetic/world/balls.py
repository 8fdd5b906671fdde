"""Balls that fall and bounce; the floor is of wood, metal or rubber."""

import numpy as np

from ovi_jax.synthetic.world import draw
from ovi_jax.synthetic.world import scene

FLOOR = 0.82  # row of the floor
_GRAVITY = 5.0  # sides a second, each second
_KEPT = {"wood": 0.90, "metal": 0.93, "rubber": 0.95}  # speed after a bounce
_WALL = {
  "cream": (236, 229, 206),
  "sky": (203, 222, 236),
  "grey": (222, 222, 224),
}
_RESTS = 0.3  # sides a second; slower than any ball within five seconds
_LOUDEST = 2.5  # sides a second, speed of an impact of strength 1
_APART = 0.15  # seconds between impacts of two balls, at least
_TRIES = 300
_SQUASH, _SQUASHED = 0.30, 0.035  # share of the height; seconds


def sample(
  random: np.random.Generator, seconds: float, two: bool, still: bool
) -> scene.Scene:
  """Draw a scene of one ball or two, which lie still or bounce."""
  material = str(random.choice(scene.MATERIALS))
  wall = str(random.choice(scene.WALLS))
  colours = random.permutation(list(scene.COLOURS))
  for _ in range(_TRIES):
    places = ((0.14, 0.40), (0.60, 0.86)) if two else ((0.18, 0.82),)
    balls = tuple(
      _ball(random, str(colour), place, still)
      for colour, place in zip(colours, places)
    )
    events = sorted(
      (event for ball in balls for event in _impacts(ball, material, seconds)),
      key=lambda event: event.seconds,
    )
    times = np.array([event.seconds for event in events])
    if not len(times) or np.diff(times).min(initial=np.inf) >= _APART:
      break
  return scene.Scene(
    kind=scene.BALL,
    sound=material,
    colour=balls[0].colour,
    seconds=seconds,
    wall=wall,
    balls=balls,
    events=tuple(events),
  )


def _ball(
  random: np.random.Generator,
  colour: str,
  place: tuple[float, float],
  still: bool,
) -> scene.Ball:
  column = random.uniform(*place)
  # To a place of its own half within five seconds.
  drift = (random.uniform(*place) - column) / 5
  return scene.Ball(
    colour=colour,
    size=str(random.choice(scene.SIZES)),
    column=column,
    drift=0.0 if still else drift,
    height=0.0 if still else random.uniform(0.34, 0.54),
    start=random.uniform(0.0, 0.6),
  )


def _flights(ball: scene.Ball, material: str, seconds: float):
  """Begin and length of every flight, and the speed it ends with."""
  speed = np.sqrt(2 * _GRAVITY * ball.height)
  begin = ball.start - speed / _GRAVITY  # as if it had been thrown up before
  while speed > _RESTS and begin < seconds:
    length = 2 * speed / _GRAVITY
    yield begin, length, speed
    begin += length
    speed *= _KEPT[material]


def _impacts(ball: scene.Ball, material: str, seconds: float):
  for begin, length, speed in _flights(ball, material, seconds):
    if begin + length < seconds:
      yield scene.Event(
        seconds=float(begin + length),
        kind="impact",
        row=FLOOR,
        column=float(ball.column + ball.drift * (begin + length)),
        sound=material,
        strength=float(min(1.0, (speed / _LOUDEST) ** 1.5)),
        tone={"small": 1.15, "big": 0.92}[ball.size],
      )


def heights(
  ball: scene.Ball, material: str, seconds_T: np.ndarray, length: float
) -> np.ndarray:
  """Height of the ball's lowest point over the floor at each time."""
  height_T = np.full(len(seconds_T), ball.height)
  for begin, flight, speed in _flights(ball, material, length + 1):
    since = seconds_T - begin
    flying = (since >= 0) & (since < flight) & (seconds_T >= ball.start)
    height_T = np.where(
      flying, speed * since - _GRAVITY / 2 * since**2, height_T
    )
  return height_T


def render(shown: scene.Scene, seconds_T: np.ndarray, size: int) -> np.ndarray:
  """frames_THWC of a scene at the times `seconds_T`, uint8."""
  canvas = draw.Canvas(len(seconds_T), size, _WALL[shown.wall])
  _floor(canvas, shown.sound)
  for ball in shown.balls:
    height_T = heights(ball, shown.sound, seconds_T, shown.seconds)
    impacts = [e.seconds for e in _impacts(ball, shown.sound, shown.seconds)]
    since = np.abs(seconds_T[:, None] - np.array(impacts)[None]).min(
      axis=1, initial=np.inf
    )
    flat = _SQUASH * np.exp(-((since / _SQUASHED) ** 2))
    tall = (ball.radius * (1 - flat))[:, None, None]
    wide = (ball.radius * (1 + flat / 2))[:, None, None]
    row = FLOOR - height_T[:, None, None] - tall
    column = (ball.column + ball.drift * seconds_T)[:, None, None]
    far = 1 / (1 + 4 * height_T[:, None, None])
    shadow = canvas.ellipse(FLOOR + 0.02, column, 0.025, ball.radius * 0.9)
    canvas.paint(shadow, (30, 26, 24), 0.45 * far)
    colour = ball.rgb
    canvas.paint(
      canvas.ellipse(row, column, tall, wide), draw.shaded(colour, 0.55)
    )
    inner = canvas.ellipse(row, column, tall - 0.016, wide - 0.016)
    canvas.paint(inner, colour)
    shine = canvas.ellipse(
      row - 0.35 * tall, column - 0.35 * wide, tall * 0.25, wide * 0.25
    )
    canvas.paint(shine, (255, 255, 255), 0.55)
  return canvas.pixels()


def _floor(canvas: draw.Canvas, material: str) -> None:
  """Planks, a plate with a bright edge, or a mat with knobs."""
  base = {
    "wood": (150, 96, 52),
    "metal": (150, 162, 176),
    "rubber": (52, 56, 58),
  }
  canvas.paint(canvas.box(FLOOR, -1, 2, 2), base[material])
  match material:
    case "wood":
      for column in (0.06, 0.28, 0.5, 0.72, 0.94):
        seam = canvas.box(FLOOR, column - 0.01, 2, column + 0.01)
        canvas.paint(seam, (92, 54, 26))
    case "metal":
      canvas.paint(canvas.box(FLOOR, -1, FLOOR + 0.03, 2), (226, 236, 246))
      canvas.paint(canvas.box(0.92, -1, 0.94, 2), (104, 116, 132))
    case "rubber":
      for column in np.arange(0.06, 1, 0.125):
        canvas.paint(canvas.ellipse(0.91, column, 0.022, 0.022), (96, 104, 106))
