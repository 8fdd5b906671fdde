"""The recipe: steps, commands and resuming."""

import importlib
import json
import subprocess
import sys

import ml_collections
import pytest

from ovi_jax.sampling import settings as sampling
from ovi_jax.training import settings
from scripts.small_ovi import recipe
from scripts.small_ovi import runner


def test_every_step_has_a_valid_command(tmp_path):
  todo = list(recipe.steps(tmp_path, 3, tmp_path / "out"))
  trained = [step for step in todo if step.words[0] == "train.py"]
  assert len(trained) == sum(map(len, recipe.CODECS.values())) + len(
    recipe.STAGES
  )
  for step in trained:
    config = configured(step.words)
    chosen = settings.from_config(config)
    assert chosen.seed == 3 and chosen.num_train_steps > 100
  assert tmp_path / "out" in [step.output for step in todo]
  data = {name for stage in recipe.STAGES.values() for name in stage.data}
  assert data == recipe.WORLDS.keys() and recipe.LAST == "fusion_all"
  # Evaluation prompts exclude the captions of all training clips.
  drawn = {}
  for step in todo:
    if step.name.startswith("world_"):
      given = dict(word.split("=", 1) for word in step.words if "=" in word)
      drawn[given["--what"]] = f"{given['--seed']}:{given['--train']}"
  words = next(s.words for s in todo if s.name == "prompts_seen")
  both = (f"{drawn[what]}:{what}" for what in ("clips", "two_balls"))
  assert f"--trained={','.join(both)}" in words
  # sample.py accepts the recommended settings.
  assert (
    sampling.recommended(recipe.SAMPLING)["num_steps"]
    == recipe.SAMPLING["num_steps"]
  )


def configured(words) -> ml_collections.ConfigDict:
  """The config of a command line, as flags would make it."""
  name = words[1].removeprefix("--config=configs/").removesuffix(".py:mini")
  config = importlib.import_module(f"configs.{name}").get_config("mini")
  for word in words[3:]:
    field, _, text = word.removeprefix("--config.").partition("=")
    old = config.to_dict()
    for part in field.split("."):
      old = old[part]
    value = text if isinstance(old, str | None) else type(old)(eval(text))
    config.update_from_flattened_dict({field: value})
  return config


def test_completed_steps_are_skipped_and_times_of_runs_are_added(tmp_path):
  made = tmp_path / "made"
  write = f"open({str(made)!r}, 'a').write('x')"
  first = runner.Step(name="first", words=("-c", write), output=made)
  again = runner.Step(name="again", words=("-c", write))
  for _ in range(2):
    runner.run([first, again], tmp_path / "times.json")
  assert made.read_text() == "xxx"
  times = json.loads((tmp_path / "times.json").read_text())
  seconds = times["seconds"]
  assert seconds.keys() == {"first", "again"} and min(seconds.values()) >= 0
  assert len(times["machines"]) == 1 and " cores (" in times["machines"][0]
  bad = runner.Step(name="bad", words=("-c", "import sys; sys.exit(3)"))
  with pytest.raises(ValueError, match="step bad failed with exit code 3"):
    runner.run([bad, again], tmp_path / "times.json")
  assert made.read_text() == "xxx"


def test_a_recipe_can_end_at_a_step(tmp_path):
  todo = list(recipe.steps(tmp_path, 0, tmp_path / "out"))
  names = [step.name for step in runner.until(todo, "components")]
  assert names[-1] == "components" and "fusion" not in names
  assert len(runner.until(todo, "")) == len(todo)
  with pytest.raises(ValueError, match="no step 'dessert'; choose from token"):
    runner.until(todo, "dessert")


@pytest.mark.slow
def test_the_command_line_prints_the_steps(tmp_path):
  def call(*words):
    return subprocess.run(
      [sys.executable, "-m", "scripts.small_ovi.recipe", *words],
      cwd=runner.REPOSITORY,
      capture_output=True,
      text=True,
      check=False,
    )

  done = call(f"--root={tmp_path}", "--dry_run", "--until=tokenizer")
  assert done.returncode == 0 and done.stdout.count("\n") == 1
  assert "ovi_jax.data.tokenizer" in done.stdout
  done = call()
  assert done.returncode and "--root=DIR is needed" in done.stderr
