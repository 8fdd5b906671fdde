"""Names of the vocoder, below the entry `generator` of its file."""

from ovi_jax.convert.mapping import Constant
from ovi_jax.convert.mapping import Dialect
from ovi_jax.convert.mapping import Rearrange
from ovi_jax.convert.mapping import Row
from ovi_jax.convert.mapping import WeightNorm
from ovi_jax.models import vocoder

FILE = "MMAudio/ext_weights/best_netG.pt"

_CONV = Rearrange("o i t -> t i o")
_WEIGHT = "{rest}.parametrizations.weight"
# torch.nn.utils.weight_norm, before there were parametrizations.
DIALECTS = (
  Dialect(
    name="torch",
    patterns=(
      (f"{_WEIGHT}.original0", "{rest}.weight_g"),
      (f"{_WEIGHT}.original1", "{rest}.weight_v"),
    ),
  ),
)


def rows(config: vocoder.VocoderConfig) -> list[Row]:
  """The table of the file for a vocoder of the sizes in `config`."""
  table = [
    *_conv("conv_pre", "conv_in", _CONV),
    *_snake("activation_post", "snake_out"),
    *_conv("conv_post", "conv_out", _CONV),
  ]
  for i, rate in enumerate(config.upsample_rates):
    phases = Rearrange("i o (j q) -> j i q o", (("q", rate),))
    table += _conv(f"ups.{i}.0", f"upsample_{i}", phases)
    for j, dilations in enumerate(config.resblock_dilation_sizes):
      number = i * len(config.resblock_dilation_sizes) + j
      torch, ours = f"resblocks.{number}", f"block_{i}_{j}"
      for n in range(len(dilations)):
        table += [
          *_snake(f"{torch}.activations.{2 * n}", f"{ours}/dilated_snake_{n}"),
          *_conv(f"{torch}.convs1.{n}", f"{ours}/dilated_{n}", _CONV),
          *_snake(
            f"{torch}.activations.{2 * n + 1}", f"{ours}/plain_snake_{n}"
          ),
          *_conv(f"{torch}.convs2.{n}", f"{ours}/plain_{n}", _CONV),
        ]
  return table


def _conv(torch: str, ours: str, layout: Rearrange) -> list[Row]:
  """A convolution with bias under weight normalisation."""
  weight = f"{torch}.parametrizations.weight.original"
  kernel = f"{ours}/kernel"
  return [
    Row(
      (f"{weight}0", f"{weight}1"),
      kernel,
      WeightNorm(layout),
      # After remove_weight_norm.
      alternative=Row(f"{torch}.weight", kernel, layout),
    ),
    Row(f"{torch}.bias", f"{ours}/bias"),
  ]


def _snake(torch: str, ours: str) -> list[Row]:
  """An activation: its two parameters and its two copies of the filter."""
  filters = (f"{torch}.upsample.filter", f"{torch}.downsample.lowpass.filter")
  value = vocoder.LOW_PASS[None, None]
  return [
    Row(f"{torch}.act.alpha", f"{ours}/log_alpha"),
    Row(f"{torch}.act.beta", f"{ours}/log_beta"),
    *(Row(name, None, Constant(name, value)) for name in filters),
  ]
