"""Onsets of sounds of any length; see also the synthetic world's tests."""

import numpy as np
import pytest

from ovi_jax.evaluation import onsets


@pytest.mark.parametrize("rate", [1000, 11_025, 48_000])
@pytest.mark.parametrize("frames", [0, 1, 2, 3, 5, 8])
def test_short_sounds_have_onsets_or_none(rate, frames):
  count = round(0.004 * rate * frames)
  wave_A = np.random.default_rng(0).uniform(-1, 1, count)
  assert all(0 <= t <= count / rate for t in onsets.times(wave_A, rate))
