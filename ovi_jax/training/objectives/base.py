"""What is learnt: the one thing in which training a codec differs from a tower.

A task turns a batch into numbers to be made small, its terms. The loss is the
sum over terms and examples of weight times term, so that a batch may be divided
into parts (weights are the whole batch's) and an example with a bad number can
be named. Steps, checkpoints, averages and logs know tasks by this alone.
"""

from collections.abc import Mapping
from typing import Any
from typing import Protocol

import jax

from ovi_jax.data import schema


class Objective(Protocol):
  """Static and hashable: a step is compiled for each.

  A task whose parameters are not those of a component alone has a method
  `init(key) -> params`, see `codecs.table`.
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

  def example_weights(self, batch: schema.Batch) -> Mapping[str, jax.Array]:
    """weight_B of every term, float32, of a whole batch."""
    ...

  def loss_terms(
    self, params: Any, batch: schema.Batch, drawn: Any, null_SE: jax.Array
  ) -> Mapping[str, jax.Array]:
    """term_B by name, the names of `weights`; a log calls it `train/loss_NAME`.

    Args:
      params: nested.
      batch: the whole, or a part; `ids` is `None`.
      drawn: what `draw` gave each example.
      null_SE: embedding of the empty prompt; zeros where there is none.

    Returns:
      Float32, finite, and 0 for an example that has nothing of the kind.
    """
    ...
