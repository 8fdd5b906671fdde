"""Runs of the curation engine over text files, with worker processes.

The stages are in `tests.lib.curation.text_stages`: every line of a file becomes
a clip, and the first word of a line may select a failure of a stage.
"""

import pathlib
import random
import sys

import ml_collections

from ovi_jax.curation.engine import run
from ovi_jax.curation.engine import settings
from ovi_jax.curation.engine import shard

STAGES = "tests.lib.curation.text_stages"
PASSES = (
  ("clips", (f"{STAGES}.split", f"{STAGES}.measure")),
  ("together", (f"{STAGES}.reverse",)),
  ("even", ("balance",)),
  ("end", (f"{STAGES}.write",)),
)


def config(
  out, inputs=(), passes=PASSES, **fields
) -> ml_collections.ConfigDict:
  """A config; fields with `__` are those of stages: measure__least=4."""
  stages = {
    "balance": {
      "stage": "measure",
      "fact": "kind",
      "shares": {"one": 0.5, "two": 0.5},
    },
  }
  own = {}
  for name, value in fields.items():
    stage, _, field = name.partition("__")
    if field:
      stages.setdefault(stage, {})[field] = value
    else:
      own[name] = value
  used = {name.rpartition(".")[2] for _, names in passes for name in names}
  return ml_collections.ConfigDict(
    {
      "inputs": tuple(map(str, inputs)),
      "out": str(out),
      "shard_size": 2,
      "append": False,
      "report": False,
      "passes": passes,
      "skip": (),
      "stages": {n: f for n, f in stages.items() if n in used},
      "num_workers": 1,
      "timeout": 20.0,
      "stage_timeouts": {},
      "max_failure_rate": 0.5,
      **own,
    }
  )


def chosen(*args, **fields) -> settings.Settings:
  """Settings of such a config."""
  return settings.Settings.from_config(config(*args, **fields))


def inline(chosen, part, numbers):
  """Does shards in this process: processes take most of a test's time."""
  functions = shard.load(part)
  for number in numbers:
    yield shard.process(chosen, part, functions, number)


def finish(chosen: settings.Settings) -> None:
  """Do all of a run, in this process."""
  assert run.run(chosen, executor=inline) == []


def write_inputs(folder: pathlib.Path, count: int = 5) -> pathlib.Path:
  """Files of lines, the same each time."""
  folder.mkdir(parents=True, exist_ok=True)
  chance = random.Random(7)
  for number in range(count):
    lines = [
      f"{chance.choice(['one', 'two', 'two', 'three'])} {number} {line}"
      for line in range(4)
    ]
    (folder / f"{number}.txt").write_text("\n".join([*lines, "x"]) + "\n")
  return folder


def contents(out: pathlib.Path) -> dict[str, bytes]:
  """All that a run wrote, by name."""
  return {
    str(path.relative_to(out)): path.read_bytes()
    for path in sorted(out.rglob("*"))
    if path.is_file() and not path.name.endswith(".part")
  }


def command(inputs: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
  return [
    sys.executable,
    "-m",
    "ovi_jax.curation",
    "--config=tests/lib/curation/text_stages/config.py",
    f"--config.inputs=('{inputs}',)",
    f"--config.out={out}",
    "--config.num_workers=2",
    *more,
  ]
