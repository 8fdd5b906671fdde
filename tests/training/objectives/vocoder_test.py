"""The vocoder objective: learning and exact values."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.models import mel
from ovi_jax.models import vocoder as models
from ovi_jax.training.objectives import vocoder
from tests.lib import learning

CONFIG = models.VocoderConfig(
  upsample_initial_channel=32,
  upsample_rates=(16, 16),
  upsample_kernel_sizes=(32, 32),
  resblock_kernel_sizes=(3,),
  resblock_dilation_sizes=((1,),),
)
TASK = vocoder.VocoderObjective(config=CONFIG)
BATCH = learning.sounds(learning.tones(4096))


@pytest.fixture(scope="module")
def params():
  return TASK.init(jax.random.key(0))


@pytest.mark.slow
def test_training_overfits_two_sounds(params):
  losses, _ = learning.learn(TASK, params, BATCH, 30, 5e-3)
  assert np.mean(losses[-3:]) < 0.75 * losses[0]


@pytest.mark.slow
def test_the_gradient_of_silence_is_finite(params):
  silence = learning.sounds(np.zeros((2, 4096)))
  noise = learning.drawn(TASK, silence)
  result = learning.loss_and_gradient(TASK, params, silence, noise)
  learning.assert_finite(result)


class Echo:
  """Knows the answer; keeps the question."""

  asked: ClassVar = []

  def __init__(self, config, dtype):
    assert (config, dtype) == (CONFIG, jnp.float32)

  def apply(self, variables, mel_BTM):
    self.asked.append(mel_BTM)
    return BATCH.latents.audio


def test_a_perfect_sound_has_no_loss(monkeypatch):
  monkeypatch.setattr(models, "BigVGAN", Echo)
  noise = learning.drawn(TASK, BATCH)
  terms = TASK.loss_terms({}, BATCH, noise, learning.NULL)
  clean_BTM = mel.log_mel(mel.MelConfig(), BATCH.latents.audio)
  np.testing.assert_allclose(Echo.asked[-1], clean_BTM + noise, atol=1e-6)
  assert terms.keys() == {"convergence", "magnitude", "mel"}
  for term in terms.values():
    np.testing.assert_array_equal(term, [0, 0])


def test_examples_without_audio_have_no_loss(params):
  batch = BATCH._replace(
    lengths=BATCH.lengths._replace(audio=np.int32([0, 4096]))
  )
  noise = learning.drawn(TASK, batch)
  weights = TASK.example_weights(batch, noise)
  np.testing.assert_array_equal(weights["mel"], [0, TASK.mel_weight])
  terms = jax.jit(TASK.loss_terms)(params, batch, noise, learning.NULL)
  for term in terms.values():
    assert term[0] == 0 and term[1] > 0


def test_each_example_has_its_own_noise_level():
  levels_B = learning.drawn(TASK, BATCH).std((1, 2))
  assert levels_B.shape == (2,) and float(levels_B.max()) < TASK.noise_std
  assert abs(float(levels_B[0] - levels_B[1])) > 1e-3


def test_negative_scales_are_refused():
  with pytest.raises(ValueError, match=r"mel_weight must not be .* got -1"):
    vocoder.VocoderObjective(config=CONFIG, mel_weight=-1)
