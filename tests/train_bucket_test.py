"""train.py with its workdir in an object store."""

import pathlib
import signal

import pytest

from ovi_jax import storage
from ovi_jax.checkpoint import reader
from ovi_jax.training import settings
from ovi_jax.training import trainer
from tests.lib import small_training
from tests.lib import train_runs

STEPS, SAVE = 8, 4


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
  """The store answers no upload until the grace is over, then within it."""
  run = storage.path(f"{bucket}/run")

  def command(grace):
    return train_runs.command(
      "audio_pretrain",
      source,
      run,
      num_train_steps=10**6,
      checkpoint_every=0,
      checkpoint_every_minutes=1e-6,  # after each step
      preemption_grace_seconds=grace,
    )

  def stop(grace, in_time):
    before = train_runs.newest(run)
    log = tmp_path / f"log{grace}"
    with bucket_endpoint.store.endpoint() as slow:
      started = train_runs.Started(command(grace), log, **slow.environment)
      try:
        started.wait(lambda: train_runs.newest(run) > before)
        slow.hold_uploads("%2Fstate")
        started.wait(slow.waiting.is_set)
        reached = train_runs.newest(run)
        started.process.send_signal(signal.SIGTERM)
        if in_time:
          slow.release()
        assert started.process.wait(train_runs.LONGEST) == 75, started.said
      finally:
        started.process.kill()
        started.process.wait()
    train_runs.contents(run)  # complete and verified
    return reached, started.said

  reached, said = stop(1, in_time=False)
  assert train_runs.newest(run) == reached >= 1
  assert "preemption_grace_seconds=1 have passed since SIGTERM" in said
  reached, said = stop(600, in_time=True)
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


@pytest.mark.parametrize(
  ("workdir", "what"),
  [
    ("htp://bucket/run", "unknown scheme htp:"),
    ("gs:/bucket/run", "check the slashes"),
    ("gs://", "check the slashes"),
    ("gs://absent/run", "cannot use gs://absent .*check that the bucket"),
    ("gs://forbidden/run", "cannot use gs://forbidden .*credentials"),
  ],
)
@pytest.mark.usefixtures("bucket_endpoint")
def test_a_workdir_that_cannot_be_used_is_one_line_before_anything_starts(
  workdir, what, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = small_training.config("audio_pretrain", "no dataset")
  chosen = settings.from_config(config)
  with pytest.raises((OSError, ValueError), match=what) as caught:
    trainer.train(chosen, config.to_dict(), workdir)
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.iterdir())
