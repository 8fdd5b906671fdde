"""The loss of a batch: noise, timesteps, prompt dropout, conditioning latents.

Every choice that is drawn for an example comes from a key of its own, so an
example's loss does not depend on the others or on how a batch is divided.
Float32 around a model of any compute dtype. (Paper, section 3.2.)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ovi_jax import diffusion
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.models import reference as reference_lib
from ovi_jax.training import conditions as conditions_lib

PAPER_LOSS_WEIGHTS = AV(0.85, 0.15)
UNIFORM = diffusion.TimestepSampler()
DEFAULT_CFG_DROPOUT = AV(0.1, 0.1)
NO_CONDITIONS = conditions_lib.ConditionsConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
  """Settings of the loss.

  Attributes:
    loss_weights: weight of each modality's loss.
    timesteps: distribution of timesteps.
    cfg_dropout: probability, for each tower independently, that the prompt of
      an example is replaced by the empty prompt (classifier-free guidance).
    conditions: conditioning latents of some examples: clean, without loss.
  """

  loss_weights: AV[float] = PAPER_LOSS_WEIGHTS
  timesteps: diffusion.TimestepSampler = UNIFORM
  cfg_dropout: AV[float] = DEFAULT_CFG_DROPOUT
  conditions: conditions_lib.ConditionsConfig = NO_CONDITIONS

  def __post_init__(self):
    probs = {
      f"objective.cfg_dropout.{n}": getattr(self.cfg_dropout, n)
      for n in AV._fields
    }
    for name, prob in probs.items():
      if not 0 <= prob <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1], got {prob}")
    if min(self.loss_weights) < 0:
      raise ValueError(
        f"objective.loss_weights must not be negative, got {self.loss_weights}"
      )


class NoiseSample(NamedTuple):
  """Noise, timesteps and dropout of an example, or of a batch with B first.

  Attributes:
    sigma: timestep of each modality in [0, 1].
    noise: in the shape of the latents.
    dropped: bool, the prompt is replaced by the empty prompt.
    given: given_T, bool: latents in time that stay clean and have no loss;
      `None` for a modality of which none are given, in any example: one time
      embedding an example is cheaper than two.
    reference: span of the sound that is appended to it, see
      `conditions.Reference`; `None` if no example has one.
  """

  sigma: AV[jax.Array]
  noise: AV[jax.Array]
  dropped: AV[jax.Array]
  given: AV[jax.Array | None]
  reference: conditions_lib.Reference | None = None


class FlowMatching(NamedTuple):
  """The objective of every stage: predict the velocity from data to noise.

  Terms are the modalities; for the methods see `base.Objective`.

  Attributes:
    model: the denoiser.
    objective: what is asked of it.
  """

  model: fusion.FusionDiT
  objective: ObjectiveConfig

  def sample_noise(
    self, key: jax.Array, example: schema.Batch
  ) -> "NoiseSample":
    return sample_noise(self.objective, key, example.latents, example.lengths)

  def example_weights(
    self, batch: schema.Batch, sample: "NoiseSample"
  ) -> Mapping[str, jax.Array]:
    counts = loss_masks(batch, sample).map(lambda _, mask_BT: mask_BT.sum(1))
    return diffusion.example_weights(
      counts, self.objective.loss_weights
    ).present()

  def loss_terms(
    self,
    params: Any,
    batch: schema.Batch,
    sample: "NoiseSample",
    null_SE: jax.Array,
  ) -> Mapping[str, jax.Array]:
    return losses(self.model, params, batch, sample, null_SE).present()


def sample_noise(
  objective: ObjectiveConfig,
  key: jax.Array,
  latents: AV[jax.Array],
  lengths: AV[jax.Array],
) -> NoiseSample:
  """Draw for one example; `latents` and `lengths` without a batch axis."""
  present = latents.present()
  time_key, given_key, *keys = jax.random.split(key, 2 + 2 * len(AV._fields))
  noise, dropped = {}, {}
  # A modality's keys do not depend on whether the other is there.
  for name, noise_key, drop_key in zip(AV._fields, keys[::2], keys[1::2]):
    if name in present:
      noise[name] = jax.random.normal(noise_key, present[name].shape)
      prob = getattr(objective.cfg_dropout, name)
      dropped[name] = jax.random.bernoulli(drop_key, prob)
  sizes = {name: len(data) for name, data in present.items()}
  reference = None
  if "audio" in present:
    reference = conditions_lib.sample_reference(
      objective.conditions, given_key, lengths.audio
    )
  given = conditions_lib.sample(
    objective.conditions, given_key, sizes, lengths, reference
  )
  return NoiseSample(
    objective.timesteps.sample(time_key, list(present)),
    AV(**noise),
    AV(**dropped),
    given,
    reference,
  )


def loss_masks(batch: schema.Batch, sample: NoiseSample) -> AV[jax.Array]:
  """counts_BT, bool, of each modality: valid latents that are generated.

  Those that the example's reference tells are left out, see
  `conditions.Reference.covers`.
  """

  def one(name: str, data: jax.Array) -> jax.Array:
    lengths_B, given_BT = (
      getattr(batch.lengths, name),
      getattr(sample.given, name),
    )
    counts_BT = diffusion.length_mask(lengths_B, data.shape[1])
    if sample.reference is not None:
      counts_BT &= ~sample.reference.covers(name, data.shape[1])
    return counts_BT if given_BT is None else counts_BT & ~given_BT

  return batch.latents.map(one)


def _references(batch: schema.Batch, sample: NoiseSample) -> AV[Any]:
  """The references of a batch, shown at time 0."""
  if sample.reference is None:
    return AV()
  place_BR, length_B = sample.reference
  latents_BTC = batch.latents.audio.astype(jnp.float32)
  place_BR = jnp.minimum(place_BR, latents_BTC.shape[1] - 1)
  latents_BRC = jnp.take_along_axis(latents_BTC, place_BR[..., None], 1)
  given_BR = jnp.ones(place_BR.shape, bool)
  return AV(audio=reference_lib.Reference(latents_BRC, given_BR, length_B))


def losses(
  model: fusion.FusionDiT,
  params: Any,
  batch: schema.Batch,
  sample: NoiseSample,
  null_SE: jax.Array,
) -> AV[jax.Array]:
  """loss_B of each modality at given times and noise.

  Args:
    model: the denoiser.
    params: its parameters, nested.
    batch: latents, lengths and prompts.
    sample: see `NoiseSample`.
    null_SE: embedding of the empty prompt, S at most that of the batch.
  """
  x, t_BT, target, text = {}, {}, {}, {}
  for name, data in batch.latents.present().items():
    sigma_BT = getattr(sample.sigma, name)[:, None]
    noise = getattr(sample.noise, name)
    t_BT[name] = diffusion.TIME_SCALE * sigma_BT
    given_BT = getattr(sample.given, name)
    if given_BT is not None:
      sigma_BT = jnp.where(given_BT, 0.0, sigma_BT)
    x[name] = diffusion.interpolate(data, noise, sigma_BT)
    target[name] = diffusion.velocity(data, noise)
    prompt_BSE = getattr(batch.text, name)
    missing = prompt_BSE.shape[1] - null_SE.shape[0]
    empty_SE = jnp.pad(null_SE, ((0, missing), (0, 0)))
    dropped_B = getattr(sample.dropped, name)[:, None, None]
    text[name] = jnp.where(dropped_B, empty_SE[None], prompt_BSE)
  prediction: Any = model.apply(
    {"params": params},
    AV(**x),
    AV(**t_BT),
    AV(**text),
    lengths=batch.lengths,
    given_BT=sample.given,
    references=_references(batch, sample),
  )
  return loss_masks(batch, sample).map(
    lambda name, counts_BT: diffusion.masked_mse(
      getattr(prediction, name), target[name], counts_BT
    )
  )
