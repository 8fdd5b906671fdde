"""Extract a LoRA from two directories of weights.

  python -m ovi_jax.lora.extract --weights=BASE --tuned=DIR --out=FILE --rank=32

The difference of each kernel of the blocks is approximated by a truncated
singular value decomposition (randomized, Halko et al. 2011, arXiv:0909.4061),
float32; it is exact if the difference has at most this rank. Differences of
norms, biases and modulations of blocks, and of embeddings and heads, are stored
whole.
"""

import os

import jax.numpy as jnp
import numpy as np
from absl import flags

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax.lora import adapter
from ovi_jax.lora import files
from ovi_jax.lora import names
from ovi_jax.models import low_rank
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir

_OVERSAMPLING, _ITERATIONS = 8, 2


def factorize(delta: np.ndarray, rank: int) -> adapter.Pair:
  """The best update of a rank.

  Args:
    delta: [in, out].
    rank: of the update, at most the smaller axis.
  """
  delta = np.asarray(delta, np.float32)
  rank = min(rank, *delta.shape)
  random = np.random.default_rng(0)
  columns = min(rank + _OVERSAMPLING, *delta.shape)
  sketch = delta @ random.standard_normal((delta.shape[1], columns), np.float32)
  basis, _ = np.linalg.qr(sketch)
  for _ in range(_ITERATIONS):
    basis, _ = np.linalg.qr(delta.T @ basis)
    basis, _ = np.linalg.qr(delta @ basis)
  left, values, right = np.linalg.svd(basis.T @ delta, full_matrices=False)
  root = np.sqrt(values[:rank])
  down = (basis @ left[:, :rank]) * root
  return adapter.Pair(
    down=down, up=root[:, None] * right[:rank], alpha=float(rank)
  )


def extract(
  base: str | os.PathLike[str], tuned: str | os.PathLike[str], rank: int
) -> tuple[adapter.Adapter, float]:
  """The difference of two directories of weights as a LoRA.

  Args:
    base: directory of converted weights.
    tuned: likewise, of the same sizes.
    rank: of the updates of kernels of blocks.

  Returns:
    The LoRA, and the fraction of the squared differences of these kernels that
    it has, in [0, 1].

  Raises:
    ValueError: a directory is missing or damaged, the sizes differ, the rank is
      not positive, or the weights are equal.
  """
  if rank < 1:
    raise ValueError(f"expected a rank of at least 1, got {rank}")
  manifests = [weights_dir.read(d, needs=("fusion",)) for d in (base, tuned)]
  if len({m.architecture.fusion for m in manifests}) > 1:
    raise ValueError(f"{base} and {tuned} have towers of other sizes")
  for directory in map(storage.locate, (base, tuned)):
    weights_dir.check_not_quantized(
      directory, ("fusion",), "whose difference is no LoRA"
    )
  first, second = (
    weights.slices(
      weights_dir.component_file(storage.locate(directory), "fusion")
    )
    for directory in (base, tuned)
  )
  pairs: dict[adapter.Slot, adapter.Pair] = {}
  deltas: dict[adapter.Slot, np.ndarray] = {}
  total = kept = 0.0
  for path, shape in names.shapes(manifests[0].architecture.fusion).items():
    stacked = path.startswith("blocks/")
    for block in range(shape[0]) if stacked else (None,):
      delta = np.asarray(second(path, block), np.float32)
      delta = delta - np.asarray(first(path, block), np.float32)
      if not delta.any():
        continue
      slot = adapter.Slot(path, block)
      if not low_rank.is_target(path):
        deltas[slot] = delta
        continue
      pairs[slot] = factorize(delta, rank)
      total += float(np.square(delta, dtype=np.float64).sum())
      rest = delta - pairs[slot].delta()
      kept -= float(np.square(rest, dtype=np.float64).sum())
  if not pairs and not deltas:
    raise ValueError(f"{base} and {tuned} have equal DiTs")
  metadata = {files.BASE_KEY: manifests[0].digests["fusion"]}
  if manifests[1].sampling.get("conditioning") == files.CLEAN:
    metadata[files.CONDITIONING_KEY] = files.CLEAN
  found = adapter.Adapter(pairs=pairs, deltas=deltas, metadata=metadata)
  return found, 1.0 + kept / total if total else 1.0


FLAGS = flags.FLAGS


def main() -> None:
  cli.require_flags(FLAGS, weights="DIR", tuned="DIR", out="FILE")
  found, share = extract(FLAGS.weights, FLAGS.tuned, FLAGS.rank)
  config = weights_dir.manifest_of(FLAGS.weights).architecture.fusion
  files.write(
    FLAGS.out, found.astype(jnp.dtype(FLAGS.dtype)), config, FLAGS.format
  )
  print(
    f"wrote {FLAGS.out}: {len(found.pairs)} kernels at rank {FLAGS.rank} have"
    f" {100 * share:.1f} % of the squared differences; {len(found.deltas)}"
    " other parameters are stored whole"
  )


if __name__ == "__main__":
  flags.DEFINE_string("weights", "", "Weights before the change.")
  flags.DEFINE_string("tuned", "", "Weights after the change.")
  flags.DEFINE_string("out", "", "Output file, .safetensors.")
  flags.DEFINE_integer("rank", 32, "Rank of the updates.", lower_bound=1)
  flags.DEFINE_enum(
    "format", names.COMFYUI, names.FORMATS, "Format of the output."
  )
  flags.DEFINE_enum("dtype", "float32", files.DTYPES, "Dtype of the output.")
  cli.run(main)
