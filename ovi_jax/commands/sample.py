"""Make videos with sound from prompts, and from first frames.

  ovi-sample --prompt="A red ball bounces. Audio: dull wooden knocks."
  ovi-sample --weights=DIR --prompts=FILE.csv --config.solver=euler
--config.FIELD=VALUE sets a field of configs/sample.py.
"""

import pathlib
import sys

from absl import flags

from ovi_jax import cli
from ovi_jax import config_files
from ovi_jax import synthetic
from ovi_jax.aot import sample_step
from ovi_jax.sampling import generate
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests

FLAGS = flags.FLAGS


def define_flags() -> None:
  config_files.define(default="sample")
  flags.DEFINE_string("prompt", "", "What to see, say and hear.")
  flags.DEFINE_string("prompts", "", "CSV or TSV: text_prompt[, image_path].")
  flags.DEFINE_string("image", "", "Picture of the first frame, with --prompt.")
  flags.DEFINE_string(
    "weights", str(synthetic.WEIGHTS), "Directory of weights."
  )
  flags.DEFINE_string("out", "samples", "Directory for the results.")
  flags.DEFINE_string("noise", "", "Start from this .npz instead of the seed.")
  flags.DEFINE_bool("save_latents", False, "Keep the final latents as .npz.")
  flags.DEFINE_bool("attention_maps", False, "Draw what the sound looks at.")
  flags.DEFINE_string("aot", "", "Only compile, for a topology of TPUs.")
  flags.DEFINE_bool("overwrite", False, "Make clips again that are there.")


def main(argv: list[str]) -> None:
  cli.setup(argv)
  weights, out = pathlib.Path(FLAGS.weights), pathlib.Path(FLAGS.out)
  try:
    if FLAGS.aot:
      sys.exit(not sample_step.run(FLAGS.aot, FLAGS.config, weights, out))
    asked = FLAGS.prompt, FLAGS.prompts, FLAGS.image, FLAGS.config.mode
    generate.run(
      settings=planning.resolve_settings(FLAGS.config, weights),
      requests=requests.from_flags(*asked),
      weights=weights,
      out=out,
      noise=FLAGS.noise,
      save_latents=FLAGS.save_latents,
      maps=FLAGS.attention_maps,
      overwrite=FLAGS.overwrite,
    )
  except (OSError, ValueError) as error:
    cli.exit_with_error(error)


def start() -> None:
  """Run the command."""
  cli.run(define_flags, main, __doc__ or "")
