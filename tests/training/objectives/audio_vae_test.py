"""The audio VAE objective: learning and export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.convert import audio_vae as names
from ovi_jax.convert import mapping
from ovi_jax.models import architecture
from ovi_jax.models import audio_vae
from ovi_jax.models import mel
from ovi_jax.training.objectives import audio_vae as sound
from tests.lib import learning

WAVES = learning.tones(4096)
MEAN, DEVIATION = sound.measure_mel(WAVES)
CONFIG = audio_vae.AudioVAEConfig(
  hidden_dim=16,
  channel_multipliers=(1, 2),
  embed_dim=8,
  res_blocks=1,
  mel_mean=MEAN,
  mel_std=DEVIATION,
)
TASK = sound.AudioVAEObjective(config=CONFIG)
BATCH = learning.sounds(WAVES)


@pytest.fixture(scope="module")
def params():
  """Filters of any norm, as they are in training."""
  params = architecture.init("audio_vae", CONFIG, jax.random.key(0))
  flat = mapping.flatten(params)
  random = np.random.default_rng(0)
  for path, leaf in flat.items():
    if path.endswith("kernel"):
      flat[path] = leaf * random.uniform(0.5, 2, leaf.shape[-1:])[
        (None,) * (leaf.ndim - 1)
      ].astype(np.float32)
  return mapping.nest(flat)


@pytest.mark.slow
def test_training_overfits_two_sounds(params):
  losses, _ = learning.learn(TASK, params, BATCH, 30, 1e-2)
  assert np.mean(losses[-3:]) < 0.6 * losses[0]


@pytest.mark.slow
def test_the_gradient_of_silence_is_finite(params):
  silence = learning.sounds(np.zeros_like(WAVES))
  noise = learning.drawn(TASK, silence)
  result = learning.loss_and_gradient(TASK, params, silence, noise)
  learning.assert_finite(result)


@pytest.mark.slow
def test_exported_parameters_compute_the_same(params):
  exported = TASK.exported(params)
  shapes = jax.tree.map(jnp.shape, params)
  assert jax.tree.map(jnp.shape, exported) == shapes
  mel_BTM = mel.log_mel(mel.MelConfig(), WAVES)
  model = audio_vae.AudioVAE(CONFIG)
  moments = jax.jit(model.apply, static_argnames="method")(
    {"params": exported}, mel_BTM, method="encode"
  )
  noise = jnp.zeros((2, 8, 8))
  terms = jax.jit(TASK.loss_terms)(params, BATCH, noise, learning.NULL)
  mean, logvar = moments
  kl_B = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean((1, 2))
  np.testing.assert_allclose(terms["kl"], kl_B, rtol=1e-5)
  decoded = jax.jit(model.apply, static_argnames="method")(
    {"params": exported}, mean, method="decode"
  )
  error = (
    np.abs(np.asarray(decoded - mel_BTM)) / np.float32(DEVIATION)[None, None]
  )
  for name, counts in (("mel", mel_BTM > -4), ("silence", mel_BTM <= -4)):
    expected = np.sum(error, (1, 2), where=counts) / counts.sum((1, 2))
    np.testing.assert_allclose(terms[name], expected, rtol=1e-4)


@pytest.mark.slow
def test_exporting_is_idempotent(params):
  once = sound.unit_filters(params)
  twice = sound.unit_filters(once)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), once, twice)
  kernel = once["encoder"]["middle"]["attention"]["qkv"]["kernel"]
  norms = np.linalg.norm(kernel, axis=0)
  np.testing.assert_allclose(norms, 1 / (1 + 1e-4 * 32**0.5), rtol=1e-6)
  gain = once["decoder"]["head"]["gain"]
  assert gain is params["decoder"]["head"]["gain"]


@pytest.mark.slow
def test_exported_parameters_convert_to_the_original_format(params):
  """Its filters are divided by their norms again, and are the same."""
  rows = names.rows(CONFIG)
  ours = mapping.flatten(jax.tree.map(np.asarray, TASK.exported(params)))
  tensors = dict(mapping.to_torch(rows, lambda path, _: ours[path]))
  again = mapping.gather(rows, tensors.__getitem__)
  for path, array in ours.items():
    np.testing.assert_allclose(again[path], array, rtol=1e-5, err_msg=path)


class Echo:
  """Knows the answer."""

  def __init__(self, config, dtype):
    del config, dtype

  def apply(self, variables, x_BTC, method):
    if method == "encode":
      latents = jnp.zeros((2, 8, 8))
      return latents, latents
    return mel.log_mel(mel.MelConfig(), WAVES)


def test_a_perfect_spectrogram_has_no_loss(monkeypatch, params):
  monkeypatch.setattr(audio_vae, "AudioVAE", Echo)
  noise = learning.drawn(TASK, BATCH)
  terms = TASK.loss_terms(params, BATCH, noise, learning.NULL)
  for term in terms.values():
    np.testing.assert_array_equal(term, [0, 0])


def test_the_mel_is_standardized_with_measured_statistics():
  mels = np.concatenate([mel.log_mel(mel.MelConfig(), w[None]) for w in WAVES])
  flat = mels.reshape(-1, 80).astype(np.float64)
  np.testing.assert_allclose(MEAN, flat.mean(0), atol=6e-5)
  deviation = np.maximum(flat.std(0), 0.25)
  np.testing.assert_allclose(DEVIATION, deviation, atol=6e-5)
  with pytest.raises(ValueError, match="at least one sound"):
    sound.measure_mel([])
