"""The text encoder's objective: embeddings predict the tokens around them."""

import jax
import numpy as np
import pytest

from ovi_jax.models import umt5
from ovi_jax.training.objectives import masked_text
from tests.lib import learning

CONFIG = umt5.UMT5Config(
  vocab_size=12,
  dim=32,
  dim_attn=32,
  dim_ffn=32,
  num_heads=2,
  num_layers=2,
  num_buckets=16,
)
TASK = masked_text.MaskedTextObjective(
  config=CONFIG, context_window=2, mask_prob=0.0
)
IDS = [[3, 4, 5, 6, 7, 1, 0, 0], [8, 7, 9, 3, 10, 11, 4, 1]]
BATCH = learning.texts(IDS)


@pytest.fixture(scope="module")
def params():
  return TASK.init(jax.random.key(0))


@pytest.fixture(scope="module")
def learned(params):
  return learning.learn(TASK, params, BATCH, 40, 1e-2)


@pytest.mark.slow
def test_training_overfits_two_captions(learned):
  losses, params = learned
  assert abs(losses[0] - np.log(12)) < 1e-4  # the head has no opinion
  assert losses[-1] < 0.2 * losses[0]
  noise = learning.drawn(TASK, BATCH)
  terms = jax.jit(TASK.loss_terms)(params, BATCH, noise, learning.NULL)
  assert float(terms["wrong"].max()) < 0.1


@pytest.mark.slow
def test_padding_has_no_loss(learned):
  _, params = learned
  longer = learning.texts(np.pad(IDS, ((0, 0), (0, 5))))
  terms = [
    jax.jit(TASK.loss_terms)(params, b, learning.drawn(TASK, b), learning.NULL)
    for b in (BATCH, longer)
  ]
  for name, term_B in terms[0].items():
    np.testing.assert_allclose(term_B, terms[1][name], rtol=1e-4)


def test_each_position_sees_its_context_window():
  around_BSO = TASK._around(np.int32([[3, 4, 5, 6]]))
  expected = [
    [0, 0, 3, 4, 5],
    [0, 3, 4, 5, 6],
    [3, 4, 5, 6, 0],
    [4, 5, 6, 0, 0],
  ]
  np.testing.assert_array_equal(around_BSO[0], expected)


def test_a_certain_prediction_has_no_loss(params):
  batch = learning.texts([[5, 5, 5, 0], [5, 0, 0, 0]])
  bias = np.zeros((5, 12), np.float32)
  bias[:, 5] = 200
  sure = {**params, "head": params["head"] | {"bias": bias}}
  noise = learning.drawn(TASK, batch)
  terms = jax.jit(TASK.loss_terms)(sure, batch, noise, learning.NULL)
  for term in terms.values():
    np.testing.assert_array_equal(term, [0, 0])


def test_masked_tokens_are_replaced_and_predicted(params):
  seen = []

  class Spy:
    def __init__(self, config, dtype): ...

    def apply(self, variables, ids_BS, mask_BS):
      assert "head" not in variables["params"]
      seen.append((np.asarray(ids_BS), np.asarray(mask_BS)))
      return np.zeros((2, 8, 32), np.float32)

  hidden = np.zeros((2, 8), bool)
  hidden[0, [1, 6]] = hidden[1, 7] = True
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(umt5, "UMT5Encoder", Spy)
    terms = TASK.loss_terms(params, BATCH, hidden, learning.NULL)
  ids_BS, mask_BS = seen[0]
  np.testing.assert_array_equal(ids_BS[0], [3, 2, 5, 6, 7, 1, 0, 0])
  np.testing.assert_array_equal(ids_BS[1], [8, 7, 9, 3, 10, 11, 4, 2])
  np.testing.assert_array_equal(mask_BS, np.array(IDS) > 0)
  np.testing.assert_allclose(terms["context"], np.log([12, 12]), rtol=1e-5)


def test_the_masked_share_is_as_configured():
  task = masked_text.MaskedTextObjective(config=CONFIG, mask_prob=0.5)
  keys = jax.random.split(jax.random.key(0), 200)
  example = learning.texts(np.zeros((50,)))
  hidden_BS = jax.vmap(lambda key: task.sample_noise(key, example))(keys)
  shares_B = np.asarray(hidden_BS).mean(1)
  assert abs(shares_B.mean() - 0.25) < 0.02
  assert shares_B.min() < 0.05 and 0.4 < shares_B.max() < 0.75


def test_an_empty_context_window_is_refused():
  with pytest.raises(ValueError, match="context_window of 1 or more .* got 0"):
    masked_text.MaskedTextObjective(config=CONFIG, context_window=0)
