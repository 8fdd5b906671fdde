"""MFCC equal the published definition.

`goldens/mfcc.npz` holds int16 sounds made of a seed (a gliding tone with
noise and a pause, noise at full scale, three samples, silence), and beside
each what `mfcc(sound, 16000)` of python_speech_features 0.6 makes of it, with
`get_filterbanks(26)` of the same.
"""

import numpy as np
import pytest

from ovi_jax.curation.sync import mfcc

SOUNDS = ("speech", "loud", "short", "silent")


@pytest.mark.parametrize("name", SOUNDS)
def test_features_equal_the_published_definition(golden, name):
  arrays = golden("mfcc")
  ours = mfcc.coefficients(arrays[name])
  assert ours.dtype == np.float64
  assert ours.shape == arrays[f"{name}_mfcc"].shape
  np.testing.assert_allclose(ours, arrays[f"{name}_mfcc"], rtol=0, atol=1e-6)


def test_filters_equal_the_published_ones(golden):
  np.testing.assert_array_equal(
    mfcc._mel_filters(), golden("mfcc")["triangles"]
  )


@pytest.mark.parametrize("samples, frames", [(400, 1), (401, 2), (560, 2)])
def test_every_sample_is_used(samples, frames):
  assert mfcc.coefficients(np.ones(samples)).shape == (frames, 13)


def test_a_frame_depends_only_on_its_samples():
  samples_A = np.random.default_rng(0).normal(0, 1000, 16_000)
  whole = mfcc.coefficients(samples_A)
  # The first frame lacks the sample before it, for the emphasis.
  part = mfcc.coefficients(samples_A[4 * mfcc.STEP :])
  np.testing.assert_allclose(part[1:90], whole[5:94], atol=1e-9)


@pytest.mark.parametrize("shape", [(0,), (5, 2)])
def test_audio_that_is_not_mono_is_refused(shape):
  with pytest.raises(ValueError, match="mono"):
    mfcc.coefficients(np.zeros(shape))
