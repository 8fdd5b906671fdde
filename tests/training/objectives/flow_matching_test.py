"""Weights of examples; the loss as a whole is tested with the step."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax import diffusion
from ovi_jax.modality import AV
from ovi_jax.training import conditions
from ovi_jax.training.objectives import flow_matching
from tests.lib import small_step

NONE: AV[Any] = AV()
TASK = flow_matching.FlowMatching(
  NONE,  # type: ignore[arg-type]
  flow_matching.ObjectiveConfig(),
)


def weights(video: Any, audio: Any) -> AV[np.ndarray]:
  """Of the small batch, with these latents given."""
  drawn = flow_matching.NoiseSample(NONE, NONE, NONE, AV(video, audio))
  found = TASK.example_weights(small_step.batch(), drawn)
  return AV(**{name: np.asarray(x) for name, x in found.items()})


def test_weights_count_records_with_a_generated_latent():
  lengths = small_step.batch().lengths
  video, audio = np.zeros((8, 2), bool), np.zeros((8, 9), bool)
  video[[0, 3, 5]] = True
  video[6, 0] = True  # one of two: the other has a loss
  audio[4, : lengths.audio[4]] = True
  found = weights(video, audio)
  count = 4  # 2, 4, 6, 7: not 1, which has no video
  expected = 0.85 / count * np.isin(np.arange(8), [2, 4, 6, 7])
  np.testing.assert_allclose(found.video, expected, rtol=1e-6)
  assert found.audio[4] == found.audio[2] == 0
  assert found.audio.sum() == pytest.approx(0.15)


def test_without_given_latents_all_records_of_a_modality_count():
  found = weights(None, None)
  lengths = small_step.batch().lengths
  for name, expected in (
    diffusion.example_weights(lengths, flow_matching.PAPER_LOSS_WEIGHTS)
    .present()
    .items()
  ):
    np.testing.assert_array_equal(getattr(found, name), expected)


def test_video_of_the_time_of_a_reference_has_no_loss():
  batch = small_step.batch()
  place_BR = jnp.tile(jnp.arange(1), (8, 1))
  length_B = jnp.int32([1, 0] * 4)
  drawn = flow_matching.NoiseSample(
    NONE, NONE, NONE, NONE, conditions.Reference(place_BR, length_B)
  )
  # The first audio latent lies in the first of the two video latents.
  masks = flow_matching.loss_masks(batch, drawn)
  without = flow_matching.loss_masks(batch, drawn._replace(reference=None))
  assert without.video[::2].any() and without.audio[::2].any()
  assert not masks.video[::2].any()
  assert not masks.audio[::2, :3].any()
  np.testing.assert_array_equal(masks.audio[::2, 3:], without.audio[::2, 3:])
  for name, mask in masks.present().items():
    np.testing.assert_array_equal(mask[1::2], getattr(without, name)[1::2])
