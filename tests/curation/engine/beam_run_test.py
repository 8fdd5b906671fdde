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
  code, output = kill_runs.run(harness.command(inputs, tmp_path / "one", limit))
  assert code == 0, output
  code, output = run(
    inputs, tmp_path / "two", limit, f"--config.stages.measure.seen={seen}"
  )
  assert code == 0, output
  assert harness.contents(tmp_path / "two") == harness.contents(
    tmp_path / "one"
  )
  # Each resumes the other's run: no work is left.
  count = len(seen.read_text().splitlines())
  code, output = run(
    inputs, tmp_path / "one", limit, f"--config.stages.measure.seen={seen}"
  )
  assert code == 0 and len(seen.read_text().splitlines()) == count > 25, output


def test_failed_shards_are_named(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in", 2)
  (inputs / "0.txt").write_text("raise a\nraise b\nraise c\n")
  code, output = run(inputs, tmp_path / "out", "--config.report=True")
  assert code == 1, output
  assert (
    "clips, shard 0: measure failed for 3 of 3 clips, 2 are allowed" in output
  )
  # All are stored, though the command prints only the first.
  (why,) = (tmp_path / "out").glob("measure-*/shard-00000.failed")
  assert "what is 'raise b'" in why.read_text()
  assert (
    "The run is incomplete" in (tmp_path / "out" / "report.html").read_text()
  )


def test_an_unavailable_backend_is_reported(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in", 1)
  (inputs / "0.txt").write_text("away\n")
  code, output = run(inputs, tmp_path / "out")
  assert code == 1 and "clips, shard 0: the backend is unavailable" in output, (
    output
  )
