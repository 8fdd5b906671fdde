"""Loss terms of the video VAE: exact values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models.video_vae import codec
from ovi_jax.models.video_vae import config as video_vae
from ovi_jax.training.objectives import video_vae as video

CONFIG = video_vae.VideoVAEConfig(
  dim=2,
  dec_dim=2,
  z_dim=3,
  dim_mult=(1, 1),
  num_res_blocks=1,
  temporal_downsample=(True,),
  latent_mean=(0.0,) * 3,
  latent_std=(1.0,) * 3,
)
TASK = video.VideoVAEObjective(config=CONFIG, smoothness_weight=0.1)


def batch(frames: np.ndarray, lengths) -> schema.Batch:
  return schema.Batch(
    latents=AV(video=jnp.asarray(frames)),
    lengths=AV(video=jnp.asarray(lengths)),
    text=AV(),
    ids=None,
  )


def terms_of(made, frames, monkeypatch, mean=0.0, logvar=0.0):
  """Loss terms of a codec whose output is always `made`."""
  shape = len(frames), 2, 2, 2, 3
  moments = jnp.full(shape, mean), jnp.full(shape, logvar)
  seen = {}

  def decode(config, params, latents, dtype):
    seen["latents"] = latents
    return jnp.asarray(made, jnp.float32)

  monkeypatch.setattr(codec, "encode_whole", lambda *_: moments)
  monkeypatch.setattr(codec, "decode_whole", decode)
  given = batch(frames, [3] * len(frames))
  found = TASK.loss_terms({}, given, jnp.ones(shape), jnp.zeros((1, 1)))
  return {n: np.asarray(x) for n, x in found.items()}, seen["latents"]


def test_loss_terms_equal_their_formulas(monkeypatch):
  frames = np.zeros((1, 3, 4, 4, 3), np.uint8)
  frames[:, 1, 0, 0] = 255  # one pixel flashes once
  target = frames.astype(np.float32) / 127.5 - 1
  everywhere, latents = terms_of(
    target + 0.3, frames, monkeypatch, mean=2.0, logvar=np.log(4.0)
  )
  error = np.sqrt(0.3**2 + 0.1**2) - 0.1
  assert everywhere["recon"] == pytest.approx([error], rel=1e-5)
  assert everywhere["kl"] == pytest.approx(
    [(4 + 4 - 1 - np.log(4)) / 2], rel=1e-5
  )
  # The latent is drawn: mean, and deviation times what was drawn.
  np.testing.assert_allclose(latents, 2 + 2, rtol=1e-6)
  # What moves is 1 of 48 values; its error counts by itself.
  flash = target.copy()
  flash[:, 1, 0, 0] -= 0.3
  there, _ = terms_of(flash, frames, monkeypatch)
  wall = target.copy()
  wall[:, :, 3, 3] += 0.3
  elsewhere, _ = terms_of(wall, frames, monkeypatch)
  assert there["recon"] < elsewhere["recon"]
  assert elsewhere["motion"] == 0
  change = 2 / 3 + 4 / 3 + 2 / 3
  expected = 4 / 3 * error / (change + 0.005 * 48)
  assert there["motion"] == pytest.approx([expected], rel=1e-5)


def test_a_static_clip_has_no_motion_loss(monkeypatch):
  frames = np.full((1, 3, 4, 4, 3), 200, np.uint8)
  found, _ = terms_of(np.zeros(frames.shape), frames, monkeypatch)
  assert found["motion"] == 0 and found["recon"] > 0.1


@pytest.mark.slow
def test_gradients_reach_every_parameter_and_ignore_padding_rows():
  random = np.random.default_rng(0)
  frames = random.integers(0, 256, (2, 5, 4, 4, 3), np.uint8)
  given = batch(frames, [5, 0])
  params = jax.jit(codec.init, static_argnums=0)(CONFIG, jax.random.key(0))
  example = jax.tree.map(lambda x: x[0], given)
  assert TASK.sample_noise(jax.random.key(0), example).shape == (3, 1, 1, 3)
  drawn = jnp.asarray(random.standard_normal((2, 3, 1, 1, 3), np.float32))
  weights = TASK.example_weights(given, drawn)
  np.testing.assert_allclose(weights["motion"], [0.5, 0])

  @jax.jit
  def loss(params):
    terms = TASK.loss_terms(params, given, drawn, jnp.zeros((1, 1)))
    return sum((weights[n] * x).sum() for n, x in terms.items()), terms

  gradient, terms = jax.jit(jax.grad(loss, has_aux=True))(params)
  assert set(terms) == set(weights)
  assert all(x[0] > 0 and x[1] == 0 for x in terms.values())
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.isfinite(leaf).all() and np.any(leaf != 0), path


@pytest.mark.parametrize(
  "changes",
  [
    {"kl_weight": -1.0},
    {"smoothness_weight": 0.0},
    {"recon_weight": 0.0, "motion_weight": 0.0},
  ],
)
def test_invalid_loss_weights_are_refused(changes):
  with pytest.raises(
    ValueError, match="objective: weights must not be negative"
  ):
    video.VideoVAEObjective(config=CONFIG, **changes)
