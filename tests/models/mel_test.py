import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.models import mel
from tests.lib import parity

CONFIG = mel.MelConfig()


@pytest.fixture(scope="module")
def log_mel():
  return jax.jit(mel.log_mel, static_argnums=0)


def test_the_spectrogram_equals_the_originals(golden, log_mel):
  reference = golden("audio")
  mel_BTM = log_mel(CONFIG, reference["wav"])
  assert mel_BTM.dtype == jnp.float32
  parity.assert_close(mel_BTM, reference["mel"].swapaxes(1, 2), "forward")


def test_mel_bands_equal_librosas():
  # librosa.filters.mel(sr=16000, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
  bands = mel.filterbank(CONFIG)
  assert bands.shape == (80, 513) and bands.dtype == np.float32
  librosa = {
    (0, 1): [0.011267280, 0.022534560, 0.019904990, 0.008637710],
    (30, 73): [0.006120102, 0.013971663, 0.021823224, 0.015007369, 0.007451622],
    (79, 475): [0.000155437, 0.000337596, 0.000519756],
  }
  for (band, first), expected in librosa.items():
    found = bands[band, first : first + len(expected)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
  assert not bands[0, 5:].any() and not bands[79, :475].any()


def test_silence_is_the_floor_and_a_tone_peaks_in_its_band(log_mel):
  wave_BA = np.zeros((2, 2048), np.float32)
  wave_BA[1] = 0.5 * np.sin(2 * np.pi * 3000 / 16_000 * np.arange(2048))
  mel_BTM = np.asarray(log_mel(CONFIG, wave_BA))
  assert mel_BTM.shape == (2, 8, 80)
  np.testing.assert_allclose(mel_BTM[0], -5.0, atol=1e-6)
  hz = np.fft.rfftfreq(1024, 1 / 16_000)
  loudest = mel.filterbank(CONFIG)[mel_BTM[1, 4].argmax()]
  assert loudest[hz == 3000.0] > 0


def test_samples_beyond_full_scale_are_clipped(log_mel):
  wave_BA = np.random.default_rng(0).normal(0, 2, (1, 2048)).astype(np.float32)
  np.testing.assert_array_equal(
    log_mel(CONFIG, wave_BA), log_mel(CONFIG, np.clip(wave_BA, -1, 1))
  )


def test_short_waves_are_refused():
  assert mel.log_mel(CONFIG, jnp.zeros((1, 385))).shape == (1, 1, 80)
  with pytest.raises(ValueError, match="more than 384 samples, got 384"):
    mel.log_mel(CONFIG, jnp.zeros((1, 384)))


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"hop": 300}, "multiple of hop .* got 1024 and 300"),
    ({"high": 9000.0}, "<= 8000.0 Hz.* got 0.0 and 9000.0"),
  ],
)
def test_invalid_sizes_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    mel.MelConfig(**sizes)
