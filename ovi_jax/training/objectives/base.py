"""The interface of training objectives, of towers and codecs alike.

An objective computes loss terms of each example. The loss is the sum over terms
and examples of weight times term. Weights are those of the whole batch, so that
it may be divided into microbatches; terms are per example, so that a record
with a non-finite loss can be named.
"""

from collections.abc import Mapping
from typing import Any
from typing import Protocol

import jax

from ovi_jax.data import schema


class Objective(Protocol):
  """Static and hashable: a step is compiled for each.

  An objective with parameters besides those of the component has a method
  `init(key) -> params`; `codecs.assemble` leaves them out.
  """

  def sample_noise(self, key: jax.Array, example: schema.Batch) -> Any:
    """All that is random of one example.

    Args:
      key: of this example in this step.
      example: arrays without a batch axis; `ids` is `None`.

    Returns:
      A pytree of arrays; with a leading B, it is given to `terms`.
    """
    ...

  def example_weights(
    self, batch: schema.Batch, sample: Any
  ) -> Mapping[str, jax.Array]:
    """weight_B of every term, float32, of a whole batch and its noise."""
    ...

  def loss_terms(
    self, params: Any, batch: schema.Batch, sample: Any, null_SE: jax.Array
  ) -> Mapping[str, jax.Array]:
    """term_B by name, the names of `weights`; a log calls it `train/loss_NAME`.

    Args:
      params: nested.
      batch: the whole, or a part; `ids` is `None`.
      sample: what `sample_noise` returned for each example.
      null_SE: embedding of the empty prompt; zeros where there is none.

    Returns:
      Float32, finite, and 0 for an example that has nothing of the kind.
    """
    ...
