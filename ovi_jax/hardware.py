"""Peak numbers of accelerators by `jax.Device.device_kind`.

Sources: data sheets of the makers; TPU interconnect from Austin et al. 2025,
"How to Scale Your Model". Nothing is estimated for a kind that is not listed.
"""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device.

  Attributes:
    peak_tflops: dense bfloat16 TFLOP/s.
    hbm_gib: HBM in GiB; of TPUs, what programs may use.
    hbm_bandwidth: GB/s.
    ici_bandwidth: GB/s of one inter-chip link, one way; 0 if unknown.
    ici_axes: torus axes, with two links each; 0 if unknown.
    ici_wraparound: length from which an axis is closed to a ring.
  """

  peak_tflops: float
  hbm_gib: float = 0
  hbm_bandwidth: float = 0
  ici_bandwidth: float = 0
  ici_axes: int = 0
  ici_wraparound: int = 0


_V5E = Chip(197, 15.75, 819, 45, 2, 16)
_V5P = Chip(459, 95, 2765, 90, 3, 4)
_V6E = Chip(918, 31.25, 1638, 90, 2, 16)
CHIPS: Mapping[str, Chip] = {
  "TPU v4": Chip(275, 32, 1228, 45, 3, 4),
  "TPU v5 lite": _V5E,
  "TPU v5e": _V5E,
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": _V6E,
  "TPU v6e": _V6E,
  "NVIDIA A100-SXM4-40GB": Chip(312, 40, 1555),
  "NVIDIA A100-SXM4-80GB": Chip(312, 80, 2039),
  "NVIDIA A100 80GB PCIe": Chip(312, 80, 1935),
  "NVIDIA H100 80GB HBM3": Chip(989.4, 80, 3350),
  "NVIDIA H100 PCIe": Chip(756, 80, 2000),
  "NVIDIA H200": Chip(989.4, 141, 4800),
  "NVIDIA B200": Chip(2250, 179, 8000),
}
