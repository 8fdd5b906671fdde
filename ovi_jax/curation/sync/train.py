"""Train SyncNet on the demo world's faces, and see what it finds.

  python -m ovi_jax.curation.sync.train --out=syncnet.safetensors
    [--divisor=8 --steps=300 --seed=0]
  python -m ovi_jax.curation.sync.train --evaluate=syncnet.safetensors
    [--clips=20 --seed=0]

For cartoon faces only: for people, bring the public weights. With --divisor=1
it is SyncNet as published; 8 has an eighth of its channels and is enough for
these faces.
"""

import math
import sys
import time

import jax
import numpy as np
from absl import app
from absl import flags

from ovi_jax import console
from ovi_jax import runtime
from ovi_jax.curation.models import syncnet_weights
from ovi_jax.curation.sync import training

FLAGS = flags.FLAGS
_LOG_EVERY = 10  # steps of which the mean loss is shown
_CHECKPOINT_EVERY = (
  50  # steps after which weights are written, for those who stop early
)


def train(settings: training.Settings, out: str) -> None:
  """Train, and save the weights."""
  state = training.init_state(settings)
  step = training.make_train_step(settings)
  losses: list[jax.Array] = []
  with console.progress(range(settings.num_train_steps), desc="syncnet") as bar:
    for _, batch in zip(bar, training.batches(settings)):
      state, value = step(state, *batch)
      # Read late: the next batch is made while this one computes.
      losses.append(value)
      if len(losses) % _LOG_EVERY == 0:
        last = _mean(losses)
        bar.set_postfix(loss=f"{last:.3f}")
        if not math.isfinite(last):
          raise ValueError(f"the loss is {last}; try a smaller --rate")
      if len(losses) % _CHECKPOINT_EVERY == 0:
        syncnet_weights.save(out, settings.config, state.variables)
  syncnet_weights.save(out, settings.config, state.variables)
  last = _mean(losses)
  print(
    f"{out}: {settings.num_train_steps} steps, loss {losses[0]:.3f} -> {last:.3f}"
  )


def _mean(losses: list[jax.Array]) -> float:
  """Of the last steps."""
  return float(np.mean(jax.device_get(losses[-_LOG_EVERY:])))


def evaluate(path: str, seed: int, clips: int) -> None:
  """Print how often the shift of held-out clips is found."""
  config, variables = syncnet_weights.load(path)
  began = time.monotonic()
  found = list(training.evaluate(config, variables, seed=seed, count=clips))
  errors = np.array([f.error for f in found])
  sure = np.array([f.score.confidence for f in found])
  print(
    f"{clips} clips x {len(training.SHIFTS)} shifts:"
    f" within 1 frame {(errors <= 1).mean():.1%}, exact"
    f" {(errors == 0).mean():.1%}, largest error {errors.max()} frames;"
    f" confidence {np.median(sure):.2f} (least {sure.min():.2f});"
    f" {time.monotonic() - began:.0f} s"
  )


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  runtime.start()
  try:
    if FLAGS.evaluate:
      evaluate(FLAGS.evaluate, FLAGS.seed, FLAGS.clips)
      return
    runtime.need(FLAGS, out="FILE")
    settings = training.Settings(
      width_divisor=FLAGS.divisor,
      num_train_steps=FLAGS.steps,
      clips_per_batch=FLAGS.batch,
      learning_rate=FLAGS.rate,
      seed=FLAGS.seed,
    )
    train(settings, FLAGS.out)
  except (OSError, ValueError) as error:
    sys.exit(f"sync.train: {error}")


if __name__ == "__main__":
  defaults = training.Settings()
  flags.DEFINE_string("out", "", "File of weights to write.")
  flags.DEFINE_string("evaluate", "", "File of weights to try instead.")
  flags.DEFINE_integer(
    "divisor", defaults.width_divisor, "Of SyncNet's channels."
  )
  flags.DEFINE_integer("steps", defaults.num_train_steps, "Of training.")
  flags.DEFINE_integer("batch", defaults.clips_per_batch, "Clips of a step.")
  flags.DEFINE_float(
    "rate", defaults.learning_rate, "The highest learning rate."
  )
  flags.DEFINE_integer("seed", defaults.seed, "Of weights and faces.")
  flags.DEFINE_integer("clips", 20, "Held-out clips to evaluate with.")
  app.run(main, flags_parser=runtime.parse_flags)
