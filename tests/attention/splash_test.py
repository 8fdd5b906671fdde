"""The TPU kernel, interpreted, against the reference; its block sizes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import audio_pretrain
from ovi_jax import geometry
from ovi_jax.attention import attention
from ovi_jax.attention import splash
from ovi_jax.training import default_config


@pytest.mark.parametrize(
  ("queries", "keys", "pad_count", "length"),
  [
    (130, 260, 1, None),
    pytest.param(64, 9, 5, None, marks=pytest.mark.slow),
    (130, 260, 1, (7, 260)),
    # Blocks of more than one matmul, and the last one partly masked.
    pytest.param(130, 2200, 1, None, marks=pytest.mark.slow),
    # No key is masked: without segment ids.
    pytest.param(130, 256, 1, None, marks=pytest.mark.slow),
    pytest.param(7, 300, 1, 130, marks=pytest.mark.slow),
  ],
)
def test_the_kernel_computes_attention(queries, keys, pad_count, length):
  random = np.random.default_rng(0)
  q = random.standard_normal((2, queries, 2, 128), np.float32)
  k, v = random.standard_normal((2, 2, keys, 2, 128), np.float32)
  if isinstance(length, tuple):
    length = jnp.asarray(length)

  def call(backend):
    def total(q, k, v):
      out = attention.attention(q, k, v, backend, pad_count, length)
      return (out * q).sum(), out

    gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients

  for found, expected in zip(call("splash"), call("xla")):
    limit = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=limit)


# Chips and sizes of the meshes in docs, configs and `benchmarks/scaling.py`.
CHIPS = ("TPU v5", "TPU v5 lite", "TPU v6 lite")
SHARDS = (1, 2, 4, 8, 16)
TEXT = 512


def shipped_shapes() -> set[tuple[int, int]]:
  """(queries, keys) of a device: every attention of a released variant, by
  either kind of context parallelism, and of the training configs' clips."""
  clips = [
    variant.clip(*geometry.snap(*size, variant.area))
    for variant in geometry.VARIANTS.values()
    for size in ((704, 704), (960, 960), geometry.DEFAULT_SIZE)
  ]
  video = {(clip.tokens, clip.audio_latents) for clip in clips}
  frames, rows, columns = default_config.CLIP
  video.add((frames * rows * columns // 4, default_config.CLIP_AUDIO))
  config: Any = audio_pretrain.get_config()
  sounds = {audio for _, audio in video} | set(config.data.audio_buckets)
  shapes = {(audio, keys) for audio in sounds for keys in (audio, TEXT)}
  for tokens, audio in video:
    for parts in SHARDS:
      part = -(-tokens // parts)
      shapes |= {(part, part), (part * parts, part * parts)}
      shapes |= {(part, audio), (part, TEXT)}
  return shapes


@pytest.mark.parametrize("chip", CHIPS)
def test_no_shipped_shape_multiplies_fewer_than_256_keys(chip):
  shapes = shipped_shapes()
  assert (15686, 15686) in shapes and len(shapes) > 60
  for queries, keys in shapes:
    chosen = splash.block_sizes(chip, queries, keys)
    sizes: Any = chosen.sizes
    padded = chosen.queries, chosen.keys
    # A sound of 3 s has 93 latents: one block of all keys.
    fewest = 128 if keys == 93 else 256
    assert sizes.block_kv_compute >= fewest
    assert sizes.block_kv_dkv_compute >= fewest
    for block in (sizes.block_q, sizes.block_q_dkv):
      assert padded[0] % block == 0 and block <= 1024
    for block, compute in (
      (sizes.block_kv, sizes.block_kv_compute),
      (sizes.block_kv_dkv, sizes.block_kv_dkv_compute),
    ):
      assert padded[1] % block == 0 and block % compute == 0 and block <= 2048
    if keys > 4096:
      # Little padding; few partial gradients of queries.
      assert padded[0] * padded[1] < 1.12 * queries * keys
      assert padded[1] // sizes.block_kv_dkv <= keys / 1024 + 2


def test_padding_is_weighed_against_the_size_of_blocks():
  """640 divides 16000, the least padding, into matmuls of 128 keys at best."""
  sizes, queries, keys = splash.block_sizes("TPU v5", 15686, 15686)
  assert (queries, keys) == (16128, 16384)
  assert (sizes.block_q, sizes.block_kv) == (896, 2048)
  assert sizes.block_kv_compute == 1024


def test_short_lengths_are_one_block():
  sizes, queries, keys = splash.block_sizes("TPU v5", 1, 9)
  assert (queries, keys, sizes.block_kv_compute) == (128, 128, 128)
  assert splash.block_sizes("TPU v5", 157, 157).keys == 256


@pytest.mark.parametrize(
  ("keys", "length", "masked"),
  [(256, None, False), (256, 256, False), (256, 200, True), (200, None, True)],
)
def test_segment_ids_are_only_passed_to_mask_keys(keys, length, masked):
  x = jax.ShapeDtypeStruct((1, keys, 1, 128), jnp.float32)
  text = str(
    jax.make_jaxpr(
      lambda q, k, v: attention.attention(q, k, v, "splash", length=length)
    )(x, x, x)
  )
  assert ("segmented" in text) == masked


def test_table_rows_are_complete():
  chips: dict = {}
  for row in splash.table():
    assert row.keys() == {"chip", "up_to", *splash.SIZES}
    assert all(row[name] % splash.LANES == 0 for name in splash.SIZES)
    for name in ("block_kv", "block_kv_dkv"):
      # Limits are halved for float32.
      assert 2 * splash.MIN_COMPUTE <= row[f"{name}_compute"] <= row[name]
    chips.setdefault(row["chip"], []).append(row["up_to"])
  assert splash.ANY in chips
  for limits in chips.values():
    assert limits[-1] is None and limits[:-1] == sorted(limits[:-1])


def test_table_rows_are_per_chip_and_length(monkeypatch):
  sizes = dict.fromkeys(splash.SIZES, 128)
  rows = [
    {"chip": "TPU v9", "up_to": 600, **sizes},
    {"chip": "any", "up_to": None, **sizes, "block_kv": 512},
    {"chip": "TPU v9", "up_to": None, **sizes, "block_kv": 256},
  ]
  monkeypatch.setattr(splash, "table", lambda: rows)
  found = [
    splash.limits_of(*case)["block_kv"]
    for case in (("TPU v9", 600), ("TPU v9", 601), ("cpu", 1))
  ]
  assert found == [128, 256, 512]
