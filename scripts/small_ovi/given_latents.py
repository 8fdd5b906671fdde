"""A further stage of the small Ovi: given latents and reference voices.

  python -m scripts.small_ovi.given_latents --root=DIR [--seed=10]
  [--until=NAME] [--dry_run]

Renders and encodes clips with the codecs of the package, trains the weights of
the package on with all conditions of sampling, exports them, samples and scores
them. Interrupted, the same command resumes. `DIR/scores_*.md` are the scores;
the scores of clips from prompts alone are those of the model card, and tell
whether something was lost.

Learning rate: the stage that trained the weights ended at a tenth of 1e-2, and
100 steps at 1e-4 do not learn a new word (docs/lab_notebook.md); 3e-3 lies
between. About 2 of 5 examples are given nothing, so that clips from prompts
stay what they are. References are of 1 to 2 s: 62 audio latents more than 157.
The last stage took 2.3 s a step; with these 3 s are expected, 75 minutes.
"""

import json
import pathlib
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from ovi_jax import synthetic
from scripts.small_ovi import recipe
from scripts.small_ovi import runner

WORLDS: Mapping[str, Mapping[str, Any]] = {
  "clips": {"what": "clips", "train": 2000, "test": 64},
  "two_balls": {"what": "two_balls", "train": 600, "test": 32},
  "voices": {"what": "voices", "train": 1400, "test": 64},
}
STAGE = "given_latents"
TRAINING: Mapping[str, Any] = {
  "num_train_steps": 1500,
  "batch_size": 16,
  "optimizer.learning_rate": 3e-3,
  "optimizer.warmup_steps": 100,
  "optimizer.ema_decay": 0.998,
  "data.mixture_weights": (0.45, 0.15, 0.4),
  "objective.conditions.video.first_frame_prob": 0.2,
  "objective.conditions.video.last_frame_prob": 0.1,
  "objective.conditions.video.prefix_prob": 0.15,
  "objective.conditions.video.whole_prob": 0.15,
  "objective.conditions.video.span_prob": 0.05,
  "objective.conditions.audio.prefix_prob": 0.15,
  "objective.conditions.audio.whole_prob": 0.15,
  "objective.conditions.audio.span_prob": 0.05,
  "objective.conditions.audio.reference_prob": 0.4,
  "objective.conditions.reference_seconds": (1.0, 2.0),
}
SAMPLING: Mapping[str, Any] = {
  **recipe.SAMPLING,
  "conditioning": "clean",
  "voice_guidance_scale": 2.0,
}
COUNT = 64  # of clips of each score
TABLES = ("v2a", "a2v", "ends", "long")  # of `given_scores`
VOICES = ("own", "shuffled")


def steps(
  root: pathlib.Path, seed: int, out: pathlib.Path
) -> Iterator[runner.Step]:
  """All commands, in order; arguments as of `recipe.steps`."""
  yield from recipe.latents(root, seed, synthetic.WEIGHTS, WORLDS)
  fields = {
    **TRAINING,
    "seed": seed,
    "data.sources": tuple(str(root / name) for name in WORLDS),
  }
  words = ["train.py", "--config=configs/conditions/all.py:small"]
  words.append(f"--workdir={root / STAGE}")
  words += [f"--config.{field}={value}" for field, value in fields.items()]
  yield runner.Step(name=STAGE, words=tuple(words))
  words = ("-m", "ovi_jax.training.export", f"--workdir={root / STAGE}")
  words += (f"--pretrained={synthetic.WEIGHTS}", f"--out={out}")
  words += ("--dtype=bfloat16", f"--sampling={json.dumps(SAMPLING)}")
  yield runner.Step(name="export", words=words, output=out)
  yield from _scores(root, seed, out)


def _scores(
  root: pathlib.Path, seed: int, out: pathlib.Path
) -> Iterator[runner.Step]:
  """Prompts, given files, samples and scores."""
  evaluation = ("-m", "ovi_jax.synthetic.evaluation")
  given, voices = root / "given", root / "voices_given"
  first = f"--seed={seed + 2000}"
  made = ("-m", "scripts.small_ovi.given_scores", "draw", f"--out={given}")
  made += (f"--count={COUNT}", first)
  yield runner.Step(name="given", words=made, output=given / "long.csv")
  made = (*evaluation, "voices", f"--out={voices}", f"--count={COUNT}", first)
  yield runner.Step(name="voices", words=made, output=voices / "shuffled.csv")
  prompts = root / "prompts.csv"
  made = (*evaluation, "prompts", f"--out={prompts}", "--count=96")
  made += (f"--seed={seed + 1000}", recipe.trained_flag(WORLDS, seed))
  yield runner.Step(name="prompts", words=made, output=prompts)
  tables = {name: given / f"{name}.csv" for name in TABLES}
  tables |= {name: voices / f"{name}.csv" for name in VOICES}
  for name, table in {"prompts": prompts, **tables}.items():
    clips, scores = root / f"samples_{name}", root / f"scores_{name}.json"
    words = ("sample.py", f"--weights={out}", f"--prompts={table}")
    words += (f"--out={clips}",)
    yield runner.Step(name=f"samples_{name}", words=words, output=scores)
    command = evaluation
    if name in VOICES:
      command = (*evaluation, "voices")
    elif name in ("ends", "long"):
      command = ("-m", "scripts.small_ovi.given_scores", name)
    words = (*command, f"--clips={clips}", f"--out={scores}")
    words += (f"--markdown={root / f'scores_{name}.md'}",)
    yield runner.Step(name=f"scores_{name}", words=words, output=scores)


if __name__ == "__main__":
  runner.start(steps, default_seed=10)
