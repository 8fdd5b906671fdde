"""Which clips are denoised together."""

import dataclasses

import pytest

from ovi_jax import prompt
from ovi_jax import synthetic
from ovi_jax.sampling import opening
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings
from tests.lib import config_values
from tests.lib.clip_jobs import TALL
from tests.lib.clip_jobs import WIDE
from tests.lib.clip_jobs import job

JOBS = [
  job("a", WIDE),
  job("b", TALL),
  job("c", WIDE, "first.png"),
  job("d", WIDE),
  job("e", TALL),
  job("f", WIDE),
  job("g", WIDE, "other.png"),
]


@pytest.mark.parametrize(
  ("size", "expected"),
  [
    (1, ["a", "b", "c", "d", "e", "f", "g"]),
    (2, ["ad", "be", "cg", "f"]),
    (3, ["adf", "be", "cg"]),
    (9, ["adf", "be", "cg"]),
  ],
)
def test_clips_of_one_size_are_batched(size, expected):
  found = planning.batches(JOBS, size)
  assert ["".join(j.text for j in batch) for batch in found] == expected


def test_a_prompt_is_repaired_once_and_the_recipe_is_built_once(
  tmp_path, monkeypatch
):
  """Planning a table of 10,000 rows takes seconds."""
  calls = {}

  def counted(module, name, kind):
    function = getattr(module, name)
    calls[name] = []

    def call(given, *arguments, **named):
      if isinstance(given, kind):
        calls[name].append(given)
      return function(given, *arguments, **named)

    monkeypatch.setattr(module, name, call)

  counted(prompt.ftfy, "fix_text", str)
  counted(dataclasses, "asdict", settings.Settings)
  table = tmp_path / "a.csv"
  rows = "".join(f"A ball counts to &amp;{n}.\n" for n in range(20))
  table.write_text(f"text_prompt\n{rows}")
  chosen = settings.Settings.from_config(config_values.sample_config())
  components = opening.open_components(synthetic.WEIGHTS, chosen)
  asked = requests.from_file(table)
  for each in calls.values():
    each.clear()
  prompt._unescaped.cache_clear()
  jobs, _ = planning.plan(asked, chosen, components, tmp_path, "")
  assert len(jobs) == 20
  assert len(calls["fix_text"]) == len(set(calls["fix_text"])) <= 20 + 2
  assert len(calls["asdict"]) == 1
  assert jobs[0].recipe["config"] is not jobs[1].recipe["config"]
