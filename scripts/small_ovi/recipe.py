"""Recipe of the weights in the package, from one seed.

  python -m scripts.small_ovi.recipe --root=DIR [--seed=0] [--until=NAME]
  [--dry_run]

Trains the codecs, renders and encodes clips of the synthetic world, trains the
towers in stages, exports the weights, scores them and writes their model card.
`--dry_run` prints the commands. After an interruption the same command resumes:
completed steps are skipped, training resumes from its last checkpoint.
`DIR/times.json` has the wall time of each step in seconds.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from scripts.small_ovi import card
from scripts.small_ovi import runner

# Sizes of the towers, next to what the `:mini` configs say.
TOWERS = {
  "video": {"hidden_dim": 192, "num_heads": 6, "mlp_dim": 512, "channels": 16},
  "audio": {"hidden_dim": 128, "num_heads": 4, "mlp_dim": 384},
}
SHARED = {"num_layers": 6, "text_dim": 64, "max_text_len": 48}
TRAINING: Mapping[str, Any] = {
  "batch_size": 16,
  "optimizer.name": "muon",
  "optimizer.learning_rate": 2e-2,
  "optimizer.warmup_steps": 50,
  "optimizer.ema_decay": 0.998,
  "objective.timesteps.shift": 3.0,
  "checkpoint_every": 100,
  "data.skip_unfit": True,  # the other modality alone
}
SCRATCH = "scratch"
# Component -> its runs, each initialized from the one before: name, config,
# number of steps and config changes. The last run is exported.
CODECS: Mapping[str, Any] = {
  "text": (("codec_text", "codec_text", 1500, {}),),
  "video": (
    ("codec_video", "codec_video", 3500, {}),
    # Frames beyond the length of the training crops are decoded badly, so some
    # crops are longer.
    (
      "codec_video_long",
      "codec_video",
      2500,
      {"data.num_frames": 33, "batch_size": 3, "optimizer.learning_rate": 5e-3},
    ),
    # The decoder alone; cached latents stay valid.
    (
      "codec_video_decoder",
      "codec_video",
      1500,
      {
        "data.num_frames": 33,
        "batch_size": 3,
        "optimizer.learning_rate": 4e-3,
        "trainable": "decoder",
      },
    ),
  ),
  "audio": (("codec_audio", "codec_audio", 3000, {}),),
  "vocoder": (("codec_vocoder", "codec_vocoder", 2500, {}),),
}
# Recommended sampling settings, stored with the weights.
SAMPLING: Mapping[str, Any] = {
  "num_steps": 20,
  "flow_shift": 3.0,
  # At higher scales colours drift from their names: orange turns yellow.
  "guidance_scale": {"video": 1.5, "audio": 1.5},
  "slg_layer": 3,
  "negative_prompt": {"video": "", "audio": ""},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A stage of training.

  Attributes:
    config: its name in `configs`.
    data: datasets of latents, keys of `WORLDS`.
    steps: number of optimizer steps.
    towers: tower -> `SCRATCH`, or the stage that it is initialized from.
    changes: config fields that differ from `TRAINING`.
  """

  config: str
  data: tuple[str, ...]
  steps: int
  towers: Mapping[str, str]
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


STAGES: Mapping[str, Stage] = {
  "audio_pretrain": Stage(
    config="audio_pretrain",
    data=("sounds",),
    steps=600,
    towers={"audio": SCRATCH},
  ),
  "audio_finetune": Stage(
    config="audio_finetune",
    data=("clips",),
    steps=1200,
    towers={"audio": "audio_pretrain"},
  ),
  "video_pretrain": Stage(
    config="video_pretrain",
    data=("clips",),
    steps=2200,
    towers={"video": SCRATCH},
  ),
  "fusion": Stage(
    config="fusion",
    data=("clips",),
    steps=1800,
    towers={"video": "video_pretrain", "audio": "audio_finetune"},
    changes={"optimizer.learning_rate": 1e-2},
  ),
  # With a shared timestep, video learns to follow audio, and audio does not
  # learn to attend to video. With independent timesteps, the noisier tower has
  # to use the other.
  "fusion_free": Stage(
    config="fusion",
    data=("clips",),
    steps=1600,
    towers={"video": "fusion", "audio": "fusion"},
    changes={
      "optimizer.learning_rate": 8e-3,
      "objective.timesteps.shared_prob": 0.0,
    },
  ),
  # The parts that fusion freezes were trained for few steps and limit the
  # result. Sampling has one timestep for both towers, so half of the examples
  # do. Two balls make the most events, and are rare in `clips`.
  "fusion_all": Stage(
    config="fusion",
    data=("clips", "two_balls"),
    steps=2700,
    towers={"video": "fusion_free", "audio": "fusion_free"},
    changes={
      "objective.timesteps.shared_prob": 0.5,
      "trainable": "all",
      "optimizer.learning_rate": 1e-2,
      "data.mixture_weights": (0.75, 0.25),
    },
  ),
}
LAST = tuple(STAGES)[-1]  # its towers are exported
PROMPTS = 96  # evaluation prompts of each set
# Dataset -> arguments of the world's command; seeds follow the recipe's.
WORLDS = {
  "clips": {"what": "clips", "train": 5000, "test": 96},
  "sounds": {"what": "sounds", "train": 3000, "test": 64},
  "two_balls": {"what": "two_balls", "train": 2500, "test": 64},
}


def steps(
  root: pathlib.Path, seed: int, out: pathlib.Path
) -> Iterator[runner.Step]:
  """All commands, in order.

  Args:
    root: directory for all outputs but the weights.
    seed: of worlds and training.
    out: directory for the weights.
  """
  yield from _codecs(root, seed)
  yield from latents(root, seed, root / "components", WORLDS)
  for name, stage in STAGES.items():
    initial = {
      tower: source if source == SCRATCH else str(root / source)
      for tower, source in stage.towers.items()
    }
    fields = stage_fields(stage, root, stage.steps, seed, initial)
    yield training(name, stage.config, root, fields)
  yield export("export", root / LAST, root / "components", out)
  yield from _scores(root, seed, out)


def _scores(
  root: pathlib.Path, seed: int, out: pathlib.Path
) -> Iterator[runner.Step]:
  """Prompts, samples and scores, and the model card."""
  for number, pairs in enumerate(card.SETS):
    prompts, clips = root / f"prompts_{pairs}.csv", root / f"samples_{pairs}"
    scores = root / f"scores_{pairs}.json"
    given: dict[str, Any] = {"count": PROMPTS, "seed": seed + 1000 + number}
    given |= {"pairs": pairs, "out": prompts}
    words = ("-m", "ovi_jax.synthetic.evaluation", "prompts", *_flags(given))
    words += (trained_flag(WORLDS, seed),)
    yield runner.Step(name=f"prompts_{pairs}", words=words, output=prompts)
    given = {"weights": out, "prompts": prompts, "out": clips}
    words = ("sample.py", *_flags(given))
    yield runner.Step(name=f"samples_{pairs}", words=words, output=scores)
    given = {"clips": clips, "out": scores}
    words = ("-m", "ovi_jax.synthetic.evaluation", *_flags(given))
    yield runner.Step(name=f"scores_{pairs}", words=words, output=scores)
  codecs = root / card.CODECS
  words = ("-m", "ovi_jax.synthetic.evaluation", "codecs", f"--weights={out}")
  words += (f"--out={codecs}",)
  yield runner.Step(name="codecs", words=words, output=codecs)
  words = ("-m", "scripts.small_ovi.card", f"--root={root}", f"--weights={out}")
  words += (f"--seed={seed}",)
  yield runner.Step(name="card", words=words)


def export(
  name: str,
  run: pathlib.Path,
  components: pathlib.Path,
  out: pathlib.Path,
) -> runner.Step:
  """Export the weights of a run in bfloat16."""
  words = ("-m", "ovi_jax.training.export", f"--workdir={run}")
  words += (f"--pretrained={components}", f"--out={out}", "--dtype=bfloat16")
  words += (f"--sampling={json.dumps(SAMPLING)}",)
  return runner.Step(name=name, words=words, output=out)


def stage_fields(
  stage: Stage,
  root: pathlib.Path,
  count: int,
  seed: int,
  initial: Mapping[str, str],
) -> dict[str, Any]:
  """Fields of the config of a stage.

  Args:
    stage: of training.
    root: directory of the latents.
    count: number of steps.
    seed: of training.
    initial: tower -> `SCRATCH`, or the run that it is initialized from.
  """
  fields = dict(TRAINING) | {
    "num_train_steps": count,
    "seed": seed,
    "data.sources": tuple(str(root / data) for data in stage.data),
  }
  for tower, source in initial.items():
    sizes = TOWERS[tower] | SHARED
    fields |= {f"model.{tower}.{key}": v for key, v in sizes.items()}
    fields[f"init_from.{tower}"] = source
  return fields | dict(stage.changes)


def _codecs(root: pathlib.Path, seed: int) -> Iterator[runner.Step]:
  """Tokenizer, text encoder and codecs, exported to one directory."""
  tokenizer = root / "tokenizer.json"
  yield runner.Step(
    name="tokenizer",
    words=("-m", "ovi_jax.data.tokenizer", f"--out={tokenizer}"),
    output=tokenizer,
  )
  for part, runs in CODECS.items():
    before = ""
    for name, config, count, changes in runs:
      fields = {
        "num_train_steps": count,
        "seed": seed,
        "data.sources": (f"world:{seed + 1}",),
        "init_from": before,
        **changes,
      }
      if part == "text":
        fields["data.tokenizer"] = str(tokenizer)
      yield training(name, config, root, fields)
      before = str(root / name)
  last = [f"--{part}={root / runs[-1][0]}" for part, runs in CODECS.items()]
  out = root / "components"
  sizes = [
    f"--towers.model.{tower}.{key}={value}"
    for tower in TOWERS
    for key, value in (TOWERS[tower] | SHARED).items()
  ]
  words = ("-m", "ovi_jax.training.codecs.assemble", *last, f"--out={out}")
  words += ("--dtype=bfloat16", *sizes)
  yield runner.Step(name="components", words=words, output=out)


def latents(
  root: pathlib.Path,
  seed: int,
  components: pathlib.Path,
  worlds: Mapping[str, Mapping[str, Any]],
) -> Iterator[runner.Step]:
  """Clips or sounds of worlds, and their latents in `root / NAME`.

  Args:
    root: directory for both.
    seed: the worlds' seeds are the ones after it.
    components: directory of the encoders.
    worlds: by name, arguments of the world's command.
  """
  for name, fields in _seeded(worlds, seed).items():
    media, out = root / f"raw_{name}", root / name
    given = {**fields, "out": media}
    yield runner.Step(
      name=f"world_{name}",
      words=("-m", "ovi_jax.synthetic.world", *_flags(given)),
      output=media,
    )
    given = {"data": media, "weights": components, "out": out}
    yield runner.Step(
      name=f"encode_{name}",
      words=(
        *("-m", "ovi_jax.data.encode", *_flags(given | {"batch_size": 8})),
        "--force",  # whatever the codec error; it is measured at the end
      ),
      output=out,
    )


def trained_flag(worlds: Mapping[str, Mapping[str, Any]], seed: int) -> str:
  """`--trained=` for the clips that `latents` renders from the same worlds."""
  clips = [
    f"{fields['seed']}:{fields['train']}:{fields['what']}"
    for fields in _seeded(worlds, seed).values()
    if fields["what"] != "sounds"  # their captions are not used as prompts
  ]
  return f"--trained={','.join(clips)}"


def _seeded(
  worlds: Mapping[str, Mapping[str, Any]], seed: int
) -> dict[str, dict[str, Any]]:
  """The worlds, each with a seed of its own."""
  return {
    name: {**fields, "seed": seed + number}
    for number, (name, fields) in enumerate(worlds.items(), 1)
  }


def training(
  name: str, config: str, root: pathlib.Path, changes: Mapping[str, Any]
) -> runner.Step:
  """A run of `train.py` at the mini size, in `root / name`."""
  words = ["train.py", f"--config=configs/{config}.py:mini"]
  words.append(f"--workdir={root / name}")
  words += [f"--config.{field}={value}" for field, value in changes.items()]
  return runner.Step(name=name, words=tuple(words))


def _flags(values: Mapping[str, Any]) -> list[str]:
  return [f"--{name}={value}" for name, value in values.items()]


if __name__ == "__main__":
  runner.start(steps, default_seed=0)
