"""Conversion to 8 bits, and what reads the result."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.convert import convert
from ovi_jax.convert import fusion
from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.lora import merge
from ovi_jax.models import architecture
from ovi_jax.models import block_params
from ovi_jax.models import quantized
from ovi_jax.models import umt5
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import weights as stores
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import mesh as meshes
from ovi_jax.training import init_from
from ovi_jax.training import settings
from ovi_jax.training import task as tasks
from tests.lib import parity
from tests.lib import repacked_weights
from tests.lib import small_training

KERNEL = "blocks/audio/cross_attention/fusion_key/kernel"


@pytest.fixture(scope="module")
def eight(release, tmp_path_factory):
  """The stand-in's denoiser and text encoder in int8."""
  out = tmp_path_factory.mktemp("int8")
  convert.convert(release, out, quantize="int8", **arguments())
  return out


def arguments() -> dict:
  sizes = standin.manifest()["config"]
  return {"variant": None, "sizes": sizes, "components": ("fusion", "umt5")}


def components(path: pathlib.Path) -> component_loader.Components:
  return component_loader.Components(
    weights=path,
    manifest=weights_dir.read(path, needs=("fusion", "umt5")),
    mesh=meshes.make(jax.devices(), fsdp=4, tensor=2),
    dtype=jnp.dtype("bfloat16"),
  )


def test_kernels_have_eight_bits_on_disk_and_devices(eight, weights, release):
  shapes = stores.shapes(weights_dir.component_file(eight, "fusion"))
  assert shapes[KERNEL].dtype == np.int8
  params = components(eight).load("fusion")
  for name in KERNEL.split("/")[:-1]:
    params = params[name]
  assert params["kernel"].dtype == np.int8
  assert params["kernel_scale"].dtype == np.float32
  assert params["bias"].dtype == jnp.bfloat16
  wide = stores.slices(weights_dir.component_file(weights, "fusion"))
  expected = np.asarray(wide(KERNEL, None), np.float32)
  found = block_params.merge(params, jnp.float32)["kernel"]
  step = np.abs(expected).max(1, keepdims=True) / 127
  assert (np.abs(found - expected) <= 0.51 * step).all()
  # The digest names other weights, and the same command has nothing to do.
  manifests = [weights_dir.manifest_of(path) for path in (eight, weights)]
  first, second = (each.digests["fusion"] for each in manifests)
  assert first != second
  file = weights_dir.component_file(eight, "fusion")
  before = file.stat().st_mtime_ns
  convert.convert(release, eight, quantize="int8", **arguments())
  assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", list(quantized.DTYPES))
def test_scaled_fp8_of_others_is_not_rounded_to_16_bits(name, tmp_path):
  """To fp8 it keeps its numbers and scales; to int8 it is rounded once."""
  given = arguments() | {"components": ("fusion",)}
  arch = architecture.Architecture.from_release(given["sizes"])
  tensors = standin.tensors("Ovi/model.safetensors")
  exact = dict(tensors)
  random = np.random.default_rng(0)
  for block in range(arch.fusion.audio.num_layers):
    layer = f"audio_model.blocks.{block}.cross_attn.k_fusion"
    shape = tensors[f"{layer}.weight"].shape
    codes = random.normal(size=shape).astype(quantized.DTYPES["fp8"])
    # One number in the first block, one a row in the others.
    scale = np.full((), 0.3, np.float32)
    if block:
      scale = random.uniform(0.1, 1, (shape[0], 1)).astype(np.float32)
    tensors[f"{layer}.weight"] = codes
    tensors[f"{layer}.weight_scale"] = scale
    exact[f"{layer}.weight"] = codes.astype(np.float32) * scale
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  out, files = tmp_path / "out", {"fusion": [str(path)]}
  convert.convert(None, out, quantize=name, files=files, **given)
  read = stores.slices(weights_dir.component_file(out, "fusion"))
  found, scales = read(KERNEL, None), read(quantized.beside(KERNEL), None)
  rows = [row for row in fusion.rows(arch.fusion) if row.ours == KERNEL]
  wanted = mapping.gather(rows, lambda name: exact[name])[KERNEL]
  if name == "fp8":
    again = found.astype(np.float32) * scales[:, None]
    np.testing.assert_array_equal(again, wanted)
  else:
    kernel, scale = quantized.quantize(wanted, np.int8)
    np.testing.assert_array_equal(found, kernel)
    np.testing.assert_array_equal(scales, scale)


@pytest.mark.slow
def test_the_text_encoder_computes_with_dequantized_kernels(eight):
  loaded = components(eight)
  params = loaded.load("umt5")
  ids = np.arange(6)[None] % loaded.arch.umt5.vocab_size
  mask = np.ones_like(ids)
  merged = block_params.merge(params, jnp.float32)
  ours, theirs = (
    umt5.embed(loaded.arch.umt5, each, ids, mask) for each in (params, merged)
  )
  assert parity.relative_error(ours, theirs) < 1e-5


def test_a_lora_is_trained_on_8_bit_weights_and_nothing_else_is(eight):
  towers = weights_dir.manifest_of(eight).architecture.fusion
  changes = {
    f"model.{name}.{field}": value
    for name, tower in towers.present().items()
    for field, value in dataclasses.asdict(tower).items()
  }
  changes |= {f"init_from.{name}": str(eight) for name in towers.present()}
  values = small_training.config("fusion", "data", **changes)
  values.trainable, values.lora.rank = "lora", 2
  task = tasks.make(settings.from_config(values))
  plan = task.init_plan()
  assert plan.shapes[KERNEL].dtype == np.int8
  assert plan.shapes[f"{KERNEL}_scale"].dtype == np.float32
  assert all("lora_" in path for path in plan.scratch)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = plan.only(lambda path: path.startswith(KERNEL))
  found = init_from.load(wanted, task.init_params, 0, one)
  assert found[KERNEL].dtype == np.int8
  values.trainable = "attention"
  with pytest.raises(ValueError, match="8-bit weights, of which only a LoRA"):
    tasks.make(settings.from_config(values)).init_plan()


def test_8_bit_weights_are_not_merged_into_or_exported(eight, tmp_path):
  with pytest.raises(ValueError, match="8-bit weights, which are not exported"):
    convert.export(eight, tmp_path / "out")
  with pytest.raises(ValueError, match="8-bit weights, which LoRAs are not"):
    merge.merge(eight, "lora.safetensors", tmp_path / "out")
  assert not list(tmp_path.iterdir())
