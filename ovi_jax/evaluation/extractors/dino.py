"""DINO's vision transformer (Caron et al., 2021) in Flax, as in VBench.

Frames are resized bilinearly, without antialiasing, to a shorter side of 224
pixels and not cropped. The embeddings of positions, of a square, are
interpolated bicubically to the patches of other sizes. Pre-norm blocks with
exact GELU; the output is the class token after the last norm. Array: `frames`
[T, width], not normalized. float32.

Weights: the backbone of facebookresearch/dino, of any of its vision
transformers (VBench: `dino_vitbase16_pretrain.pth`), or the same names in a
safetensors file.
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

from ovi_jax.convert import mapping
from ovi_jax.convert import reader
from ovi_jax.evaluation import features
from ovi_jax.evaluation.extractors import frames
from ovi_jax.media import container

SIDE = 224  # pixels of the shorter side
# RGB statistics of ImageNet, in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
_HEAD_DIM = 64  # of every size
_EPSILON = 1e-6  # of the norms
# Added to the number of patches before the scale is computed, as in DINO.
_EXTRA = 0.1
_CUBIC = -0.75  # PyTorch's parameter of the bicubic kernel
_PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class DinoConfig:
  """Sizes; defaults are those of ViT-B/16.

  Attributes:
    patch_size: side of a patch, pixels.
    trained_patches: patches along a side of the images of its training.
    hidden_dim: width of the residual stream.
    mlp_dim: hidden width of an MLP.
    num_layers: transformer blocks.
    num_heads: attention heads.
  """

  patch_size: int = 16
  trained_patches: int = 14
  hidden_dim: int = 768
  mlp_dim: int = 3072
  num_layers: int = 12
  num_heads: int = 12


class Block(nn.Module):
  """A pre-norm transformer block."""

  config: DinoConfig

  @nn.compact
  def __call__(self, x_BLD):
    config = self.config

    def dense(width: int, name: str) -> nn.Dense:
      return nn.Dense(width, precision=_PRECISION, name=name)

    x = nn.LayerNorm(_EPSILON, name="norm_1")(x_BLD)
    q, k, v = einops.rearrange(
      dense(3 * config.hidden_dim, "qkv")(x),
      "B L (P N K) -> P B L N K",
      P=3,
      N=config.num_heads,
    )
    scores = jnp.einsum("BLNK,BSNK->BNLS", q, k, precision=_PRECISION)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5)
    mixed = jnp.einsum("BNLS,BSNK->BLNK", weights, v, precision=_PRECISION)
    mixed = einops.rearrange(mixed, "B L N K -> B L (N K)")
    x_BLD = x_BLD + dense(config.hidden_dim, "out")(mixed)
    x = nn.LayerNorm(_EPSILON, name="norm_2")(x_BLD)
    x = jax.nn.gelu(dense(config.mlp_dim, "up")(x), approximate=False)
    return x_BLD + dense(config.hidden_dim, "down")(x), None


class Dino(nn.Module):
  """The network."""

  config: DinoConfig

  @nn.compact
  def __call__(self, pictures_BHWC: jax.Array) -> jax.Array:
    """Class tokens [B, width] of normalized pictures of any size."""
    config = self.config
    init = nn.initializers.normal(0.02)
    patch = (config.patch_size, config.patch_size)
    x = nn.Conv(
      config.hidden_dim,
      patch,
      patch,
      padding="VALID",
      precision=_PRECISION,
      name="patches",
    )(pictures_BHWC)
    rows, columns = x.shape[1:3]
    x = einops.rearrange(x, "B H W D -> B (H W) D")
    first = self.param("class", init, (config.hidden_dim,))
    first = jnp.broadcast_to(first, (len(x), 1, config.hidden_dim))
    position_LD = self.param(
      "position", init, (config.trained_patches**2 + 1, config.hidden_dim)
    )
    height, width = pictures_BHWC.shape[1:3]
    trained = rows * columns == config.trained_patches**2 and height == width
    if not trained:
      position_LD = _interpolate(position_LD, rows, columns)
    x = jnp.concatenate([first, x], 1) + position_LD[None]
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=config.num_layers,
    )
    x, _ = blocks(config, name="blocks")(x)
    return nn.LayerNorm(_EPSILON, name="norm")(x[:, 0])


def _interpolate(position_LD: jax.Array, rows: int, columns: int) -> jax.Array:
  """Positions of the class token and of rows x columns patches."""
  side = math.isqrt(len(position_LD) - 1)
  grid_HWD = position_LD[1:].reshape(side, side, -1)
  along_H, along_W = (_bicubic(side, count) for count in (rows, columns))
  scaled = jnp.einsum(
    "ih,jw,hwd->ijd", along_H, along_W, grid_HWD, precision=_PRECISION
  )
  return jnp.concatenate([position_LD[:1], scaled.reshape(rows * columns, -1)])


def _bicubic(size: int, count: int) -> np.ndarray:
  """Weights [count, size] of PyTorch's interpolation along an axis."""
  scale = size / (count + _EXTRA)
  places = scale * (np.arange(count) + 0.5) - 0.5
  weights = np.zeros((count, size))
  for row, place in enumerate(places):
    start = math.floor(place)
    for tap in range(start - 1, start + 3):
      # Taps outside repeat the border.
      weights[row, min(max(tap, 0), size - 1)] += _kernel(abs(place - tap))
  return weights.astype(np.float32)


def _kernel(x: float) -> float:
  """The cubic convolution kernel (Keys, 1981) at a distance below 2."""
  a = _CUBIC
  if x <= 1:
    return (a + 2) * x**3 - (a + 3) * x**2 + 1
  return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a


def preprocess(frames_THWC: np.ndarray, side: int = SIDE) -> np.ndarray:
  """Resize and normalize frames.

  Args:
    frames_THWC: uint8 RGB.
    side: length of the shorter side of the result, pixels.

  Returns:
    pictures_THWC, float32.
  """
  height, width = frames_THWC.shape[1:3]
  shorter = min(height, width)
  rows, columns = (int(side * size / shorter) for size in (height, width))
  pictures = frames_THWC.astype(np.float32)
  for axis, count in ((1, rows), (2, columns)):
    pictures = _bilinear(pictures, axis, count)
  return (pictures / 255 - MEAN) / STD


def _bilinear(array: np.ndarray, axis: int, count: int) -> np.ndarray:
  """Resize an axis by PyTorch's rule, without antialiasing."""
  size = array.shape[axis]
  places = (np.arange(count) + 0.5) * (size / count) - 0.5
  places = np.clip(places, 0, size - 1)
  low = np.floor(places).astype(int)
  shape = [1] * array.ndim
  shape[axis] = count
  share = (places - low).reshape(shape).astype(np.float32)
  after = array.take(np.minimum(low + 1, size - 1), axis)
  return array.take(low, axis) * (1 - share) + after * share


def rows(config: DinoConfig) -> list[mapping.Row]:
  """The table of the public files."""
  layer = "blocks.{}"
  table = [
    mapping.Row("cls_token", "class", mapping.Rearrange("1 1 d -> d")),
    mapping.Row("pos_embed", "position", mapping.Rearrange("1 l d -> l d")),
    *mapping.affine(
      "patch_embed.proj", "patches", mapping.Rearrange("o i h w -> h w i o")
    ),
    *mapping.norm("norm", "norm"),
  ]
  for number in (1, 2):
    names = f"{layer}.norm{number}", f"blocks/norm_{number}"
    table += mapping.norm(*names, config.num_layers)
  linears = {
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
  }
  for theirs, ours in linears.items():
    names = f"{layer}.{theirs}", f"blocks/{ours}"
    table += mapping.linear(*names, config.num_layers)
  return table


def shapes(config: DinoConfig) -> Mapping[str, tuple[int, ...]]:
  """Shape of every parameter by path."""
  side = config.patch_size * config.trained_patches
  picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  tree = jax.eval_shape(Dino(config).init, jax.random.key(0), picture)
  flat = mapping.flatten(tree["params"])
  return {path: leaf.shape for path, leaf in flat.items()}


def read_weights(
  path: str | os.PathLike[str],
) -> tuple[DinoConfig, Mapping[str, Any]]:
  """Sizes and parameters of a file.

  Raises:
    ValueError: it is missing, damaged, or of another network.
  """
  tensors = reader.open_tensors(path)
  config = _sizes(path, tensors.shapes)
  table = rows(config)
  try:
    mapping.check(table, tensors.shapes, shapes(config))
  except ValueError as error:
    raise ValueError(f"{path} is no DINO: {error}") from error
  params = mapping.gather(table, tensors.read)
  full = {name: np.asarray(x, np.float32) for name, x in params.items()}
  return config, mapping.nest(full)


def _sizes(
  path: str | os.PathLike[str], found: Mapping[str, tuple[int, ...]]
) -> DinoConfig:
  """The sizes implied by tensor shapes."""
  layer = "blocks.{}.mlp.fc1.weight"
  try:
    width, _, patch, _ = found["patch_embed.proj.weight"]
    _, positions, _ = found["pos_embed"]
    mlp_dim, _ = found[layer.format(0)]
  except (KeyError, ValueError) as error:
    raise ValueError(
      f"{path} is no DINO: expected the backbone of a vision transformer of"
      f" facebookresearch/dino; {error} is missing or misshapen"
    ) from error
  return DinoConfig(
    patch_size=patch,
    trained_patches=math.isqrt(max(0, positions - 1)),
    hidden_dim=width,
    mlp_dim=mlp_dim,
    num_layers=sum(layer.format(n) in found for n in range(len(found))),
    num_heads=max(1, width // _HEAD_DIM),
  )


def dino(path: str) -> features.Extractor:
  """The extractor.

  Args:
    path: of the weights; "" for none, then it is `missing`.

  Raises:
    ValueError: there is no such file.
  """
  missing = digest = ""
  if path:
    digest = container.digest(container.given("--weights=dino", path))
  else:
    missing = "needs DINO's weights: --weights=dino=FILE"
  return frames.extractor("dino", 1, digest, missing, lambda: _load(path))


def _load(path: str) -> frames.Embed:
  config, params = read_weights(path)
  params = jax.device_put(params)
  apply = jax.jit(Dino(config).apply)

  def embed(frames_THWC: np.ndarray) -> np.ndarray:
    pictures = frames.padded(preprocess(frames_THWC))
    return np.asarray(apply({"params": params}, pictures))

  return embed
