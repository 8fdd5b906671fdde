"""The model card of the small Ovi: data, recipe, scores and limits, in numbers.

  python -m scripts.small_ovi.card --root=DIR --weights=DIR [--seed=0]

Reads what the recipe left in its directory: the seconds of its steps and the
scores; writes `MODEL_CARD.md` beside the weights.

Goals that are not reached are named, and where pairs that were never trained
on are further behind than `FURTHEST`.
"""

import json
import pathlib
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import app
from absl import flags

from ovi_jax import cli
from ovi_jax import files
from ovi_jax.synthetic.evaluation import codecs
from ovi_jax.synthetic.evaluation import weights as evaluated

CARD = "MODEL_CARD.md"
CODECS = "codecs.json"
PSNR_GOAL = 30.0  # dB
FURTHEST = 10.0  # points
# Scores of the card -> what was wished for, in per cent; an upper limit is
# negative.
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

A model of Ovi's kind, small enough to ship with the code and to run on a
laptop: text, or a first frame, to 5.04 s of video (121 frames at 24 fps,
{size}) with sound (16 kHz). It shows what the system does, and is its
laboratory. It knows one drawn world and nothing else.

- **Data**: `ovi_jax.synthetic.world`, drawn and synthesized from a seed: balls
  that bounce and knock (six colours; wood, metal, rubber), lamps that flash and
  beep (low, middle, high), faces that speak vowels (low or high voice), still
  and silent scenes, sound without picture. No recording, no person's voice or
  likeness is in it. Some pairs of a colour and a sound are left out of
  training.
- **Parts**: {parts}; {megabytes:.1f} MB in bfloat16.
- **Recipe**: tokenizer, text encoder and codecs, then audio pretraining on long
  sounds, audio fine-tuning, video pretraining, fusion with frozen
  feed-forwards, and a last fusion of all parameters, by `make demo-weights`
  (`scripts/small_ovi/recipe.py`), seed {seed}. (Of the weights that come with
  the package, the last fusion and the decoder were trained after the rest was
  in bfloat16; see docs/lab_notebook.md.)
- **Identity**: towers of digest `{digest}`.
- **Licence**: that of the code, Apache-2.0.
"""
_LIMITS = """\
## Limits

- Words that the world's captions do not have are left out of a prompt;
  `sample.py` names them. There are no other colours, sounds and things.
- It counts to five at best, and sometimes one too many or too few.
- A ball may shrink, or fade for some frames while its knocks go on; an orange
  one may be yellow for a part of the clip, and the first frame is grainier than
  the rest.
- Of two balls one may be missing, above all in pairs never trained on, where
  picture and sound of two meet less often than of one (docs/lab_notebook.md).
- One shape, 64 by 64 pixels for 5.04 s, is what it was trained on.
- What it makes says nothing of the quality of the released Ovi weights.
"""


_TRIED = "What was tried is in docs/lab_notebook.md.\n"


def text(root: pathlib.Path, weights: pathlib.Path, seed: int) -> str:
  """The card.

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
      "Codecs alone, on true clips (`python -m ovi_jax.synthetic.evaluation"
      " codecs`):\n",
      evaluated.markdown(losses),
      _behind(tables, losses[evaluated.VIDEO].mean),
      _recipe(times["seconds"], times["machines"]),
      _LIMITS,
    ]
  )


SETS = {"seen": "new prompts", "held_out": "pairs never trained on"}


Tables = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _scores(tables: Tables) -> str:
  """Scores down, sets of prompts to the right."""
  lines = [
    "## Scores\n",
    "Of clips from prompts that are no caption of what the towers were trained"
    " on, each from a seed of its own, from the mp4 alone, with 95 % intervals"
    " (docs/how_to/evaluate.md).\n",
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
  """Goals that are not reached, and what pairs not trained on lose."""
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
      f"Pairs never trained on are at most {FURTHEST:g} points behind them in"
      " each score with a goal.\n"
    )
  else:
    lines.append(
      f"Pairs never trained on are more than {FURTHEST:g} points behind new"
      f" prompts in {', '.join(lost)}; of the other goals they are not.\n"
    )
  return "\n".join([*lines, _TRIED])


def _cell(score: Mapping[str, Any]) -> str:
  """A score with its interval, or nothing of nothing."""
  if not score["clips"]:
    return ""
  value, low, high = (100 * score[key] for key in ("value", "low", "high"))
  return f"{value:.1f} % ({low:.0f} to {high:.0f})"


def _recipe(times: Mapping[str, float], machines: Sequence[str]) -> str:
  """The steps and how long they took."""
  lines = [
    "## Recipe\n",
    f"Minutes by the clock on {' and '.join(machines)}; stops, repeated steps"
    " and other programs on the machine are in them:\n",
    "| step | minutes |",
    "|---|---|",
  ]
  lines += [f"| {name} | {each / 60:.1f} |" for name, each in times.items()]
  lines.append(f"| **all** | **{sum(times.values()) / 60:.0f}** |")
  return "\n".join(lines) + "\n"


FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  try:
    cli.require_flags(FLAGS, root="DIR", weights="DIR")
    weights = pathlib.Path(FLAGS.weights)
    card = text(pathlib.Path(FLAGS.root), weights, FLAGS.seed)
    with files.atomic_path(weights / CARD) as temporary:
      temporary.write_text(card, "utf-8")
    print(f"wrote {weights / CARD}")
  except (OSError, ValueError, KeyError) as error:
    sys.exit(f"card: {error}")


if __name__ == "__main__":
  flags.DEFINE_string("root", "", "Directory of the recipe.")
  flags.DEFINE_string("weights", "", "Directory of the weights.")
  flags.DEFINE_integer("seed", 0, "That the recipe was given.")
  app.run(main, flags_parser=cli.parse_flags)
