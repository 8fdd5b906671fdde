"""Host memory of converting a release: what is resident at most.

  python -m benchmarks.conversion [--blocks=12] [--folder=DIR]

Writes a checkpoint of both towers at their released widths, with fewer blocks
and zeros for weights (a file with holes, which takes no room), and converts
it with `convert_torch_weights.py`; then once more, when nothing is left to
do. DIR needs as much room as the checkpoint is large.
"""

import copy
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import machine
from ovi_jax import cli
from ovi_jax.convert import mapping
from ovi_jax.convert import release as releases
from ovi_jax.models import architecture
from ovi_jax.pretrained import tensor_file

GIB = 2**30
KIB = 2**10  # the unit of what the system counts
COMPONENT = "fusion"
VARIANT = "720x720_5s"

FLAGS = flags.FLAGS


def write(folder: pathlib.Path, blocks: int) -> int:
  """Write the checkpoint and its sizes; how many bytes it has."""
  sizes: dict[str, Any] = copy.deepcopy(architecture.released_sizes())
  for tower in sizes["fusion"].values():
    tower["num_layers"] = blocks
  (folder / "sizes.json").write_text(json.dumps(sizes), "utf-8")
  config = architecture.Architecture.from_release(sizes).config(COMPONENT)
  source = releases.source(COMPONENT, VARIANT, folder)
  leaves = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
    mapping.flatten(architecture.parameter_shapes(COMPONENT, config)),
  )
  tensors = mapping.torch_leaves(source.rows(config), leaves)
  path = folder / source.file
  path.parent.mkdir(parents=True)
  layout = tensor_file.layout(path, tensors, {})
  with path.open("wb") as file:
    file.write(layout.header({}))
    file.truncate(layout.end)
  return layout.end


def convert(folder: pathlib.Path) -> float:
  """Seconds of one conversion."""
  began = time.monotonic()
  words = ("convert_torch_weights.py", f"--release={folder}")
  words += (f"--arch={folder / 'sizes.json'}", f"--out={folder / 'weights'}")
  subprocess.run(
    [sys.executable, *words, f"--components={COMPONENT}"],
    cwd=machine.ROOT,
    check=True,
  )
  return time.monotonic() - began


def main() -> None:
  with tempfile.TemporaryDirectory(dir=FLAGS.folder or None) as name:
    folder = pathlib.Path(name)
    size = write(folder, FLAGS.blocks)
    print(f"a release of {size / GIB:.2f} GiB, {FLAGS.blocks} blocks")
    first, again = convert(folder), convert(folder)
  # Of the largest of the children, file pages that are mapped included.
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * KIB
  print(
    f"largest resident set {peak / GIB:.2f} GiB; {first:.0f} s, and"
    f" {again:.0f} s when it was converted already"
  )


if __name__ == "__main__":
  flags.DEFINE_integer("blocks", 12, "Blocks of each tower.")
  flags.DEFINE_string("folder", "", "Where to write; a temporary folder.")
  cli.run(main)
