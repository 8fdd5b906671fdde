"""A command killed at random moments gives the same files."""

import os
import pathlib
import signal

import pytest

from tests.lib.curation import harness
from tests.lib.curation import kill_runs


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[pathlib.Path, dict[str, bytes]]:
  """Inputs, and the outputs of a run without kills."""
  folder = tmp_path_factory.mktemp("alone")
  inputs = harness.write_inputs(folder / "in", 8)
  code, output = kill_runs.run(harness.command(inputs, folder / "out"))
  assert code == 0, output
  assert "write:" in output and output.count("reverse: 32 clips passed on") == 1
  return inputs, harness.contents(folder / "out")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_files(alone, tmp_path):
  inputs, wanted = alone
  out = tmp_path / "out"
  kill_runs.killed(harness.command(inputs, out), out, wanted, 1)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_run_killed_twenty_times_gives_the_same_files(alone, tmp_path):
  inputs, wanted = alone
  out = tmp_path / "out"
  found = kill_runs.killed(harness.command(inputs, out), out, wanted, 20)
  assert len(set(found)) > 10, "the kills were all at the same places"


@pytest.mark.slow
def test_hanging_workers_end_with_their_parent(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "0.txt").write_text("hang\n")
  seen = tmp_path / "seen"
  words = harness.command(tmp_path / "in", tmp_path / "out")
  with kill_runs.started(
    [*words, f"--config.stages.measure.seen={seen}"]
  ) as process:
    kill_runs.wait(seen.exists, "the clip that hangs")
    assert kill_runs.members(process.pid) > {process.pid}
    process.kill()
    kill_runs.wait(
      lambda: not kill_runs.members(process.pid), "the end of the workers"
    )


@pytest.mark.parametrize(
  "number",
  [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM],
)
def test_a_run_stops_on_sigint_and_sigterm(tmp_path, number):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "0.txt").write_text("one\nhang\n")
  seen, out = tmp_path / "seen", tmp_path / "out"
  words = harness.command(
    tmp_path / "in", out, f"--config.stages.measure.seen={seen}"
  )
  with kill_runs.started(words) as process:
    kill_runs.wait(
      lambda: seen.exists() and "hang" in seen.read_text(), "the clip"
    )
    if number == signal.SIGINT:
      os.killpg(process.pid, number)  # as a terminal does
    else:
      process.send_signal(number)
    output, _ = process.communicate(timeout=kill_runs.LONGEST)
    kill_runs.wait(
      lambda: not kill_runs.members(process.pid), "the end of the workers"
    )
  assert "Traceback" not in output, output
  if number == signal.SIGTERM:
    assert process.returncode == 75
  else:
    assert process.returncode == 130
    assert "interrupted; run the same command to resume" in output


@pytest.mark.slow
def test_the_command_reports_failed_shards_in_one_line(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in", 1)
  (inputs / "0.txt").write_text("raise a\nraise b\nraise c\n")
  code, output = kill_runs.run(harness.command(inputs, tmp_path / "out"))
  last = output.strip().splitlines()[-2:]
  assert code == 1 and "Traceback" not in output
  assert last[0].startswith("clips, shard 0: measure failed for 3 of 3 clips")
