"""Beam with two workers writes the files of one process."""

import os
import pathlib
import subprocess

import pytest

from tests.lib.curation import harness
from tests.lib.curation import kill_runs

pytest.importorskip(
  "apache_beam", reason="pip install 'ovi_jax[curate]' has it"
)
pytestmark = pytest.mark.slow
TWO = (
  "--runner=DirectRunner",
  "--direct_num_workers=2",
  "--direct_running_mode=multi_processing",
)


def run(inputs: pathlib.Path, out: pathlib.Path, *more: str) -> tuple[int, str]:
  words = harness.command(inputs, out, *more, "--beam", "--", *TWO)
  done = subprocess.run(
    words,
    cwd=kill_runs.ROOT,
    env=os.environ | {"PYTHONPATH": str(kill_runs.ROOT)},
    capture_output=True,
    text=True,
    timeout=kill_runs.LONGEST * 3,
  )
  return done.returncode, done.stdout + done.stderr


def test_two_workers_write_the_same_files(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in", 5)
  (inputs / "5.txt").write_text("one a\none b\nraise it\ncrash\n")
  seen = tmp_path / "seen"
  limit = "--config.max_failure_rate=0.6"
  code, said = kill_runs.run(harness.command(inputs, tmp_path / "one", limit))
  assert code == 0, said
  code, said = run(
    inputs, tmp_path / "two", limit, f"--config.stages.measure.seen={seen}"
  )
  assert code == 0, said
  assert harness.contents(tmp_path / "two") == harness.contents(
    tmp_path / "one"
  )
  # Each goes on where the other stopped: nothing is left to do.
  count = len(seen.read_text().splitlines())
  code, said = run(
    inputs, tmp_path / "one", limit, f"--config.stages.measure.seen={seen}"
  )
  assert code == 0 and len(seen.read_text().splitlines()) == count > 25, said


def test_shards_that_fail_are_named(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in", 2)
  (inputs / "0.txt").write_text("raise a\nraise b\nraise c\n")
  code, said = run(inputs, tmp_path / "out", "--config.report=True")
  assert code == 1, said
  assert (
    "clips, shard 0: measure failed for 3 of 3 clips, 2 are allowed" in said
  )
  # All of it is kept, though the command says only the first.
  (why,) = (tmp_path / "out").glob("measure-*/shard-00000.failed")
  assert "what is 'raise b'" in why.read_text()
  assert (
    "The run is incomplete" in (tmp_path / "out" / "report.html").read_text()
  )


def test_what_all_need_is_away(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in", 1)
  (inputs / "0.txt").write_text("away\n")
  code, said = run(inputs, tmp_path / "out")
  assert code == 1 and "clips, shard 0: the backend is unavailable" in said, (
    said
  )
