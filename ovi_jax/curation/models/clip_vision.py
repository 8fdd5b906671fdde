"""CLIP's vision tower: from an image to a normalized embedding.

A vision transformer with a norm before its first block, QuickGELU, and a
projection of the class token into the shared image-text space.
(arXiv 2103.00020; names and sizes of `openai/clip-vit-large-patch14` in the
Transformers library.) All computation is float32.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from PIL import Image

from ovi_jax.convert import mapping
from ovi_jax.convert import reader

# RGB statistics of CLIP's training images, in [0, 1].
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_TOWER = ("vision_model.", "visual_projection.")
_EPSILON = 1e-5  # of the norms
_HEAD_DIM = 64  # head size of every CLIP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes; defaults are those of ViT-L/14.

  Attributes:
    image_size: side of the square input, pixels.
    patch_size: side of a patch, pixels.
    hidden_dim: width of the residual stream.
    mlp_dim: hidden width of an MLP.
    num_layers: transformer blocks.
    num_heads: attention heads.
    projection_dim: size of the embedding.
  """

  image_size: int = 224
  patch_size: int = 14
  hidden_dim: int = 1024
  mlp_dim: int = 4096
  num_layers: int = 24
  num_heads: int = 16
  projection_dim: int = 768

  def __post_init__(self):
    if self.image_size % self.patch_size or self.hidden_dim % self.num_heads:
      raise ValueError(
        "CLIP: expected image_size divisible by patch_size and hidden_dim by"
        f" num_heads, got {self}"
      )


class Block(nn.Module):
  """A pre-norm transformer block."""

  config: Config

  @nn.compact
  def __call__(self, x_BLD):
    config = self.config
    x = nn.LayerNorm(_EPSILON, name="norm_1")(x_BLD)
    q, k, v = (
      einops.rearrange(
        nn.Dense(config.hidden_dim, name=name)(x),
        "B L (N K) -> B L N K",
        N=config.num_heads,
      )
      for name in ("q", "k", "v")
    )
    scores = jnp.einsum("BLNK,BSNK->BNLS", q, k) * q.shape[-1] ** -0.5
    mixed = jnp.einsum("BNLS,BSNK->BLNK", jax.nn.softmax(scores), v)
    mixed = einops.rearrange(mixed, "B L N K -> B L (N K)")
    x_BLD = x_BLD + nn.Dense(config.hidden_dim, name="out")(mixed)
    x = nn.LayerNorm(_EPSILON, name="norm_2")(x_BLD)
    x = nn.Dense(config.mlp_dim, name="up")(x)
    x = x * jax.nn.sigmoid(1.702 * x)
    return x_BLD + nn.Dense(config.hidden_dim, name="down")(x), None


class VisionTower(nn.Module):
  """The network; see the module."""

  config: Config

  @nn.compact
  def __call__(self, pictures_BHWC):
    """Images of `preprocess` -> normalized embeddings_BC."""
    config = self.config
    init = nn.initializers.normal(0.02)
    kernel = self.param(
      "patches",
      init,
      (config.patch_size, config.patch_size, 3, config.hidden_dim),
    )
    tokens = lax.conv_general_dilated(
      pictures_BHWC,
      kernel,
      (config.patch_size, config.patch_size),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    tokens = einops.rearrange(tokens, "B H W D -> B (H W) D")
    first = self.param("class", init, (config.hidden_dim,))
    first = jnp.broadcast_to(first, (tokens.shape[0], 1, config.hidden_dim))
    x = jnp.concatenate([first, tokens], 1)
    position = self.param("position", init, x.shape[1:])
    x = nn.LayerNorm(_EPSILON, name="norm_in")(x + position[None])
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=config.num_layers,
    )
    x, _ = blocks(config, name="blocks")(x)
    x = nn.LayerNorm(_EPSILON, name="norm_out")(x[:, 0])
    x = nn.Dense(config.projection_dim, use_bias=False, name="projection")(x)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def preprocess(frames_THWC: np.ndarray, side: int) -> np.ndarray:
  """CLIP preprocessing: bicubic resize, centre crop, normalization.

  Args:
    frames_THWC: uint8 RGB.
    side: side of the square, pixels.

  Returns:
    pictures_BHWC, float32.
  """
  pictures = []
  for frame_HWC in frames_THWC:
    rows, columns, _ = frame_HWC.shape
    scale = side / min(rows, columns)
    size = max(side, int(columns * scale)), max(side, int(rows * scale))
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = image.crop((left, top, left + side, top + side))
    pictures.append(np.asarray(square, np.float32) / 255)
  return (np.stack(pictures) - MEAN) / STD


def rows(config: Config) -> list[mapping.Row]:
  """The table of the release's image tower."""
  torch, layer = "vision_model", "vision_model.encoder.layers.{}"
  linears = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "out",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
  }
  patches = mapping.Rearrange("o i h w -> h w i o")
  table = [
    mapping.Row(f"{torch}.embeddings.class_embedding", "class"),
    mapping.Row(
      f"{torch}.embeddings.patch_embedding.weight", "patches", patches
    ),
    mapping.Row(f"{torch}.embeddings.position_embedding.weight", "position"),
    # Spelled like this in the release.
    *mapping.norm(f"{torch}.pre_layrnorm", "norm_in"),
    *mapping.norm(f"{torch}.post_layernorm", "norm_out"),
    mapping.Row(
      "visual_projection.weight",
      "projection/kernel",
      mapping.Rearrange("o i -> i o"),
    ),
  ]
  for number in (1, 2):
    names = f"{layer}.layer_norm{number}", f"blocks/norm_{number}"
    table += mapping.norm(*names, config.num_layers)
  for theirs, ours in linears.items():
    names = f"{layer}.{theirs}", f"blocks/{ours}"
    table += mapping.linear(*names, config.num_layers)
  return table


def shapes(config: Config) -> Mapping[str, tuple[int, ...]]:
  """Shape of every parameter by path."""
  picture = jax.ShapeDtypeStruct(
    (1, config.image_size, config.image_size, 3), jnp.float32
  )
  tree = jax.eval_shape(VisionTower(config).init, jax.random.key(0), picture)
  flat = mapping.flatten(tree["params"])
  return {path: leaf.shape for path, leaf in flat.items()}


def read(path: str | os.PathLike[str]) -> tuple[Config, Mapping[str, Any]]:
  """Sizes and parameters in a file of all of CLIP, or of its image tower.

  Raises:
    ValueError: it is missing, damaged, or of another network.
  """
  file = reader.open_tensors(path)
  # The release also contains the text tower and position ids.
  found = {
    name: span.shape
    for name, span in file.spans.items()
    if name.startswith(_TOWER) and not name.endswith(".position_ids")
  }
  config = _sizes(path, found)
  table = rows(config)
  mapping.check(table, found, shapes(config))
  params = mapping.gather(table, file.read)
  # A release may be in half precision.
  full = {p: a.astype(np.float32) for p, a in params.items()}
  return config, mapping.nest(full)


def _sizes(
  path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]
) -> Config:
  """The sizes implied by tensor shapes."""
  part = "vision_model.embeddings"
  layer = "vision_model.encoder.layers.{}.mlp.fc1.weight"
  try:
    width, _, patch, _ = shapes[f"{part}.patch_embedding.weight"]
    positions, _ = shapes[f"{part}.position_embedding.weight"]
    feed_forward, _ = shapes[layer.format(0)]
    projection, _ = shapes["visual_projection.weight"]
  except (KeyError, ValueError) as error:
    raise ValueError(
      f"{path}: expected the image tower of CLIP as the Transformers library"
      f" writes it, with its projection; {error} is missing or misshapen"
    ) from error
  return Config(
    image_size=patch * math.isqrt(positions - 1),
    patch_size=patch,
    hidden_dim=width,
    mlp_dim=feed_forward,
    num_layers=sum(layer.format(n) in shapes for n in range(len(shapes))),
    num_heads=max(1, width // _HEAD_DIM),
    projection_dim=projection,
  )
