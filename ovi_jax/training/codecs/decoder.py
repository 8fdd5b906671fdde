"""Weights with another decoder of their video: all else stays what it is.

  python -m ovi_jax.training.codecs.decoder --run=RUN --weights=DIR --out=DIR

The run began with these weights and trained the decoder alone
(`--config.initial=DIR --config.trains=decoder`), so latents, and with them the
towers, are what they were. Files of other components are linked, not copied,
where the disk allows it.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import app
from absl import flags

import ovi_jax
from ovi_jax import runtime
from ovi_jax.checkpoint import directory
from ovi_jax.checkpoint import weights
from ovi_jax.training import trainable
from ovi_jax.training.codecs import assemble

COMPONENT = "video_vae"


def exchange(
  run: pathlib.Path, kept: pathlib.Path, out: pathlib.Path
) -> directory.Manifest:
  """Write weights that decode as a run has learnt to.

  Args:
    run: directory of the run; its averaged decoder is taken.
    kept: directory of the weights that it began with.
    out: directory to write; must not hold weights yet.

  Returns:
    The manifest, also written to `out`.

  Raises:
    ValueError: the run trained more than a decoder or began with another
      encoder, or run or weights are missing or damaged; before anything is
      written.
    OSError: the disk is full, or not writable.
  """
  if (out / directory.MANIFEST).exists():
    raise ValueError(f"{out} holds weights already; choose another --out")
  manifest = directory.read(kept, needs=(COMPONENT,))
  present = manifest.architecture.components
  needs = tuple(c for c in present if c in manifest.digests)
  directory.read(kept, needs=needs)
  part = assemble.opened(COMPONENT, run)
  if part.settings.trains != trainable.DECODER:
    raise ValueError(
      f"{run} trained {part.settings.trains!r}, expected"
      f" {trainable.DECODER!r}: with another encoder the towers know nothing of"
      " the latents"
    )
  file = directory.component_file(kept, COMPONENT)
  shapes = weights.shapes(file)
  if differing := _differing(part.params, shapes, weights.slices(file)):
    raise ValueError(
      f"{run} did not begin with the weights in {kept}: they differ in"
      f" {', '.join(differing[:3])} and {len(differing)} parameters in all"
    )
  (dtype,) = {shape.dtype for shape in shapes.values()}
  out.mkdir(parents=True, exist_ok=True)
  directory.link(kept, out, (c for c in needs if c != COMPONENT))
  digest = assemble.write(out, COMPONENT, part.params, dtype)
  manifest = dataclasses.replace(
    manifest,
    digests={**manifest.digests, COMPONENT: digest},
    version=ovi_jax.__version__,
  )
  manifest.save(out)
  return manifest


def _differing(
  params: Mapping[str, Any], shapes: Mapping[str, Any], read: Any
) -> list[str]:
  """Paths where a run is not what it began with, but for decoders' values."""
  found = []
  for path in sorted(params.keys() | shapes.keys()):
    ours, theirs = params.get(path), shapes.get(path)
    if ours is None or theirs is None or ours.shape != theirs.shape:
      found.append(path)
    elif not path.startswith("decoder/"):
      stored = np.asarray(ours).astype(theirs.dtype)
      if not np.array_equal(stored, np.asarray(read(path, None))):
        found.append(path)
  return found


FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  runtime.start(argv)
  try:
    runtime.need(FLAGS, run="DIR", weights="DIR", out="DIR")
    paths = (pathlib.Path(p) for p in (FLAGS.run, FLAGS.weights, FLAGS.out))
    exchange(*paths)
    print(f"wrote {FLAGS.out}")
  except (OSError, ValueError) as error:
    sys.exit(f"decoder: {error}")


if __name__ == "__main__":
  flags.DEFINE_string("run", "", "Directory of the run.")
  flags.DEFINE_string("weights", "", "Weights that it began with.")
  flags.DEFINE_string("out", "", "Directory to write.")
  app.run(main, flags_parser=runtime.parse_flags)
