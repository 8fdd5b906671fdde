"""Spectral distances equal their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.models import mel
from ovi_jax.training.objectives import spectral
from tests.lib import learning

RESOLUTION = spectral.Resolution(256, 64)
TONES = learning.tones(4096)


def test_a_full_scale_sine_has_magnitude_one():
  seconds = np.arange(4096) / 16_000
  wave = np.float32(np.sin(2 * np.pi * 1000 * seconds))[None]
  spectrum_BTF = spectral.magnitudes(wave, RESOLUTION)
  assert spectrum_BTF.shape == (1, 64, 129)
  # 1000 Hz is the 16th of bins 62.5 Hz apart; a Hann window spreads to two.
  middle = np.asarray(spectrum_BTF[0, 32])
  np.testing.assert_allclose(middle[15:18], [0.5, 1, 0.5], atol=1e-3)
  assert middle[np.r_[:14, 19:129]].max() < 1e-3


def test_the_distance_equals_its_formula():
  ours, theirs = np.float32(TONES), np.float32(0.5 * TONES[::-1])
  got = spectral.distance(ours, theirs, (RESOLUTION,))
  a, b = (
    np.asarray(spectral.magnitudes(x, RESOLUTION), np.float64)
    for x in (ours, theirs)
  )
  expected = np.sqrt(((a - b) ** 2).sum((1, 2)) / (b**2).sum((1, 2)))
  np.testing.assert_allclose(got.convergence, expected, rtol=1e-4)
  logs = [np.log(x + 1e-2) for x in (a, b)]
  expected = np.abs(logs[0] - logs[1]).mean((1, 2))
  np.testing.assert_allclose(got.magnitude, expected, rtol=1e-4)


def test_equal_sounds_have_distance_zero():
  for wave in (TONES, np.zeros_like(TONES)):
    for term in spectral.distance(wave, wave):
      np.testing.assert_array_equal(term, [0, 0])
    config = mel.MelConfig()
    apart = spectral.mel_distance(config, wave, wave)
    np.testing.assert_array_equal(apart, [0, 0])


def test_gradients_are_finite_at_zero_magnitude():
  def total(ours, theirs):
    terms = spectral.distance(ours, theirs)
    mels = spectral.mel_distance(mel.MelConfig(), ours, theirs)
    return sum(x.sum() for x in (*terms, mels))

  gradient = jax.jit(jax.grad(total))
  silence = jnp.zeros_like(TONES)
  for ours, theirs in ((silence, silence), (TONES, TONES), (silence, TONES)):
    learning.assert_finite(gradient(ours, theirs))


def test_inaudible_differences_have_no_loss():
  silence = np.zeros_like(TONES)
  hiss = 3e-5 * np.random.default_rng(0).standard_normal(TONES.shape)
  hiss = np.float32(hiss)
  assert float(spectral.distance(hiss, silence).magnitude.max()) < 0.005
  heard = spectral.distance(1000 * hiss, silence)
  assert float(heard.magnitude.min()) > 0.1


def test_short_sounds_are_refused():
  with pytest.raises(ValueError, match="windows of 2048 or more, got 1024"):
    spectral.magnitudes(TONES[:, :1024], spectral.Resolution(2048, 512))
