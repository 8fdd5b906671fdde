"""The text encoder's objective: each embedding predicts the tokens around it.

Some input tokens are masked. The embedding at each position must predict the
tokens near this position, its own included. No labels are needed, and what a
denoiser needs of a caption, such as its third spoken word, can then be read
from one row. Losses are float32; the encoder follows the compute dtype.

This is a masked language model (BERT, arXiv 1810.04805) that also predicts the
neighbours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ovi_jax.data import schema
from ovi_jax.models import umt5

HEAD = "head"  # name of the parameters that are not the encoder's
PAD, UNKNOWN = 0, 2  # ids, as in the tokenizers of T5's family


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedTextObjective:
  """An `Objective` on batches of token ids.

  Its parameters are the encoder's and, under `head`, those of the prediction.

  Attributes:
    config: sizes of the encoder.
    context_window: tokens on either side that an embedding predicts.
    mask_prob: maximum fraction of masked tokens; each example samples its own,
      from 0.
    dtype: compute dtype.
  """

  config: umt5.UMT5Config
  context_window: int = 4
  mask_prob: float = 0.15
  dtype: Any = jnp.float32

  def __post_init__(self):
    if self.context_window < 1 or not 0 <= self.mask_prob < 1:
      raise ValueError(
        "objective: expected context_window of 1 or more and mask_prob in"
        f" [0, 1), got {self.context_window} and {self.mask_prob}"
      )

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Random parameters; the head is zero-initialized."""
    ids_BS = jnp.zeros((1, 1), jnp.int32)
    encoder: Any = umt5.UMT5Encoder(self.config).init(key, ids_BS, ids_BS)
    offsets, tokens = 2 * self.context_window + 1, self.config.vocab_size
    head = {
      "kernel": jnp.zeros((self.config.dim, offsets, tokens)),
      "bias": jnp.zeros((offsets, tokens)),
    }
    return {**encoder["params"], HEAD: head}

  def sample_noise(self, key: jax.Array, example: schema.Batch) -> jax.Array:
    """Which tokens of an example are hidden, bool [S]."""
    share_key, place_key = jax.random.split(key)
    share = self.mask_prob * jax.random.uniform(share_key)
    return jax.random.bernoulli(place_key, share, _ids(example).shape)

  def example_weights(
    self, batch: schema.Batch, sample: Any
  ) -> dict[str, jax.Array]:
    del sample
    has_B = (_ids(batch) != PAD).any(1).astype(jnp.float32)
    share_B = has_B / jnp.maximum(has_B.sum(), 1.0)
    return {"context": share_B, "wrong": jnp.zeros_like(share_B)}

  def loss_terms(
    self, params: Any, batch: schema.Batch, sample: Any, null_SE: jax.Array
  ) -> Mapping[str, jax.Array]:
    """`context`: nats a token; `wrong`: share of those not hidden, no loss."""
    del null_SE
    ids_BS = _ids(batch)
    mask_BS = (ids_BS != PAD).astype(jnp.int32)
    given_BS = jnp.where(sample & (mask_BS > 0), UNKNOWN, ids_BS)
    head = params[HEAD]
    encoder = {name: leaf for name, leaf in params.items() if name != HEAD}
    text_BSE: Any = umt5.UMT5Encoder(self.config, self.dtype).apply(
      {"params": encoder}, given_BS, mask_BS
    )
    logits_BSOV = jnp.einsum(
      "BSE,EOV->BSOV", text_BSE.astype(jnp.float32), head["kernel"]
    )
    logits_BSOV = logits_BSOV + head["bias"][None, None]
    target_BSO = self._around(ids_BS)
    counts_BSO = (target_BSO != PAD) & (mask_BS > 0)[..., None]
    # A comparison: a gather's gradient takes longer than the rest.
    tokens_BSOV = jax.lax.broadcasted_iota(jnp.int32, logits_BSOV.shape, 3)
    right_BSOV = tokens_BSOV == target_BSO[..., None]
    chosen_BSO = jnp.where(right_BSOV, logits_BSOV, 0.0).sum(-1)
    loss_BSO = jax.nn.logsumexp(logits_BSOV, -1) - chosen_BSO
    wrong_BSO = (chosen_BSO < logits_BSOV.max(-1)).astype(jnp.float32)
    seen_BSO = counts_BSO & ~self._around(sample)
    return {
      "context": _mean(loss_BSO, counts_BSO),
      "wrong": _mean(wrong_BSO, seen_BSO),
    }

  def _around(self, x_BS: jax.Array) -> jax.Array:
    """x_BSO: what stands at each offset of each place, 0 beyond the ends."""
    length = x_BS.shape[1]
    x_BS = jnp.pad(x_BS, ((0, 0), (self.context_window, self.context_window)))
    offsets = range(2 * self.context_window + 1)
    return jnp.stack([x_BS[:, o : o + length] for o in offsets], axis=-1)


def _ids(batch: schema.Batch) -> jax.Array:
  """Token ids, which are the same for both towers."""
  return next(iter(batch.text.present().values()))


def _mean(x_BSO: jax.Array, counts_BSO: jax.Array) -> jax.Array:
  """Mean over what counts, 0 where nothing does."""
  total_B = jnp.where(counts_BSO, x_BSO, 0.0).sum((1, 2))
  return total_B / jnp.maximum(counts_BSO.sum((1, 2)), 1)
