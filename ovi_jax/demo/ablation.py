"""A change of the small Ovi, trained and scored beside what it changes.

  python -m ovi_jax.demo.ablation --ablation=configs/ablations/audio_rope.py
    --root=DIR [--dry_run]

`DIR` is the recipe's (`ovi_jax.demo.recipe`), whose latents, components and
towers are there. Every variant is trained from every seed, at equal compute,
and makes the same held-out prompts from the same noise; `evaluation` scores
the clips. Runs go to `DIR/ablations/NAME`, and so does the report: a table in
Markdown and a picture of which time each tower attends to. What is there is
not made again.
"""

import dataclasses
import itertools
import json
import pathlib
import shlex
import sys
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from absl import app
from absl import flags
from ml_collections import config_flags

from ovi_jax import files
from ovi_jax import runtime
from ovi_jax.demo import recipe
from ovi_jax.sampling import attention_maps

SCORES = {
  "sync F1, %": "sync F1",
  "with the sound of another, %": "sync F1, sound of another",
  "events that are heard, %": "events that are heard",
  "sounds that are seen, %": "sounds that are seen",
}
NEAR = "{} attention within a latent frame of its time, {}, %"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The fields of a config of `configs/ablations`.

  Attributes:
    name: of the ablation.
    seeds: that every variant is trained from.
    stages: the recipe's, by name, and steps of each; the last one is scored.
    initial: where each tower of a stage comes from: `recipe.FRESH`, a stage
      above, or a run of the recipe.
    fields: FIELD=VALUE of all stages and variants.
    variants: by name, FIELD=VALUE of the stages of each.
    prompts: how many are drawn.
    prompts_seed: of drawing them.
  """

  name: str
  seeds: tuple[int, ...]
  stages: Mapping[str, int]
  initial: Mapping[str, Mapping[str, str]]
  fields: tuple[str, ...]
  variants: Mapping[str, tuple[str, ...]]
  prompts: int
  prompts_seed: int

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """From the flag's config.

    Raises:
      ValueError: a field is missing or unknown.
    """
    fields = config.to_dict()
    wrong = fields.keys() ^ {field.name for field in dataclasses.fields(cls)}
    if wrong:
      raise ValueError(f"config fields missing or unknown: {sorted(wrong)}")
    return cls(**fields)


def run_name(variant: str, seed: int) -> str:
  return f"{variant}_{seed}"


def steps(settings: Settings, root: pathlib.Path) -> Iterator[recipe.Step]:
  """All commands, in order.

  Args:
    settings: of the ablation.
    root: the recipe's directory.
  """
  home = root / "ablations" / settings.name
  prompts = home / "prompts.csv"
  words = ("-m", "ovi_jax.evaluation", "prompts", f"--out={prompts}")
  words += (f"--count={settings.prompts}", f"--seed={settings.prompts_seed}")
  yield recipe.Step(name="prompts", words=words, makes=prompts)
  pairs = itertools.product(settings.seeds, settings.variants.items())
  for seed, (variant, changes) in pairs:
    name = run_name(variant, seed)
    place = home / name
    for stage, count in settings.stages.items():
      yield _stage(settings, root, place, stage, count, changes, seed)
    out = place / "weights"
    run, components = place / stage, root / "components"
    yield recipe.export(f"{name} export", run, components, out)
    clips, scores = place / "clips", place / "scores.json"
    words = ("sample.py", f"--weights={out}", f"--prompts={prompts}")
    words += (f"--out={clips}", "--attention_maps")
    yield recipe.Step(name=f"{name} clips", words=words, makes=scores)
    words = ("-m", "ovi_jax.evaluation", f"--clips={clips}", f"--out={scores}")
    yield recipe.Step(name=f"{name} scores", words=words, makes=scores)


def _stage(
  settings: Settings,
  root: pathlib.Path,
  place: pathlib.Path,
  stage: str,
  count: int,
  changes: Iterable[str],
  seed: int,
) -> recipe.Step:
  """A stage of a variant: the recipe's, with fewer steps and the changes."""
  base = recipe.STAGES[stage]
  sources = settings.initial[stage]
  initial = {
    tower: sources[tower]
    if sources[tower] == recipe.FRESH
    else str(
      (place if sources[tower] in settings.stages else root) / sources[tower]
    )
    for tower in base.towers
  }
  fields = recipe.stage_fields(base, root, count, seed, initial)
  for change in (*settings.fields, *changes):
    field, _, value = change.partition("=")
    part, _, rest = field.partition(".")
    # A tower's change is no change of a stage without it.
    if part != "model" or rest.split(".")[0] in base.towers:
      fields[field] = value
  step = recipe.training(stage, base.config, place, fields)
  return dataclasses.replace(step, name=f"{place.name} {stage}")


def table(settings: Settings, home: pathlib.Path) -> list[dict[str, Any]]:
  """A row for each variant and quantity: mean and values of all seeds."""
  rows = []
  for variant in settings.variants:
    found: dict[str, list[float]] = {}
    for seed in settings.seeds:
      place = home / run_name(variant, seed)
      scores = json.loads((place / "scores.json").read_text("utf-8"))
      named = {each["name"]: each["value"] for each in scores["scores"]}
      for title, name in SCORES.items():
        found.setdefault(title, []).append(100 * named[name])
      maps = mean_maps(place / "clips")
      for tower, share in maps.near_diagonal()._asdict().items():
        all_heads = float(getattr(maps, f"{tower}_near_GN").mean())
        for heads, value in (("all heads", all_heads), ("sharpest", share)):
          title = NEAR.format(tower, heads)
          found.setdefault(title, []).append(100 * value)
    rows += [
      {"variant": variant, "quantity": title, "values": values}
      for title, values in found.items()
    ]
  return rows


def mean_maps(clips: pathlib.Path) -> attention_maps.Maps:
  """The mean of the maps of all clips of a folder."""
  maps = [attention_maps.read(path) for path in sorted(clips.glob("*.mp4"))]
  return attention_maps.Maps(*(np.mean(part, 0) for part in zip(*maps)))


def markdown(rows: list[dict[str, Any]]) -> str:
  """Quantities down, variants to the right: mean, and every seed."""
  variants = list(dict.fromkeys(row["variant"] for row in rows))
  quantities = list(dict.fromkeys(row["quantity"] for row in rows))
  values = {(r["variant"], r["quantity"]): r["values"] for r in rows}
  lines = ["| | " + " | ".join(variants) + " |", "|---" * (len(variants) + 1)]
  lines[1] += "|"
  for quantity in quantities:
    cells = []
    for variant in variants:
      found = values[variant, quantity]
      each = ", ".join(f"{value:.1f}" for value in found)
      cells.append(f"**{np.mean(found):.1f}** ({each})")
    lines.append(f"| {quantity} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  try:
    root = recipe.directory_of(FLAGS.root, "root")
    if FLAGS.ablation is None:
      raise ValueError("--ablation=configs/ablations/NAME.py is needed")
    settings = Settings.from_config(FLAGS.ablation)
    home = root / "ablations" / settings.name
    if FLAGS.dry_run:
      for step in steps(settings, root):
        print(f"python {shlex.join(step.words)}")
      return
    home.mkdir(parents=True, exist_ok=True)
    recipe.take(steps(settings, root), home / recipe.TIMES)
    text = markdown(table(settings, home))
    with files.replacing(home / "table.md") as temporary:
      temporary.write_text(text, "utf-8")
    for variant in settings.variants:
      place = home / run_name(variant, settings.seeds[0]) / "clips"
      picture = attention_maps.matrices(mean_maps(place))
      with files.replacing(home / f"{variant}.png") as temporary:
        picture.save(temporary, "PNG")
    print(text, end="")
  except (OSError, ValueError) as error:
    sys.exit(f"ablation: {error}")


if __name__ == "__main__":
  flags.DEFINE_string("root", "", "Directory of the recipe.")
  flags.DEFINE_bool("dry_run", False, "Print the commands only.")
  config_flags.DEFINE_config_file("ablation")
  app.run(main, flags_parser=runtime.parse_flags)
