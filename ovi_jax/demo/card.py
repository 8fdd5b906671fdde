"""The model card of the small Ovi: data, recipe, scores and limits, in numbers.

  python -m ovi_jax.demo.card --root=DIR --weights=DIR

Reads what the recipe left in its directory: the seconds of its steps and the
scores; writes `MODEL_CARD.md` beside the weights.
"""

import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import app
from absl import flags

from ovi_jax import files
from ovi_jax import runtime

CARD = "MODEL_CARD.md"
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

- **Data**: `ovi_jax.data.world`, drawn and synthesized from a seed: balls that
  bounce and knock (six colours; wood, metal, rubber), lamps that flash and beep
  (low, middle, high), faces that speak vowels (low or high voice), still and
  silent scenes, sound without picture. No recording, no person's voice or
  likeness is in it. Some pairs of a colour and a sound are left out of
  training.
- **Parts**: {parts}; {megabytes:.1f} MB in bfloat16.
- **Recipe**: tokenizer, text encoder and codecs, then audio pretraining on long
  sounds, audio fine-tuning, video pretraining, and fusion with frozen
  feed-forwards, by `make demo-weights` (`ovi_jax.demo.recipe`) from one seed.
- **Licence**: that of the code, Apache-2.0.
"""
_LIMITS = """\
## Limits

- Prompts in other words than the world's 93 are read as unknown; so are other
  colours, sounds and things.
- One shape, 64 by 64 pixels for 5.04 s, is what it was trained on.
- What it makes says nothing of the quality of the released Ovi weights.
"""


def text(root: pathlib.Path, weights: pathlib.Path) -> str:
  """The card.

  Args:
    root: of the recipe: `times.json`, `scores_*.json` and `codecs.md`.
    weights: directory of the weights.

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
  )
  times = json.loads((root / "times.json").read_text("utf-8"))
  scores = {
    title: json.loads((root / f"scores_{name}.json").read_text("utf-8"))
    for name, title in SETS.items()
  }
  codecs = (root / "codecs.md").read_text("utf-8")
  return "\n".join(
    [
      introduction,
      _scores({title: found["scores"] for title, found in scores.items()}),
      "Codecs alone, on true clips (`python -m ovi_jax.evaluation codecs`):\n",
      codecs,
      _recipe(times),
      _LIMITS,
    ]
  )


SETS = {"seen": "new prompts", "held_out": "pairs never trained on"}


def _scores(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Scores down, sets of prompts to the right."""
  lines = [
    "## Scores\n",
    "Of clips from prompts and seeds that training did not see, from the mp4"
    " alone, with 95 % intervals (docs/evaluation.md).\n",
    "| score | goal | " + " | ".join(tables) + " |",
    "|---" * (len(tables) + 2) + "|",
  ]
  found = {
    title: {each["name"]: each for each in table}
    for title, table in tables.items()
  }
  for name, goal in GOALS.items():
    cells = [
      _cell(each[name]) if name in each else "" for each in found.values()
    ]
    wished = ""
    if goal is not None:
      wished = f"{'≤' if goal < 0 else '≥'} {abs(goal)}"
    lines.append(f"| {name} | {wished} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def _cell(score: Mapping[str, Any]) -> str:
  """A score with its interval, or nothing of nothing."""
  if not score["clips"]:
    return ""
  value, low, high = (100 * score[key] for key in ("value", "low", "high"))
  return f"{value:.1f} % ({low:.0f} to {high:.0f})"


def _recipe(times: Mapping[str, float]) -> str:
  """The steps and how long they took."""
  lines = [
    "## Recipe\n",
    f"Minutes by the clock on {os.cpu_count()} cores ({_processor()}), stops,"
    " repeated steps and other programs on the machine included:\n",
    "| step | minutes |",
    "|---|---|",
  ]
  lines += [f"| {name} | {each / 60:.1f} |" for name, each in times.items()]
  lines.append(f"| **all** | **{sum(times.values()) / 60:.0f}** |")
  return "\n".join(lines) + "\n"


def _processor() -> str:
  """The processor's name."""
  info = pathlib.Path("/proc/cpuinfo")
  if info.is_file():
    for line in info.read_text("utf-8").splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  try:
    runtime.need(FLAGS, root="DIR", weights="DIR")
    weights = pathlib.Path(FLAGS.weights)
    card = text(pathlib.Path(FLAGS.root), weights)
    with files.replacing(weights / CARD) as temporary:
      temporary.write_text(card, "utf-8")
    print(f"wrote {weights / CARD}")
  except (OSError, ValueError, KeyError) as error:
    sys.exit(f"card: {error}")


if __name__ == "__main__":
  flags.DEFINE_string("root", "", "Directory of the recipe.")
  flags.DEFINE_string("weights", "", "Directory of the weights.")
  app.run(main, flags_parser=runtime.parse_flags)
