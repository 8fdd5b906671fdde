"""Convert Ovi's released PyTorch weights to ovi_jax, or back.

  ovi-convert --download=960x960_10s --out=RELEASE
  ovi-convert --release=RELEASE --variant=960x960_10s --out=DIR
  ovi-convert --release=RELEASE --arch=FILE.json --out=DIR
  ovi-convert --fusion=FILE --variant=960x960_10s --out=DIR
  ovi-convert --export --weights=DIR --out=EXPORTED

PyTorch is not needed, and code inside a checkpoint is not executed. See
docs/how_to/convert.md.
"""

from typing import Any

from absl import flags

from ovi_jax import cli
from ovi_jax.convert import command
from ovi_jax.models import architecture
from ovi_jax.models import quantized

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("release", "", "Release directory to read.")
  flags.DEFINE_string("variant", "", "Released variant: " + command.VARIANTS)
  flags.DEFINE_string(
    "arch", "", "JSON file with the sizes of another release."
  )
  flags.DEFINE_string("out", "", "Output directory.")
  flags.DEFINE_list(
    "components",
    [],
    "Convert or export only these, separated by commas: "
    f"{', '.join(architecture.COMPONENTS)}. Default: all that are present.",
  )
  flags.DEFINE_bool(
    "export",
    False,
    "Convert --weights back to the original's PyTorch files.",
  )
  flags.DEFINE_string("weights", "", "Converted weights to export.")
  flags.DEFINE_string(
    "download", "", "Download the release of this variant to --out."
  )
  for name in architecture.COMPONENTS:
    flags.DEFINE_string(
      name,
      "",
      f"File of the component {name}, instead of the release's; any name and"
      " accepted format. Separate shards or towers by commas; FILE::KEY selects"
      " a part of a file.",
    )
  flags.DEFINE_enum(
    "quantize",
    "",
    ("", *quantized.DTYPES),
    "Store the weights of the DiT and the text encoder in 8 bits: half the"
    " memory.",
  )
  flags.DEFINE_string("tokenizer", "", "tokenizer.json of the text encoder.")


def main() -> None:
  own = FLAGS.flags_by_module_dict()[main.__module__]
  values: dict[str, Any] = {flag.name: flag.value for flag in own}
  command.run(**values)


def start() -> None:
  """Run the command."""
  cli.run_script(define_flags, main, __doc__ or "")
