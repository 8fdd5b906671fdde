"""What the scores are worth: the world's own clips, of which all is known.

Clips are drawn, written as mp4 and scored like generated ones; what they lose
is the fault of the scores. Worn clips are blurred and noisy before.
"""

import json
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from ovi_jax.media import mp4
from ovi_jax.synthetic.evaluation import report
from ovi_jax.synthetic.evaluation import scores
from ovi_jax.synthetic.evaluation import sync
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import world as worlds

_BLUR = 5  # pixels along each side
_NOISE = 8.0  # standard deviation, of 255
_HISS = 10 ** (-30 / 20)  # of the sound's peak


def calibrate(count: int, seed: int, *, worn: bool) -> list[scores.Score]:
  """Score clips of the world.

  Args:
    count: of clips.
    seed: of the world.
    worn: whether they are blurred and noisy.

  Raises:
    ValueError: the count is not positive.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1 clip, got {count}")
  with tempfile.TemporaryDirectory() as folder:
    shown = write(pathlib.Path(folder), count, seed, worn=worn)
    return score(report.read(pathlib.Path(folder)), shown)


def write(
  folder: pathlib.Path, count: int, seed: int, *, worn: bool
) -> list[scene.Scene]:
  """Write clips as `sample.py` would, and return what they are of."""
  world = worlds.World(seed=seed, complete=True)
  shown = []
  for index in range(count):
    made = world.clip(index)
    frames_THWC, wave_A = made.frames_THWC, made.wave_A
    assert frames_THWC is not None and wave_A is not None  # complete
    if worn:
      random = np.random.default_rng((seed, index))
      frames_THWC, wave_A = wear(frames_THWC, wave_A, random)
    path = folder / f"{index:05}.mp4"
    prompt = made.captions[index % len(made.captions)]
    path.with_suffix(".json").write_text(json.dumps({"prompt": prompt}))
    mp4.write(path, [frames_THWC], wave_A, world.fps, world.rate)
    shown.append(made.scene)
  return shown


def wear(
  frames_THWC: np.ndarray, wave_A: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Blur pictures, and add noise to them and to the sound."""
  blurred = frames_THWC.astype(np.float32)
  for axis in (1, 2):
    width = [(0, 0)] * 4
    width[axis] = (_BLUR // 2, _BLUR // 2)
    padded = np.pad(blurred, width, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _BLUR, axis=axis)
    blurred = windows.mean(axis=-1, dtype=np.float32)
  noisy = blurred + random.normal(0, _NOISE, blurred.shape)
  hiss = random.normal(0, _HISS * np.abs(wave_A).max(), wave_A.shape)
  pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
  return pixels, (wave_A + hiss).astype(np.float32)


def score(
  clips: Sequence[report.Clip], shown: Sequence[scene.Scene]
) -> list[scores.Score]:
  """The report's scores, and both kinds of times against the truth."""
  table = report.score(clips)
  events = [(clip.seconds, clip.seen.events) for clip in clips]
  sounds = [(clip.seconds, clip.track.sounds) for clip in clips]
  for name, found in {"seen": events, "heard": sounds}.items():
    tracks = [
      sync.Track(
        kind=each.kind,
        events=tuple(event.seconds for event in each.events),
        sounds=times,
        seconds=seconds,
      )
      for each, (seconds, times) in zip(shown, found, strict=True)
    ]
    parts = [report.f1_part(sync.count(track)) for track in tracks]
    late = [sync.offsets(track) for track in tracks]
    table += [
      scores.score(f"events {name} against the truth, F1", parts),
      scores.mean(f"events {name} later than the truth", late),
    ]
  return table
