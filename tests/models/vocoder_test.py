import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.convert import vocoder as vocoder_names
from ovi_jax.models import vocoder
from tests.lib import parity

MANIFEST = pathlib.Path(__file__).parents[1] / "goldens" / "full_manifest.json"


@pytest.fixture(scope="module")
def config():
  sizes = standin.manifest()["config"]["bigvgan"]
  return vocoder.VocoderConfig.from_release(sizes)


@pytest.fixture(scope="module")
def params(config):
  tensors = standin.tensors(vocoder_names.FILE)
  rows = vocoder_names.rows(config)
  return mapping.nest(mapping.gather(rows, tensors.__getitem__))


@pytest.mark.parametrize(
  "mel, wave, dtype, kind",
  [
    *(
      pytest.param(
        *("avae_mel_aud", "voc_wav_aud", dtype, kind), marks=pytest.mark.slow
      )
      for dtype, kind in (
        (jnp.float32, "forward"),
        (jnp.bfloat16, "bfloat16"),
      )
    ),
    ("avae_mel", "voc_wav", jnp.float32, "forward"),
  ],
)
def test_waves_equal_the_originals(
  golden, config, params, mel, wave, dtype, kind
):
  reference = golden("audio")
  model = vocoder.BigVGAN(config, dtype)
  mel_BTM = reference[mel].swapaxes(1, 2)
  wave_BA = jax.jit(model.apply)({"params": params}, mel_BTM)
  assert wave_BA.dtype == jnp.float32
  parity.assert_close(wave_BA, reference[wave][:, 0], kind)


def test_low_pass_is_a_kaiser_windowed_sinc():
  steps = np.arange(12) - 5.5
  taps = np.kaiser(12, 0.1102 * (51.0212353 - 8.7)) * np.sinc(steps / 2)
  expected = taps / taps.sum()
  np.testing.assert_allclose(vocoder.LOW_PASS, expected, atol=5e-8)
  assert vocoder.LOW_PASS.dtype == np.float32


def test_snake_is_its_formula():
  # Phases of up to 40 turns, where a polynomial alone would be far off.
  x_BTC = jnp.linspace(-50, 50, 4001)[None, :, None]
  alpha, beta = 5.0, 0.3
  ours = vocoder._snake(
    x_BTC, *(jnp.log(jnp.array([v])) for v in (alpha, beta))
  )
  x = np.asarray(x_BTC, np.float64)
  expected = x + np.sin(alpha * x) ** 2 / beta
  np.testing.assert_allclose(ours, expected, atol=2e-4)
  near = np.abs(x) < 1
  np.testing.assert_allclose(ours[near], expected[near], atol=4e-6)


def test_anti_aliasing_is_interpolate_then_decimate():
  # A slow plain reference: insert zeros, filter, activate, filter, drop.
  x = np.random.default_rng(0).normal(size=9)
  taps = vocoder.LOW_PASS.astype(np.float64)
  held = np.pad(x, 5, mode="edge")
  spread = np.zeros(2 * held.size)
  spread[::2] = held
  doubled = 2 * np.convolve(spread, taps)[15 : 15 + 18]
  active = doubled + np.sin(doubled) ** 2
  held = np.pad(active, (5, 6), mode="edge")
  expected = np.convolve(held, taps, mode="valid")[: 2 * x.size : 2]
  layer = vocoder.AliasFreeSnake()
  x_BTC = jnp.asarray(x, jnp.float32)[None, :, None]
  ours, _ = layer.init_with_output(jax.random.key(0), x_BTC)
  np.testing.assert_allclose(ours[0, :, 0], expected, atol=1e-5)


def test_the_gradient_of_the_filter_equals_its_formula():
  random = np.random.default_rng(0)
  x_BTC, g_BTC = (random.standard_normal((2, n, 3)) for n in (9, 4))
  taps = tuple(map(float, vocoder.LOW_PASS[::2]))
  out_BTC, pull = jax.vjp(
    lambda x: vocoder._filtered(x, taps), jnp.asarray(x_BTC, jnp.float32)
  )
  expected = np.zeros_like(x_BTC)
  for j, tap in enumerate(taps):
    expected[:, j : j + 4] += tap * g_BTC
  np.testing.assert_allclose(pull(jnp.float32(g_BTC))[0], expected, atol=1e-6)
  plain = sum(tap * x_BTC[:, j : j + 4] for j, tap in enumerate(taps))
  np.testing.assert_allclose(out_BTC, plain, atol=1e-6)


def test_upsampling_is_a_transposed_convolution():
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(5, 3)), rng.normal(size=(2, 3, 4, 6))
  bias = rng.normal(size=6)
  taps = kernel.swapaxes(1, 2).reshape(8, 3, 6)
  expected = np.zeros((5 * 4 + 4, 6))
  for t in range(5):
    for k in range(8):
      expected[4 * t + k] += x[t] @ taps[k]
  layer = vocoder.Upsample(6, rate=4, kernel_size=8, dtype=jnp.float32)
  params = jax.tree.map(jnp.float32, {"kernel": kernel, "bias": bias})
  ours = layer.apply({"params": params}, jnp.asarray(x, jnp.float32)[None])
  np.testing.assert_allclose(ours[0], expected[2:-2] + bias[None], atol=1e-5)


@pytest.mark.slow
def test_the_full_size_has_the_released_parameters():
  config = vocoder.VocoderConfig()
  mel_BTM = jax.ShapeDtypeStruct((1, 314, 80), jnp.float32)
  wave_BA, shapes = jax.eval_shape(
    vocoder.BigVGAN(config).init_with_output, jax.random.key(0), mel_BTM
  )
  assert wave_BA.shape == (1, 314 * 256)
  flat = mapping.flatten(shapes["params"])
  assert sum(leaf.size for leaf in flat.values()) == 112_199_473
  manifest = json.loads(MANIFEST.read_text())
  released = manifest[f"{vocoder_names.FILE}[generator]"]
  mapping.check(
    vocoder_names.rows(config),
    {name: tuple(shape) for name, shape in released.items()},
    {path: leaf.shape for path, leaf in flat.items()},
  )


def test_other_widths_are_refused():
  model = vocoder.BigVGAN(vocoder.VocoderConfig())
  with pytest.raises(ValueError, match=r"80 bins last, got \(1, 80, 4\)"):
    model.init(jax.random.key(0), jnp.zeros((1, 80, 4)))


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"upsample_rates": (4, 4)}, "expected one a rate, 2, got 6"),
    ({"upsample_kernel_sizes": (8, 8, 4, 4, 4, 5)}, "of rate 2 .* got 5"),
    ({"upsample_initial_channel": 96}, r"a multiple of 2\^6, got 96"),
    ({"resblock_kernel_sizes": (3, 7)}, "one group a kernel size, 2, got 3"),
    ({"resblock_kernel_sizes": (3, 7, 8)}, r"expected odd sizes, got \[8\]"),
    ({"activation": "snake"}, "expected snakebeta .* got snake with True"),
    ({"snake_logscale": False}, "got snakebeta with False"),
  ],
)
def test_invalid_sizes_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    vocoder.VocoderConfig(**sizes)


def test_unknown_sizes_are_named():
  with pytest.raises(ValueError, match="vocoder: colour; known are mel_bins"):
    vocoder.VocoderConfig.from_release({"colour": 2})
