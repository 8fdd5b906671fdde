"""Trains and evaluates SyncNet on synthetic faces.

  python -m ovi_jax.curation.sync.train --out=syncnet.safetensors
    [--width_divisor=8 --num_train_steps=300 --seed=0]
  python -m ovi_jax.curation.sync.train --evaluate=syncnet.safetensors
    [--num_eval_clips=20 --seed=0]

The result works on synthetic faces only; for people use the public weights.
--width_divisor=1 is the published size; 8 divides its channels by 8 and is
sufficient for these faces.
"""

import math
import time

import jax
import numpy as np
from absl import flags

from ovi_jax import cli
from ovi_jax import console
from ovi_jax.curation.models import syncnet_weights
from ovi_jax.curation.sync import training

FLAGS = flags.FLAGS
_LOG_EVERY = 10  # steps; the logged loss is their mean
_CHECKPOINT_EVERY = 50  # steps


def train(settings: training.Settings, out: str) -> None:
  """Train, and save the weights."""
  state = training.init_state(settings)
  step = training.make_train_step(settings)
  losses: list[jax.Array] = []
  with console.progress(range(settings.num_train_steps), desc="syncnet") as bar:
    for _, batch in zip(bar, training.batches(settings)):
      state, value = step(state, *batch)
      # Fetched late, so that batch creation overlaps with computation.
      losses.append(value)
      if len(losses) % _LOG_EVERY == 0:
        last = _mean(losses)
        bar.set_postfix(loss=f"{last:.3f}")
        if not math.isfinite(last):
          raise ValueError(f"the loss is {last}; try a smaller --learning_rate")
      if len(losses) % _CHECKPOINT_EVERY == 0:
        syncnet_weights.save(out, settings.config, state.variables)
  syncnet_weights.save(out, settings.config, state.variables)
  last = _mean(losses)
  print(
    f"{out}: {settings.num_train_steps} steps, loss {losses[0]:.3f} ->"
    f" {last:.3f}"
  )


def _mean(losses: list[jax.Array]) -> float:
  """Mean loss of the last steps."""
  return float(np.mean(jax.device_get(losses[-_LOG_EVERY:])))


def evaluate(path: str, seed: int, clips: int) -> None:
  """Print the accuracy of estimated shifts of held-out clips."""
  config, variables = syncnet_weights.load(path)
  start = time.monotonic()
  estimates = list(training.evaluate(config, variables, seed=seed, count=clips))
  errors = np.array([f.error for f in estimates])
  confidence = np.array([f.score.confidence for f in estimates])
  print(
    f"{clips} clips x {len(training.SHIFTS)} shifts:"
    f" within 1 frame {(errors <= 1).mean():.1%}, exact"
    f" {(errors == 0).mean():.1%}, largest error {errors.max()} frames;"
    f" confidence {np.median(confidence):.2f} (minimum {confidence.min():.2f});"
    f" {time.monotonic() - start:.0f} s"
  )


def main() -> None:
  if FLAGS.evaluate:
    evaluate(FLAGS.evaluate, FLAGS.seed, FLAGS.num_eval_clips)
    return
  cli.require_flags(FLAGS, out="FILE")
  settings = training.Settings(
    width_divisor=FLAGS.width_divisor,
    num_train_steps=FLAGS.num_train_steps,
    clips_per_batch=FLAGS.batch_size,
    learning_rate=FLAGS.learning_rate,
    seed=FLAGS.seed,
  )
  train(settings, FLAGS.out)


if __name__ == "__main__":
  defaults = training.Settings()
  flags.DEFINE_string("out", "", "Weights file to write.")
  flags.DEFINE_string("evaluate", "", "Weights file to evaluate instead.")
  flags.DEFINE_integer(
    "width_divisor", defaults.width_divisor, "Divides the number of channels."
  )
  flags.DEFINE_integer(
    "num_train_steps", defaults.num_train_steps, "Training steps."
  )
  flags.DEFINE_integer(
    "batch_size", defaults.clips_per_batch, "Clips per step."
  )
  flags.DEFINE_float(
    "learning_rate", defaults.learning_rate, "Peak learning rate."
  )
  flags.DEFINE_integer("seed", defaults.seed, "Seed of weights and faces.")
  flags.DEFINE_integer("num_eval_clips", 20, "Held-out clips for evaluation.")
  cli.run(main)
