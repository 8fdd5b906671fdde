"""The environment of programs that tests start."""

import os
import pathlib
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A test's time is mostly compilation, and more than half of that the
# optimizations of LLVM and the newer code generator for fusions. Splitting a
# program to compile its parts in parallel costs a tenth of the rest.
QUICK_COMPILE = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1"
)


def environment(devices: int = 1, **more: Any) -> dict[str, str]:
  """This process's environment for a program on CPU devices.

  Args:
    devices: number of CPU devices that JAX shows.
    **more: further variables.

  Returns:
    Variables by name; compiled programs are shared by all tests.
  """
  return (
    os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
      f" {QUICK_COMPILE}",
      "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    | {name: str(value) for name, value in more.items()}
  )
