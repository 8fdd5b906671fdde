"""Converts SyncNet weights between torch and safetensors.

  python -m ovi_jax.curation.sync.convert --weights=syncnet_v2.model
    --out=syncnet.safetensors

The suffix of --out selects the format: `.safetensors`, or a torch file
otherwise. PyTorch is not needed, and pickled code is not executed.
"""

import pathlib

from absl import flags

from ovi_jax import cli
from ovi_jax.curation.models import syncnet_weights

FLAGS = flags.FLAGS


def main() -> None:
  cli.require_flags(FLAGS, weights="FILE", out="FILE")
  config, variables = syncnet_weights.load(FLAGS.weights)
  if pathlib.Path(FLAGS.out).suffix == ".safetensors":
    syncnet_weights.save(FLAGS.out, config, variables)
  else:
    syncnet_weights.export(FLAGS.out, variables)
  print(f"{FLAGS.weights} -> {FLAGS.out}: {config}")


if __name__ == "__main__":
  flags.DEFINE_string("weights", "", "Weights to read, in either format.")
  flags.DEFINE_string("out", "", "File to write.")
  cli.run(main)
