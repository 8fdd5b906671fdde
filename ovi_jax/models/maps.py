"""Of the attention between the towers, what is kept while it is computed.

The whole of it, [blocks, heads, L, S] for each tower, would take gigabytes at
full size; a weighted sum of heads and one number a head are kept. Float32.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ovi_jax.modality import AV


class MapQuery(NamedTuple):
  """What to keep.

  Attributes:
    heads: [G, N] weights of every block's heads in the sum.
    near: [L, S] for video and [S, L] for audio; a share of attention is
      measured where it is 1, and not where it is 0.
  """

  heads: AV[jax.Array]
  near: AV[jax.Array]


def reduce_maps(
  found: Any, heads: AV[jax.Array], near: AV[jax.Array]
) -> tuple[AV[jax.Array], AV[jax.Array]]:
  """Keep of one block's attention: the sum [B, L, S], the shares [B, N].

  Args:
    found: what the block wrote, for each tower [B, N, L, S]; L may be longer
      than it should, by tokens that fill up.
    heads: weights_N.
    near: see `Watch`.
  """
  sums, shares = {}, {}
  for name, near_LS in near.present().items():
    map_BNLS = found[name]["other"][:, :, : near_LS.shape[0]]
    weights_N = getattr(heads, name)
    sums[name] = jnp.einsum("BNLS,N->BLS", map_BNLS, weights_N)
    shares[name] = jnp.einsum("BNLS,LS->BNL", map_BNLS, near_LS).mean(-1)
  return AV(**sums), AV(**shares)
