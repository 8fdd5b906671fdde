"""FLOPs of a pass, against the value reported for the released model."""

import pytest

from ovi_jax import flops
from ovi_jax.modality import AV
from tests.lib import standin_models

TOKENS = AV(31 * 22 * 23, 157)


def test_flops_of_a_forward_pass_equal_the_reported_value():
  work = flops.forward(standin_models.FULL_FUSION, TOKENS)
  assert work.total == pytest.approx(252e12, rel=2e-3)
  assert 0.3 < work.mlp / work.total < 0.4


def test_frozen_layers_have_no_weight_gradient():
  work = flops.forward(standin_models.FULL_FUSION, TOKENS)
  assert work.training() == 3 * work.total
  saved = work.training() - work.training(attention_only=True)
  assert saved == work.mlp + 2 * work.embeddings_and_heads


def test_a_single_tower_has_no_cross_tower_attention():
  audio = AV(None, standin_models.FULL_FUSION.audio)
  alone = flops.forward(audio, AV(None, 157))
  both = flops.forward(standin_models.FULL_FUSION, TOKENS)
  assert alone.total < 0.02 * both.total
  # Six products of a width squared a token, two for each prompt token.
  expected = 2 * 30 * 3072**2 * (6 * 157 + 2 * 512)
  assert alone.projections == expected
