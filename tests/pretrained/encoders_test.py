"""Encoders: pixel types, batches over devices, prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import mesh as meshes


@pytest.fixture(scope="module")
def one(weights):
  return component_loader.Components(
    weights=weights,
    manifest=weights_dir.read(weights),
    mesh=meshes.make(jax.devices()[:1]),
    dtype=jnp.dtype("float32"),
  )


@pytest.fixture(scope="module")
def two(one):
  mesh = meshes.make(jax.devices()[:2], fsdp=2)
  return dataclasses.replace(one, mesh=mesh)


@pytest.fixture(scope="module")
def clips():
  draw = np.random.default_rng(0)
  return draw.integers(0, 256, (2, 5, 32, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def latents(one, clips):
  return np.asarray(encoders.VideoEncoder.load(one).encode(clips))


def test_uint8_frames_are_scaled_to_pixels(one, clips, latents):
  pixels = clips.astype(np.float32) / np.float32(127.5) - np.float32(1)
  same = encoders.VideoEncoder.load(one).encode(pixels)
  np.testing.assert_allclose(latents, same, atol=1e-5)


def test_each_device_encodes_its_own_clips(two, clips, latents):
  split = encoders.VideoEncoder.load(two).encode(clips, split=True)
  assert not split.sharding.is_fully_replicated
  assert {s.data.shape[0] for s in split.addressable_shards} == {1}
  np.testing.assert_allclose(latents, split, atol=1e-5)


def test_audio_becomes_one_latent_per_512_samples(one):
  wave_BA = np.sin(np.arange(2 * 512 * 8, dtype=np.float32)).reshape(2, -1)
  encoder = encoders.AudioEncoder.load(one)
  latents_BTC = np.asarray(encoder.encode(wave_BA))
  assert latents_BTC.shape == (2, 8, 20)
  alone_BTC = np.asarray(encoder.encode(wave_BA[1:]))
  np.testing.assert_allclose(latents_BTC[1:], alone_BTC, atol=1e-5)
  with pytest.raises(ValueError, match="multiple of 2 frames"):
    encoder.encode(wave_BA[:, :-256])


def test_batched_prompts_equal_single_prompts(one):
  encoder = encoders.TextEncoder.load(one)
  prompts = ["Waves. Audio: surf.", ""]
  alone = encoder.texts(prompts)
  ids_BS, mask_BS = encoder.tokenizer.encode(prompts, one.text_length)
  both_BSE = np.asarray(encoder.encode(ids_BS, mask_BS))
  for row, prompt in enumerate(prompts):
    length = len(alone[prompt])
    assert length == mask_BS[row].sum()
    np.testing.assert_allclose(both_BSE[row, :length], alone[prompt], atol=1e-5)
    assert not both_BSE[row, length:].any()
