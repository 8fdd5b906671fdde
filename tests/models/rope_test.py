"""Rotary positions: tables, and scaling that aligns audio with video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.models import rope


def test_a_released_head_is_split_into_rotary_pairs():
  assert rope.head_split(128) == (22, 21, 21)


def test_table_is_the_product_of_its_axes():
  rotary = rope.table((3, 2, 4), 12)
  frames, rows, columns = np.unravel_index(np.arange(24), (3, 2, 4))
  frequency = 10_000.0 ** (-np.arange(2) / 2)
  angles = [np.outer(frames, frequency), rows[:, None], columns[:, None]]
  # 2 pairs for each of time, row and column.
  angles[1:] = [a * frequency[None] for a in angles[1:]]
  expected = np.cos(np.concatenate(angles, -1))
  np.testing.assert_allclose(rotary.cos_LK, expected, atol=1e-7)


def test_scaled_audio_positions_align_with_frames():
  """Audio step 157/31·i has the temporal angles of video frame i."""
  video = rope.angles(31, 22)
  audio = rope.angles(157, 22, 31 / 157)
  np.testing.assert_allclose(audio[::157][0], video[0])
  np.testing.assert_allclose(
    rope.angles(1571, 22, 31 / 157)[1570], video[1] * 310, rtol=1e-12
  )


def test_audio_rotates_temporal_pairs_only():
  rotary = rope.table((5,), 128, 0.2)
  assert np.all(rotary.sin_LK[:, 22:] == 0) and np.all(
    rotary.sin_LK[1:, :21] != 0
  )


def test_dot_products_depend_on_distance_only():
  random = np.random.default_rng(0)
  q, k = random.standard_normal((2, 1, 1, 1, 12), np.float32)
  rotary = rope.table((9,), 12)

  def product(i: int, j: int) -> float:
    at = lambda n: rope.Rotary(*(x[n : n + 1] for x in rotary))  # noqa: E731
    return float((rope.rotate(q, at(i)) * rope.rotate(k, at(j))).sum())

  np.testing.assert_allclose(product(2, 5), product(5, 8), rtol=1e-5)
  assert abs(product(2, 5) - product(2, 6)) > 1e-4


@pytest.mark.parametrize(
  ("scale", "start"),
  # Ovi's audio tower; DreamID-Omni's, whose 31 / 157 is a bfloat16.
  [(0.19676, 762), (0.197265625, 760), (31 / 157, 759)],
)
def test_a_reference_begins_at_frame_150(scale, start):
  found = rope.positions(157, scale, 31)
  assert found.tolist() == [*range(157), *range(start, start + 31)]


def test_only_the_reference_has_positions_of_its_own():
  plain, longer = (rope.table((9,), 12, 0.2, n) for n in (0, 4))
  whole = rope.table((754,), 12, 0.2)
  for a, b, c in zip(plain, longer, whole):
    np.testing.assert_array_equal(b[:9], a)
    np.testing.assert_array_equal(b[9:], c[750:754])
  with pytest.raises(ValueError, match="a reference is of audio tokens"):
    rope.table((3, 2, 4), 12, reference=1)


def test_a_table_for_each_example_rotates_as_the_shared_one():
  random = np.random.default_rng(0)
  x_BLNK = random.standard_normal((2, 5, 1, 12), np.float32)
  rotary = rope.table((5,), 12)
  each = rope.Rotary(*(np.stack([a, a]) for a in rotary))
  np.testing.assert_array_equal(
    rope.rotate(x_BLNK, each), rope.rotate(x_BLNK, rotary)
  )


def test_a_table_of_all_examples_is_broadcast_at_once():
  rotary = rope.table((6,), head_dim=32)
  x_BLNK = jnp.zeros((2, 6, 3, 32))
  text = jax.jit(rope.rotate).lower(x_BLNK, rotary).as_text()
  # To [1, L, 1, K / 2] of each table, then to the shape of x of each product.
  assert text.count("stablehlo.broadcast_in_dim") == 4
