"""Loudness against the values that BS.1770 gives."""

import numpy as np
import pytest

from ovi_jax.media import loudness


def tone(frequency: float, rate: int, level: float, seconds: float = 3.0):
  time = np.arange(round(seconds * rate)) / rate
  return level * np.sin(2 * np.pi * frequency * time)[None]


@pytest.mark.parametrize("rate", [48_000, 44_100, 16_000])
def test_a_full_scale_tone_of_997_hz_has_minus_3_lufs(rate):
  found = loudness.integrated(tone(997, rate, 1), rate)
  assert found == pytest.approx(-3.01, abs=0.05)


def test_silence_between_sounds_does_not_count():
  wave = tone(997, 48_000, 0.1)
  gaps = np.concatenate([wave, np.zeros((1, 3 * 48_000))], 1)
  alone = loudness.integrated(wave, 48_000)
  assert loudness.integrated(gaps, 48_000) == pytest.approx(alone, abs=0.3)


def test_silence_and_sounds_shorter_than_a_block_have_no_loudness():
  assert loudness.integrated(np.zeros((1, 48_000)), 48_000) == -np.inf
  assert loudness.integrated(tone(997, 48_000, 1, 0.3), 48_000) == -np.inf
