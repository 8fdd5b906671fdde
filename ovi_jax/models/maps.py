"""Reduction of cross-modal attention maps while they are computed.

The full maps, [blocks, heads, L, S] for each tower, would take gigabytes at
full size; only a weighted sum over heads and one number per head are kept.
Float32.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ovi_jax.modality import AV


class MapQuery(NamedTuple):
  """The reductions of attention maps to compute.

  Attributes:
    heads: [G, N] weights of each block's heads in the sum.
    near: [L, S] for video and [S, L] for audio; 1 where attention counts
      towards the measured fraction, else 0.
  """

  heads: AV[jax.Array]
  near: AV[jax.Array]


def reduce_maps(
  found: Any, heads: AV[jax.Array], near: AV[jax.Array]
) -> tuple[AV[jax.Array], AV[jax.Array]]:
  """Reduce one block's attention maps.

  Args:
    found: maps of the block, for each tower [B, N, L, S]; L may include
      padding tokens.
    heads: weights_N of the block's heads.
    near: see `MapQuery`.

  Returns:
    The weighted sum over heads [B, L, S], and the fraction of attention
    within `near` of each head [B, N], for each tower.
  """
  sums, shares = {}, {}
  for name, near_LS in near.present().items():
    map_BNLS = found[name]["other"][:, :, : near_LS.shape[0]]
    weights_N = getattr(heads, name)
    sums[name] = jnp.einsum("BNLS,N->BLS", map_BNLS, weights_N)
    shares[name] = jnp.einsum("BNLS,LS->BNL", map_BNLS, near_LS).mean(-1)
  return AV(**sums), AV(**shares)
