"""Ablation: variants of the small Ovi, trained and scored at equal compute.

  python -m scripts.small_ovi.ablation
  --ablation=configs/ablations/audio_rope.py
    --root=DIR [--weights=DIR] [--dry_run]

Clips of the synthetic world are rendered and encoded by the shipped codecs, or
those of `--weights`. Every variant is trained from every seed and samples the
same held-out prompts from the same noise; `evaluation` scores the clips. Stages
that no variant changes are trained once per seed. Outputs are in `DIR/NAME`,
with the report: a table in Markdown and a picture of the attention between the
towers over time. Completed steps are skipped.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from ovi_jax import cli
from ovi_jax import config as config_lib
from ovi_jax import config_files
from ovi_jax import files
from ovi_jax import synthetic
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import attention_maps
from scripts.small_ovi import recipe
from scripts.small_ovi import runner

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
    seeds: training seeds of every variant.
    num_train_clips: number of training clips.
    world_seed: seed of those.
    stages: stage of the recipe -> number of steps; the last one is scored.
    init_from: stage -> tower -> `recipe.SCRATCH`, or an earlier stage.
    overrides: FIELD=VALUE of all stages and variants.
    variants: variant -> FIELD=VALUE of its stages.
    num_eval_prompts: number of evaluation prompts.
    eval_prompts_seed: seed of those.
  """

  name: str
  seeds: tuple[int, ...]
  num_train_clips: int
  world_seed: int
  stages: Mapping[str, int]
  init_from: Mapping[str, Mapping[str, str]]
  overrides: tuple[str, ...]
  variants: Mapping[str, tuple[str, ...]]
  num_eval_prompts: int
  eval_prompts_seed: int

  def __post_init__(self):
    config_lib.check_types(type(self), vars(self), "")
    if unknown := self.stages.keys() - recipe.STAGES.keys():
      raise ValueError(
        f"stages {sorted(unknown)} are not the recipe's; it has"
        f" {', '.join(recipe.STAGES)}"
      )
    # In the recipe's order; a config sorts its keys.
    ordered = {n: self.stages[n] for n in recipe.STAGES if n in self.stages}
    object.__setattr__(self, "stages", ordered)
    above: set[str] = set()
    for stage in ordered:
      for tower in recipe.STAGES[stage].towers:
        source = self.init_from.get(stage, {}).get(tower)
        if source not in {recipe.SCRATCH, *above}:
          raise ValueError(
            f"init_from.{stage}.{tower}: expected {recipe.SCRATCH!r} or a stage"
            f" above ({', '.join(sorted(above)) or 'none'}), got {source!r}"
          )
      above.add(stage)

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """From the flag's config.

    Raises:
      ValueError: a field is missing or unknown.
    """
    fields = config.to_dict()
    known = {field.name for field in dataclasses.fields(cls)}
    if fields.keys() != known:
      raise ValueError(
        "expected the config of an ablation, such as configs/ablations/"
        f"audio_rope.py; fields missing: {sorted(known - fields.keys())},"
        f" unknown: {sorted(fields.keys() - known)}"
      )
    return cls(**fields)


SETTINGS = "settings.json"


def record_settings(
  settings: Settings, digests: Mapping[str, str], path: pathlib.Path
) -> None:
  """Write settings and codecs of the runs beside a file, or compare them.

  Args:
    settings: of the ablation.
    digests: of the codecs.
    path: of the file.

  Raises:
    ValueError: the file has other settings or codecs.
  """
  found = dataclasses.asdict(settings) | {"digests": dict(digests)}
  found = json.loads(json.dumps(found))
  old = json.loads(path.read_text("utf-8")) if path.exists() else found
  if other := sorted(n for n in found if old.get(n) != found[n]):
    raise ValueError(
      f"{path.parent} holds runs of other {', '.join(other)} (see {path.name});"
      " use another --root, or remove it"
    )
  with files.atomic_path(path) as temporary:
    temporary.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def run_name(variant: str, seed: int) -> str:
  return f"{variant}_{seed}"


SHARED = "shared"  # the variant of stages that no variant changes


def steps(
  settings: Settings, root: pathlib.Path, weights: pathlib.Path
) -> Iterator[runner.Step]:
  """All commands, in order.

  Args:
    settings: of the ablation.
    root: directory for the results of all ablations.
    weights: directory of converted weights, for the codecs.
  """
  home = root / settings.name
  worlds = {
    data: {**recipe.WORLDS[data], "train": settings.num_train_clips}
    for data in recipe.WORLDS
    if any(data in recipe.STAGES[stage].data for stage in settings.stages)
  }
  yield from recipe.latents(home, settings.world_seed, weights, worlds)
  prompts = home / "prompts.csv"
  words = ("-m", "ovi_jax.synthetic.evaluation", "prompts", f"--out={prompts}")
  words += (
    f"--count={settings.num_eval_prompts}",
    f"--seed={settings.eval_prompts_seed}",
  )
  words += (recipe.trained_flag(worlds, settings.world_seed),)
  yield runner.Step(name="prompts", words=words, output=prompts)
  for seed in settings.seeds:
    for stage in shared(settings):
      yield _training(settings, home, stage, SHARED, seed)
    for variant in settings.variants:
      yield from _variant(settings, home, weights, variant, seed)


def shared(settings: Settings) -> list[str]:
  """Stages that are the same in all variants, and so are those before."""
  same: list[str] = []
  for stage in settings.stages:
    changes = [_changes(settings, stage, v) for v in settings.variants]
    before = set(settings.init_from[stage].values()) - {recipe.SCRATCH, *same}
    if not before and all(each == changes[0] for each in changes):
      same.append(stage)
  return same


def _variant(
  settings: Settings,
  home: pathlib.Path,
  weights: pathlib.Path,
  variant: str,
  seed: int,
) -> Iterator[runner.Step]:
  """Training, weights, clips and scores of a variant from a seed."""
  name = run_name(variant, seed)
  place = home / name
  common = shared(settings)
  out = place / "weights"
  for stage in (each for each in settings.stages if each not in common):
    step = _training(settings, home, stage, variant, seed)
    # Completed runs are skipped without starting train.py.
    yield dataclasses.replace(step, output=out)
  run = place / list(settings.stages)[-1]
  yield recipe.export(f"{name} export", run, weights, out)
  clips, scores = place / "clips", place / "scores.json"
  words = ("sample.py", f"--weights={out}", f"--out={clips}")
  words += (f"--prompts={home / 'prompts.csv'}", "--attention_maps")
  yield runner.Step(name=f"{name} clips", words=words, output=scores)
  words = (
    "-m",
    "ovi_jax.synthetic.evaluation",
    f"--clips={clips}",
    f"--out={scores}",
  )
  yield runner.Step(name=f"{name} scores", words=words, output=scores)


def _training(
  settings: Settings, home: pathlib.Path, stage: str, variant: str, seed: int
) -> runner.Step:
  """A stage of a variant: the recipe's, with other steps and fields."""
  base, common = recipe.STAGES[stage], shared(settings)

  def place(of: str) -> pathlib.Path:
    return home / run_name(SHARED if of in common else variant, seed)

  initial = {
    tower: source if source == recipe.SCRATCH else str(place(source) / source)
    for tower, source in settings.init_from[stage].items()
  }
  count = settings.stages[stage]
  fields = recipe.stage_fields(base, home, count, seed, initial)
  fields |= _changes(settings, stage, variant)
  step = recipe.training(stage, base.config, place(stage), fields)
  return dataclasses.replace(step, name=f"{place(stage).name} {stage}")


def _changes(settings: Settings, stage: str, variant: str) -> dict[str, str]:
  """Fields of a stage that the ablation, or its variant, sets."""
  fields = {}
  for change in (*settings.overrides, *settings.variants.get(variant, ())):
    field, _, value = change.partition("=")
    part, _, rest = field.partition(".")
    # A stage without the tower is not changed.
    if part != "model" or rest.split(".")[0] in recipe.STAGES[stage].towers:
      fields[field] = value
  return fields


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
  """Quantities down, variants to the right: mean, and every seed.

  Of two variants, their difference seed by seed is the last column.
  """
  variants = list(dict.fromkeys(row["variant"] for row in rows))
  quantities = list(dict.fromkeys(row["quantity"] for row in rows))
  values = {(r["variant"], r["quantity"]): r["values"] for r in rows}
  columns = [*variants]
  if len(variants) == 2:
    columns.append(f"{variants[0]} less {variants[1]}")
  lines = ["| | " + " | ".join(columns) + " |", "|---" * len(columns) + "|---|"]
  for quantity in quantities:
    cells = [_cell(values[v, quantity], "") for v in variants]
    if len(variants) == 2:
      one, other = (np.array(values[v, quantity]) for v in variants)
      cells.append(_cell(one - other, "+"))
    lines.append(f"| {quantity} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def _cell(values: Sequence[float] | np.ndarray, sign: str) -> str:
  """The mean, and all."""
  each = ", ".join(f"{value:{sign}.1f}" for value in values)
  return f"**{np.mean(values):{sign}.1f}** ({each})"


FLAGS = flags.FLAGS


def main() -> None:
  cli.require_flags(FLAGS, root="DIR", ablation="ablations/NAME", weights="DIR")
  root, weights = runner.absolute(FLAGS.root), runner.absolute(FLAGS.weights)
  settings = Settings.from_config(FLAGS.ablation)
  home = root / settings.name
  todo = steps(settings, root, weights)
  if FLAGS.dry_run:
    runner.print_commands(todo)
    return
  home.mkdir(parents=True, exist_ok=True)
  digests = weights_dir.read(weights).digests
  record_settings(settings, digests, home / SETTINGS)
  runner.run(todo, home / runner.TIMES)
  text = markdown(table(settings, home))
  with files.atomic_path(home / "table.md") as temporary:
    temporary.write_text(text, "utf-8")
  for variant in settings.variants:
    place = home / run_name(variant, settings.seeds[0]) / "clips"
    picture = attention_maps.matrices(mean_maps(place))
    with files.atomic_path(home / f"{variant}.png") as temporary:
      picture.save(temporary, "PNG")
  print(text, end="")


if __name__ == "__main__":
  flags.DEFINE_string("root", "", "Directory for results.")
  flags.DEFINE_string(
    "weights", str(synthetic.WEIGHTS), "Directory of the codecs."
  )
  flags.DEFINE_bool("dry_run", False, "Print the commands only.")
  config_files.define("ablation")
  cli.run(main)
