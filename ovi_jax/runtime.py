"""Process-wide settings that commands turn on."""

import contextlib
import multiprocessing
import os
import pathlib
import sys
import threading
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NoReturn

import jax
from absl import app
from absl import flags
from absl import logging

from ovi_jax import console

CACHE = pathlib.Path.home() / ".cache" / "ovi_jax" / "xla"


def start(argv: Sequence[str] = ()) -> None:
  """Set up the console, quiet libraries' logs, keep compiled programs on disk.

  A second start then finds its programs compiled. `JAX_COMPILATION_CACHE_DIR`
  names another place; set to nothing, it turns the cache off.

  Args:
    argv: the command's name, and what its flags left over.

  Raises:
    app.UsageError: they left something over.
  """
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  console.setup()
  logging.set_verbosity(logging.WARNING)
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  jax.config.update("jax_compilation_cache_dir", str(CACHE))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextlib.contextmanager
def flag_errors() -> Iterator[None]:
  """Of a flag that cannot be, say so in one line and leave."""
  name = pathlib.Path(sys.argv[0]).stem
  try:
    yield
  except (AttributeError, KeyError) as error:
    said: object = error
    while isinstance(said, Exception):
      said = said.args[0]
    leave(f"{name}: the config has no field {' '.join(str(said).split())}")
  except ValueError as error:
    leave(f"{name}: {error}")


def parse_flags(argv: list[str]) -> list[str]:
  """Set up the console and parse flags, for `app.run`; see `flag_errors`."""
  console.setup()
  with flag_errors():
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      # A config that cannot be built: its error, without the trace around it.
      *_, last = str(error).strip().splitlines()
      if "Traceback" in str(error) and "ValueError: " in last:
        raise ValueError(last.partition("ValueError: ")[2]) from error
    return app.parse_flags_with_usage(argv)  # says what is wrong, and ends


def end_with_parent() -> None:
  """In a worker process: end it when the process that started it is killed."""
  parent = multiprocessing.parent_process()

  def watch():
    if parent is not None:
      parent.join()
      os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def need(values: flags.FlagValues, **examples: str) -> None:
  """See that flags are given, e.g. `need(FLAGS, out="DIR")`.

  Raises:
    ValueError: the first that is not.
  """
  for name, example in examples.items():
    if not values[name].value:
      raise ValueError(f"--{name}={example} is needed")


def leave(message: str) -> NoReturn:
  """End with exit code 1 and last words on stderr, see `console.error`."""
  console.error(message)
  sys.exit(1)


def target() -> str:
  """The kind of chip that is compiled for, as JAX names it, such as "cpu".

  It is that of the ambient mesh, whose devices need not be at hand.
  """
  device = _of_mesh()
  return (device or jax.devices()[0]).device_kind


def platform() -> str:
  """What computes: "cpu", "tpu", "cuda" (NVIDIA, Ampere or newer) or "gpu"."""
  elsewhere = _of_mesh()
  if elsewhere is not None and elsewhere.platform == "tpu":
    return "tpu"
  device = jax.devices()[0]
  if device.platform != "gpu":
    return device.platform
  if "cuda" not in device.client.platform_version.lower():
    return "gpu"
  return "cuda" if float(device.compute_capability) >= 8 else "gpu"


def _of_mesh() -> Any:
  """The ambient mesh's kind of device; `None` without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty else mesh.abstract_device
