"""Process-wide settings that commands turn on."""

import os
import pathlib

import jax
from absl import logging

CACHE = pathlib.Path.home() / ".cache" / "ovi_jax" / "xla"


def start() -> None:
  """Quiet the libraries' logs, and keep compiled programs on disk.

  A second start then finds its programs compiled. `JAX_COMPILATION_CACHE_DIR`
  names another place; set to nothing, it turns the cache off.
  """
  logging.set_verbosity(logging.WARNING)
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  jax.config.update("jax_compilation_cache_dir", str(CACHE))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def platform() -> str:
  """What computes: "cpu", "tpu", "cuda" (NVIDIA, Ampere or newer) or "gpu"."""
  device = jax.devices()[0]
  if device.platform != "gpu":
    return device.platform
  if "cuda" not in device.client.platform_version.lower():
    return "gpu"
  return "cuda" if float(device.compute_capability) >= 8 else "gpu"
