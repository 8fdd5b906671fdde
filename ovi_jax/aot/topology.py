"""TPUs to compile for, without a TPU: libtpu brings the compiler."""

import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

# Kind -> its axes, the sizes that are rented, chips of a host.
KNOWN = {
  "v5p": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16",
  "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
  "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
}
_PART_OF_HOST = {"1x1": (1, 1, 1), "2x2": (2, 2, 1)}


def devices(name: str) -> list[Any]:
  """The devices of a topology such as "v5p:4x4x4".

  From then on the process keeps no compiled programs on disk: without such a
  device they cannot be read again.

  Raises:
    ValueError: there is none of that name, or no libtpu.
  """
  kind, _, shape = name.partition(":")
  if shape not in KNOWN.get(kind, "").split():
    known = "; ".join(
      f"{kind}: {' '.join(f'{kind}:{s}' for s in shapes.split())}"
      for kind, shapes in KNOWN.items()
    )
    raise ValueError(f"topology {name!r} is unknown; known are {known}")
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      "compiling for a TPU needs its compiler, libtpu (no TPU is needed):"
      " pip install -e '.[aot]'"
    )
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # or what it was holds on
  # What libtpu asks of a machine that it takes for a TPU's host.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is taken
  options = {}
  if shape in _PART_OF_HOST:
    options["chips_per_host_bounds"] = _PART_OF_HOST[shape]
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **options
    )
  except (RuntimeError, ValueError) as error:
    reason = re.sub(r"\s+", " ", str(error))
    raise ValueError(f"libtpu has no topology {name!r}: {reason}") from error
  return list(found.devices)
