"""From prompts to video and audio on the stand-in, against the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.modality import AV
from ovi_jax.models.video_vae import codec
from ovi_jax.pretrained import decoders
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import denoise
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import settings
from ovi_jax.sharding import mesh as meshes
from tests.lib import config_values
from tests.lib import parity


@pytest.fixture(scope="module")
def pipeline(weights):
  return denoisers.SamplingComponents(
    weights=weights,
    manifest=weights_dir.read(weights),
    mesh=meshes.for_sampling(jax.devices()[:1], heads=2),
    dtype=jnp.dtype("float32"),
    backend="xla_head",
  )


@pytest.fixture(scope="module")
def decoder(pipeline):
  return decoders.Decoder.load(pipeline)


@pytest.fixture(scope="module")
def latents(pipeline, golden):
  """Latents of eight steps from the golden noise, by whether an image leads."""
  arrays = golden("sampling")
  prompts = config_values.PROMPTS
  embedded = encoders.TextEncoder.load(pipeline).texts(prompts)
  positive, *negative = (embedded[p] for p in prompts)
  noise = AV(
    arrays["noise_v"].transpose(1, 2, 3, 0)[None], arrays["noise_a"][None]
  )
  chosen = settings.Settings.from_config(config_values.sample_config())
  denoiser = pipeline.denoiser()

  def run(given):
    return denoiser.sample(noise, [positive], AV(*negative), chosen, given)

  frames = golden("video_vae")["vvae_in"].transpose(1, 2, 3, 0)[None, :1]
  params = pipeline.load("video_vae", "encoder")
  first = codec.encode(pipeline.arch.video_vae, params, frames)
  given = denoise.Given(
    np.zeros_like(noise.video), np.arange(noise.video.shape[1])[None] == 0
  )
  given.latents[:, :1] = first
  return {False: run(AV()), True: run(AV(video=given))}


@pytest.mark.slow
def test_the_decoded_wave_equals_the_original(latents, decoder, golden):
  wave = decoder.wave(latents[False].audio)
  reference = golden("sampling")["e2e_unipc_wav"][0]
  parity.assert_close(wave, reference, "end_to_end")


@pytest.mark.slow
def test_image_to_video_and_audio_equals_the_original(latents, decoder, golden):
  arrays = golden("sampling")
  video = codec.decode(
    decoder.components.arch.video_vae, decoder.video, latents[True].video
  )
  reference = arrays["e2e_i2v_video"].transpose(1, 2, 3, 0)
  parity.assert_close(video[0], reference, "end_to_end")
  frames = np.concatenate(list(decoder.frames(latents[True].video)))
  assert frames.dtype == np.uint8 and frames.shape == reference.shape
  expected = np.clip((reference + 1) * 127.5, 0, 255)
  assert np.abs(frames - expected).max() <= 0.51
  wave = decoder.wave(latents[True].audio)
  parity.assert_close(wave, arrays["e2e_i2v_wav"][0], "end_to_end")


def test_noise_is_a_function_of_the_seed(pipeline):
  clip = pipeline.arch.clip
  a, b, c = (
    noises.sample_noise(seed, clip, AV(48, 20)) for seed in (103, 103, 104)
  )
  np.testing.assert_array_equal(a.video, b.video)
  assert not np.allclose(a.video, c.video)
  assert a.video.shape == (4, 4, 6, 48) and a.audio.shape == (21, 20)
  assert abs(a.video.std() - 1) < 0.05


@pytest.mark.parametrize(
  ("longest", "limit", "rows"),
  [
    (9, 112, 63),
    (63, 112, 63),
    (64, 112, 112),
    (64, 512, 127),
    (512, 512, 512),
  ],
)
def test_prompts_share_a_length(longest, limit, rows):
  positive, video, audio = (np.ones((n, 4)) for n in (longest, 3, 7))
  pairs = denoisers.text_pairs([positive], AV(video, audio), limit, "xla")
  assert pairs.video.shape == pairs.audio.shape == (2, rows, 4)
  assert pairs.video.any(-1).sum(-1).tolist() == [longest, 3]
  assert pairs.audio.any(-1).sum(-1).tolist() == [longest, 7]


def test_prompts_of_a_batch_come_before_its_negative_prompts():
  positives = [np.full((n, 4), n) for n in (70, 2)]
  negative = AV(np.full((3, 4), 3), np.full((7, 4), 7))
  pairs = denoisers.text_pairs(positives, negative, 512, "xla")
  assert pairs.video.shape == pairs.audio.shape == (4, 127, 4)
  assert pairs.video[:, 0, 0].tolist() == [70, 2, 3, 3]
  assert pairs.audio[:, 0, 0].tolist() == [70, 2, 7, 7]
  assert pairs.video.any(-1).sum(-1).tolist() == [70, 2, 3, 3]


def test_cudnn_attention_pads_prompts_to_the_full_length():
  pairs = denoisers.text_pairs(
    [np.ones((9, 4))], AV(None, np.ones((3, 4))), 112, "cudnn"
  )
  assert pairs.video is None and pairs.audio.shape == (2, 112, 4)
  with pytest.raises(ValueError, match="9 text embeddings; the towers read 8"):
    denoisers.text_pairs([np.ones((9, 4))], AV(np.ones((3, 4))), 8, "xla")


def test_embeddings_are_of_the_prompts_own_tokens(pipeline, golden):
  arrays = golden("umt5")
  prompt = config_values.PROMPTS[0]
  own = int(arrays["t5_mask"][0].sum())
  embedded = encoders.TextEncoder.load(pipeline).texts([prompt])[prompt]
  parity.assert_close(embedded, arrays["t5_emb"][0, :own], "forward")
