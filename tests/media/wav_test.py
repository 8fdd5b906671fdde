"""wav files are written whole, or not at all."""

import wave

import numpy as np
import pytest

from ovi_jax.media import wav


def test_a_wave_is_rounded_and_clipped_to_16_bits(tmp_path):
  samples = np.array([-2, -1, -0.5, 0, 0.5, 1, 2], np.float32)
  named = []
  path = tmp_path / "a.wav"
  wav.write(path, samples, 8000, lambda: named.append(path.exists()))
  assert named == [False]
  with wave.open(str(path)) as file:
    assert file.getparams()[:4] == (1, 2, 8000, 7)
    found = np.frombuffer(file.readframes(7), "<i2")
  top, middle = 32_767, 16_384
  assert found.tolist() == [-top - 1, -top - 1, -middle, 0, middle, top, top]


def test_sound_that_is_not_finite_is_refused(tmp_path):
  with pytest.raises(ValueError, match="the sound holds NaN or infinity"):
    wav.write(tmp_path / "a.wav", np.array([0.0, np.nan]))
  assert not list(tmp_path.iterdir())
