"""The denoiser in training: padding, missing modalities, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.modality import AV
from ovi_jax.models import fusion
from tests.lib import parity
from tests.lib import standin_models

PARAMS = {"params": standin_models.fusion_params()}
CONFIG = standin_models.fusion_config()


def example(frames: int = 2, steps: int = 9, batch: int = 2) -> AV:
  random = np.random.default_rng(0)
  return AV(
    random.standard_normal((batch, frames, 4, 6, 48), np.float32),
    random.standard_normal((batch, steps, 20), np.float32),
  )


def forward(latents, lengths=None, remat="none", params=PARAMS, backend="xla"):
  model = fusion.FusionDiT(CONFIG, backend=backend, remat=remat)
  batch = latents.video.shape[0]
  text = np.random.default_rng(1).standard_normal((1, 5, 48), np.float32)
  text = jnp.repeat(text, batch, 0)
  t_BT = jnp.full((batch, 1), 500.0)
  return model.apply(
    params, latents, AV(t_BT, t_BT), AV(text, text), lengths=lengths
  )


@pytest.mark.parametrize("backend", ["xla", "xla_head"])
@pytest.mark.slow
def test_padding_changes_nothing(backend):
  """A bucket's length is no part of the result; its content neither."""
  whole = forward(example())
  junk = 7 * np.ones((2, 6, 20), np.float32)
  padded = AV(
    np.pad(example().video, ((0, 0), (0, 1)) + ((0, 0),) * 3),
    np.concatenate([example().audio, junk], 1),
  )
  lengths = AV(jnp.array([2, 2]), jnp.array([9, 9]))
  out = forward(padded, lengths, backend=backend)
  assert parity.relative_error(out.audio[:, :9], whole.audio) < 5e-6
  assert parity.relative_error(out.video[:, :2], whole.video) < 5e-6
  shorter = forward(padded, lengths._replace(audio=jnp.array([9, 8])))
  assert parity.relative_error(shorter.audio[:1, :9], whole.audio[:1]) < 5e-6
  assert (
    parity.relative_error(shorter.audio[1:, :8], whole.audio[1:, :8]) > 0.01
  )


@pytest.mark.slow
def test_a_missing_modality_is_masked_out():
  lengths = AV(jnp.array([2, 0]), jnp.array([9, 9]))
  a = forward(example(), lengths)
  other = example()._replace(video=example().video[::-1] + 3)
  b = forward(other, lengths)
  np.testing.assert_allclose(a.audio[1], b.audio[1], atol=1e-6)
  assert np.abs(a.audio[0] - b.audio[0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.nightly
def test_rematerialization_saves_memory():
  def temporary(remat: str) -> int:
    def loss(params):
      out = forward(example(8, 40, 4), None, remat, {"params": params})
      return sum(jnp.square(x).mean() for x in out)

    compiled = jax.jit(jax.grad(loss)).lower(PARAMS["params"]).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary("full") < 0.7 * temporary("none")
