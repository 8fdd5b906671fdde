"""Process-wide settings of JAX that commands turn on."""

import os
import pathlib

import jax

CACHE = pathlib.Path.home() / ".cache" / "ovi_jax" / "xla"


def use_compilation_cache() -> None:
  """Keep compiled programs on disk, so that the next start is fast.

  `JAX_COMPILATION_CACHE_DIR` names another place; set to nothing, it turns
  the cache off.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  jax.config.update("jax_compilation_cache_dir", str(CACHE))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
