"""Detects kind, colors and events of the synthetic world in frames.

From frames alone, also blurred and noisy ones: impacts are the lowest points
of a ball's path, flashes the rises of a lamp's light, openings those of a
mouth's darkness. Thresholds are shares of what the clip itself has. Lengths
are shares of the picture's side, times are seconds; all is float32.
"""

import dataclasses

import numpy as np

from ovi_jax.synthetic.evaluation import impacts
from ovi_jax.synthetic.world import balls
from ovi_jax.synthetic.world import faces
from ovi_jax.synthetic.world import scene

_DARK = 110  # luminance of a wall, of 255; below it is a lamp's room
_VIVID = 80  # chroma of a hat, of 255
_LEAST_SHARE = 0.2  # of a colour, to be coloured at all
_OF_MOST = 0.45  # of the most colourful pixels' share, to belong to a thing
_LEAST_AREA = 0.002  # of the picture, for a thing to be there
_SECOND = 0.2  # share of the coloured pixels that a second ball has
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
# Mean rises that count, of 255: of the room's light and the mouth's darkness.
_LEAST_FLASH, _LEAST_OPENING = 6.0, 0.3
SHORTEST = 8  # frames
_LIPS = 0.014  # sides, around the mouth's opening
_HALF_OPEN = 0.005  # seconds from the beginning of a vowel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
  """Detected contents of a clip.

  Attributes:
    kind: of `scene.KINDS`; `None` if there is nothing of them.
    colours: of `scene.COLOURS`, of one ball or two, lamp or hat; most first.
    events: seconds of impacts, flashes or openings, in order.
    shapes: of `scene.VOWELS`, the mouth's at each opening; else empty.
  """

  kind: str | None
  colours: tuple[str, ...] = ()
  events: tuple[float, ...] = ()
  shapes: tuple[str, ...] = ()


def look(frames_THWC: np.ndarray, fps: float) -> Seen:
  """Detect the contents of a clip.

  Args:
    frames_THWC: uint8 RGB, square pictures, at least `SHORTEST`.
    fps: frames a second.

  Raises:
    ValueError: the frames have another shape or type.
  """
  shape, dtype = frames_THWC.shape, frames_THWC.dtype
  pictures = dtype == np.uint8 and len(shape) == 4 and shape[3] == 3
  if not pictures or shape[0] < SHORTEST:
    raise ValueError(
      f"expected uint8 frames [{SHORTEST} or more, height, width, 3], got"
      f" {dtype} {list(shape)}"
    )
  frames_THWC = frames_THWC.astype(np.float32)
  kind = _kind(frames_THWC)
  see = {scene.BALL: _balls, scene.LAMP: _lamp, scene.FACE: _face}
  return see[kind](frames_THWC, fps)


def part(
  pictures: np.ndarray, rows: tuple[float, float], columns=(0.0, 1.0)
) -> np.ndarray:
  """Rows and columns [T, H, W, ...] of pictures, given as shares."""
  high, wide = pictures.shape[1:3]
  return pictures[
    :,
    round(rows[0] * high) : round(rows[1] * high),
    round(columns[0] * wide) : round(columns[1] * wide),
  ]


def _kind(frames_THWC: np.ndarray) -> str:
  """By the wall's brightness, and whether a hat's colour stands still."""
  still_HWC = np.median(frames_THWC[::3], axis=0)[None]
  wall = part(still_HWC, (0.0, 0.1)) @ _LUMINANCE
  if np.median(wall) < _DARK:
    return scene.LAMP
  hat = part(still_HWC, (0.2, 0.34), (0.42, 0.58))
  chroma = hat.max(-1) - hat.min(-1)
  return scene.FACE if np.median(chroma) > _VIVID else scene.BALL


def tints(pixels_THWC: np.ndarray, wall_HC: np.ndarray | None = None):
  """Which colour pixels have and how much of it, brightness apart.

  Colours are directions away from grey, or from the wall: one that blends into
  the wall keeps its direction, and one in the shade nearly so. Averaged over
  three rows and columns.

  Args:
    pixels_THWC: RGB, float32 in [0, 255].
    wall_HC: colour of the wall in each row.

  Returns:
    [T, H, W] index into `scene.COLOURS` of the nearest direction, and share
    of that colour, 1 for all of it.
  """
  known = np.array(list(scene.COLOURS.values()), np.float32) @ _PLANE
  tint_THWP = pixels_THWC @ _PLANE
  if wall_HC is not None:
    tint_THWP -= (wall_HC @ _PLANE)[None, :, None]
    known = known - wall_HC.mean(axis=0) @ _PLANE
  for axis in (1, 2):
    tint_THWP = _smooth(tint_THWP, axis)
  full = np.linalg.norm(known, axis=-1, keepdims=True)
  nearest_THW = (tint_THWP @ (known / full).T).argmax(-1)
  length_THW = np.linalg.norm(tint_THWP, axis=-1)
  return nearest_THW, length_THW / full[:, 0][nearest_THW]


# Red, green and blue are a third of a turn apart, and white is nowhere.
_TURNS = 2 * np.pi / 3 * np.arange(3)
_PLANE = np.stack([np.cos(_TURNS), np.sin(_TURNS)], -1).astype(np.float32)


def _smooth(values: np.ndarray, axis: int) -> np.ndarray:
  """Means of three neighbours; edges are repeated."""
  count = values.shape[axis]
  places = np.arange(count)
  before, after = np.maximum(places - 1, 0), np.minimum(places + 1, count - 1)
  around = np.take(values, before, axis) + np.take(values, after, axis)
  return (values + around) / 3


def _vote(
  nearest_THW: np.ndarray, vivid_THW: np.ndarray, area: int
) -> tuple[str, ...]:
  """Colours of the vivid pixels, most first; none if they are few.

  Args:
    nearest_THW: index of the colour.
    vivid_THW: whether it counts.
    area: pixels in all whole pictures.
  """
  if vivid_THW.sum() < _LEAST_AREA * area:
    return ()
  votes = np.bincount(nearest_THW[vivid_THW], minlength=len(scene.COLOURS))
  order = np.argsort(-votes, kind="stable")
  names = list(scene.COLOURS)
  return tuple(names[i] for i in order if votes[i] >= _SECOND * votes.sum())


def _vivid(share_THW: np.ndarray) -> np.ndarray:
  """Shares of a colour where they are a good part of the clip's most."""
  most = float(np.percentile(share_THW, 99.5))
  return np.where(share_THW > max(_LEAST_SHARE, _OF_MOST * most), share_THW, 0)


def _colour(part_THWC: np.ndarray, frames_THWC: np.ndarray) -> tuple[str, ...]:
  """The colour of most vivid pixels in a part of the frames, if any."""
  nearest_THW, share_THW = tints(part_THWC)
  return _vote(nearest_THW, _vivid(share_THW) > 0, frames_THWC[..., 0].size)[:1]


def _balls(frames_THWC: np.ndarray, fps: float) -> Seen:
  air_THWC = part(frames_THWC, (0.0, balls.FLOOR - 0.01))
  wall_HC = np.median(air_THWC[::4], axis=(0, 2))
  nearest_THW, share_THW = tints(air_THWC, wall_HC)
  mass_THW = _vivid(share_THW)
  # What of the floor a blurred picture has above it is no ball.
  high = round((balls.FLOOR - 0.04) * frames_THWC.shape[1])
  colours = _vote(
    nearest_THW[:, :high], mass_THW[:, :high] > 0, frames_THWC[..., 0].size
  )[:2]
  if not colours:
    return Seen(kind=None)
  events = []
  for colour in colours:
    of_it = nearest_THW == list(scene.COLOURS).index(colour)
    masses_THW = np.where(of_it, mass_THW, 0)
    events += impacts.times(masses_THW, frames_THWC.shape[1], fps)
  return Seen(kind=scene.BALL, colours=colours, events=tuple(sorted(events)))


def _lamp(frames_THWC: np.ndarray, fps: float) -> Seen:
  above = part(frames_THWC, (0.0, 0.62))
  colours = _colour(above, frames_THWC)
  if not colours:
    return Seen(kind=None)
  light_T = above.mean(axis=(1, 2, 3))
  light_T -= np.percentile(light_T, 20)
  events = rises(light_T, _LEAST_FLASH)
  return Seen(
    kind=scene.LAMP, colours=colours, events=tuple(t / fps for _, t in events)
  )


def rises(value_T: np.ndarray, least: float) -> list[tuple[int, float]]:
  """Where a value leaves zero: first frame above, and moment in frames.

  The moment is that of half of what it rises by, between frames.

  Args:
    value_T: at rest 0.
    least: of the highest values, if anything is to count.
  """
  highest = float(np.sort(value_T)[-4:].mean())
  if highest < least:
    return []
  found, resting = [], True
  for frame, value in enumerate(value_T):
    if resting and value > 0.25 * highest and frame:
      found.append((frame, _moment(value_T, frame)))
      resting = False
    elif value < 0.15 * highest:
      resting = True
    elif not frame:
      resting = False
  return found


def _moment(value_T: np.ndarray, frame: int) -> float:
  low = float(value_T[max(0, frame - 3) : frame].min())
  level = (low + float(value_T[frame : frame + 5].max())) / 2
  after = max(1, frame - 2)
  while after + 1 < len(value_T) and value_T[after] < level:
    after += 1
  before, now = float(value_T[after - 1]), float(value_T[after])
  return after - np.clip((now - level) / max(now - before, 1e-6), 0, 1)


def _face(frames_THWC: np.ndarray, fps: float) -> Seen:
  colours = _colour(part(frames_THWC, (0.05, 0.36)), frames_THWC)
  darkness_THW, size = _darkness(frames_THWC), frames_THWC.shape[1]
  opening_T = darkness_THW.sum(axis=(1, 2)) / size**2
  events = rises(opening_T, _LEAST_OPENING)
  return Seen(
    kind=scene.FACE,
    colours=colours,
    events=tuple(t / fps - _HALF_OPEN for _, t in events),
    shapes=tuple(_shape(darkness_THW, frame, size) for frame, _ in events),
  )


def _darkness(frames_THWC: np.ndarray) -> np.ndarray:
  """By how much the face [T, H, W] is darker than with its mouth closed."""
  mouth = part(frames_THWC, (0.56, 0.88), (0.2, 0.8)) @ _LUMINANCE
  closed = np.percentile(mouth, 70, axis=0)[None]
  darker = closed - mouth
  least = max(16.0, 0.3 * float(np.percentile(darker, 99.5)))
  return np.where(darker > least, darker, 0)


def _spread(darkness_THW: np.ndarray, frame: int) -> np.ndarray:
  """Half height and half width of the open mouth, in pixels."""
  mass_HW = darkness_THW[frame + 1 : frame + 6].mean(axis=0)
  # To half of the darkness: blur hardly moves that.
  inside_HW = mass_HW > np.sort(mass_HW, axis=None)[-12:].mean() / 2
  if not inside_HW.any():
    return np.ones(2)
  # The standard deviation of an ellipse is half of its half axis.
  return 2 * np.sqrt([x.var() + 1 / 12 for x in np.nonzero(inside_HW)])


def _shape(darkness_THW: np.ndarray, frame: int, size: int) -> str:
  found = _spread(darkness_THW, frame)[None] / size
  shapes = np.array([faces.SHAPES[vowel] for vowel in scene.VOWELS])
  far = np.linalg.norm(np.log(found) - np.log(shapes + _LIPS), axis=-1)
  return scene.VOWELS[int(far.argmin())]
