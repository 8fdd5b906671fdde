"""LoRA as a transformation of parameters."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ovi_jax.convert import mapping
from ovi_jax.modality import AV
from ovi_jax.models import block_params
from ovi_jax.models import fusion
from ovi_jax.models import low_rank
from tests.lib import parity
from tests.lib import random_loras
from tests.lib import standin_models

CONFIG = random_loras.CONFIG
base = random_loras.base


def inputs():
  random = np.random.default_rng(1)
  latents = AV(
    random.standard_normal((2, 2, 4, 4, 4), np.float32),
    random.standard_normal((2, 5, 3), np.float32),
  )
  text = random.standard_normal((2, 4, 12), np.float32)
  t_BT = np.asarray([[300.0], [700.0]], np.float32)
  return latents, AV(t_BT, t_BT), AV(text, text)


def factors(preset: str = "fusion+mlp", rank: int = 3) -> dict:
  """Random factors, by path."""
  kernels = low_rank.targets(base(), preset)
  shapes = low_rank.factor_shapes(base(), kernels, rank)
  random = np.random.default_rng(2)
  return {
    p: 0.3 * random.standard_normal(s.shape, np.float32)
    for p, s in shapes.items()
  }


def velocity(flat, remat="none"):
  model = fusion.FusionDiT(CONFIG, remat=remat)
  return model.apply({"params": mapping.nest(flat)}, *inputs())


def audio_velocity(flat, dtype):
  """That of a model with the audio tower alone."""
  model = fusion.FusionDiT(AV(None, CONFIG.audio), dtype)
  latents, t_BT, text = (AV(None, x.audio) for x in inputs())
  params = {"params": mapping.nest(flat)}
  return model.apply(params, latents, t_BT, text).audio


@pytest.mark.slow
def test_a_lora_in_the_scan_equals_merged_weights_and_unmerged_products():
  """Velocity to 1e-6 and gradients to 1e-5, rematerialized too."""
  added, flat = factors(), base()
  weight = jax.tree.map(lambda x: np.cos(np.arange(x.size)), inputs()[0])

  def loss(velocity):
    parts = jax.tree.map(lambda v, w: (v.ravel() * w).sum(), velocity, weight)
    return sum(jax.tree.leaves(parts))

  def naive(factors):
    merged = block_params.merge(mapping.nest(flat | factors), jnp.float32)
    made = velocity(mapping.flatten(merged))
    return loss(made), made

  def ours(factors):
    made = velocity(flat | factors, "full")
    return loss(made), made

  gradients, results = [], []
  for function in (ours, naive):
    run = jax.jit(jax.grad(function, has_aux=True))
    found, made = run(added)
    gradients.append(found)
    results.append(made)
  results.append(jax.jit(beside_kernels)(flat | added))
  without = jax.jit(velocity)(flat)
  for name in AV._fields:
    mine, merged, beside = (getattr(r, name) for r in results)
    assert parity.relative_error(mine, merged) < 1e-6
    assert parity.relative_error(mine, beside) < 1e-6
    assert parity.relative_error(mine, getattr(without, name)) > 1e-2
  for path in added:
    mine, merged = (g[path] for g in gradients)
    assert np.abs(merged).max() > 0, path
    assert parity.relative_error(mine, merged) < 1e-5, path


def beside_kernels(flat):
  """The velocity with y = x kernel + ((x down) scale) up in each layer."""
  # The model does not know these names, so that it merges nothing.
  renamed = {p.replace("/lora_", "/beside_"): x for p, x in flat.items()}
  names = [name.replace("lora_", "beside_") for name in low_rank.FACTORS]

  def add(call, args, kwargs, context):
    y = call(*args, **kwargs)
    found = context.module.variables.get("params", {})
    if not isinstance(context.module, nn.Dense) or names[0] not in found:
      return y
    down, up, scale = (found[name] for name in names)
    return y + ((args[0] @ down) * scale[None, None]) @ up

  with nn.intercept_methods(add):
    return velocity(renamed)


@pytest.mark.parametrize(
  "dtype",
  [
    jnp.float32,
    pytest.param(jnp.bfloat16, marks=pytest.mark.slow),
  ],
)
def test_a_lora_of_strength_up_or_rank_zero_changes_no_bit(dtype):
  flat = {
    path: x.astype(dtype) if path.endswith("kernel") else x
    for path, x in base().items()
  }
  flat = {p: x for p, x in flat.items() if is_of_audio(p)}
  run = jax.jit(functools.partial(audio_velocity, dtype=dtype))
  expected = np.asarray(run(flat))
  for name, rank in ((low_rank.SCALE, 3), (low_rank.UP, 3), ("none", 0)):
    added = {
      p: np.zeros_like(x) if p.endswith(name) else x
      for p, x in factors(rank=rank).items()
      if is_of_audio(p)
    }
    assert len(added) == 3 * 10
    found = np.asarray(run(flat | added))
    assert found.tobytes() == expected.tobytes()


def is_of_audio(path: str) -> bool:
  return "audio" in path.split("/") and "/fusion_" not in path


@pytest.mark.parametrize(
  "remat",
  [
    pytest.param("full", marks=pytest.mark.slow),
    pytest.param("attention", marks=pytest.mark.slow),
    "dots",
  ],
)
def test_merged_kernels_are_not_kept_for_the_backward_pass(remat):
  """No array of all blocks' kernels is saved besides the parameters."""
  added = factors("attention")
  _, backward = jax.eval_shape(
    lambda f: jax.vjp(lambda f: velocity(base() | f, remat), f), added
  )
  stacked = [x for x in jax.tree.leaves(backward) if x.shape == (2, 16, 16)]
  parameters = [x for x in base().values() if x.shape == (2, 16, 16)]
  assert len(stacked) <= len(parameters)


@pytest.mark.parametrize(
  ("preset", "linears"),
  [
    ("attention", 16),
    ("fusion", 20),
    ("video", 12),
    ("speech", 14),
    ("blocks/video/.*/query/kernel,speech", 16),
  ],
)
def test_presets_choose_kernels_of_blocks(preset, linears):
  assert len(low_rank.targets(base(), preset)) == linears


@pytest.mark.parametrize(
  ("patterns", "words"),
  [
    ("atention", "choose from attention, fusion"),
    ("blocks/video/no_such/kernel", "matches no parameter"),
    ("video/head/kernel", "not the kernel of a block"),
    ("blocks/(video", "not a regular expression"),
  ],
)
def test_targets_that_cannot_be_are_named(patterns, words):
  with pytest.raises(ValueError, match=words):
    low_rank.targets(base(), patterns)


def test_rank_32_on_attention_and_fusion_of_the_released_size_is_118_million():
  flat = mapping.flatten(standin_models.full_fusion_shapes())
  kernels = low_rank.targets(flat, "fusion")
  shapes = low_rank.factor_shapes(flat, kernels, 32)
  trained = sum(
    math.prod(s.shape)
    for p, s in shapes.items()
    if not p.endswith(low_rank.SCALE)
  )
  # Towers, blocks, projections of a block, and rows and columns of each.
  assert trained == 2 * 30 * 10 * 32 * (3072 + 3072) == 117_964_800


def test_factors_at_first_change_nothing_and_do_not_depend_on_each_other():
  few, many = (
    low_rank.targets(base(), "attention"),
    low_rank.targets(base(), "fusion"),
  )
  key = jax.random.key(3)
  mine = low_rank.init(key, base(), few, 4, 8.0)
  others = low_rank.init(key, base(), many, 4, 8.0)
  assert len(others) > len(mine) == 3 * len(few)
  for path, x in mine.items():
    np.testing.assert_array_equal(x, others[path])
  up, down, scale = (
    mine[low_rank.beside(few[0], n)]
    for n in (low_rank.UP, low_rank.DOWN, low_rank.SCALE)
  )
  assert not up.any() and (scale == 2).all()
  assert 0.2 < np.abs(down).max() <= 0.25


def test_dropped_ranks_are_zero_and_the_others_scaled():
  scales = {"a/lora_scale": jnp.full((500, 4), 3.0), "a/kernel": jnp.ones(2)}
  found = low_rank.drop_ranks(scales, jax.random.key(0), 0.25)
  values, counts = np.unique(found["a/lora_scale"], return_counts=True)
  np.testing.assert_array_equal(values, [0, 4])
  assert 0.2 < counts[0] / 2000 < 0.3
  assert found["a/kernel"] is scales["a/kernel"]
