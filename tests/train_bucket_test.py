"""train.py with its workdir in an object store."""

import pathlib
import signal

import pytest

from ovi_jax import storage
from ovi_jax.checkpoint import reader
from ovi_jax.training import trainer
from tests.lib import file_clock_train
from tests.lib import train_runs

STEPS, SAVE = 8, 4
MINUTES, GRACE = 30, 20  # between saves; seconds after SIGTERM


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return train_runs.dataset(tmp_path_factory.mktemp("data") / "clips")


@pytest.mark.slow
def test_a_run_that_loses_a_process_resumes_to_the_same_state(
  source, bucket, bucket_endpoint, tmp_path
):
  """Two processes in two folders, then one; always two devices.

  Data, workdir and the weights that it starts from are in the store; the run
  to compare with has them on a disk.
  """
  towers = train_runs.towers(source, tmp_path)
  uploaded = dict.fromkeys(towers, f"{bucket}/towers")
  storage.upload_folder(source, f"{bucket}/data")
  for folder in set(towers.values()):
    storage.upload_folder(pathlib.Path(folder), f"{bucket}/towers")

  def command(data, workdir, initial):
    return train_runs.command(
      "fusion",
      data,
      workdir,
      num_train_steps=STEPS,
      checkpoint_every=SAVE,
      trainable="all",
      **initial,
    )

  alone = command(source, tmp_path / "alone", towers)
  code, said = train_runs.run(alone, devices=2)
  assert code == 0, said

  words = command(f"{bucket}/data", f"{bucket}/run", uploaded)
  folders = [tmp_path / "first", tmp_path / "second"]
  for folder in folders:
    folder.mkdir()
  store = bucket_endpoint.store
  with store.endpoint() as first, store.endpoint() as second:
    # The last save cannot be complete before a process is lost.
    second.hold_uploads(f"checkpoints%2F{STEPS}%2Fstate")
    variables = [first.environment, second.environment]
    with train_runs.group(
      [words] * 2, tmp_path / "log", 1, variables, folders
    ) as runs:
      runs[1].wait(second.waiting.is_set)
      runs[1].end(signal.SIGKILL)
      assert runs[0].process.wait(train_runs.LONGEST) not in (0, 75)
  run = storage.path(f"{bucket}/run")
  assert reader.steps(run / trainer.CHECKPOINTS) == [SAVE]
  assert (run / trainer.CHECKPOINTS / str(STEPS)).exists()  # half uploaded

  code, said = train_runs.run(words, devices=2)
  assert code == 0, said
  assert f"continuing from the checkpoint of step {SAVE}" in said
  train_runs.assert_same_states(run, tmp_path / "alone")


@pytest.mark.slow
def test_sigterm_with_a_slow_store_leaves_a_complete_checkpoint(
  source, bucket, bucket_endpoint, tmp_path
):
  """The store answers no upload until the 20 s are over, or almost over.

  The minutes between saves and the seconds after SIGTERM are those of a clock
  that the test sets.
  """
  run = storage.path(f"{bucket}/run")
  clock = file_clock_train.FileClock(tmp_path / "clock")
  words = train_runs.command(
    "audio_pretrain",
    source,
    run,
    num_train_steps=10**6,
    checkpoint_every=0,
    checkpoint_every_minutes=MINUTES,
    preemption_grace_seconds=GRACE,
  )

  def steps(started, count):
    """Wait for more steps."""
    seen = clock.noted("steps")
    started.wait(lambda: clock.noted("steps") > seen + count)

  def stop(number, passed):
    """Save once, hold the second save, send SIGTERM, let time pass."""
    before, log = train_runs.newest(run), tmp_path / f"log{number}"
    clock.set(0)
    with bucket_endpoint.store.endpoint() as slow:
      started = clock.start(words, log, **slow.environment)
      try:
        steps(started, 3)
        clock.set(60 * MINUTES - 1)
        steps(started, 3)
        assert train_runs.newest(run) == before
        clock.set(60 * MINUTES)
        started.wait(lambda: train_runs.newest(run) > before)
        steps(started, 2)  # the minutes count from this save
        slow.hold_uploads("%2Fstate")
        clock.set(told := 2 * 60 * MINUTES)
        started.wait(slow.waiting.is_set)
        reached = train_runs.newest(run)
        started.process.send_signal(signal.SIGTERM)
        started.wait(lambda: clock.noted("grace") >= 0)
        clock.set(told + passed)
        if passed < GRACE:
          started.wait(lambda: clock.noted("grace") == told + passed)
          slow.release()
        assert started.process.wait(train_runs.LONGEST) == 75, started.said
      finally:
        started.process.kill()
        started.process.wait()
    train_runs.contents(run)  # complete and verified
    return reached, started.said

  reached, said = stop(1, passed=GRACE)
  assert train_runs.newest(run) == reached >= 1
  assert f"preemption_grace_seconds={GRACE} have passed since SIGTERM" in said
  reached, said = stop(2, passed=GRACE - 0.5)
  assert "continuing from the checkpoint of step" in said
  assert train_runs.newest(run) > reached
  assert f"interrupted at step {train_runs.newest(run)} of" in said


@pytest.mark.slow
def test_processes_with_different_directories_are_named(source, tmp_path):
  words = train_runs.command("audio_pretrain", source, "run")
  folders = [tmp_path / "first", tmp_path / "second"]
  for folder in folders:
    folder.mkdir()
  with train_runs.group([words] * 2, tmp_path / "log", folders=folders) as runs:
    for run in runs:
      assert run.process.wait(train_runs.LONGEST) == 1, run.said
      assert "run is another directory in process 1 than in proc" in run.said
      assert "Traceback" not in run.said
  assert not any(list(folder.iterdir()) for folder in folders)
