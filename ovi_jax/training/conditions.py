"""Latents that are given in training, drawn for each example.

Given latents stay clean, at time 0, and have no loss. The masks are those of
sampling (`sampling.conditions`): a first or last frame, a prefix (a clip that
is continued), all of a modality (the other is generated), or a random span. A
kind is drawn once for both modalities, so that equal probabilities give, for
instance, a prefix of video with the sound that belongs to it; all of video and
all of sound are never given together. Kinds are drawn independently of each
other, and what is given is the union. Nothing is given of an example of which
that would leave no latent to generate.

A reference is a random span of the example's own sound, which is appended to
it (see `models.reference`). The latents that hold its content have no loss
where they stand in the example, because they could be copied: those of the
span, the audio latents beside it that share samples with it (receptive field of
the VAE), and the video latents of its time. That limits the leak, it does not
close it: a reference from the same clip also tells what is said outside the
span, as far as the clip repeats it or goes on with it, and how it was recorded.
References from another clip of the same speaker would need a field of their own
in the records.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import geometry
from ovi_jax.modality import AV
from ovi_jax.sampling import conditions as sampling_conditions

_EPSILON = 1e-4  # seconds; float32
_MAX_SHARE = 2 / 3  # of an example's sound that is its reference, at most
# Latents on either side of a reference that have no loss either.
_BESIDE = AV(video=1, audio=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionProbs:
  """Fraction of examples of which latents of one modality are given.

  Attributes:
    first_frame_prob: the first latent frame (image-to-video).
    last_frame_prob: the last latent frame.
    prefix_prob: the latents of the first seconds, see
      `ConditionsConfig.prefix_seconds`.
    whole_prob: all latents; the other modality is generated.
    span_prob: the latents between two times, uniform over the example.
    reference_prob: a span of the sound, appended to it; see
      `ConditionsConfig.reference_seconds`.
  """

  first_frame_prob: float = 0.0
  last_frame_prob: float = 0.0
  prefix_prob: float = 0.0
  whole_prob: float = 0.0
  span_prob: float = 0.0
  reference_prob: float = 0.0

  @property
  def any(self) -> bool:
    """Whether latents are given of some examples."""
    return any(dataclasses.asdict(self).values())


NEVER = ConditionProbs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionsConfig:
  """What is given in training.

  Attributes:
    video: probabilities of video.
    audio: probabilities of audio, which has no frames.
    prefix_seconds: shortest and longest prefix; its length is uniform.
    reference_seconds: likewise, of a reference.
  """

  video: ConditionProbs = NEVER
  audio: ConditionProbs = NEVER
  prefix_seconds: tuple[float, float] = (0.1, 2.0)
  reference_seconds: tuple[float, float] = (1.0, 3.0)

  def __post_init__(self):
    problems = [
      f"objective.conditions.{name}.{kind} must be a probability in [0, 1],"
      f" got {prob}"
      for name in AV._fields
      for kind, prob in dataclasses.asdict(getattr(self, name)).items()
      if not 0 <= prob <= 1
    ]
    if self.audio.first_frame_prob or self.audio.last_frame_prob:
      problems.append(
        "objective.conditions.audio has no frames: set first_frame_prob"
        " and last_frame_prob to 0"
      )
    if self.video.reference_prob:
      problems.append(
        "objective.conditions.video has no reference: a reference is of a"
        " voice; set reference_prob to 0"
      )
    if self.video.whole_prob + self.audio.whole_prob > 1:
      problems.append(
        "objective.conditions: `whole_prob` of video and of audio exclude each"
        " other, so their sum is at most 1, got"
        f" {self.video.whole_prob + self.audio.whole_prob:g}"
      )
    lengths = self.prefix_seconds
    pair = len(lengths) == 2
    if not (pair and 1 / geometry.FPS <= lengths[0] <= lengths[1]):
      problems.append(
        "objective.conditions.prefix_seconds: expected the shortest and the"
        f" longest prefix, from one frame on, got {self.prefix_seconds}"
      )
    lengths = self.reference_seconds
    shortest = 1 / geometry.AUDIO_LATENT_RATE
    if len(lengths) != 2 or not shortest <= lengths[0] <= lengths[1]:
      problems.append(
        "objective.conditions.reference_seconds: expected the shortest and the"
        f" longest reference, from one latent ({shortest:g} s) on, got"
        f" {self.reference_seconds}"
      )
    if problems:
      raise ValueError("; ".join(problems))

  def problems(self, towers: AV[Any]) -> list[str]:
    """What the towers of a model cannot be trained with."""
    present = towers.present()
    problems = []
    for name in AV._fields:
      probs: ConditionProbs = getattr(self, name)
      if probs.any and name not in present:
        problems.append(
          f"objective.conditions.{name}: the model has no {name} tower; set all"
          " to 0"
        )
      elif probs.whole_prob and len(present) == 1:
        problems.append(
          f"objective.conditions.{name}.whole_prob: the model has no other"
          " tower to generate; set it to 0"
        )
    return problems

  @property
  def reference_latents(self) -> tuple[int, int]:
    """Audio latents of the shortest and the longest reference."""
    shortest, longest = (
      int(seconds * geometry.AUDIO_LATENT_RATE + _EPSILON)
      for seconds in self.reference_seconds
    )
    return shortest, longest

  @property
  def more_than_first_frames(self) -> bool:
    """Whether other latents are given than the first of video."""
    video = dataclasses.replace(self.video, first_frame_prob=0.0)
    return video.any or self.audio.any


def sample(
  config: ConditionsConfig,
  key: jax.Array,
  sizes: Mapping[str, int],
  lengths: AV[jax.Array],
  reference: "Reference | None" = None,
) -> AV[Any]:
  """Draw what is given of one example.

  Args:
    config: probabilities.
    key: of this example and use.
    sizes: latents in time of each modality that is present, with padding.
    lengths: how many of them are valid, scalars.
    reference: that of the example, if any have one.

  Returns:
    given_T, bool, of each modality; `None` for one of which latents are never
    given. A valid latent of some modality, with a loss, is always left to
    generate.
  """

  def uniform(number: int, shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, number), shape)

  last_u, prefix_u, whole_u, span_u = (uniform(number) for number in range(4))
  shortest, longest = config.prefix_seconds
  prefix = shortest + (longest - shortest) * uniform(4)
  ends = AV(
    video=lambda n: (1 + geometry.VIDEO_STRIDES[0] * (n - 1)) / geometry.FPS,
    audio=lambda n: n / geometry.AUDIO_LATENT_RATE,
  )
  seconds = [getattr(ends, name)(getattr(lengths, name)) for name in sizes]
  span = jnp.sort(uniform(5, (2,))) * jnp.stack(seconds).max()
  spans_of = AV(
    video=sampling_conditions.video_spans,
    audio=sampling_conditions.audio_spans,
  )

  def one(name: str, count: int) -> jax.Array:
    probs: ConditionProbs = getattr(config, name)
    starts_T, ends_T = getattr(spans_of, name)(count).astype(np.float32).T
    places_T, length = jnp.arange(count), getattr(lengths, name)

    def within(start: jax.Array | float, end: jax.Array) -> jax.Array:
      return (starts_T >= start - _EPSILON) & (ends_T <= end + _EPSILON)

    is_whole = whole_u < probs.whole_prob
    if name == "audio":
      is_whole = whole_u >= 1 - probs.whole_prob
    given_T = jax.random.bernoulli(key, probs.first_frame_prob) & (
      places_T == 0
    )
    given_T |= (last_u < probs.last_frame_prob) & (places_T == length - 1)
    given_T |= (prefix_u < probs.prefix_prob) & within(0.0, prefix)
    given_T |= (span_u < probs.span_prob) & within(span[0], span[1])
    return (given_T | is_whole) & (places_T < length)

  given = {
    name: one(name, count)
    for name, count in sizes.items()
    if getattr(config, name).any
  }

  def some_loss(name: str, count: int) -> jax.Array:
    counts_T = jnp.arange(count) < getattr(lengths, name)
    if name in given:
      counts_T &= ~given[name]
    if reference is not None:
      counts_T &= ~reference.covers(name, count)
    return counts_T.any()

  some_left = jnp.stack([some_loss(*size) for size in sizes.items()]).any()
  return AV(**{name: mask_T & some_left for name, mask_T in given.items()})


class Reference(NamedTuple):
  """A span of an example's sound that is its reference, or one of a batch.

  Attributes:
    place_R: which latents they are, one after another, as many as the longest
      reference has.
    length: how many of them count; 0 for none.
  """

  place_R: jax.Array
  length: jax.Array

  def covers(self, name: str, count: int) -> jax.Array:
    """Which latents of a modality have no loss because of the reference.

    Args:
      name: of the modality.
      count: its latents in time.

    Returns:
      bool [..., count]: those whose time overlaps the span, and the ones beside
      them; none if the reference has length 0.
    """
    begin = self.place_R[..., :1]
    end = begin + self.length[..., None]
    places_T, beside = np.arange(count), getattr(_BESIDE, name)
    starts_T, ends_T = places_T, places_T + 1
    if name == "video":
      spans = sampling_conditions.video_spans(count).astype(np.float32)
      starts_T, ends_T = spans.T * geometry.AUDIO_LATENT_RATE
    axes = (1,) * (begin.ndim - 1) + (-1,)
    places_T, starts_T, ends_T = (
      x_T.reshape(axes) for x_T in (places_T, starts_T, ends_T)
    )
    # The latents are in the order of time, so the covered ones are neighbours.
    before = (ends_T <= begin + _EPSILON).sum(-1, keepdims=True)
    until = (starts_T < end - _EPSILON).sum(-1, keepdims=True)
    covered = (places_T >= before - beside) & (places_T < until + beside)
    return covered & (self.length[..., None] > 0)


def sample_reference(
  config: ConditionsConfig, key: jax.Array, length: jax.Array
) -> Reference | None:
  """Draw the reference of one example.

  Args:
    config: probabilities.
    key: of this example and use, as of `sample`.
    length: valid audio latents, a scalar.

  Returns:
    The span; of length 0 for an example without reference, or one that is too
    short for it, as some of its sound keeps its loss. `None` if no example has
    one.
  """
  share = config.audio.reference_prob
  if not share:
    return None
  chosen, size_u, start_u = (
    jax.random.uniform(jax.random.fold_in(key, number)) for number in (6, 7, 8)
  )
  shortest, longest = config.reference_latents
  most = jnp.minimum(longest, (_MAX_SHARE * length).astype(jnp.int32))
  most = jnp.minimum(most, length - 2 * _BESIDE.audio - 1)
  count = shortest + (size_u * (longest - shortest + 1)).astype(jnp.int32)
  count = jnp.minimum(count, most)
  count = jnp.where((chosen < share) & (most >= shortest), count, 0)
  start = (start_u * (length - count + 1)).astype(jnp.int32)
  return Reference(start + jnp.arange(longest), count)
