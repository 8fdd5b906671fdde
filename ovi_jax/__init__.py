"""Ovi, joint video and sound generation, in JAX and Flax."""

import importlib
import sys
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
  from ovi_jax.sampling.clips import Clip
  from ovi_jax.sampling.pipeline import Pipeline

__all__ = ["Clip", "Pipeline", "__version__"]
__version__ = "0.1.0"

# What Python has as name of a command until it has imported its packages.
if sys.argv[:1] == ["-m"] and any(
  word.startswith("ovi_jax.") for word in sys.orig_argv
):
  from ovi_jax import interrupts

  interrupts.setup()


def __getattr__(name: str) -> Any:
  """Import the API when it is used: commands start without it."""
  if name in ("Clip", "Pipeline"):
    module = "clips" if name == "Clip" else "pipeline"
    return getattr(importlib.import_module(f"ovi_jax.sampling.{module}"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
