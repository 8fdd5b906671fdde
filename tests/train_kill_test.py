"""train.py resumes exactly after it is killed.

Every stage, with data workers, once; and a run that is killed many times, at
moments that fall into its start, its steps and its saves.
"""

import collections
import random
import shutil
import signal
import time

import pytest

from tests.lib import train_runs

pytestmark = pytest.mark.slow

HALF = 4  # steps until the checkpoint after which a stage is killed
SEED = 30
# Steps between saves, by start in turn. With 2, a save is always under way;
# with 0, never.
CADENCES = (2, 2, 0)
LIFE = 16  # steps before a kill, at most


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return train_runs.dataset(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="module")
def towers(source, tmp_path_factory):
  return train_runs.towers(source, tmp_path_factory.mktemp("towers"))


@pytest.mark.parametrize(
  "stage",
  [
    "fusion",
    pytest.param("lora", marks=pytest.mark.nightly),
    pytest.param("audio_pretrain", marks=pytest.mark.nightly),
    pytest.param("audio_finetune", marks=pytest.mark.nightly),
    pytest.param("video_pretrain", marks=pytest.mark.nightly),
  ],
)
@pytest.mark.slow
def test_a_killed_stage_resumes_to_the_same_state(
  stage, source, towers, tmp_path
):
  fields = {
    "num_train_steps": 2 * HALF,
    "checkpoint_every": HALF,
    "data__num_workers": 2,
  }
  fields |= towers if stage == "fusion" else {}
  if stage == "lora":
    stage, base = "fusion", tmp_path / "base"
    command = train_runs.command(
      stage, source, base, num_train_steps=1, trainable="all"
    )
    code, said = train_runs.run(command)
    assert code == 0, said
    fields |= {"trainable": "lora", "lora__rank": 2, "lora__dropout": 0.5}
    fields |= {f"init_from__{name}": str(base) for name in ("video", "audio")}
  alone = train_runs.command(stage, source, tmp_path / "alone", **fields)
  code, said = train_runs.run(alone)
  assert code == 0, said

  words = train_runs.command(stage, source, tmp_path / "run", **fields)
  with train_runs.started(words, tmp_path / "log") as run:
    run.wait(lambda: train_runs.newest(run.workdir) > 0)
    assert len(train_runs.processes(run.process.pid)) > 2, "no data workers"
    assert run.end() == -signal.SIGKILL
  assert train_runs.newest(run.workdir) == HALF
  shutil.copytree(tmp_path / "run", tmp_path / "two")
  code, said = train_runs.run(words)
  assert code == 0, said
  assert f"continuing from the checkpoint of step {HALF}" in said
  assert "leaked" not in said  # shared memory and semaphores of the workers
  train_runs.assert_same(tmp_path / "run", tmp_path / "alone")

  # On two devices sums are taken in another order.
  words = train_runs.command(stage, source, tmp_path / "two", **fields)
  code, said = train_runs.run(words, devices=2)
  assert code == 0, said
  assert "parameters on 2 devices" in said
  train_runs.assert_close(tmp_path / "two", tmp_path / "alone", 1e-5)


@pytest.mark.nightly
def test_a_run_killed_many_times_reaches_the_same_state(
  source, towers, tmp_path, capsys
):
  moments, count = random.Random(SEED), 30

  def command(name, steps, save):
    changes = {"num_train_steps": steps, "checkpoint_every": save} | towers
    return train_runs.command("fusion", source, tmp_path / name, **changes)

  kills: collections.Counter[str] = collections.Counter()
  reached, startup = 0, 10.0
  for number in range(count):
    words = command("run", 10**6, CADENCES[number % 3])
    with train_runs.started(words, tmp_path / f"log{number}") as run:
      if number % 3:
        run.wait(lambda run=run: run.logged > 0)
        startup = time.monotonic() - run.began
        life = moments.randint(1, LIFE)
        run.wait(lambda run=run, life=life: run.logged >= life)
        time.sleep(moments.uniform(0, 0.2))
      else:
        time.sleep(moments.uniform(0, startup))
      stepped = run.logged > 0
      assert run.end() == -signal.SIGKILL, run.said
    kills[phase(run, stepped)] += 1
    assert "damaged" not in run.said, run.said
    found = train_runs.newest(run.workdir)
    assert found >= reached, f"kill {number}: step {found} after {reached}"
    if found:
      train_runs.contents(run.workdir)
    reached = found
  with capsys.disabled():
    during = ", ".join(f"{times} during {p}" for p, times in kills.items())
    print(f"\n{count} kills with seed {SEED}, {reached} steps: {during}")
  assert {"start", "steps", "save"} <= kills.keys()

  steps = reached + 5
  code, said = train_runs.run(command("run", steps, 2))
  assert code == 0 and "damaged" not in said, said
  code, said = train_runs.run(command("alone", steps, 0))
  assert code == 0, said
  train_runs.assert_same(tmp_path / "run", tmp_path / "alone")
  names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
  assert names == {str(steps), str(steps - 1)}


def phase(run: train_runs.Started, stepped: bool) -> str:
  """What a run that was killed was doing, by what it left."""
  if not stepped:
    return "start"
  left = (run.workdir / "checkpoints").glob("*")
  return "save" if any("tmp" in path.name for path in left) else "steps"
