"""Reference latents of a sequence: shown to the model, never generated.

A reference (a voice, as latents of the audio VAE) is appended to the valid
latents of an example, before the audio stem. Its tokens take part in all
attention, of their own tower and of the other. They have rotary positions of
their own, see `rope.reference_start`. DreamID-Omni (arXiv 2602.12160) does the
same with Ovi's sizes.

Appended latents follow the valid ones directly, so that all tokens that count
are a prefix of the sequence, which attention can cut by its length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ovi_jax.models import rope


class Reference(NamedTuple):
  """Reference latents of a batch.

  Attributes:
    latents_BRC: clean latents, float32.
    given_BR: bool, shown at time 0; `None` shows all at the time of the
      generated latents.
    length_B: how many of them count; 0 leaves the reference of an example
      out. `None` counts all.
  """

  latents_BRC: jax.Array
  given_BR: jax.Array | None = None
  length_B: jax.Array | None = None


class Appended(NamedTuple):
  """A sequence with its reference.

  Attributes:
    latents_BTC: latents [B, T + R, C].
    length_B: valid latents, the reference's included; `None` for all.
    given_BT: bool, latents that are shown at time 0, or `None`.
    place_BT: where each latent comes from in the sequence of all T latents
      and all R of the reference; `None` if it is this sequence.
  """

  latents_BTC: jax.Array
  length_B: jax.Array | None
  given_BT: jax.Array | None
  place_BT: jax.Array | None

  def rotary(self, table: rope.Rotary) -> rope.Rotary:
    """The table of this sequence, from that of all T + R latents."""
    if self.place_BT is None:
      return table
    return rope.Rotary(*(x_LK[self.place_BT] for x_LK in table))


def append(
  latents_BTC: jax.Array,
  reference: Reference | None,
  length_B: jax.Array | None = None,
  given_BT: jax.Array | None = None,
) -> Appended:
  """Append a reference to a sequence.

  Args:
    latents_BTC: the sequence.
    reference: to append; `None` changes nothing.
    length_B: valid latents of each example; `None` for all. An example of
      length 0 has no modality, and gets no reference.
    given_BT: bool, latents of the sequence that are shown at time 0.
  """
  if reference is None:
    return Appended(latents_BTC, length_B, given_BT, None)
  (B, T, _), R = latents_BTC.shape, reference.latents_BRC.shape[1]
  latents_BTC = jnp.concatenate([latents_BTC, reference.latents_BRC], 1)
  shown_BR = reference.given_BR
  if given_BT is not None or shown_BR is not None:
    parts = [
      jnp.zeros((B, size), bool) if mask is None else mask
      for mask, size in ((given_BT, T), (shown_BR, R))
    ]
    given_BT = jnp.concatenate(parts, 1)
  if length_B is None:
    whole_B = reference.length_B
    total_B = None if whole_B is None else T + whole_B
    return Appended(latents_BTC, total_B, given_BT, None)
  added_B = (
    jnp.full((B,), R) if reference.length_B is None else (reference.length_B)
  )
  total_B = length_B + jnp.where(length_B > 0, added_B, 0)
  index_BT = jnp.arange(T + R)[None]
  # Beyond the end of the reference its last latent is repeated, which does not
  # count.
  beyond_BT = jnp.minimum(T + index_BT - length_B[:, None], T + R - 1)
  place_BT = jnp.where(index_BT < length_B[:, None], index_BT, beyond_BT)
  latents_BTC = jnp.take_along_axis(latents_BTC, place_BT[..., None], 1)
  if given_BT is not None:
    given_BT = jnp.take_along_axis(given_BT, place_BT, 1)
  return Appended(latents_BTC, total_B, given_BT, place_BT)
