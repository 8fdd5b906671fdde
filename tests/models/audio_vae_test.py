import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.convert import audio_vae as audio_vae_names
from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.models import audio_vae
from tests.lib import parity

MANIFEST = pathlib.Path(__file__).parents[1] / "goldens" / "full_manifest.json"
DTYPES = pytest.mark.parametrize(
  "dtype, kind", [(jnp.float32, "forward"), (jnp.bfloat16, "bfloat16")]
)


@pytest.fixture(scope="module")
def config():
  sizes = standin.manifest()["config"]["audio_vae"]
  return audio_vae.AudioVAEConfig.from_release(sizes)


@pytest.fixture(scope="module")
def params(config):
  tensors = standin.tensors(audio_vae_names.FILE)
  rows = audio_vae_names.rows(config)
  return mapping.nest(mapping.gather(rows, tensors.__getitem__))


@pytest.fixture(scope="module")
def apply(config):
  """`apply(dtype, method, params of that half, x)`, compiled once each."""

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def run(dtype, method, params, x):
    # Each half is used with its own parameters alone.
    half = {"encode": "encoder", "decode": "decoder"}[method]
    model = audio_vae.AudioVAE(config, dtype)
    return model.apply({"params": {half: params}}, x, method=method)

  return run


@DTYPES
def test_latents_equal_the_originals(golden, params, apply, dtype, kind):
  reference = golden("audio")
  mel_BTM = reference["mel"].swapaxes(1, 2)
  mean_BTC, logvar_BTC = apply(dtype, "encode", params["encoder"], mel_BTM)
  assert mean_BTC.dtype == logvar_BTC.dtype == jnp.float32
  assert logvar_BTC.shape == mean_BTC.shape
  parity.assert_close(mean_BTC, reference["avae_mean"].swapaxes(1, 2), kind)


@DTYPES
@pytest.mark.parametrize("name", ["avae_mel", "avae_mel_aud"])
def test_spectrograms_equal_the_originals(
  golden, params, apply, name, dtype, kind
):
  reference = golden("audio")
  latents_BTC = {
    "avae_mel": reference["avae_mean"].swapaxes(1, 2),
    "avae_mel_aud": golden("fusion")["aud"][None],
  }[name]
  mel_BTM = apply(dtype, "decode", params["decoder"], latents_BTC)
  assert mel_BTM.dtype == jnp.float32
  parity.assert_close(mel_BTM, reference[name].swapaxes(1, 2), kind)


@pytest.mark.slow
def test_gradient_at_the_mean_spectrogram_is_finite(config, params):
  # There every activation is zero, and so is what the norms divide by.
  # Thirteen blocks are deep enough to overflow, and quick to compile.
  model = audio_vae.AudioVAE(dataclasses.replace(config, res_blocks=1))
  mel_BTM = np.tile(np.float32(config.mel_mean), (1, 4, 1))

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def loss_and_gradient(params, mel_BTM):
    error_BTM = model.apply({"params": params}, mel_BTM) - mel_BTM - 1.0
    return jnp.square(error_BTM).mean()

  loss, gradient = loss_and_gradient(params, mel_BTM)
  assert loss == pytest.approx(1)
  for leaf in jax.tree.leaves(gradient):
    assert np.isfinite(leaf).all()


def test_log_variance_is_clipped(golden, params, apply):
  mel_BTM = golden("audio")["mel"].swapaxes(1, 2)
  head = params["encoder"]["head"] | {"gain": np.float32(1e3)}
  encoder = params["encoder"] | {"head": head}
  _, logvar_BTC = apply(jnp.float32, "encode", encoder, mel_BTM)
  assert (logvar_BTC.min(), logvar_BTC.max()) == (-30, 20)


def test_activations_are_clipped(golden, params, apply):
  latents_BTC = golden("fusion")["aud"][None]
  head = {"conv": params["decoder"]["head"]["conv"], "gain": np.float32(0)}
  last = jax.tree.map(
    lambda kernel: kernel * np.float32(1e3),
    params["decoder"]["level_0_block_2"],
  )
  decoder = params["decoder"] | {"head": head, "level_0_block_2": last}
  mel_BTM = apply(jnp.float32, "decode", decoder, latents_BTC)
  # SiLU of 256, over its deviation, through every tap with the worst sign.
  taps_M = np.abs(head["conv"]["kernel"]).sum((0, 1))
  bound_M = 256 / 0.596 * taps_M * audio_vae.MEL_STD
  found_M = np.abs(mel_BTM - np.array(audio_vae.MEL_MEAN)[None, None]).max(1)
  assert (found_M <= bound_M[None]).all()
  assert found_M.max() > 30


def test_the_full_size_has_the_released_parameters():
  config = audio_vae.AudioVAEConfig()
  mel_BTM = jax.ShapeDtypeStruct((1, 314, 80), jnp.float32)
  model = audio_vae.AudioVAE(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0), mel_BTM)
  assert shapes["params"].keys() == {"encoder", "decoder"}
  flat = mapping.flatten(shapes["params"])
  assert sum(leaf.size for leaf in flat.values()) == 171_657_218
  released = json.loads(MANIFEST.read_text())[audio_vae_names.FILE]
  mapping.check(
    audio_vae_names.rows(config),
    {name: tuple(shape) for name, shape in released.items()},
    {path: leaf.shape for path, leaf in flat.items()},
  )
  decode = {"method": "decode"}
  latents_BTC = jax.ShapeDtypeStruct((1, 157, 20), jnp.float32)
  decoded = jax.eval_shape(
    lambda v, z: model.apply(v, z, **decode), shapes, latents_BTC
  )
  assert decoded.shape == (1, 314, 80)


def test_initial_filters_have_norm_one():
  attention = audio_vae.Attention(jnp.float32)
  variables = jax.jit(attention.init)(jax.random.key(0), jnp.zeros((1, 2, 8)))
  kernel = variables["params"]["qkv"]["kernel"]
  assert kernel.shape == (8, 3, 8)
  norms = np.linalg.norm(kernel, axis=0)
  np.testing.assert_allclose(norms, 1, atol=1e-3)
  # Below one, or no file could hold them.
  assert norms.max() < 1
  conv = audio_vae._unit_filters(jax.random.key(0), (3, 4, 5))
  norms = np.sqrt(np.square(conv).sum((0, 1)))
  np.testing.assert_allclose(norms, 1, atol=1e-3)


def test_odd_frames_are_refused(config):
  model = audio_vae.AudioVAE(config)
  with pytest.raises(ValueError, match=r"a multiple of 2 frames.* got 5"):
    model.init(jax.random.key(0), jnp.zeros((1, 5, 80)))


def test_other_widths_are_refused(config):
  model = audio_vae.AudioVAE(config)
  with pytest.raises(ValueError, match=r"last of 80, got \(1, 4, 20\)"):
    model.init(jax.random.key(0), jnp.zeros((1, 4, 20)))


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"data_dim": 128}, "mel_mean for each of 128 mel bins, got 80"),
    ({"down_layers": (2,)}, r"down_layers among \[0, 1\], got \[2\]"),
  ],
)
def test_invalid_sizes_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    audio_vae.AudioVAEConfig(**sizes)


def test_unknown_sizes_are_named():
  with pytest.raises(ValueError, match="audio VAE: colour; known are data_dim"):
    audio_vae.AudioVAEConfig.from_release({"embed_dim": 20, "colour": 2})


def test_sizes_are_serialized_as_lists():
  sizes = {
    "data_dim": 2,
    "embed_dim": 3,
    "hidden_dim": 4,
    "channel_multipliers": [1, 2],
    "res_blocks": 1,
    "down_layers": [0],
    "mel_mean": [-1.0, -2.0],
    "mel_std": [0.5, 1.5],
  }
  config = audio_vae.AudioVAEConfig.from_release(sizes)
  assert config == audio_vae.AudioVAEConfig(
    data_dim=2,
    embed_dim=3,
    hidden_dim=4,
    channel_multipliers=(1, 2),
    res_blocks=1,
    down_layers=(0,),
    mel_mean=(-1.0, -2.0),
    mel_std=(0.5, 1.5),
  )
  hash(config)
  assert json.loads(json.dumps(dataclasses.asdict(config))) == sizes
