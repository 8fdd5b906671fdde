"""Loudness against the values that BS.1770 gives."""

import numpy as np
import pytest

from ovi_jax.media import loudness


def tone(frequency: float, rate: int, level: float, seconds: float = 3.0):
  time = np.arange(round(seconds * rate)) / rate
  return level * np.sin(2 * np.pi * frequency * time)


@pytest.mark.parametrize("rate", [48_000, 44_100, 16_000])
def test_a_full_scale_tone_of_997_hz_has_minus_3_lufs(rate):
  found = loudness.integrated(tone(997, rate, 1), rate)
  assert found == pytest.approx(-3.01, abs=0.05)


def test_silence_between_sounds_does_not_count():
  wave = tone(997, 48_000, 0.1)
  gaps = np.concatenate([wave, np.zeros(3 * 48_000)])
  alone = loudness.integrated(wave, 48_000)
  assert loudness.integrated(gaps, 48_000) == pytest.approx(alone, abs=0.3)


def test_a_sound_is_scaled_to_the_target_and_peaks_stay_in_range():
  quiet = tone(500, 48_000, 0.02)
  scaled = loudness.normalize(quiet, 48_000, -23)
  assert loudness.integrated(scaled, 48_000) == pytest.approx(-23, abs=0.01)
  click = np.zeros(48_000)
  click[::4800] = 0.5
  assert np.abs(loudness.normalize(click, 48_000, -5)).max() < 0.9


def test_silence_stays_silent():
  silence = np.zeros(4800)
  assert loudness.integrated(silence, 48_000) == -np.inf
  assert not loudness.normalize(silence, 48_000, -23).any()
  assert loudness.normalize(np.zeros(0), 48_000, -23).size == 0
