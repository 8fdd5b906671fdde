"""Convert Ovi's released PyTorch weights to ovi_jax, or back.

  ovi-convert --release=DIR --variant=960x960_10s --out=DIR
  ovi-convert --release=DIR --arch=sizes.json --out=DIR
  ovi-convert --fusion=FILE --variant=NAME --out=DIR
  ovi-convert --export --weights=DIR --out=DIR
  ovi-convert --download=960x960_10s --out=DIR

No PyTorch is needed, and no code inside a checkpoint is run.
"""

from absl import flags

from ovi_jax import cli
from ovi_jax.convert import command
from ovi_jax.models import architecture

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("release", "", "Release directory to read.")
  flags.DEFINE_string("variant", "", "Released variant: " + command.VARIANTS)
  flags.DEFINE_string("arch", "", "JSON of the sizes of another release.")
  flags.DEFINE_string("out", "", "Directory to write.")
  flags.DEFINE_list("components", [], "Only these (default: all there are).")
  flags.DEFINE_bool("export", False, "Write a release from converted weights.")
  flags.DEFINE_string("weights", "", "Converted weights to export.")
  flags.DEFINE_string(
    "download", "", "Fetch this variant's release into --out."
  )
  for name in architecture.COMPONENTS:
    flags.DEFINE_string(
      name,
      "",
      f"File of {name}, whatever its name and format, in place of the"
      " release's; shards or towers with commas between, FILE::KEY for a part"
      " of a file.",
    )
  flags.DEFINE_string("tokenizer", "", "The text encoder's tokenizer.json.")


def main(argv: list[str]) -> None:
  cli.setup(argv)
  try:
    command.run(
      release=FLAGS.release,
      variant=FLAGS.variant,
      arch=FLAGS.arch,
      out=FLAGS.out,
      components=FLAGS.components,
      export=FLAGS.export,
      weights=FLAGS.weights,
      download=FLAGS.download,
      files={name: FLAGS[name].value or "" for name in architecture.COMPONENTS},
      tokenizer=FLAGS.tokenizer,
    )
  except (OSError, ValueError) as error:
    cli.exit_with_error(error)


def start() -> None:
  """Run the command."""
  cli.run(define_flags, main, __doc__ or "")
