"""The train.py command: exit codes, restarts and bad input."""

import os
import signal

import pytest

from tests.lib import train_runs

STEPS, SAVE = 10, 2
FIELDS = {"num_train_steps": STEPS, "checkpoint_every": SAVE}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return train_runs.dataset(tmp_path_factory.mktemp("data") / "clips")


@pytest.mark.slow
def test_a_run_resumes_bit_exactly_after_kill_full_disk_and_sigterm(
  source, tmp_path
):
  words = train_runs.command(
    "audio_finetune", source, tmp_path / "run", **FIELDS
  )
  with train_runs.started(words, tmp_path / "log") as run:
    run.wait(lambda: train_runs.newest(run.workdir) >= SAVE)
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
  reached = train_runs.newest(run.workdir)

  code, said = train_runs.run(train_runs.limited(words, 256))
  assert code == 1, said
  assert f"continuing from the checkpoint of step {reached}" in said
  # Threads of Orbax may print around it.
  assert (
    f"train: [Errno 28] no space left: the checkpoint of step {reached + SAVE}"
    " was not saved, earlier ones are whole; make room:"
    f" '{run.workdir / 'checkpoints'}'"
  ) in said
  assert train_runs.newest(run.workdir) == reached
  train_runs.contents(run.workdir)

  with train_runs.started(words, tmp_path / "log") as run:
    run.wait(lambda: run.logged > 0)
    assert run.end(signal.SIGTERM) == 75
  stopped = train_runs.newest(run.workdir)
  assert reached < stopped < STEPS
  assert f"interrupted at step {stopped} of {STEPS}" in run.said

  code, said = train_runs.run(words)
  assert code == 0, said
  assert f"continuing from the checkpoint of step {stopped}" in said

  changes = FIELDS | {"checkpoint_every": 0}
  alone = train_runs.command(
    "audio_finetune", source, tmp_path / "alone", **changes
  )
  assert train_runs.run(alone)[0] == 0
  train_runs.assert_same(tmp_path / "run", tmp_path / "alone")

  # The directory belongs to this run.
  changes = FIELDS | {"seed": 1, "batch_size": 8}
  other = train_runs.command(
    "audio_finetune", source, tmp_path / "run", **changes
  )
  code, said = train_runs.run(other)
  assert code == 1 and "Traceback" not in said
  assert f"train: {tmp_path / 'run'} belongs to a run of another" in said
  assert (
    "\n  batch_size: 4 in the run, 8 now (--config.batch_size=4 sets it back)"
    in said
  )
  assert f"--workdir=NEW --config.init_from.audio={tmp_path / 'run'}" in said


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("optimizer__nesterov", 0.9, "the config has no field 'nesterov'"),
    ("data__sources", ("nowhere",), "nowhere"),
    ("init_from__audio", "", "config: init_from.audio: the stage starts from"),
  ],
)
def test_invalid_input_is_reported_in_one_line(
  field, value, message, source, tmp_path
):
  words = train_runs.command(
    "audio_finetune", source, tmp_path, **{field: value}
  )
  code, said = train_runs.run(words)
  assert code == 1
  assert said.startswith("train: ") and said.count("\n") == 1
  assert message in said


def test_a_run_without_a_directory_is_refused(source):
  words = train_runs.command("audio_pretrain", source, "")
  assert train_runs.run(words) == (
    1,
    "train: --config=CONFIG and --workdir=DIR are needed\n",
  )


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_although_workers_receive_it(
  source, tmp_path
):
  changes = FIELDS | {"num_train_steps": 10_000, "data__num_workers": 1}
  words = train_runs.command(
    "audio_finetune", source, tmp_path / "run", **changes
  )
  with train_runs.started(words, tmp_path / "log") as run:
    run.wait(lambda: run.logged > 0)
    # As a terminal does, to every process of the group.
    for number in train_runs.processes(run.process.pid):
      if number != run.process.pid:
        os.kill(number, signal.SIGINT)
    assert run.end(signal.SIGINT) == 75
  assert f"interrupted at step {train_runs.newest(run.workdir)}" in run.said
  assert "Traceback" not in run.said and "leaked" not in run.said
