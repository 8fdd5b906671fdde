"""SyncNet: embeddings of lips and audio over a fifth of a second.

Inputs are five frames of a face (224 x 224, BGR, 0 to 255, not normalized) and
the corresponding 20 columns of 13 MFCC. The two embeddings are close if lips
and audio are in sync. (Chung and Zisserman, Out of time, 2016;
`SyncNetModel.py` of joonson/syncnet_python.)

All computation is float32 at the highest matmul precision, because unnormalized
pixels leave no precision to spare.
"""

import dataclasses
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

WINDOW = 5  # frames
STRIDE = 4  # MFCC columns per frame
COLUMNS = WINDOW * STRIDE
COEFFICIENTS = 13
SIDE = 224
_EPSILON = 1e-5
_PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncNetConfig:
  """Sizes; defaults are those of the public weights.

  Attributes:
    lip_channels: channels of the convolutions over frames.
    audio_channels: channels of the convolutions over MFCC.
    hidden_dim: width of the last hidden layer of both branches.
    embedding_dim: size of both embeddings.
  """

  lip_channels: tuple[int, ...] = (96, 256, 256, 256, 256, 512)
  audio_channels: tuple[int, ...] = (64, 192, 384, 256, 256, 512)
  hidden_dim: int = 512
  embedding_dim: int = 1024

  def __post_init__(self):
    sizes = (
      *self.lip_channels,
      *self.audio_channels,
      self.hidden_dim,
      self.embedding_dim,
    )
    if (
      len(self.lip_channels) != 6
      or len(self.audio_channels) != 6
      or min(sizes) < 1
    ):
      raise ValueError(
        "SyncNet needs six channels of lips, six of sound, a hidden and an"
        f" embedding size, all positive; got {self}"
      )

  @classmethod
  def narrow(cls, divisor: int) -> "SyncNetConfig":
    """The same layers with fewer channels.

    Args:
      divisor: divides the channels, not the embedding.
    """
    full = cls()
    return cls(
      lip_channels=tuple(n // divisor for n in full.lip_channels),
      audio_channels=tuple(n // divisor for n in full.audio_channels),
      hidden_dim=full.hidden_dim // divisor,
    )

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> "SyncNetConfig":
    """The config that `dataclasses.asdict` and JSON made `values` of."""
    lists = {k: tuple(values[k]) for k in ("lip_channels", "audio_channels")}
    return cls(**{**values, **lists})


class _Layer(nn.Module):
  """Convolution, batch norm and ReLU."""

  channels: int
  kernel: tuple[int, int]
  strides: int = 1
  padding: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, training: bool) -> jax.Array:
    x = nn.Conv(
      self.channels,
      self.kernel,
      self.strides,
      padding=self.padding,
      precision=_PRECISION,
      name="conv",
    )(x)
    return nn.relu(_norm("norm", training)(x))


class _FirstLayer(nn.Module):
  """The first layer, which also convolves over five frames."""

  channels: int

  @nn.compact
  def __call__(self, frames_BTHWC: jax.Array, training: bool) -> jax.Array:
    x = _WindowConv(self.channels, name="conv")(frames_BTHWC)
    return nn.relu(_norm("norm", training)(x))


class _WindowConv(nn.Module):
  """Convolution by 5 x 7 x 7 with strides 1, 2, 2."""

  channels: int

  @nn.compact
  def __call__(self, frames_BTHWC: jax.Array) -> jax.Array:
    shape = (WINDOW, 7, 7, 3, self.channels)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.channels,))
    windows = frames_BTHWC.shape[1] - WINDOW + 1
    # Frames as channels: 3D convolutions are slow on CPUs.
    parts = [frames_BTHWC[:, i : i + windows] for i in range(WINDOW)]
    x = jax.lax.conv_general_dilated(
      einops.rearrange(parts, "i B T H W C -> (B T) H W (i C)"),
      einops.rearrange(kernel, "i h w C o -> h w (i C) o"),
      window_strides=(2, 2),
      padding="VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=_PRECISION,
    )
    return x + bias[None, None, None]


class _Head(nn.Module):
  """The two dense layers after the convolutions."""

  hidden: int
  embedding: int

  @nn.compact
  def __call__(self, x: jax.Array, training: bool) -> jax.Array:
    x = nn.Dense(self.hidden, precision=_PRECISION, name="in")(x)
    x = nn.relu(_norm("norm", training)(x))
    return nn.Dense(self.embedding, precision=_PRECISION, name="out")(x)


def _norm(name: str, training: bool) -> nn.BatchNorm:
  return nn.BatchNorm(
    use_running_average=not training, momentum=0.9, epsilon=_EPSILON, name=name
  )


class _Lips(nn.Module):
  """Embeddings of all windows of five frames."""

  config: SyncNetConfig

  @nn.compact
  def __call__(self, frames_BTHWC: jax.Array, training: bool) -> jax.Array:
    config, batch = self.config, frames_BTHWC.shape[0]
    one, two, three, four, five, six = config.lip_channels
    x = frames_BTHWC.astype(jnp.float32)
    x = _FirstLayer(one, name="layer_0")(x, training)
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = _Layer(two, (5, 5), 2, 1, name="layer_1")(x, training)
    # Any: flax says that padding is text, and takes numbers.
    around: Any = ((1, 1), (1, 1))
    x = nn.max_pool(x, (3, 3), (2, 2), around)
    for number, channels in enumerate((three, four, five), 2):
      x = _Layer(channels, (3, 3), 1, 1, name=f"layer_{number}")(x, training)
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = _Layer(six, (6, 6), name="layer_5")(x, training)
    x = einops.rearrange(x, "(B T) 1 1 C -> (B T) C", B=batch)
    x = _Head(config.hidden_dim, config.embedding_dim, name="head")(x, training)
    return einops.rearrange(x, "(B T) C -> B T C", B=batch)


class _Sound(nn.Module):
  """Embeddings of windows of MFCC."""

  config: SyncNetConfig

  @nn.compact
  def __call__(self, windows_BTKM: jax.Array, training: bool) -> jax.Array:
    config, batch = self.config, windows_BTKM.shape[0]
    one, two, three, four, five, six = config.audio_channels
    x = windows_BTKM.astype(jnp.float32)
    x = einops.rearrange(x, "B T K M -> (B T) K M 1")
    x = _Layer(one, (3, 3), 1, 1, name="layer_0")(x, training)
    x = _Layer(two, (3, 3), 1, 1, name="layer_1")(x, training)
    x = nn.max_pool(x, (3, 3), (1, 2))
    for number, channels in enumerate((three, four, five), 2):
      x = _Layer(channels, (3, 3), 1, 1, name=f"layer_{number}")(x, training)
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = _Layer(six, (5, 4), name="layer_5")(x, training)
    x = einops.rearrange(x, "(B T) 1 1 C -> (B T) C", B=batch)
    x = _Head(config.hidden_dim, config.embedding_dim, name="head")(x, training)
    return einops.rearrange(x, "(B T) C -> B T C", B=batch)


class SyncNet(nn.Module):
  """Both branches."""

  config: SyncNetConfig

  def setup(self):
    self.lips = _Lips(self.config)
    self.sound = _Sound(self.config)

  def __call__(
    self,
    frames_BTHWC: jax.Array,
    windows_BTKM: jax.Array,
    training: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Embed frames and windows of audio.

    Args:
      frames_BTHWC: BGR, 0 to 255, [B, T + 4, 224, 224, 3].
      windows_BTKM: [B, n, 13, 20], coefficients by columns; n need not be T.
      training: use and update batch statistics.

    Returns:
      Embeddings [B, T, 1024] of frames t to t + 4, and [B, n, 1024].
    """
    return (
      self.lips(frames_BTHWC, training),
      self.sound(windows_BTKM, training),
    )


def shapes(config: SyncNetConfig) -> dict[str, Any]:
  """Abstract shape of every variable, nested."""
  frames = jax.ShapeDtypeStruct((1, WINDOW, SIDE, SIDE, 3), jnp.float32)
  windows = jax.ShapeDtypeStruct((1, 1, COEFFICIENTS, COLUMNS), jnp.float32)
  key = jax.random.key(0)
  return jax.eval_shape(SyncNet(config).init, key, frames, windows)
