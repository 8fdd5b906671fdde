"""sample.py with several processes: clips divided or sharded."""

import re
import sys

import numpy as np
import pytest

from tests.lib import train_runs

pytestmark = pytest.mark.slow

PROMPTS = ("Rain.", "A <S>word<E>. Audio: a voice.", "Fire.")


def words(weights, prompts, out, *flags, **fields) -> list[str]:
  return [
    sys.executable,
    "sample.py",
    f"--weights={weights}",
    f"--out={out}",
    f"--prompts={prompts}",
    "--save_latents",
    "--config.num_steps=2",
    *flags,
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
  path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
  rows = "".join(f'"{text}"\n' for text in PROMPTS)
  path.write_text(f"text_prompt\n{rows}", "utf-8")
  return path


@pytest.fixture(scope="module")
def alone(weights, prompts, tmp_path_factory):
  """Latents of every clip by one process on one device."""
  out = tmp_path_factory.mktemp("alone")
  code, said = train_runs.run(words(weights, prompts, out))
  assert code == 0, said
  return latents(out)


def latents(out) -> dict[str, dict[str, np.ndarray]]:
  found = {}
  for path in sorted(out.glob("*.npz")):
    assert path.with_suffix(".mp4").is_file()
    with np.load(path) as arrays:
      found[path.stem] = dict(arrays)
  return found


def assert_close(found, expected):
  assert found.keys() == expected.keys() and len(found) == len(PROMPTS)
  for name, arrays in expected.items():
    for part, array in arrays.items():
      limit = 1e-5 * np.abs(array).max()
      np.testing.assert_allclose(found[name][part], array, atol=limit)


@pytest.mark.slow
@pytest.mark.nightly
def test_processes_divide_the_clips(weights, prompts, alone, tmp_path):
  command = words(weights, prompts, tmp_path)
  with train_runs.group([command] * 2, tmp_path / "log") as runs:
    for run in runs:
      assert run.process.wait(train_runs.LONGEST) == 0, run.said
  made = [
    {line for line in run.said.splitlines() if line.startswith("wrote ")}
    for run in runs
  ]
  assert [len(lines) for lines in made] == [2, 1] and not made[0] & made[1]
  plans = {line for r in runs for line in r.said.splitlines() if "plan" in line}
  assert len({line.partition(", plan ")[2] for line in plans}) == 1
  assert "process 1 of 2 makes its share of 3 clips" in runs[1].said
  assert_close(latents(tmp_path), alone)


def test_processes_shard_each_clip(weights, prompts, alone, tmp_path):
  """Four devices of two processes: halves of the guidance, split tokens."""
  mesh = {"mesh.data": 2, "mesh.context": 2, "context_parallelism": "ring"}
  command = words(
    weights, prompts, tmp_path, shard_clips_over_hosts=True, **mesh
  )
  with train_runs.group([command] * 2, tmp_path / "log", devices=2) as runs:
    for run in runs:
      assert run.process.wait(train_runs.LONGEST) == 0, run.said
  assert runs[0].said.count("wrote ") == len(PROMPTS)
  assert "loading the DiT on 4 device(s)" in runs[0].said
  assert "wrote " not in runs[1].said
  assert_close(latents(tmp_path), alone)


@pytest.mark.parametrize(
  ("second", "said"),
  [
    ({"seed": 7}, r"process 1 has config\.seed 7, process 0 103"),
    ({"flags": "--overwrite"}, r"process 1 has flags\.overwrite true, "),
    ({"prompts": '"Snow."\n'}, r'process 1 has clips \["Snow_.*process 0 \['),
  ],
  ids=str,
)
def test_processes_with_different_requests_all_fail_at_once(
  weights, prompts, second, said, tmp_path
):
  """Both report it at once, and no clip is generated."""
  given, fields = prompts, dict(second)
  if "prompts" in fields:
    given = tmp_path / "prompts.csv"
    given.write_text("text_prompt\n" + fields.pop("prompts"), "utf-8")
  flags = [fields.pop("flags")] if "flags" in fields else []
  out = tmp_path / "out"
  commands = [
    words(weights, prompts, out, shard_clips_over_hosts=True),
    words(weights, given, out, *flags, shard_clips_over_hosts=True, **fields),
  ]
  with train_runs.group(commands, tmp_path / "log") as runs:
    for run in runs:
      assert run.process.wait(60) == 1, run.said
      assert re.search(said, run.said), run.said
      assert "Traceback" not in run.said
  assert not out.exists()


def test_a_noise_file_missing_in_one_process_ends_all(
  weights, prompts, tmp_path
):
  lost = tmp_path / "lost.npz"
  commands = [
    words(
      weights, prompts, tmp_path / "out", *flags, shard_clips_over_hosts=True
    )
    for flags in ((), (f"--noise={lost}",))
  ]
  with train_runs.group(commands, tmp_path / "log") as runs:
    for run in runs:
      assert run.process.wait(60) == 1, run.said
      assert str(lost) in run.said and "Traceback" not in run.said
  assert "sample: process 1 cannot start: " in runs[0].said
