"""MTCNN: a cascade of three small networks for face detection.

Inputs are RGB, (pixel - 127.5) / 128: of any size for the first network,
24 x 24 for the second, 48 x 48 for the third. Outputs are a face probability
and the bounding box regression (left, top, right, bottom) relative to the box
size. (Zhang et al., 2016; weights and layers as in the package facenet-pytorch,
MIT.)
All computation is float32 at the highest matmul precision.
"""

import importlib.util
import pathlib
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ovi_jax.convert import mapping
from ovi_jax.convert import reader
from ovi_jax.convert.mapping import Rearrange
from ovi_jax.convert.mapping import Row

PROPOSE, REFINE, OUTPUT = "pnet", "rnet", "onet"
SIDES = {PROPOSE: 12, REFINE: 24, OUTPUT: 48}
_PACKAGE = "facenet_pytorch"
_PRECISION = jax.lax.Precision.HIGHEST
_CONV = Rearrange("o i h w -> h w i o")


class _PReLU(nn.Module):
  """PReLU with a slope per channel."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:])
    slope = slope.reshape((1,) * (x.ndim - 1) + slope.shape)
    return jnp.where(x >= 0, x, slope * x)


def _conv(
  x: jax.Array, number: int, channels: int, kernel: int = 3
) -> jax.Array:
  """A convolution without padding, and PReLU."""
  x = _only_conv(x, f"conv_{number}", channels, kernel)
  return _PReLU(name=f"rectifier_{number}")(x)


def _only_conv(
  x: jax.Array, name: str, channels: int, kernel: int
) -> jax.Array:
  return nn.Conv(
    channels,
    (kernel, kernel),
    padding="VALID",
    precision=_PRECISION,
    name=name,
  )(x)


def _dense(x: jax.Array, name: str, width: int) -> jax.Array:
  return nn.Dense(width, precision=_PRECISION, name=name)(x)


def _pool(x: jax.Array, size: int) -> jax.Array:
  """Max pooling with stride 2 and ceil mode."""
  # Any: flax says that padding is text, and takes numbers.
  pads: Any = tuple((0, -(n - size) % 2) for n in x.shape[1:3])
  return nn.max_pool(x, (size, size), (2, 2), pads)


class Propose(nn.Module):
  """P-Net: fully convolutional, receptive field 12 x 12, stride 2."""

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns: probability [B, H', W'] and sides [B, H', W', 4]."""
    x = _pool(_conv(x_BHWC, 1, 10), 2)
    x = _conv(_conv(x, 2, 16), 3, 32)
    face = nn.softmax(_only_conv(x, "face", 2, 1))[..., 1]
    return face, _only_conv(x, "sides", 4, 1)


class Refine(nn.Module):
  """R-Net, for candidates of 24 x 24."""

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns: probability [B] and sides [B, 4]."""
    x = _pool(_conv(x_BHWC, 1, 28), 3)
    x = _pool(_conv(x, 2, 48), 3)
    x = einops.rearrange(_conv(x, 3, 64, 2), "B H W C -> B (W H C)")
    x = _PReLU(name="rectifier_4")(_dense(x, "dense_4", 128))
    return nn.softmax(_dense(x, "face", 2))[..., 1], _dense(x, "sides", 4)


class Output(nn.Module):
  """O-Net, for candidates of 48 x 48."""

  @nn.compact
  def __call__(
    self, x_BHWC: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns: probability [B], sides [B, 4], and landmarks [B, 10].

    Landmarks are relative to the box size: five x, then five y.
    """
    x = _pool(_conv(x_BHWC, 1, 32), 3)
    x = _pool(_conv(x, 2, 64), 3)
    x = _pool(_conv(x, 3, 64), 2)
    x = einops.rearrange(_conv(x, 4, 128, 2), "B H W C -> B (W H C)")
    x = _PReLU(name="rectifier_5")(_dense(x, "dense_5", 256))
    face = nn.softmax(_dense(x, "face", 2))[..., 1]
    return face, _dense(x, "sides", 4), _dense(x, "landmarks", 10)


NETWORKS: dict[str, nn.Module] = {
  PROPOSE: Propose(),
  REFINE: Refine(),
  OUTPUT: Output(),
}
# The torch names of convolutions, of dense layers, and of the outputs.
_NAMES = {
  PROPOSE: (3, (), {"conv4_1": "face", "conv4_2": "sides"}),
  REFINE: (3, (4,), {"dense5_1": "face", "dense5_2": "sides"}),
  OUTPUT: (
    4,
    (5,),
    {"dense6_1": "face", "dense6_2": "sides", "dense6_3": "landmarks"},
  ),
}


def rows(name: str) -> list[Row]:
  """The table of a network's file."""
  convs, denses, outputs = _NAMES[name]
  table: list[Row] = []
  for number in range(1, convs + 1):
    table += _conv_rows(f"conv{number}", f"conv_{number}")
  for number in denses:
    table += mapping.linear(f"dense{number}", f"dense_{number}")
  for number in [*range(1, convs + 1), *denses]:
    table.append(Row(f"prelu{number}.weight", f"rectifier_{number}/slope"))
  for theirs, ours in outputs.items():
    make = _conv_rows if name == PROPOSE else mapping.linear
    table += make(theirs, ours)
  return table


def _conv_rows(torch: str, ours: str) -> list[Row]:
  return [
    Row(f"{torch}.weight", f"{ours}/kernel", _CONV),
    Row(f"{torch}.bias", f"{ours}/bias"),
  ]


def shapes(name: str) -> dict[str, Any]:
  """Shape of every parameter of a network, nested."""
  side = SIDES[name]
  picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  key = jax.random.key(0)
  return jax.eval_shape(NETWORKS[name].init, key, picture)["params"]


def files(folder: str = "") -> dict[str, pathlib.Path]:
  """Paths of the weights, by network.

  Args:
    folder: with pnet.pt, rnet.pt and onet.pt; "" for those of the package
      facenet-pytorch, if it is installed (it is not imported).

  Raises:
    ValueError: the package or a file is missing.
  """
  place = pathlib.Path(folder) if folder else _package_folder()
  paths = {name: place / f"{name}.pt" for name in NETWORKS}
  for path in paths.values():
    if not path.is_file():
      raise ValueError(f"expected MTCNN's weights at {path}, found no file")
  return paths


def load(folder: str = "") -> dict[str, dict[str, Any]]:
  """Read the weights.

  Args:
    folder: as of `files`.

  Returns:
    Variables by network, float32.

  Raises:
    ValueError: a file is missing, damaged, or of another network.
  """
  read: dict[str, dict[str, Any]] = {}
  for name, path in files(folder).items():
    tensors = reader.open_tensors(path)
    wanted = mapping.flatten(shapes(name))
    try:
      mapping.check(
        rows(name), tensors.shapes, {p: x.shape for p, x in wanted.items()}
      )
    except ValueError as error:
      raise ValueError(f"{path} is not MTCNN's: {error}") from error
    flat = mapping.gather(rows(name), tensors.read)
    typed = {p: np.asarray(x, np.float32) for p, x in flat.items()}
    read[name] = {"params": mapping.nest(typed)}
  return read


def _package_folder() -> pathlib.Path:
  """Folder of the package's weights."""
  found = importlib.util.find_spec(_PACKAGE)
  if found is None or not found.submodule_search_locations:
    raise ValueError(
      "expected MTCNN's weights; install them without torch by pip install"
      " --no-deps facenet-pytorch, or name the folder of pnet.pt, rnet.pt and"
      " onet.pt"
    )
  return pathlib.Path(next(iter(found.submodule_search_locations))) / "data"
