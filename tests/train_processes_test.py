"""train.py with several processes: equal results after lost processes."""

import re
import shutil
import signal
import socket

import pytest

from tests.lib import train_runs

pytestmark = pytest.mark.slow

STEPS, SAVE = 8, 4
FIELDS = {
  "num_train_steps": STEPS,
  "checkpoint_every": SAVE,
  # No steps by the sign of gradients that are all rounding.
  "optimizer__eps": 1e-4,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return train_runs.dataset(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="module")
def towers(source, tmp_path_factory):
  return train_runs.towers(source, tmp_path_factory.mktemp("towers"))


@pytest.mark.parametrize(
  ("mesh", "first", "then"),
  [
    ({}, 2, 1),
    # Both hold the same examples.
    pytest.param({"fsdp": 1, "context": 0}, 2, 4, marks=pytest.mark.nightly),
  ],
)
def test_a_run_resumes_after_losing_a_process(
  mesh, first, then, source, towers, tmp_path
):
  """Four devices always; other processes before the loss and after it."""
  changes = {f"mesh__{axis}": size for axis, size in mesh.items()}
  fields = FIELDS | towers | changes | {"data__num_workers": 1}
  fields |= {f"model__{name}__num_heads": 4 for name in ("video", "audio")}
  alone = train_runs.command("fusion", source, tmp_path / "alone", **fields)
  code, said = train_runs.run(alone, devices=4)
  assert code == 0, said

  words = train_runs.command("fusion", source, tmp_path / "run", **fields)
  with train_runs.group(
    [words] * first, tmp_path / "log", devices=4 // first
  ) as runs:
    runs[0].wait(lambda: train_runs.newest(runs[0].workdir) >= SAVE)
    runs[-1].end(signal.SIGKILL)
    for run in runs[:-1]:
      assert run.process.wait(train_runs.LONGEST) not in (0, 75), run.said
  reached = train_runs.newest(tmp_path / "run")
  assert SAVE <= reached < STEPS

  with train_runs.group(
    [words] * then, tmp_path / "again", devices=4 // then
  ) as runs:
    for run in runs:
      assert run.process.wait(train_runs.LONGEST) == 0, run.said
  assert f"continuing from the checkpoint of step {reached}" in runs[0].said
  assert "parameters on 4 devices" in runs[0].said
  for run in runs[1:]:  # process 0 alone logs
    assert "checkpoint of step" not in run.said
  train_runs.assert_close(tmp_path / "run", tmp_path / "alone", 1e-5)
  ours, theirs = (train_runs.losses(tmp_path / n) for n in ("run", "alone"))
  assert [line["step"] for line in ours] == [line["step"] for line in theirs]
  for mine, other in zip(ours, theirs):
    assert mine["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)


def test_sigterm_to_one_process_stops_all(source, tmp_path):
  words = train_runs.command(
    "audio_pretrain",
    source,
    tmp_path / "run",
    **FIELDS | {"num_train_steps": 10**6},
  )
  with train_runs.group([words] * 2, tmp_path / "log") as runs:
    runs[0].wait(lambda: runs[0].logged > 1)
    runs[1].process.send_signal(signal.SIGTERM)
    codes = [run.process.wait(train_runs.LONGEST) for run in runs]
  assert codes == [75, 75], [run.said for run in runs]
  stopped = train_runs.newest(tmp_path / "run")
  assert f"interrupted at step {stopped} of" in runs[0].said


def test_a_process_that_hangs_in_a_step_is_named_and_all_exit(source, tmp_path):
  words = train_runs.command(
    "audio_pretrain",
    source,
    tmp_path / "run",
    step_timeout_seconds=20.0,
    **FIELDS,
  )
  worker = train_runs.ROOT / "tests" / "lib" / "stalled_train.py"
  words = [words[0], str(worker), *words[2:]]
  with train_runs.group(
    [words] * 2,
    tmp_path / "log",
    variables=[{"PYTHONPATH": str(train_runs.ROOT)}] * 2,
  ) as runs:
    codes = [run.process.wait(train_runs.LONGEST) for run in runs]
  assert codes == [76, 76], [run.said for run in runs]
  behind = r"timed out; behind: process 1 \(.*\) after step 2, waiting for data"
  for run in runs:
    assert re.search(behind, run.said), run.said
    assert "took longer than step_timeout_seconds 20" in run.said
    assert "most recent call first" in run.said
  assert "stalled_train.py" in runs[1].said


def test_processes_with_another_config_are_named(source, tmp_path):
  commands = [
    train_runs.command(
      "audio_pretrain", source, tmp_path / "run", seed=seed, **FIELDS
    )
    for seed in (0, 1)
  ]
  with train_runs.group(commands, tmp_path / "log") as runs:
    for run in runs:
      assert run.process.wait(train_runs.LONGEST) == 1, run.said
      assert "process 1 has seed 1, process 0 0" in run.said
  assert not (tmp_path / "run").exists()


def test_processes_with_other_code_are_named(source, tmp_path):
  """The second runs a copy of the program with another table of blocks."""
  copy = tmp_path / "copy"
  leave = shutil.ignore_patterns("weights", "__pycache__")
  for name in ("ovi_jax", "configs"):
    shutil.copytree(train_runs.ROOT / name, copy / name, ignore=leave)
  shutil.copy(train_runs.ROOT / "train.py", copy)
  table = copy / "ovi_jax" / "attention" / "splash_blocks.json"
  table.write_text(table.read_text() + "\n")
  words = train_runs.command("audio_pretrain", source, tmp_path / "run")
  other = [words[0], str(copy / "train.py"), *words[2:]]
  with train_runs.group([words, other], tmp_path / "log") as runs:
    for run in runs:
      assert run.process.wait(train_runs.LONGEST) == 1, run.said
      assert "\n  process 1 has code " in run.said
      assert "process 1 has seed" not in run.said
  assert not (tmp_path / "run").exists()


def test_missing_data_in_one_process_ends_all(source, tmp_path):
  words = train_runs.command("audio_pretrain", source, tmp_path / "run")
  without = [w for w in words if not w.startswith("--config.data.sources")]
  commands = [words, [*without, "--config.data.sources=()"]]
  with train_runs.group(commands, tmp_path / "log") as runs:
    for run in runs:
      assert run.process.wait(60) == 1, run.said
      assert "data.sources is empty: name the folder" in run.said
      assert "Traceback" not in run.said
  assert "train: process 1 cannot start: " in runs[0].said
  assert not (tmp_path / "run").exists()


def test_a_missing_process_ends_the_others(source, tmp_path):
  words = train_runs.command("audio_pretrain", source, tmp_path, **FIELDS)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"localhost:{free.getsockname()[1]}"
  runs = [
    train_runs.Started(
      words,
      tmp_path / f"log{number}",
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES=3,
      JAX_PROCESS_ID=number,
      OVI_JAX_JOIN_SECONDS=10,
    )
    for number in (0, 2)
  ]
  for number, run in zip((0, 2), runs):
    assert run.process.wait(train_runs.LONGEST) == 1, run.said
    assert "not all processes connected within 10 s, expected" in run.said
    assert f"3 processes at {address} as process {number}" in run.said
    assert "Traceback" not in run.said and "stack trace" not in run.said


@pytest.mark.parametrize("place", [{}, {"JAX_PROCESS_ID": 2}])
def test_incomplete_process_settings_are_reported_at_once(
  source, tmp_path, place
):
  words = train_runs.command("audio_pretrain", source, tmp_path, **FIELDS)
  more = {"JAX_NUM_PROCESSES": 2} | place
  run = train_runs.Started(words, tmp_path / "log", **more)
  assert run.process.wait(train_runs.LONGEST) == 1
  assert "JAX_COORDINATOR_ADDRESS is not set" in run.said
  assert ("expected 0 to 1" in run.said) == bool(place)
  assert "Traceback" not in run.said


def test_an_unreachable_coordinator_is_named(source, tmp_path):
  words = train_runs.command("audio_pretrain", source, tmp_path, **FIELDS)
  more = {
    "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
    "JAX_NUM_PROCESSES": 2,
    "JAX_PROCESS_ID": 1,
    "OVI_JAX_JOIN_SECONDS": 3,
  }
  run = train_runs.Started(words, tmp_path / "log", **more)
  assert run.process.wait(train_runs.LONGEST) == 1
  assert "within 3 s, expected 2 processes at 127.0.0.1:1" in run.said
