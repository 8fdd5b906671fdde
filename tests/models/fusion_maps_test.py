"""Attention maps between the towers; scanned and unrolled blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.modality import AV
from ovi_jax.models import fusion
from tests.lib import standin_models

MAPS = "attention_maps"


@pytest.fixture(scope="module")
def case():
  random = np.random.default_rng(0)
  config = standin_models.fusion_config()
  latents = AV(
    random.standard_normal((1, 3, 4, 4, config.video.channels), np.float32),
    random.standard_normal((1, 9, config.audio.channels), np.float32),
  )
  text = random.standard_normal((1, 4, config.video.text_dim), np.float32)
  times = AV(jnp.full((1, 1), 500.0), jnp.full((1, 1), 500.0))
  variables = {"params": standin_models.fusion_params()}
  return config, variables, (latents, times, AV(text, text))


def watched(case, heads: AV[np.ndarray], alignment_mask: AV[np.ndarray]):
  config, variables, given = case
  map_spec = jax.tree.map(
    jnp.asarray, fusion.AttentionMapSpec(heads, alignment_mask)
  )
  run = jax.jit(
    lambda v, *a: fusion.FusionDiT(config).apply(v, *a, method=MAPS)
  )
  return jax.device_get(run(variables, *given, map_spec))


@pytest.mark.slow
def test_maps_are_attention_weights_over_the_other_tower(case):
  towers = case[0].present()
  sizes = {
    n: (tower.num_layers, tower.num_heads) for n, tower in towers.items()
  }
  everything = AV(np.ones((12, 9), np.float32), np.ones((9, 12), np.float32))
  even = AV(**{n: np.full(s, 1 / np.prod(s)) for n, s in sizes.items()})
  found, shares = watched(case, even, everything)
  assert found.audio.shape == (1, 9, 12) and found.video.shape == (1, 12, 9)
  for each in found:
    np.testing.assert_allclose(each.sum(-1), 1, rtol=1e-5)
    assert each.min() >= 0 and each.std() > 0
  for each in shares:
    np.testing.assert_allclose(each, 1, rtol=1e-5)

  # A map is of the heads that count, and a head's share is that of its map.
  for name, (blocks, heads) in sizes.items():
    some = np.zeros_like(getattr(everything, name))
    some[:, 2] = some[3, 4] = 1
    alignment_mask = everything._replace(**{name: some})
    for block, head in ((0, heads - 1), (blocks - 1, 0)):
      one = np.zeros((blocks, heads), np.float32)
      one[block, head] = 1
      found, shares = watched(
        case, even._replace(**{name: one}), alignment_mask
      )
      map_LS = getattr(found, name)[0]
      np.testing.assert_allclose(map_LS.sum(-1), 1, rtol=1e-5)
      share = (map_LS * some).sum(-1).mean()
      of_head = getattr(shares, name)[block, 0, head]
      np.testing.assert_allclose(of_head, share, rtol=1e-5)
      assert np.abs(getattr(shares, name) - share).max() > 1e-6


@pytest.mark.slow
def test_unscanned_blocks_compute_the_same(case):
  config, variables, given = case
  out = fusion.FusionDiT(config).apply(variables, *given)
  unrolled = fusion.FusionDiT(config, unroll=True)
  for a, b in zip(out, unrolled.apply(variables, *given)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert fusion.should_unroll(config, "cpu") and not fusion.should_unroll(
    config, "tpu"
  )
