"""Loudness, against the values that ITU-R BS.1770 and EBU Tech 3341 give."""

import math

import numpy as np
import pytest

from ovi_jax.media import loudness


def sine(seconds: float, dbfs: float, hz: float, rate: int) -> np.ndarray:
  time = np.arange(round(seconds * rate)) / rate
  return 10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * time)


def test_filters_at_48_khz_have_the_coefficients_of_the_standard():
  shelf, high_pass = loudness.k_weighting(48_000)
  np.testing.assert_allclose(
    shelf[0], [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-8
  )
  np.testing.assert_allclose(
    shelf[1], [1, -1.69065929318241, 0.73248077421585], atol=1e-8
  )
  np.testing.assert_allclose(high_pass[0], [1, -2, 1])
  np.testing.assert_allclose(
    high_pass[1], [1, -1.99004745483398, 0.99007225036621], atol=1e-8
  )


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_a_full_scale_sine_in_one_channel_is_3_below_zero(rate):
  wave_CA = sine(3, 0, 997, rate)[None]
  assert loudness.integrated(wave_CA, rate) == pytest.approx(-3.01, abs=0.05)


def test_both_channels_add():
  wave_A = sine(5, -23, 1000, 48_000)
  found = loudness.integrated(np.stack([wave_A, wave_A]), 48_000)
  assert found == pytest.approx(-23, abs=0.1)


def test_quiet_parts_are_gated():
  parts = [sine(s, d, 1000, 48_000) for s, d in ((2, -36), (12, -23), (2, -36))]
  wave_A = np.concatenate(parts)
  found = loudness.integrated(np.stack([wave_A, wave_A]), 48_000)
  assert found == pytest.approx(-23, abs=0.1)
  silent = np.concatenate([wave_A, np.zeros(48_000 * 20)])
  assert loudness.integrated(
    np.stack([silent, silent]), 48_000
  ) == pytest.approx(found, abs=0.1)


def test_silence_and_short_sounds_have_no_loudness():
  assert loudness.integrated(np.zeros((1, 48_000)), 48_000) == -math.inf
  short_A = sine(0.3, 0, 1000, 48_000)
  assert loudness.integrated(short_A[None], 48_000) == -math.inf


def test_more_channels_than_have_weights_are_refused():
  with pytest.raises(ValueError, match="1 to 6 channels"):
    loudness.integrated(np.zeros((7, 100)), 16_000)
