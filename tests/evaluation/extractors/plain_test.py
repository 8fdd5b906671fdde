"""Features without a network, against literal computations."""

import importlib.util
import math
import types
from typing import Any

import numpy as np
import pytest

from ovi_jax.evaluation.extractors import picture
from ovi_jax.evaluation.extractors import sound

RATE = 8000


def seen(frames_THWC: np.ndarray) -> Any:
  """Media of pictures."""
  return types.SimpleNamespace(frames_THWC=frames_THWC, fps=12.5)


def heard(wave_CA: np.ndarray) -> Any:
  """Media of sound."""
  return types.SimpleNamespace(
    wave_CA=wave_CA, rate=RATE, mono=lambda: wave_CA.mean(axis=0)
  )


def test_flicker_and_stillness_equal_their_definitions():
  random = np.random.default_rng(0)
  frames = random.integers(0, 256, (6, 5, 7, 3)).astype(np.uint8)
  frames[2] = frames[1]
  frames[3] = frames[2]
  frames[3, 0, 0] += 9  # 27 of 105 levels: below half a level
  found = picture._differences(seen(frames))
  pairs = zip(frames[1:].astype(int), frames[:-1].astype(int))
  means = [np.abs(now - before).mean() for now, before in pairs]
  assert found["flicker"] == pytest.approx((255 - np.mean(means)) / 255, 1e-12)
  assert found["stillness"] == 2 / 5
  np.testing.assert_allclose(found["motion_T"], [0, *means], rtol=1e-12)
  assert found["seconds"] == 6 / 12.5
  alone = picture._differences(seen(frames[:1]))
  assert "flicker" not in alone and "stillness" not in alone


@pytest.mark.skipif(
  importlib.util.find_spec("cv2") is None, reason="needs OpenCV"
)
def test_the_flow_of_a_shifted_picture_is_its_shift():
  random = np.random.default_rng(0)
  noise = np.kron(random.integers(0, 256, (16, 24)), np.ones((8, 8)))
  smooth = np.stack([noise] * 3, -1).astype(np.uint8)
  frames = np.stack([np.roll(smooth, 2 * t, axis=1) for t in range(3)])
  (found,) = picture._flows([seen(frames)])
  assert found["flow_T"][0] == 0
  assert found["flow_T"][1:] == pytest.approx([2, 2], abs=0.4)


def test_levels_and_silence_equal_their_definitions():
  random = np.random.default_rng(0)
  wave_CA = random.normal(0, 0.1, (2, 4000)).astype(np.float32)
  wave_CA[:, 2000:] *= 1e-3
  wave_CA[1, 2000:] = 0
  found = sound._describe(heard(wave_CA))
  mono_A = wave_CA.astype(np.float64).mean(axis=0)
  levels = []
  for number in range(50):
    start, stop = 80 * number - 80, 80 * number + 80
    part = mono_A[max(0, start) : stop]
    levels.append(math.sqrt(sum(x * x for x in part) / len(part)))
  np.testing.assert_allclose(found["envelope_T"], levels, rtol=1e-5)
  assert found["silence"] == np.mean([x < 1e-3 for x in levels]) == 24 / 50
  assert found["seconds"] == 0.5
  assert found["peak"] == np.abs(wave_CA).max()
