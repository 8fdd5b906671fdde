"""Merge LoRAs into weights: a directory that sampling and training read.

  python -m ovi_jax.lora.merge --weights=DIR --lora=FILE[:STRENGTH],… --out=DIR

Text encoder, codecs and tokenizer are linked, not copied, where the disk allows
it. Sums are float32 and stored in `--dtype`, by default that of the weights.
Sampling recommendations are those of the weights; if a LoRA was trained with
given latents, `conditioning` is `clean`.
"""

import dataclasses
import hashlib
import os
import shlex
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax.convert import normalize
from ovi_jax.lora import adapter
from ovi_jax.lora import apply
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir


def merge(
  directory: str | os.PathLike[str],
  lora: str,
  out: str | os.PathLike[str],
  dtype: Any = None,
) -> weights_dir.Manifest:
  """Write weights with LoRAs merged into the denoiser.

  Args:
    directory: of converted weights.
    lora: files and strengths, see `apply.parse`.
    out: directory to write; must not hold weights yet.
    dtype: of the denoiser; `None` for that of each parameter.

  Returns:
    The manifest, also written to `out`.

  Raises:
    ValueError: weights or files are missing or do not fit, before anything is
      written; or sums are not finite, and no weights are left.
    OSError: the disk is full, or not writable.
  """
  directory, out = storage.locate(directory), storage.locate(out)
  if storage.is_remote(out):
    storage.check_access(storage.path(out))
  if storage.exists(out / weights_dir.MANIFEST):
    raise ValueError(f"{out} holds weights already; choose another --out")
  manifest = weights_dir.read(directory, needs=("fusion",))
  present = tuple(c for c in manifest.digests if c not in ("tokenizer",))
  manifest = weights_dir.read(directory, needs=present)
  weights_dir.check_not_quantized(
    directory, ("fusion",), "which LoRAs are not merged into"
  )
  loras = apply.load(lora, manifest.architecture.fusion, manifest)
  if not loras:
    raise ValueError("expected --lora=FILE[:STRENGTH],…")
  out.mkdir(parents=True, exist_ok=True)
  digests = {**manifest.digests, "fusion": _write(directory, out, loras, dtype)}
  weights_dir.link(directory, out, [c for c in present if c != "fusion"])
  advised = apply.recommended((x.adapter.metadata, x.strength) for x in loras)
  manifest = dataclasses.replace(
    manifest, digests=digests, sampling={**manifest.sampling, **advised}
  )
  manifest.save(out)
  return manifest


def _write(
  directory: storage.AnyPath,
  out: storage.AnyPath,
  loras: Sequence[apply.Lora],
  dtype: Any,
) -> str:
  """Write the denoiser, a block at a time; returns its digest."""
  source = weights_dir.component_file(directory, "fusion")
  read, shapes = weights.slices(source), weights.shapes(source)
  target = weights_dir.component_file(out, "fusion")
  leaves = {
    path: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)
    for path, x in shapes.items()
  }
  found = hashlib.sha256()
  with weights.Writer(target, leaves) as writer:
    for path in sorted(leaves):
      stacked = path.startswith("blocks/")
      for block in range(leaves[path].shape[0]) if stacked else (None,):
        array = apply.merged(
          read(path, block), adapter.Slot(path, block), loras
        )
        with np.errstate(over="ignore"):
          array = np.ascontiguousarray(array.astype(leaves[path].dtype))
        if not normalize.is_finite(array):
          raise ValueError(
            f"{path} with the LoRAs is not finite in {array.dtype}; a file is"
            " damaged, or its strength is too large"
          )
        writer.write(path, block, array)
        found.update(path.encode() + array.tobytes())
    writer.metadata["digest"] = found.hexdigest()
  return found.hexdigest()


FLAGS = flags.FLAGS


def main() -> None:
  cli.require_flags(FLAGS, weights="DIR", lora="FILE", out="DIR")
  dtype = None if FLAGS.dtype == "stored" else jnp.dtype(FLAGS.dtype)
  merge(FLAGS.weights, FLAGS.lora, FLAGS.out, dtype)
  print(f"wrote {FLAGS.out}; next:")
  sample, quoted = cli.invocation("ovi-sample"), shlex.quote(FLAGS.out)
  print(f'  {sample} --weights={quoted} --prompt="…"')


if __name__ == "__main__":
  flags.DEFINE_string("weights", "", "Directory of converted weights.")
  flags.DEFINE_string("lora", "", "LoRAs: FILE[:STRENGTH], with commas.")
  flags.DEFINE_string("out", "", "Output directory, without weights yet.")
  flags.DEFINE_enum(
    "dtype",
    "stored",
    ("stored", "float32", "bfloat16"),
    "Dtype of the DiT; stored: that of the weights.",
  )
  cli.run(main)
