"""Previews: small, short, and cheap."""

import contextlib
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.modality import AV
from ovi_jax.sampling import previews


@pytest.mark.parametrize(
  ("size", "expected"),
  [((4, 4), (4, 4)), ((20, 20), (20, 20)), ((44, 80), (14, 26))],
)
def test_frames_have_at_most_so_many_pixels(size, expected):
  assert previews.small_size(*size) == expected
  assert np.prod(expected) * 256 <= previews.MAX_AREA


def test_a_preview_has_fewer_frames_at_the_same_speed():
  decoded = []

  def frames(latents_BTHWC):
    decoded.append(latents_BTHWC)
    yield np.zeros((1, 32, 32, 3), np.uint8)
    yield np.zeros((4 * (latents_BTHWC.shape[1] - 1), 32, 32, 3), np.uint8)

  decoder: Any = types.SimpleNamespace(
    components=types.SimpleNamespace(computing=contextlib.nullcontext),
    frames=frames,
    wave=lambda latents_BTC: np.ravel(latents_BTC),
  )
  video = jnp.broadcast_to(
    jnp.arange(31.0)[None, :, None, None, None], (1, 31, 48, 80, 2)
  )
  latents = AV(video, jnp.ones((1, 157, 20)))
  found = previews.decode(decoder, latents, step=7)
  (small_BTHWC,) = decoded
  assert small_BTHWC.shape == (1, 16, 15, 25, 2)
  np.testing.assert_allclose(
    small_BTHWC[0, :, 3, 3, 0], np.arange(0, 31, 2), 1e-5
  )
  assert found.step == 7 and len(found.audio) == 157 * 20
  assert len(found.frames) / found.fps == pytest.approx(121 / 24, abs=0.05)
