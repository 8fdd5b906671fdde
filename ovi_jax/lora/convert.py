"""Convert a LoRA file to another format.

  python -m ovi_jax.lora.convert --lora=FILE --weights=DIR --out=FILE
    --format=diffusers --wan

`--weights` names the model that the LoRA is for; only its sizes are read.
`--wan` keeps the video tower's layers that Wan2.2-TI2V-5B has, under its names.
"""

import os
from typing import Any

import jax.numpy as jnp
from absl import flags

from ovi_jax import cli
from ovi_jax.lora import files
from ovi_jax.lora import names
from ovi_jax.pretrained import weights_dir


def convert(
  lora: str | os.PathLike[str],
  directory: str | os.PathLike[str],
  out: str | os.PathLike[str],
  style: str = names.COMFYUI,
  wan: bool = False,
  dtype: Any = None,
) -> None:
  """Read a LoRA file and write it in another format.

  Args:
    lora: the file.
    directory: of the weights that it is for.
    out: the file to write.
    style: one of `names.FORMATS`.
    wan: whether to write only what Wan2.2-TI2V-5B has.
    dtype: of the result; `None` for that of the file.

  Raises:
    ValueError: the file does not fit the weights, or the format the layers.
    OSError: the file cannot be written.
  """
  config = weights_dir.manifest_of(directory).architecture.fusion
  found = files.read(lora, config)
  if wan:
    found = found.only(files.is_wan)
    if not found.pairs and not found.deltas:
      raise ValueError(f"{lora}: --wan leaves nothing; it has no video updates")
  if dtype is not None:
    found = found.astype(dtype)
  files.write(out, found, config, style)


FLAGS = flags.FLAGS


def main() -> None:
  cli.require_flags(FLAGS, lora="FILE", weights="DIR", out="FILE")
  dtype = None if FLAGS.dtype == "stored" else jnp.dtype(FLAGS.dtype)
  convert(FLAGS.lora, FLAGS.weights, FLAGS.out, FLAGS.format, FLAGS.wan, dtype)
  print(f"wrote {FLAGS.out}")


if __name__ == "__main__":
  flags.DEFINE_string("lora", "", "The LoRA file.")
  flags.DEFINE_string("weights", "", "Weights that the LoRA is for.")
  flags.DEFINE_string("out", "", "Output file, .safetensors.")
  flags.DEFINE_enum(
    "format", names.COMFYUI, names.FORMATS, "Format of the output."
  )
  flags.DEFINE_bool("wan", False, "Only what Wan2.2-TI2V-5B has.")
  flags.DEFINE_enum(
    "dtype", "stored", ("stored", *files.DTYPES), "Dtype of the output."
  )
  cli.run(main)
