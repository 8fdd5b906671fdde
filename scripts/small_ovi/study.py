"""A rehearsal of a preference study: the small Ovi, judged by its exact scores.

  python -m scripts.small_ovi.study --clips=now=DIR,before=DIR --out=DIR

Each folder has clips that `sample.py` made from the same prompts of the
synthetic world. Clips that the world itself renders for these prompts are the
system "true". The study is built, judged by simulated raters and reported by
the code that a study with people uses. A simulated rater prefers the clip with
the better scores of the evaluation: of the picture (kind, colour), of the sound
(how many, which), or the sync F1, with noise, ties and effects of prompts.
"""

import collections
import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import flags

from ovi_jax import cli
from ovi_jax import files
from ovi_jax.media import mp4
from ovi_jax.study import build
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study import report
from ovi_jax.study import settings as settings_lib
from ovi_jax.study import simulated
from ovi_jax.synthetic.evaluation import report as scores
from ovi_jax.synthetic.world import world as worlds

FLAGS = flags.FLAGS
TRUE = "true"
QUESTIONS = {
  "video": ("kind", "colour", "number of events seen", "vowels seen"),
  "audio": (
    *("number of sounds heard", "material", "pitch", "voice"),
    "vowels heard",
  ),
  "sync": ("sync F1",),
}
# Log odds between clips of which one has all of a score and the other nothing.
SCALE = 3.0
PROMPT_SD = 0.5  # of the effect of a clip that no score measures
_CLIPS = 100_000  # of the world that are looked through


def write_true(clips: pathlib.Path, out: pathlib.Path, seed: int) -> None:
  """Render the world's own clips of the prompts of other clips.

  Args:
    clips: folder of clips with their JSON.
    out: folder to write; clips get the same names.
    seed: of the world that the prompts are from.

  Raises:
    ValueError: a prompt is not of this world.
  """
  wanted = collections.defaultdict(list)
  for path in sorted(clips.glob("*.json")):
    wanted[json.loads(path.read_text("utf-8"))["prompt"]].append(path.stem)
  world = worlds.World(seed=seed, complete=True)
  for index in range(_CLIPS):
    if not wanted:
      return
    captions = world.clip(index, slice(1), sound=False).captions
    found = set(captions) & wanted.keys()
    if not found:
      continue
    clip = world.clip(index)
    assert clip.frames_THWC is not None
    for prompt in found:
      for stem in wanted.pop(prompt):
        mp4.write(out / f"{stem}.mp4", [clip.frames_THWC], clip.wave_A)
        text = json.dumps({"prompt": prompt})
        (out / f"{stem}.json").write_text(text, "utf-8")
  raise ValueError(
    f"{next(iter(wanted))!r} is no prompt of world {seed}; give its --seed"
  )


def strengths(
  study: manifest.Study, folders: Mapping[str, pathlib.Path], seed: int
) -> dict[tuple[str, str, int], float]:
  """Log strength of each clip by question, system and prompt."""
  random = np.random.default_rng(seed)
  numbers = {prompt.name: i for i, prompt in enumerate(study.prompts)}
  found = {}
  for system, folder in folders.items():
    for clip in scores.read(folder):
      parts = scores.parts(clip)
      for question, names in QUESTIONS.items():
        has = [parts[name] for name in names if name in parts]
        right = [part.right / part.of for part in has]
        score = float(np.mean(right)) if right else 0.5
        effect = random.normal(0, PROMPT_SD / math.sqrt(2))
        key = question, system, numbers[clip.name]
        found[key] = SCALE * score + effect
  return found


def run() -> None:
  cli.require_flags(FLAGS, clips="NAME=DIR,NAME=DIR", out="DIR")
  out = pathlib.Path(FLAGS.out)
  pairs = [text.partition("=") for text in FLAGS.clips]
  folders = {name: pathlib.Path(folder).resolve() for name, _, folder in pairs}
  if TRUE in folders or "" in folders:
    raise ValueError(
      f"--clips: expected NAME=DIR with names other than {TRUE!r}"
    )
  folders[TRUE] = (out / TRUE).resolve()
  folders[TRUE].mkdir(parents=True, exist_ok=True)
  write_true(next(iter(folders.values())), folders[TRUE], FLAGS.seed)
  values = {
    "systems": {name: str(folder) for name, folder in folders.items()},
    "title": "Clips of the synthetic world, simulated raters",
    "raters_per_item": FLAGS.raters_per_item,
  }
  path = out / "study.json"
  with files.atomic_path(path) as temporary:
    temporary.write_text(json.dumps(values, indent=1), "utf-8")
  study = build.build(settings_lib.read(path), out / "study")
  store = database.Database(out / "study" / manifest.VOTES, study)
  if store.count():
    raise ValueError(f"{out} has votes; choose another --out")
  rater = simulated.Rater(
    study=study, strength=strengths(study, folders, FLAGS.seed)
  )
  random = np.random.default_rng(FLAGS.seed)
  # One careless rater, for the rule of exclusion.
  simulated.judge(store, study, lambda *_: database.LEFT, random)
  wanted = len(study.items) * FLAGS.raters_per_item
  while True:
    simulated.judge(store, study, rater, random)
    real = [v for v in store.votes() if v["kind"] == "real"]
    if len(real) >= wanted * len(study.settings.questions):
      break
  report.write(out / "study", out / "report", seed=FLAGS.seed)
  print((out / "report" / "report.md").read_text("utf-8"), end="")


if __name__ == "__main__":
  flags.DEFINE_list("clips", [], "NAME=DIR of each system.")
  flags.DEFINE_string("out", "", "Folder to write.")
  flags.DEFINE_integer("seed", 1000, "Seed of the world and of the raters.")
  flags.DEFINE_integer("raters_per_item", 3, "Raters of each pair.")
  cli.run(run)
