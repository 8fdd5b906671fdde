"""Names of the audio VAE."""

import numpy as np

from ovi_jax.convert.mapping import Constant
from ovi_jax.convert.mapping import MagnitudePreserving
from ovi_jax.convert.mapping import Rearrange
from ovi_jax.convert.mapping import Row
from ovi_jax.convert.mapping import Scalar
from ovi_jax.models import audio_vae

FILE = "MMAudio/ext_weights/v1-16.pth"

_CONV = MagnitudePreserving(Rearrange("o i t -> t i o"), audio_vae.EPSILON)
_DENSE = MagnitudePreserving(Rearrange("o i 1 -> i o"), audio_vae.EPSILON)
# Query, key and value of a channel lie side by side.
_QKV = MagnitudePreserving(
  Rearrange("(c p) i 1 -> i p c", (("p", 3),)), audio_vae.EPSILON
)


def rows(config: audio_vae.AudioVAEConfig) -> list[Row]:
  """The table of the file for an audio VAE of the sizes in `config`."""
  table = [
    _statistics("data_mean", config.mel_mean),
    _statistics("data_std", config.mel_std),
  ]
  levels = list(enumerate(config.widths))
  for side in ("encoder", "decoder"):
    table += [
      _conv(f"{side}.conv_in", f"{side}/conv_in"),
      *_middle(f"{side}.mid", f"{side}/middle"),
      _conv(f"{side}.conv_out", f"{side}/head/conv"),
      Row(f"{side}.learnable_gain", f"{side}/head/gain", Scalar()),
    ]
  width = config.hidden_dim
  for level, level_width in levels:
    theirs, ours = f"encoder.down.{level}", f"encoder/level_{level}"
    table += _blocks(theirs, ours, config.res_blocks, width, level_width)
    if level in config.down_layers:
      table += [
        _dense(f"{theirs}.downsample.conv1", f"{ours}_halve/in"),
        _dense(f"{theirs}.downsample.conv2", f"{ours}_halve/out"),
      ]
    width = level_width
  for level, level_width in reversed(levels):
    theirs, ours = f"decoder.up.{level}", f"decoder/level_{level}"
    table += _blocks(theirs, ours, config.res_blocks + 1, width, level_width)
    if level - 1 in config.down_layers:
      table.append(_conv(f"{theirs}.upsample.conv", f"{ours}_double/conv"))
    width = level_width
  return table


def _statistics(name: str, figures: tuple[float, ...]) -> Row:
  value = np.array(figures, np.float32)[None, :, None]
  return Row(name, None, Constant(name, value))


def _conv(torch: str, ours: str) -> Row:
  return Row(f"{torch}.weight", f"{ours}/kernel", _CONV)


def _dense(torch: str, ours: str) -> Row:
  return Row(f"{torch}.weight", f"{ours}/kernel", _DENSE)


def _block(torch: str, ours: str) -> list[Row]:
  """A residual block that keeps its width."""
  return [
    _conv(f"{torch}.conv1", f"{ours}/conv_in"),
    _conv(f"{torch}.conv2", f"{ours}/conv_out"),
  ]


def _blocks(
  torch: str, ours: str, count: int, width_in: int, width: int
) -> list[Row]:
  """The residual blocks of a level; the first may change the width."""
  table: list[Row] = []
  for i in range(count):
    table += _block(f"{torch}.block.{i}", f"{ours}_block_{i}")
  if width_in != width:
    shortcut = f"{torch}.block.0.nin_shortcut"
    table.append(_dense(shortcut, f"{ours}_block_0/shortcut"))
  return table


def _middle(torch: str, ours: str) -> list[Row]:
  qkv = f"{torch}.attn_1.qkv.weight"
  return [
    *_block(f"{torch}.block_1", f"{ours}/block_0"),
    Row(qkv, f"{ours}/attention/qkv/kernel", _QKV),
    _dense(f"{torch}.attn_1.proj_out", f"{ours}/attention/out"),
    *_block(f"{torch}.block_2", f"{ours}/block_1"),
  ]
