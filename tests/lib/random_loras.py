"""Random LoRAs of small towers with the released names."""

import functools

import numpy as np

from ovi_jax.lora import adapter
from ovi_jax.lora import names
from ovi_jax.modality import AV
from ovi_jax.models import dit
from ovi_jax.models import low_rank

SIZES = {
  "hidden_dim": 16,
  "num_layers": 2,
  "num_heads": 2,
  "mlp_dim": 24,
  "freq_dim": 8,
  "text_dim": 12,
  "max_text_len": 4,
}


def config(**sizes) -> AV[dit.DiTConfig]:
  sizes = SIZES | sizes
  return AV(
    dit.DiTConfig(channels=4, **sizes),
    dit.DiTConfig(channels=3, patch=(1,), **sizes),
  )


CONFIG = config()


@functools.cache
def base(towers: AV[dit.DiTConfig] = CONFIG) -> dict[str, np.ndarray]:
  """Parameters by path, none of them zero."""
  random = np.random.default_rng(0)
  return {
    path: 0.3 * random.standard_normal(shape, np.float32)
    for path, shape in names.shapes(towers).items()
  }


def make(
  towers: AV[dit.DiTConfig] = CONFIG,
  wanted=lambda slot: True,
  alpha: bool = True,
  diffs: bool = True,
  dtype=np.float32,
) -> adapter.Adapter:
  """Updates of all layers: pairs of several ranks, and whole ones.

  Args:
    towers: their sizes.
    wanted: which parameters are updated.
    alpha: whether pairs have alpha.
    diffs: whether norms, biases and modulations have whole updates.
    dtype: of the arrays.
  """
  random = np.random.default_rng(5)
  pairs, deltas = {}, {}
  for target in names.table(towers).targets.values():
    slot, shape = target.slot, names.shapes(towers)[target.slot.path]
    shape = shape if slot.block is None else shape[1:]
    if not wanted(slot):
      continue
    if slot.path.endswith(f"/{low_rank.KERNEL}"):
      rank = 1 + len(pairs) % 3
      pairs[slot] = adapter.Pair(
        down=random.standard_normal((*shape[:-1], rank)).astype(dtype),
        up=random.standard_normal((rank, shape[-1])).astype(dtype),
        alpha=float(len(pairs) % 4 + 1) if alpha else None,
      )
    elif diffs:
      deltas[slot] = random.standard_normal(shape).astype(dtype)
  return adapter.Adapter(
    pairs=pairs, deltas=deltas, metadata={"trigger": "a red ball"}
  )


def is_block_kernel(slot: adapter.Slot) -> bool:
  return low_rank.is_target(slot.path)
