"""Sharding rules match every parameter once; meshes are validated."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from ovi_jax.convert import mapping
from ovi_jax.models import low_rank
from ovi_jax.models import quantized
from ovi_jax.sharding import logical_axes
from ovi_jax.sharding import mesh as meshes
from ovi_jax.sharding import sharding_rules
from tests.lib import standin_models


def test_the_rules_cover_the_released_model():
  mesh = meshes.make(jax.devices(), fsdp=2, context=2, tensor=2)
  flat = mapping.flatten(standin_models.full_fusion_shapes())
  placed = sharding_rules.param_shardings(flat, sharding_rules.FUSION, mesh)
  assert placed.keys() == flat.keys()
  query = placed["blocks/audio/cross_attention/fusion_key/kernel"]
  assert query.spec == P(None, ("fsdp", "context"), ("tensor",))
  # Nearly everything is split eightfold.
  local = sum(
    jax.numpy.prod(jax.numpy.array(s.shard_shape(flat[p].shape)), dtype=float)
    for p, s in placed.items()
  )
  assert local < 1.1 * 11_660_753_108 / 8


def test_factors_and_scales_are_split_as_the_axes_of_their_kernel():
  mesh = meshes.make(jax.devices(), fsdp=2, context=2, tensor=2)
  flat = mapping.flatten(standin_models.full_fusion_shapes())
  kernels = low_rank.targets(flat, "fusion+mlp")
  flat |= low_rank.factor_shapes(flat, kernels, 32)
  flat = quantized.with_scales(flat, quantized.DTYPES["int8"])
  placed = sharding_rules.param_shardings(flat, sharding_rules.FUSION, mesh)
  width, heads = ("fsdp", "context"), ("tensor",)
  query, out = (
    f"blocks/video/self_attention/{name}/" for name in ("query", "out")
  )
  assert placed[f"{query}lora_down"].spec == P(None, width, None)
  assert placed[f"{query}lora_up"].spec == P(None, None, heads)
  assert placed[f"{query}lora_scale"].spec == P(None, None)
  assert placed[f"{out}lora_down"].spec == P(None, heads, None)
  assert placed[f"{out}lora_up"].spec == P(None, None, width)
  assert placed[f"{query}kernel_scale"].spec == P(None, heads)
  assert placed[f"{out}kernel_scale"].spec == P(None, width)


def test_problems_are_listed_together():
  mesh = meshes.make(jax.devices()[:1])
  x = jax.ShapeDtypeStruct((2, 3), "float32")
  rules = (("a", "DD"), (".*", "--"), ("b", "---"), ("never", "-"))
  with pytest.raises(ValueError) as error:
    sharding_rules.param_shardings({"a": x, "c": x}, rules, mesh)
  message = str(error.value)
  assert "a matches 2 rules: 'a', '.*'" in message
  assert "c has 2 axes" not in message
  assert "rule 'b' matches no parameter" in message
  assert "rule 'never' matches no parameter" in message


def test_an_axis_is_split_only_where_it_divides():
  sizes = {"fsdp": 2, "context": 3, "tensor": 1}
  spec = logical_axes.spec("DD", (4, 12), sizes, logical_axes.PARAMETERS)
  assert spec == P(("fsdp",), ("context",))
  with pytest.raises(ValueError, match="do not name the axes"):
    logical_axes.spec("D", (4, 12), sizes, logical_axes.PARAMETERS)


def test_meshes_have_the_requested_axes():
  assert meshes.make(jax.devices(), fsdp=8).shape["fsdp"] == 8
  with pytest.raises(ValueError, match=r"multiply to 8 devices"):
    meshes.make(jax.devices(), fsdp=3)
  with pytest.raises(ValueError, match="name axes of"):
    meshes.make(jax.devices(), model=8)
