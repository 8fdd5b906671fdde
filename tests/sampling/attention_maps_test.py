"""Attention maps between the towers: values, positions, images."""

import pathlib

import jax
import numpy as np
import pytest

from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sampling import attention_maps
from tests.lib import standin_models

S, T, H, W = 157, 31, 2, 2


def looking_at(place_S: np.ndarray, row: int, column: int):
  """Maps of audio that attends to one corner of one latent per step."""
  audio = np.zeros((S, T, H, W), np.float32)
  audio[np.arange(S), place_S, row, column] = 1
  video = np.full((T, H, W, S), 1 / S, np.float32)
  return attention_maps.Maps(audio, video, *[np.ones((1, 1))] * 2)


def on_time() -> np.ndarray:
  """The latent that each audio step falls on."""
  seconds = (np.arange(S) + 0.5) * 512 / 16_000
  frames = np.clip((seconds * 24).astype(int), 0, 4 * (T - 1))
  return (frames + 3) // 4


def test_the_diagonal_is_simultaneous():
  near = looking_at(on_time(), 0, 0).near_diagonal()
  assert near.audio == pytest.approx(1)
  # Attention without preference: a latent to each side, but at the ends.
  assert near.video == pytest.approx(2 / T, rel=0.05)
  assert looking_at(on_time()[::-1], 0, 0).near_diagonal().audio < 0.1
  # Two latents late is beyond one, and within two.
  late = looking_at(np.minimum(on_time() + 2, T - 1), 0, 0)
  assert late.near_diagonal(1).audio < 0.6 < late.near_diagonal(3).audio


def test_the_overlay_shows_the_attended_region():
  grey = np.full((1 + 4 * (T - 1), 64, 64, 3), 128, np.uint8)
  drawn = attention_maps.overlay(grey, looking_at(on_time(), 1, 0))
  change = np.abs(drawn.astype(int) - 128).sum(-1)
  assert drawn.dtype == np.uint8 and drawn.shape == grey.shape
  corners = [
    change[:, y : y + 16, x : x + 16].mean((1, 2))
    for y, x in ((48, 0), (0, 0), (0, 48), (48, 48))
  ]
  assert (corners[0] > 200).mean() > 0.98
  assert max(c.max() for c in corners[1:]) < 1


def test_the_sharpest_heads_are_selected():
  shares = np.linspace(0, 1, 64)[::-1].reshape(8, 8)
  weights = attention_maps.sharpest(shares)
  np.testing.assert_array_equal(np.flatnonzero(weights), [0, 1, 2, 3])
  assert weights.sum() == pytest.approx(1)
  assert np.flatnonzero(attention_maps.sharpest(np.eye(2)[:1])) == [0]


@pytest.mark.slow
def test_maps_are_measured_and_written(tmp_path):
  random = np.random.default_rng(0)
  config = standin_models.fusion_config()

  def drawn(*shape):
    return random.standard_normal((1, *shape), np.float32)

  shapes = (3, 4, 6, config.video.channels), (9, config.audio.channels)
  latents, noise = (AV(*(drawn(*s) for s in shapes)) for _ in range(2))
  text = AV(*[drawn(4, config.video.text_dim)] * 2)
  model, params = fusion.FusionDiT(config), standin_models.fusion_params()
  maps = attention_maps.measure(model, params, latents, noise, text)
  assert maps.audio_STHW.shape == (9, 3, 2, 3)
  assert maps.video_THWS.shape == (3, 2, 3, 9)
  np.testing.assert_allclose(maps.audio_STHW.sum((1, 2, 3)), 1, rtol=1e-5)
  np.testing.assert_allclose(maps.video_THWS.sum(-1), 1, rtol=1e-5)
  blocks, heads = config.audio.num_layers, config.audio.num_heads
  assert maps.audio_near_GN.shape == (blocks, heads)
  # The maps are of the heads that are drawn.
  chosen = attention_maps.sharpest(maps.video_near_GN)
  near = (maps.video_near_GN * chosen).sum()
  assert maps.near_diagonal().video == pytest.approx(near, rel=1e-4)
  assert near > maps.video_near_GN.mean()
  heads = attention_maps.parse(f"{blocks - 1}.0,0.1")
  chosen = attention_maps.measure(
    model, params, latents, noise, text, heads=heads
  )
  np.testing.assert_array_equal(chosen.video_THWS, maps.video_THWS)
  near = np.mean([maps.audio_near_GN[place] for place in heads])
  assert chosen.near_diagonal().audio == pytest.approx(near, rel=1e-4)
  first = AV(video=np.array([[True, False, False]]))
  fixed = attention_maps.measure(model, params, latents, noise, text, first)
  assert np.abs(fixed.audio_STHW - maps.audio_STHW).max() > 1e-6
  assert jax.tree.structure(fixed) == jax.tree.structure(maps)
  frames = np.zeros((9, 64, 96, 3), np.uint8)
  clip = tmp_path / "a.mp4"
  attention_maps.write(clip, frames, np.zeros(4608), maps)
  found = {p for p in tmp_path.rglob("*.*") if p.is_file()}
  assert found == set(attention_maps.files_of(clip))
  again = attention_maps.read(clip)
  np.testing.assert_array_equal(again.video_THWS, maps.video_THWS)


def test_heads_are_named_by_block_and_number():
  heads = attention_maps.parse("2.3,0.1,2.3")
  assert heads == ((0, 1), (2, 3)) and attention_maps.parse("") == ()
  weights = attention_maps.named(heads, (3, 4))
  assert weights[2, 3] == weights[0, 1] == 0.5 and weights.sum() == 1
  for wrong in ("2", "a.1", "1.2.3", "-1.0"):
    with pytest.raises(ValueError, match="expected BLOCK.HEAD such as"):
      attention_maps.parse(wrong)
  with pytest.raises(ValueError, match="3 blocks of 4 heads.* has no 3.0"):
    attention_maps.named(((3, 0),), (3, 4))
  clip = pathlib.Path("a") / "clip.mp4"
  folders = [
    attention_maps.files_of(clip, h)[0].parent.name for h in ((), heads)
  ]
  assert folders == ["attention_maps", "attention_maps_0.1_2.3"]
