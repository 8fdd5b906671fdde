"""Lip sync scores of clips."""

import dataclasses

import jax
import numpy as np
import pytest

from ovi_jax.curation.faces import crops
from ovi_jax.curation.faces import tracks
from ovi_jax.curation.models import syncnet as network
from ovi_jax.curation.models import syncnet_weights
from ovi_jax.curation.stages import face_tracks
from ovi_jax.curation.sync import lip_sync
from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.evaluation.extractors import syncnet
from ovi_jax.media import decode
from tests.lib import media_files

TINY = dataclasses.replace(network.SyncNetConfig.narrow(32), embedding_dim=8)
WHOLE = face_tracks.Config(detector=face_tracks.FULL_FRAME)


@pytest.fixture
def weights(tmp_path):
  """A tiny untrained network."""
  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: np.abs(random.normal(0, 0.2, x.shape)).astype(np.float32),
    network.shapes(TINY),
  )
  syncnet_weights.save(tmp_path / "tiny.safetensors", TINY, variables)
  return str(tmp_path / "tiny.safetensors"), variables


def test_without_weights_the_advice_is_one_line():
  missing = syncnet.syncnet("", WHOLE).missing
  assert missing == "needs SyncNet's weights: --weights=syncnet=FILE"
  with pytest.raises(ValueError, match="--weights=syncnet: no such file"):
    syncnet.syncnet("absent.model", WHOLE)


@pytest.mark.slow
def test_scores_are_those_of_the_network_on_the_crops_of_the_face(
  weights, tmp_path
):
  path, variables = weights
  frames = media_files.moving(48, rows=64, columns=64)
  wave_A = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
  folder = tmp_path / "clips"
  folder.mkdir()
  clip_path = folder / "a.mp4"
  media_files.write(clip_path, frames, media_files.even(48), wave_A[None])
  (clip,) = clips.read_folder(folder)
  source = clips.Source(clip=clip)
  extractor = syncnet.syncnet(path, WHOLE)
  (found,) = features.extract([extractor], [source], tmp_path / "cache")
  assert found["syncnet.faces"] == 1
  pictures = decode.window(clip_path, 0, 2.0).pictures_25
  track = tracks.full_frame(48, 64, 64)
  (cut,) = crops.crop_tracks(pictures, [track])
  samples_A = np.rint(clips.Media(source).mono(16_000) * 32_767)
  windows = lip_sync.make_windows(cut, samples_A.astype(np.int16))
  lips, sound = network.SyncNet(TINY).apply(
    variables, windows.frames_THWC[None], windows.sound_TKM[None]
  )
  expected = lip_sync.score(np.asarray(lips[0]), np.asarray(sound[0]))
  assert found["syncnet.confidence"] == pytest.approx(
    expected.confidence, rel=1e-6
  )
  assert found["syncnet.distance"] == pytest.approx(expected.distance, rel=1e-6)
  assert found["syncnet.seconds"] == expected.offset / 25
