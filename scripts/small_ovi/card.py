"""The model card of the small Ovi: data, training, scores and limits.

  python -m scripts.small_ovi.card --root=DIR --weights=DIR [--seed=0]

Reads the duration of each step and the scores from the directory of the recipe,
and writes `MODEL_CARD.md` beside the weights.

The card lists goals that are not reached, and scores that are more than
`FURTHEST` points worse for pairs that were never trained on.
"""

import json
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import flags

from ovi_jax import cli
from ovi_jax import files
from ovi_jax.synthetic.evaluation import codecs
from ovi_jax.synthetic.evaluation import weights as evaluated

CARD = "MODEL_CARD.md"
CODECS = "codecs.json"
PSNR_GOAL = 30.0  # dB
FURTHEST = 10.0  # points
# Scores of the card -> goal in per cent; negative: an upper limit; `None`: no
# goal.
GOALS: Mapping[str, float | None] = {
  "colour": 95,
  "kind": 95,
  "something happens": None,
  "number of events seen": None,
  "number of sounds heard": None,
  "sync F1": 85,
  "sync F1, sound of another": -45,
  "sync F1, ball": None,
  "sync F1, lamp": None,
  "sync F1, face": None,
  "material": 85,
  "pitch": 85,
  "voice": None,
  "vowels heard": 70,
  "vowels seen": None,
}
_INTRODUCTION = """\
# The small Ovi

A model with Ovi's architecture, small enough to ship with the package and to
run on a laptop's CPU. From a prompt, or from a prompt and a first frame, it
generates 5.04 s of video (121 frames at 24 fps, {size}) with
16 kHz sound. It was trained on one synthetic world and generates nothing else.
Its purpose is to demonstrate, test and study the code.

- **Data**: `ovi_jax.synthetic.world` renders pictures and synthesizes sounds
  from a seed: balls that bounce and knock (six colours; wood, metal, rubber),
  lamps that flash and beep (low, middle, high), faces that speak vowels (low or
  high voice), still and silent scenes, and sounds without a picture. It
  contains no recording, and no person's voice or likeness. Some combinations
  of a colour and a sound are left out of training; they are the "pairs never
  trained on" below.
- **Components**: {parts};
  {megabytes:.1f} MB in all, in bfloat16.
- **Training**: tokenizer, text encoder and codecs; audio pretraining on long
  sounds; audio fine-tuning; video pretraining; fusion with frozen MLPs; fusion
  of all parameters. `make demo-weights` (`scripts.small_ovi.recipe`) runs all
  of these steps with seed {seed}. The shipped weights differ in two ways:
  their last fusion stage started from weights in bfloat16, and their video
  VAE's decoder was trained last, with seed 1 (docs/lab_notebook.md).
- **Digest** of the DiT, `fusion` in `ovi_jax.json`: `{digest}…`. The
  JSON file beside each clip contains it too.
- **Licence**: Apache-2.0, like the code.
"""
_ABOUT_SCORES = """\
Clips were generated from prompts that are not captions of the towers' training
clips, each with its own seed. The text encoder was trained on at least 53 of
the 96 new prompts, and on none of the pairs never trained on. Clips are scored
from the mp4 alone. In brackets: 95 % confidence intervals. "sync F1, sound of
another" is the chance level of the sync F1. docs/how_to/evaluate.md defines the
scores.
"""
_LIMITS = """\
## Limits

- Words that are not in the captions of the world are dropped from a prompt, and
  `sample.py` lists them. There are no other colours, sounds or objects.
- It counts to five at most, and is sometimes one too high or too low.
- A ball may shrink, or fade for some frames while its knocks continue. An
  orange ball may be yellow for part of the clip. The first frame is grainier
  than the others.
- In a scene with two balls, one may be missing, most often in pairs never
  trained on. In such pairs, picture and sound coincide less often with two
  balls than with one (docs/lab_notebook.md).
- It was trained at one size only: 64 by 64 pixels for 5.04 s.
- Its results do not predict the quality of the released Ovi weights.
"""


_TRIED = "Experiments are recorded in docs/lab_notebook.md.\n"


def text(root: pathlib.Path, weights: pathlib.Path, seed: int) -> str:
  """The text of the card.

  Args:
    root: of the recipe: `times.json`, `scores_*.json` and `codecs.json`.
    weights: directory of the weights.
    seed: of the recipe.

  Raises:
    OSError: one of these files is not there.
  """
  manifest = json.loads((weights / "ovi_jax.json").read_text("utf-8"))
  sizes = {p.stem: p.stat().st_size for p in weights.glob("*.safetensors")}
  latents = manifest["sizes"]["latents"]
  parts = ", ".join(
    f"{name} {size / 1e6:.1f} MB" for name, size in sorted(sizes.items())
  )
  introduction = _INTRODUCTION.format(
    size=f"{16 * latents['H']} by {16 * latents['W']} pixels",
    parts=parts,
    megabytes=sum(sizes.values()) / 1e6,
    seed=seed,
    digest=manifest["digests"]["fusion"][:16],
  )
  times = json.loads((root / "times.json").read_text("utf-8"))
  scores = {
    title: json.loads((root / f"scores_{name}.json").read_text("utf-8"))
    for name, title in SETS.items()
  }
  losses = {
    name: codecs.Loss(**loss)
    for name, loss in json.loads((root / CODECS).read_text("utf-8")).items()
  }
  tables = {
    title: {each["name"]: each for each in found["scores"]}
    for title, found in scores.items()
  }
  return "\n".join(
    [
      introduction,
      _scores(tables),
      "Ground-truth clips, encoded and decoded by the codecs\n(`python -m"
      " ovi_jax.synthetic.evaluation codecs`):\n",
      evaluated.markdown(losses),
      _behind(tables, losses[evaluated.VIDEO].mean),
      _recipe(times["seconds"], times["machines"]),
      _LIMITS,
    ]
  )


SETS = {"seen": "new prompts", "held_out": "pairs never trained on"}


Tables = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _scores(tables: Tables) -> str:
  """The table: a row for each score, a column for each set of prompts."""
  lines = [
    "## Scores\n",
    _ABOUT_SCORES,
    "| score | goal | " + " | ".join(tables) + " |",
    "|---" * (len(tables) + 2) + "|",
  ]
  for name, goal in GOALS.items():
    cells = [
      _cell(each[name]) if name in each else "" for each in tables.values()
    ]
    wished = ""
    if goal is not None:
      wished = f"{'≤' if goal < 0 else '≥'} {abs(goal)}"
    lines.append(f"| {name} | {wished} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def _behind(tables: Tables, psnr: float) -> str:
  """Missed goals, and scores that are worse for pairs never trained on."""
  new, unseen = (
    {
      name: 100 * each["value"]
      for name, each in tables[title].items()
      if name in GOALS and each["clips"]
    }
    for title in SETS.values()
  )
  missed = [
    f"{name} ({new[name]:.1f} %)"
    for name, goal in GOALS.items()
    if goal is not None
    and name in new
    and (new[name] > -goal if goal < 0 else new[name] < goal)
  ]
  if psnr < PSNR_GOAL:
    missed.append(f"video PSNR ({psnr:.2f} dB, the goal is {PSNR_GOAL:g})")
  lost = [
    f"{name} ({new[name] - unseen[name]:.0f})"
    for name in new
    if name in unseen
    and (GOALS[name] or 0) > 0
    and new[name] - unseen[name] > FURTHEST
  ]
  lines = ["All goals are reached on new prompts.\n"]
  if missed:
    lines = [f"Goals not reached, on new prompts: {', '.join(missed)}.\n"]
  if not lost:
    lines.append(
      "For pairs never trained on, each score with a goal is at most"
      f" {FURTHEST:g} points worse.\n"
    )
  else:
    lines.append(
      f"For pairs never trained on, these scores are more than {FURTHEST:g}"
      f" points worse: {', '.join(lost)}. The others with a goal are not.\n"
    )
  return "\n".join([*lines, _TRIED])


def _cell(score: Mapping[str, Any]) -> str:
  """A score with its interval; empty if no clip was scored."""
  if not score["clips"]:
    return ""
  value, low, high = (100 * score[key] for key in ("value", "low", "high"))
  return f"{value:.1f} % ({low:.0f} to {high:.0f})"


def _recipe(times: Mapping[str, float], machines: Sequence[str]) -> str:
  """The table of steps and their durations."""
  lines = [
    "## Training time\n",
    f"Wall-clock minutes on {' and '.join(machines)}.\nThey include"
    " interruptions, repeated steps and time that other programs used.\nThe"
    " steps are those of `make demo-weights`.\n",
    "| step | minutes |",
    "|---|---|",
  ]
  lines += [f"| {name} | {each / 60:.1f} |" for name, each in times.items()]
  lines.append(f"| **total** | **{sum(times.values()) / 60:.0f}** |")
  return "\n".join(lines) + "\n"


FLAGS = flags.FLAGS


def main() -> None:
  cli.require_flags(FLAGS, root="DIR", weights="DIR")
  weights = pathlib.Path(FLAGS.weights)
  try:
    card = text(pathlib.Path(FLAGS.root), weights, FLAGS.seed)
  except KeyError as error:
    raise ValueError(f"{FLAGS.root}: a file lacks the field {error}") from error
  with files.atomic_path(weights / CARD) as temporary:
    temporary.write_text(card, "utf-8")
  print(f"wrote {weights / CARD}")


if __name__ == "__main__":
  flags.DEFINE_string("root", "", "Directory of the recipe.")
  flags.DEFINE_string("weights", "", "Directory of the weights.")
  flags.DEFINE_integer("seed", 0, "Seed of the recipe.")
  cli.run(main)
