"""Codec losses with known values."""

import numpy as np
import pytest

from ovi_jax.models import mel
from ovi_jax.pretrained import distortion
from ovi_jax.synthetic.evaluation import codecs


def test_psnr_equals_a_value_computed_by_hand():
  grey = np.full((2, 4, 4, 3), 100, np.uint8)
  assert distortion.video_psnr(grey, grey + 1) == pytest.approx(
    48.1308, abs=1e-4
  )
  assert distortion.video_psnr(grey, grey) == float("inf")
  loss = codecs.psnr_of(lambda clip: clip + 1, [grey, grey // 2])
  assert loss == codecs.Loss(loss.worst, loss.mean, 2)


def test_half_the_amplitude_is_six_decibels():
  random = np.random.default_rng(0)
  wave_A = random.normal(0, 0.1, 8192).astype(np.float32)
  config = mel.MelConfig()
  half = distortion.log_mel_error(wave_A, wave_A / 2, config)
  assert half == pytest.approx(20 * np.log10(2), abs=0.02)
  assert distortion.log_mel_error(wave_A, wave_A, config) == 0
  # Silence is as far away as counts.
  mute = distortion.log_mel_error(wave_A, 0 * wave_A, config)
  assert 0.7 * distortion.RANGE < mute < distortion.RANGE
  loss = codecs.log_mel_error_of(lambda wave: wave / 2, [wave_A])
  assert loss == codecs.Loss(half, half, 1)


def test_other_shapes_and_types_are_refused():
  with pytest.raises(ValueError, match="expected two of uint8"):
    distortion.video_psnr(np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3)))
  with pytest.raises(ValueError, match="one shape"):
    distortion.log_mel_error(
      np.zeros(4096, np.float32), np.zeros(4000, np.float32), mel.MelConfig()
    )
