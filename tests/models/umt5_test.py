import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.convert import umt5 as umt5_names
from ovi_jax.models import umt5
from tests.lib import parity

MANIFEST = pathlib.Path(__file__).parents[1] / "goldens" / "full_manifest.json"


@pytest.fixture(scope="module")
def config():
  return umt5.UMT5Config.from_release(standin.manifest()["config"]["t5"])


@pytest.fixture(scope="module")
def params(config):
  tensors = standin.tensors(umt5_names.FILE)
  rows = umt5_names.rows(config)
  return mapping.nest(mapping.gather(rows, tensors.__getitem__))


@pytest.fixture(scope="module")
def prompts(golden):
  reference = golden("umt5")
  return {k: reference[k].astype(np.int32) for k in ("t5_ids", "t5_mask")}


@pytest.mark.parametrize(
  "dtype, kind", [(jnp.float32, "forward"), (jnp.bfloat16, "bfloat16")]
)
def test_embeddings_equal_the_originals(
  golden, config, params, prompts, dtype, kind
):
  # The original gives rows for padding too; they see the prompt as well.
  reference = golden("umt5")["t5_emb"]
  encoder = umt5.UMT5Encoder(config, dtype)
  text_BSE = jax.jit(encoder.apply)({"params": params}, *prompts.values())
  assert text_BSE.dtype == dtype
  parity.assert_close(text_BSE, reference, kind)


def test_embeddings_are_zero_in_padding_and_independent_of_it(
  golden, config, params, prompts
):
  ids_BS, mask_BS = prompts.values()
  text_BSE = umt5.embed(config, params, ids_BS, mask_BS)
  reference = golden("umt5")["t5_emb"] * mask_BS[:, :, None]
  parity.assert_close(text_BSE, reference, "forward")
  assert not np.asarray(text_BSE)[mask_BS == 0].any()
  other = umt5.embed(config, params, np.where(mask_BS > 0, ids_BS, 7), mask_BS)
  np.testing.assert_array_equal(text_BSE, other)


def test_position_buckets_have_the_boundaries_of_the_original():
  # Read off the original in float32; 16, 32 and 64 are on the very edge.
  edges = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
  expected = np.searchsorted(edges, np.arange(512), side="right") - 1
  bucket_LS = umt5.position_buckets(512, 32, 128)
  np.testing.assert_array_equal(bucket_LS[::-1, 0], expected[::-1])
  after = np.where(np.arange(512) > 0, expected + 16, 0)
  np.testing.assert_array_equal(bucket_LS[0], after)


def test_the_full_size_has_the_released_parameters():
  tokens = jax.ShapeDtypeStruct((1, 512), jnp.int32)
  encoder = umt5.UMT5Encoder(umt5.UMT5Config())
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), tokens, tokens)
  flat = mapping.flatten(shapes["params"])
  assert sum(leaf.size for leaf in flat.values()) == 5_680_910_336
  released = json.loads(MANIFEST.read_text())[umt5_names.FILE]
  mapping.check(
    umt5_names.rows(umt5.UMT5Config()),
    {name: tuple(shape) for name, shape in released.items()},
    {path: leaf.shape for path, leaf in flat.items()},
  )


def test_unknown_sizes_are_named():
  with pytest.raises(ValueError, match="encoder: colour, shared_pos;"):
    umt5.UMT5Config.from_release({"dim": 8, "shared_pos": 1, "colour": 2})


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"num_heads": 3}, "dim_attn must be a multiple of num_heads"),
    ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ({"num_buckets": 6}, "num_buckets must be a multiple of 4"),
    ({"max_distance": 8}, "max_distance must exceed"),
  ],
)
def test_invalid_sizes_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    umt5.UMT5Config(**sizes)
