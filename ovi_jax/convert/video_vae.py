"""Names of `Wan2.2-TI2V-5B/Wan2.2_VAE.pth` and of our video autoencoder.

PyTorch keeps convolutions as (out, in, time, row, column); ours go (time, row,
column, in, out). The encoder's and the decoder's tables are apart, for those
who need one half.
"""

from collections.abc import Sequence

from ovi_jax.convert import mapping
from ovi_jax.convert.mapping import Dialect
from ovi_jax.models.video_vae import config as config_lib

Config = config_lib.VideoVAEConfig
Row = mapping.Row

FILE = "Wan2.2-TI2V-5B/Wan2.2_VAE.pth"

CONV3D = "o i t h w -> t h w i o"
CONV2D = "o i h w -> h w i o"
POINTWISE3D = "o i 1 1 1 -> i o"
POINTWISE2D = "o i 1 1 -> i o"

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
  theirs, ours = "encoder", "encoder"
  widths = [config.dim * m for m in config.dim_mult]
  table = _conv(f"{theirs}.conv1", f"{ours}/stem", CONV3D)
  for i, (before, width) in enumerate(zip(widths[:1] + widths, widths)):
    stage = f"{theirs}.downsamples.{i}.downsamples", f"{ours}/stages_{i}"
    blocks = config.num_res_blocks
    for j in range(blocks):
      projects = j == 0 and before != width
      table += _block(f"{stage[0]}.{j}", f"{stage[1]}/block_{j}", projects)
    if i < len(widths) - 1:
      last = f"{stage[0]}.{blocks}"
      table += _conv(f"{last}.resample.1", f"{stage[1]}/down", CONV2D)
      if config.temporal_downsample[i]:
        table += _conv(f"{last}.time_conv", f"{stage[1]}/time_down", CONV3D)
  table += _middle(f"{theirs}.middle", f"{ours}/middle")
  table += _head(f"{theirs}.head", f"{ours}/head")
  return table + _conv("conv1", f"{ours}/moments", POINTWISE3D)


def decoder_rows(config: Config) -> list[Row]:
  """The table of what `decoder` holds: the original's `decoder` and `conv2`."""
  theirs, ours = "decoder", "decoder"
  widths = [config.dec_dim * m for m in reversed(config.dim_mult)]
  times = [*reversed(config.temporal_downsample), False]
  table = _conv("conv2", f"{ours}/latent", POINTWISE3D)
  table += _conv(f"{theirs}.conv1", f"{ours}/stem", CONV3D)
  table += _middle(f"{theirs}.middle", f"{ours}/middle")
  for i, (before, width) in enumerate(zip(widths[:1] + widths, widths)):
    stage = f"{theirs}.upsamples.{i}.upsamples", f"{ours}/stages_{i}"
    blocks = config.num_res_blocks + 1
    for j in range(blocks):
      projects = j == 0 and before != width
      table += _block(f"{stage[0]}.{j}", f"{stage[1]}/block_{j}", projects)
    if i < len(widths) - 1:
      last = f"{stage[0]}.{blocks}"
      table += _conv(f"{last}.resample.1", f"{stage[1]}/up", CONV2D)
      if times[i]:
        time_up = f"{stage[1]}/time_up/conv"
        table += _conv(f"{last}.time_conv", time_up, CONV3D)
  return table + _head(f"{theirs}.head", f"{ours}/head")


def _conv(torch: str, ours: str, pattern: str) -> list[Row]:
  kernel = mapping.Rearrange(pattern)
  return [
    Row(f"{torch}.weight", f"{ours}/kernel", kernel),
    Row(f"{torch}.bias", f"{ours}/bias"),
  ]


def _norm(torch: str, ours: str, axes: int = 3) -> Row:
  """A scale that PyTorch keeps with `axes` axes of size 1 behind it."""
  pattern = "c" + " 1" * axes + " -> c"
  return Row(f"{torch}.gamma", f"{ours}/scale", mapping.Rearrange(pattern))


def _block(torch: str, ours: str, projects: bool) -> Sequence[Row]:
  table = [
    _norm(f"{torch}.residual.0", f"{ours}/norm1"),
    *_conv(f"{torch}.residual.2", f"{ours}/conv1", CONV3D),
    _norm(f"{torch}.residual.3", f"{ours}/norm2"),
    *_conv(f"{torch}.residual.6", f"{ours}/conv2", CONV3D),
  ]
  if projects:
    table += _conv(f"{torch}.shortcut", f"{ours}/shortcut", POINTWISE3D)
  return table


def _middle(torch: str, ours: str) -> list[Row]:
  return [
    *_block(f"{torch}.0", f"{ours}/block1", projects=False),
    _norm(f"{torch}.1.norm", f"{ours}/attention/norm", axes=2),
    *_conv(f"{torch}.1.to_qkv", f"{ours}/attention/qkv", POINTWISE2D),
    *_conv(f"{torch}.1.proj", f"{ours}/attention/out", POINTWISE2D),
    *_block(f"{torch}.2", f"{ours}/block2", projects=False),
  ]


def _head(torch: str, ours: str) -> list[Row]:
  return [
    _norm(f"{torch}.0", f"{ours}/norm"),
    *_conv(f"{torch}.2", f"{ours}/conv", CONV3D),
  ]
