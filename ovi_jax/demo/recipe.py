"""How the weights that come with the package are made, from one seed.

  python -m ovi_jax.demo.recipe --root=DIR [--seed=0] [--until=NAME] [--dry_run]

Worlds, codecs, latents, the three stages and the weights, one command after
the other; `--dry_run` prints them. What is there already is not made again and
training goes on from its checkpoints, so the same command continues after a
stop. `DIR/times.json` keeps the seconds that each step took.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from absl import app
from absl import flags

from ovi_jax import files
from ovi_jax import runtime

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMES = "times.json"

# Sizes of the towers, next to what the `:mini` configs say.
TOWERS = {
  "video": {"width": 224, "heads": 7, "feed_forward": 512},
  "audio": {"width": 128, "heads": 4, "feed_forward": 384},
}
SHARED = {"blocks": 5, "text_width": 64, "text_length": 48}
TRAINING: Mapping[str, Any] = {
  "batch": 16,
  "optimizer.learning_rate": 2e-3,
  "optimizer.warmup_steps": 100,
  "optimizer.average_decay": 0.998,
  "objective.times.shift": 3.0,
  "cadence.save": 100,
}
CODECS = {
  "text": ("codec_text", 1500),
  "video": ("codec_video", 3000),
  "audio": ("codec_audio", 4000),
  "vocoder": ("codec_vocoder", 4000),
}
# Name -> data, steps, and which towers come from where.
STAGES = {
  "audio_pretrain": ("sounds", 2000, {"audio": "fresh"}),
  "audio_finetune": ("clips", 2000, {"audio": "audio_pretrain"}),
  "video_pretrain": ("clips", 4000, {"video": "fresh"}),
  "fusion": (
    "clips",
    4000,
    {"video": "video_pretrain", "audio": "audio_finetune"},
  ),
}
# Name -> arguments of the world's command; seeds follow the recipe's.
WORLDS = {
  "clips": {"what": "clips", "train": 5000, "test": 96},
  "sounds": {"what": "sounds", "train": 3000, "test": 64},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A command.

  Attributes:
    name: of the step.
    words: of the command, without the Python that runs it.
    makes: what is there when it is done; `None` for a run of `train.py`, which
      knows itself how far it is.
  """

  name: str
  words: tuple[str, ...]
  makes: pathlib.Path | None = None


def steps(root: pathlib.Path, seed: int, out: pathlib.Path) -> Iterator[Step]:
  """All commands, in order.

  Args:
    root: directory for all that is made on the way.
    seed: of worlds and training.
    out: directory for the weights.
  """
  yield from _codecs(root, seed)
  yield from _data(root, seed)
  for name, (data, count, towers) in STAGES.items():
    changes = dict(TRAINING) | {
      "steps": count,
      "seed": seed,
      "data.sources": (str(root / data),),
    }
    for tower, source in towers.items():
      sizes = TOWERS[tower] | SHARED
      changes |= {f"model.{tower}.{key}": v for key, v in sizes.items()}
      fresh = source == "fresh"
      changes[f"initial.{tower}"] = source if fresh else str(root / source)
    yield _train(name, name, root, changes)
  words = ("-m", "ovi_jax.training.export", f"--workdir={root / 'fusion'}")
  words += (f"--components={root / 'components'}", f"--out={out}")
  yield Step(name="export", words=(*words, "--dtype=bfloat16"), makes=out)


def _codecs(root: pathlib.Path, seed: int) -> Iterator[Step]:
  """Tokenizer, text encoder and codecs, and the directory of them."""
  tokenizer = root / "tokenizer.json"
  yield Step(
    name="tokenizer",
    words=("-m", "ovi_jax.data.world.tokenizer", f"--out={tokenizer}"),
    makes=tokenizer,
  )
  for part, (config, count) in CODECS.items():
    changes = {
      "steps": count,
      "seed": seed,
      "data.sources": (f"world:{seed + 1}",),
    }
    if part == "text":
      changes["data.tokenizer"] = str(tokenizer)
    yield _train(config, config, root, changes)
  runs = [f"--{part}={root / name}" for part, (name, _) in CODECS.items()]
  out = root / "components"
  sizes = [
    f"--towers.model.{tower}.{key}={value}"
    for tower in TOWERS
    for key, value in (TOWERS[tower] | SHARED).items()
  ]
  words = ("-m", "ovi_jax.training.codecs.assemble", *runs, f"--out={out}")
  yield Step(name="components", words=(*words, *sizes), makes=out)


def _data(root: pathlib.Path, seed: int) -> Iterator[Step]:
  """Clips and sounds of the world, and their latents."""
  for number, (name, fields) in enumerate(WORLDS.items(), 1):
    media, latents = root / f"raw_{name}", root / name
    given = fields | {"seed": seed + number, "out": media}
    yield Step(
      name=f"world_{name}",
      words=("-m", "ovi_jax.data.world", *_flags(given)),
      makes=media,
    )
    given = {"data": media, "weights": root / "components", "out": latents}
    yield Step(
      name=f"encode_{name}",
      words=("-m", "ovi_jax.data.encode", *_flags(given | {"batch": 8})),
      makes=latents,
    )


def _train(
  name: str, config: str, root: pathlib.Path, changes: Mapping[str, Any]
) -> Step:
  words = ["train.py", f"--config=configs/{config}.py:mini"]
  words.append(f"--workdir={root / name}")
  words += [f"--config.{field}={value}" for field, value in changes.items()]
  return Step(name=name, words=tuple(words))


def _flags(values: Mapping[str, Any]) -> list[str]:
  return [f"--{name}={value}" for name, value in values.items()]


def run(
  root: pathlib.Path, seed: int, out: pathlib.Path, until: str = ""
) -> None:
  """Take the steps, or those up to and with `until`.

  Raises:
    ValueError: a step fails, or there is none of that name.
  """
  todo = list(steps(root, seed, out))
  names = [step.name for step in todo]
  if until and until not in names:
    raise ValueError(f"no step {until!r}; choose from {', '.join(names)}")
  root.mkdir(parents=True, exist_ok=True)
  for step in todo[: names.index(until) + 1 if until else None]:
    if step.makes is not None and step.makes.exists():
      print(f"{step.name}: already made", flush=True)
      continue
    print(f"{step.name}: python {' '.join(step.words)}", flush=True)
    began = time.monotonic()
    done = subprocess.run(
      [sys.executable, *step.words], cwd=REPOSITORY, check=False
    )
    _keep_time(root / TIMES, step.name, time.monotonic() - began)
    if done.returncode:
      raise ValueError(
        f"step {step.name} ended with exit code {done.returncode}; what it"
        " said is above. The same command goes on from here"
      )


def _keep_time(path: pathlib.Path, name: str, seconds: float) -> None:
  """Add to what a step took in earlier runs."""
  times = json.loads(path.read_text()) if path.exists() else {}
  times[name] = round(times.get(name, 0.0) + seconds, 1)
  with files.replacing(path) as temporary:
    pathlib.Path(temporary).write_text(json.dumps(times, indent=2) + "\n")


FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  try:
    if not FLAGS.root:
      raise ValueError("--root=DIR is needed")
    root = pathlib.Path(os.path.abspath(FLAGS.root))
    out = (
      pathlib.Path(os.path.abspath(FLAGS.out))
      if FLAGS.out
      else root / "weights"
    )
    if not (REPOSITORY / "train.py").is_file():
      raise ValueError("the recipe runs in a clone of the repository only")
    if FLAGS.dry_run:
      for step in steps(root, FLAGS.seed, out):
        print(f"python {' '.join(step.words)}")
    else:
      run(root, FLAGS.seed, out, FLAGS.until)
  except (OSError, ValueError) as error:
    sys.exit(f"recipe: {error}")


if __name__ == "__main__":
  flags.DEFINE_string("root", "", "Directory for all that is made.")
  flags.DEFINE_string("out", "", "Directory for the weights; ROOT/weights.")
  flags.DEFINE_integer("seed", 0, "Of worlds and training.")
  flags.DEFINE_string("until", "", "Last step to take.")
  flags.DEFINE_bool("dry_run", False, "Print the commands only.")
  app.run(main, flags_parser=runtime.parse_flags)
