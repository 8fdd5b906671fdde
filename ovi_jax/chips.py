"""What accelerators can do, by the name that JAX gives them (`device_kind`).

Makers' data sheets; TPU links from Austin et al. 2025, "How to Scale Your
Model". On a kind that is not listed nothing is said.
"""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device.

  Attributes:
    tflops: dense bfloat16 products, 10^12 a second.
    memory: GiB; of TPUs, that programs may use.
    bandwidth: of the memory, GB/s.
    link: of one link between chips, GB/s one way; 0 if not known.
    torus: axes along which chips are linked, two links each; 0 if not known.
    ring: chips from which on an axis is closed to a ring.
  """

  tflops: float
  memory: float = 0
  bandwidth: float = 0
  link: float = 0
  torus: int = 0
  ring: int = 0


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
}
