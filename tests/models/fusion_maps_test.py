"""How the towers attend to each other; blocks in a loop or one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.modality import AV
from ovi_jax.models import fusion
from tests import standin_models


@pytest.fixture(scope="module")
def case():
  random = np.random.default_rng(0)
  config = standin_models.fusion_config()
  latents = AV(
    random.standard_normal((1, 3, 4, 4, config.video.channels), np.float32),
    random.standard_normal((1, 9, config.audio.channels), np.float32),
  )
  text = random.standard_normal((1, 4, config.video.text_width), np.float32)
  times = AV(jnp.full((1, 1), 500.0), jnp.full((1, 1), 500.0))
  variables = {"params": standin_models.fusion_params()}
  return config, variables, (latents, times, AV(text, text))


def test_maps_are_shares_of_the_other_towers_tokens(case):
  config, variables, given = case
  model = fusion.FusionDiT(config)
  maps = jax.jit(lambda v, *a: model.apply(v, *a, method="maps"))(
    variables, *given
  )
  assert maps.audio.shape == (1, 9, 12) and maps.video.shape == (1, 12, 9)
  for found in maps:
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert found.min() >= 0 and found.std() > 0
  # The mean over blocks is of those blocks: another last block, another map.
  last = jax.tree.map(
    lambda x: jnp.asarray(x).at[-1].multiply(3.0),
    dict(variables["params"])["blocks"],
  )
  changed = {"params": {**variables["params"], "blocks": last}}
  other = model.apply(changed, *given, method="maps")
  assert np.abs(other.audio - maps.audio).max() > 1e-4


def test_blocks_one_by_one_compute_the_same(case):
  config, variables, given = case
  out = fusion.FusionDiT(config).apply(variables, *given)
  unrolled = fusion.FusionDiT(config, unroll=True)
  for a, b in zip(out, unrolled.apply(variables, *given)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert fusion.unrolled(config, "cpu") and not fusion.unrolled(config, "tpu")
