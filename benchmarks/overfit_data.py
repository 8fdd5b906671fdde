"""Sixteen clips made by arithmetic, with sounds that fit what is seen.

A ball bounces and knocks at each impact, or a lamp flashes and beeps. Every
clip has its own colours, pitch, pace and caption; nothing is read or recorded.
Pixels are float32 in [0, 1], waves float32 in [-1, 1] at 16 kHz.
"""

import colorsys
import dataclasses

import numpy as np

from ovi_jax import geometry
from ovi_jax.models import mel

SIDE = 64  # pixel rows and columns
FRAMES = 121
CLIPS = 8  # of a set
BALL, LAMP = "ball", "lamp"
COLOURS = (
  "red",
  "orange",
  "lime",
  "green",
  "cyan",
  "blue",
  "violet",
  "pink",
)
_RADIUS = 13.0  # pixels
_SOFTNESS = 2.5  # pixels: of the ball's edge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """What happens in a clip.

  Attributes:
    kind: `BALL` or `LAMP`.
    caption: of the clip.
    hue: of the ball or the lamp, in [0, 1).
    ground: hue of the background.
    pitch: of the knock or beep, Hz.
    period: seconds from one event to the next.
    phase: seconds to the first event.
    place: of the middle of the motion, as a share of the width.
  """

  kind: str
  caption: str
  hue: float
  ground: float
  pitch: float
  period: float
  phase: float
  place: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
  """A scene seen and heard.

  Attributes:
    scene: what happens.
    frames: video_THWC float32, 1 + 4·k frames of 64 by 64.
    wave: samples [512 · audio latents].
    log_mel: mel_TM, two frames an audio latent.
  """

  scene: Scene
  frames: np.ndarray
  wave: np.ndarray
  log_mel: np.ndarray


def scenes(number: int) -> list[Scene]:
  """The scenes of a set; 0 and 1 have none in common."""
  draw = np.random.default_rng([number, 2024])
  pitches = 220.0 * 2 ** (4 * (draw.permutation(CLIPS) + number / 2) / CLIPS)
  grounds = (draw.permutation(CLIPS) + draw.uniform()) / CLIPS
  found = []
  for i, pitch in enumerate(pitches):
    kind = (BALL, LAMP)[i % 2]
    period = float(draw.uniform(0.8, 1.5))
    does = "bounces and knocks" if kind == BALL else "flashes and beeps"
    found.append(
      Scene(
        kind=kind,
        caption=(
          f"A {COLOURS[i]} {kind} {does} every {period:.2f} s."
          f" Audio: {pitch:.0f} Hz."
        ),
        hue=(i + number / 2) / CLIPS,
        ground=float(grounds[i]),
        pitch=float(pitch),
        period=period,
        phase=float(draw.uniform(0.1, 0.9)) * period,
        place=float(draw.uniform(0.35, 0.65)),
      )
    )
  return found


def clip(scene: Scene, frames: int = FRAMES) -> Clip:
  """Draw and sound a scene of so many frames, 1 + 4·k."""
  latents = int(frames / geometry.FPS * geometry.AUDIO_LATENT_RATE)
  wave = _wave(scene, latents * geometry.SAMPLES_PER_AUDIO_LATENT)
  log_mel = np.asarray(mel.log_mel(mel.MelConfig(), wave[None]))[0]
  return Clip(
    scene=scene,
    frames=_frames(scene, frames),
    wave=wave,
    log_mel=log_mel,
  )


def clips(number: int, frames: int = FRAMES, count: int = CLIPS) -> list[Clip]:
  """The first clips of a set, see `scenes`."""
  return [clip(scene, frames) for scene in scenes(number)[:count]]


def text(number: int, place: int, width: int) -> np.ndarray:
  """text_SE: random numbers that stand for the caption of a clip.

  Args:
    number: of the set; -1 with place 0 is the empty prompt.
    place: of the clip in it.
    width: of an embedding.
  """
  draw = np.random.default_rng([number + 1, place, 7])
  rows = 1 if number < 0 else int(draw.integers(4, 13))
  return draw.standard_normal((rows, width)).astype(np.float32)


def _frames(scene: Scene, count: int) -> np.ndarray:
  """video_THWC."""
  t_T = np.arange(count) / geometry.FPS
  row_HW, column_HW = np.mgrid[:SIDE, :SIDE].astype(np.float32)
  since_T = np.mod(t_T - scene.phase, scene.period)
  if scene.kind == BALL:
    u_T = since_T / scene.period
    floor, top = SIDE - 4 - _RADIUS, 6 + _RADIUS
    y_T = floor - (floor - top) * 4 * u_T * (1 - u_T)
    sway_T = np.sin(2 * np.pi * t_T / (4 * scene.period))
    x_T = SIDE * (scene.place + 0.2 * sway_T)
    strength_T = np.ones(count)
  else:
    y_T, x_T = np.full(count, SIDE / 2), np.full(count, SIDE * scene.place)
    strength_T = 0.15 + 0.85 * _flash(since_T, scene.period)
  away_THW = np.hypot(
    row_HW[None] - y_T[:, None, None], column_HW[None] - x_T[:, None, None]
  )
  if scene.kind == BALL:
    cover_THW = 1 / (1 + np.exp((away_THW - _RADIUS) / _SOFTNESS))
  else:
    cover_THW = np.exp(-((away_THW / (1.3 * _RADIUS)) ** 2))
  cover_THW1 = (cover_THW * strength_T[:, None, None])[..., None]
  near = np.array(colorsys.hsv_to_rgb(scene.hue, 0.85, 0.95))
  far = np.array(colorsys.hsv_to_rgb(scene.ground, 0.7, 0.6))
  light_HW1 = (0.6 + 0.4 * row_HW / SIDE)[..., None]
  behind_HWC = light_HW1 * far[None, None]
  video = behind_HWC[None] * (1 - cover_THW1) + cover_THW1 * near
  return video.astype(np.float32)


def _flash(since: np.ndarray, period: float) -> np.ndarray:
  """A lamp's light so many seconds after a flash began: up, then down."""
  length = 0.45 * period
  return np.where(
    since < length, np.sin(np.pi * np.minimum(since / length, 1)) ** 2, 0
  )


def _wave(scene: Scene, samples: int) -> np.ndarray:
  """The sound: a beep as long as each flash, or a knock at each impact."""
  t_A = np.arange(samples) / geometry.SAMPLE_RATE
  since_A = np.mod(t_A - scene.phase, scene.period)
  turn_A = 2 * np.pi * scene.pitch * since_A
  if scene.kind == LAMP:
    tone_A = np.sin(turn_A) + 0.3 * np.sin(2 * turn_A)
    wave_A = 0.4 * _flash(since_A, scene.period) * tone_A
  else:
    wave_A = 0.5 * np.sin(turn_A) * np.exp(-since_A / 0.09)
    wave_A += 0.3 * np.sin(2.7 * turn_A) * np.exp(-since_A / 0.04)
  return wave_A.astype(np.float32)
