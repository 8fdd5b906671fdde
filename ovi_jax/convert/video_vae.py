"""Names of `Wan2.2-TI2V-5B/Wan2.2_VAE.pth` and of our video autoencoder.

PyTorch keeps convolutions as (out, in, time, row, column); ours go (time, row,
column, in, out). The encoder's and the decoder's tables are apart, for those
who need one half.
"""

from collections.abc import Sequence

from ovi_jax.convert import mapping
from ovi_jax.convert.mapping import Dialect
from ovi_jax.convert.mapping import affine
from ovi_jax.models.video_vae import config as config_lib

Config = config_lib.VideoVAEConfig
Row = mapping.Row

FILE = "Wan2.2-TI2V-5B/Wan2.2_VAE.pth"

CONV3D = mapping.Rearrange("o i t h w -> t h w i o")
CONV2D = mapping.Rearrange("o i h w -> h w i o")
POINTWISE3D = mapping.Rearrange("o i 1 1 1 -> i o")
POINTWISE2D = mapping.Rearrange("o i 1 1 -> i o")

# What the parts of a residual block are called, here and in diffusers.
_PARTS = {
  "residual.0.gamma": "norm1.gamma",
  "residual.2.{p}": "conv1.{p}",
  "residual.3.gamma": "norm2.gamma",
  "residual.6.{p}": "conv2.{p}",
  "shortcut.{p}": "conv_shortcut.{p}",
}
_STAGES = {
  "encoder.downsamples.{i}.downsamples": "encoder.down_blocks.{i}",
  "decoder.upsamples.{i}.upsamples": "decoder.up_blocks.{i}",
}
DIALECTS = (
  Dialect(
    name="diffusers",
    patterns=(
      ("conv1.{p}", "quant_conv.{p}"),
      ("conv2.{p}", "post_quant_conv.{p}"),
      ("{side}.conv1.{p}", "{side}.conv_in.{p}"),
      ("{side}.head.0.gamma", "{side}.norm_out.gamma"),
      ("{side}.head.2.{p}", "{side}.conv_out.{p}"),
      ("{side}.middle.1.{rest}", "{side}.mid_block.attentions.0.{rest}"),
      *(
        (
          f"{{side}}.middle.{ours}.{part}",
          f"{{side}}.mid_block.resnets.{theirs}.{name}",
        )
        for ours, theirs in ((0, 0), (2, 1))
        for part, name in _PARTS.items()
      ),
      *(
        (f"{ours}.{{j}}.{part}", f"{theirs}.resnets.{{j}}.{name}")
        for ours, theirs in _STAGES.items()
        for part, name in _PARTS.items()
      ),
      *(
        (f"{ours}.{{j}}.{part}.{{p}}", f"{theirs}.{sampler}.{part}.{{p}}")
        for (ours, theirs), sampler in zip(
          _STAGES.items(), ("downsampler", "upsampler"), strict=True
        )
        for part in ("resample.1", "time_conv")
      ),
    ),
  ),
)


def rows(config: Config) -> list[Row]:
  """The table of the whole file."""
  return encoder_rows(config) + decoder_rows(config)


def encoder_rows(config: Config) -> list[Row]:
  """The table of what `encoder` holds: the original's `encoder` and `conv1`."""
  widths = [config.dim * m for m in config.dim_mult]
  table = affine("encoder.conv1", "encoder/stem", CONV3D)
  for i, (before, width) in enumerate(zip(widths[:1] + widths, widths)):
    blocks = f"encoder.downsamples.{i}.downsamples", f"encoder/stages_{i}"
    last = f"{blocks[0]}.{config.num_res_blocks}"
    table += _blocks(*blocks, config.num_res_blocks, before != width)
    if i < len(widths) - 1:
      table += affine(f"{last}.resample.1", f"{blocks[1]}/down", CONV2D)
      if config.temporal_downsample[i]:
        table += affine(f"{last}.time_conv", f"{blocks[1]}/time_down", CONV3D)
  table += _middle("encoder.middle", "encoder/middle")
  table += _head("encoder.head", "encoder/head")
  return table + affine("conv1", "encoder/moments", POINTWISE3D)


def decoder_rows(config: Config) -> list[Row]:
  """The table of what `decoder` holds: the original's `decoder` and `conv2`."""
  widths = [config.dec_dim * m for m in reversed(config.dim_mult)]
  times = [*reversed(config.temporal_downsample), False]
  table = affine("conv2", "decoder/latent", POINTWISE3D)
  table += affine("decoder.conv1", "decoder/stem", CONV3D)
  table += _middle("decoder.middle", "decoder/middle")
  for i, (before, width) in enumerate(zip(widths[:1] + widths, widths)):
    blocks = f"decoder.upsamples.{i}.upsamples", f"decoder/stages_{i}"
    last = f"{blocks[0]}.{config.num_res_blocks + 1}"
    table += _blocks(*blocks, config.num_res_blocks + 1, before != width)
    if i < len(widths) - 1:
      table += affine(f"{last}.resample.1", f"{blocks[1]}/up", CONV2D)
      if times[i]:
        time_up = f"{blocks[1]}/time_up/conv"
        table += affine(f"{last}.time_conv", time_up, CONV3D)
  return table + _head("decoder.head", "decoder/head")


def _norm(torch: str, ours: str, axes: int = 3) -> Row:
  """A scale that PyTorch keeps with `axes` axes of size 1 behind it."""
  pattern = "c" + " 1" * axes + " -> c"
  return Row(f"{torch}.gamma", f"{ours}/scale", mapping.Rearrange(pattern))


def _block(torch: str, ours: str, projects: bool) -> Sequence[Row]:
  table = [
    _norm(f"{torch}.residual.0", f"{ours}/norm1"),
    *affine(f"{torch}.residual.2", f"{ours}/conv1", CONV3D),
    _norm(f"{torch}.residual.3", f"{ours}/norm2"),
    *affine(f"{torch}.residual.6", f"{ours}/conv2", CONV3D),
  ]
  if projects:
    table += affine(f"{torch}.shortcut", f"{ours}/shortcut", POINTWISE3D)
  return table


def _blocks(torch: str, ours: str, count: int, projects: bool) -> list[Row]:
  """The residual blocks of a stage; the first may change the width."""
  return [
    row
    for j in range(count)
    for row in _block(f"{torch}.{j}", f"{ours}/block_{j}", projects and j == 0)
  ]


def _middle(torch: str, ours: str) -> list[Row]:
  return [
    *_block(f"{torch}.0", f"{ours}/block1", projects=False),
    _norm(f"{torch}.1.norm", f"{ours}/attention/norm", axes=2),
    *affine(f"{torch}.1.to_qkv", f"{ours}/attention/qkv", POINTWISE2D),
    *affine(f"{torch}.1.proj", f"{ours}/attention/out", POINTWISE2D),
    *_block(f"{torch}.2", f"{ours}/block2", projects=False),
  ]


def _head(torch: str, ours: str) -> list[Row]:
  return [
    _norm(f"{torch}.0", f"{ours}/norm"),
    *affine(f"{torch}.2", f"{ours}/conv", CONV3D),
  ]
