"""Process-wide settings that commands turn on."""

import contextlib
import logging as py_logging
import multiprocessing
import os
import pathlib
import re
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NoReturn

import jax
from absl import app
from absl import flags
from absl import logging
from jax.extend import backend

from ovi_jax import config_files
from ovi_jax import console
from ovi_jax import interrupts
from ovi_jax import storage
from ovi_jax import untrusted

# Scripts of a clone, by the name of the command that pip installs.
SCRIPTS = {
  "ovi-sample": "sample.py",
  "ovi-train": "train.py",
  "ovi-convert": "convert_torch_weights.py",
}
# Exit code of --aot if a program does not fit in HBM. Errors are 1.
DOES_NOT_FIT = 3
CACHE = "~/.cache/ovi_jax/xla"
_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SECONDS_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_HELP = {"--help", "-help", "-h", "-?", "--helpshort"}
# A flag whose value begins with the home folder, unless it is a prompt.
_HOME_FLAG = re.compile(
  r"(--?(?![\w.]*prompt[.=])[\w.]+=)(~(?:[/,].*)?)", re.DOTALL
)
# What Python says of text that is no number -> what it means.
_NUMBERS = {
  "invalid literal for int() with base 10:": "expected a whole number, got",
  "could not convert string to float:": "expected a number, got",
}
_GOOGLE = "0x1ae0"  # PCI vendor
# Set by JAX and libtpu when they are imported, on any machine.
_NO_SIGN_OF_TPU = {"TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY"}


def setup_jax() -> None:
  """Prepare JAX: no search for absent TPUs, compiled programs kept on disk.

  Commands call it when they parse their flags, functions that are called from
  Python when they begin; more calls change nothing. A second process finds its
  programs compiled. `JAX_COMPILATION_CACHE_DIR`, or JAX's own option, names
  another place; the variable set to nothing turns the cache off.

  Raises:
    ValueError: the place is no path or URL that can be used.
    OSError: its bucket cannot be used.
  """
  skip_absent_tpu()
  config: Any = jax.config  # whose options are no declared attributes
  chosen = config.jax_compilation_cache_dir
  if chosen is not None or _CACHE_VARIABLE in os.environ:
    # JAX drops what it cannot write, with a warning for each program.
    if chosen and storage.is_remote(path := storage.path(chosen)):
      storage.check_access(path)
    return
  cache = os.path.expanduser(CACHE)
  if not os.path.isabs(cache):
    return  # this user has no home folder
  jax.config.update("jax_compilation_cache_dir", cache)
  if _SECONDS_VARIABLE not in os.environ:
    # A command has about 20 small programs, which take seconds in all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def skip_absent_tpu() -> None:
  """Keep JAX from starting libtpu on a machine without a TPU.

  Where libtpu is installed and no platform is chosen (`JAX_PLATFORMS`), JAX
  starts it to look for TPUs, which takes time and prints errors to stderr.
  Compiling for a TPU that is not there (`aot.topology`) loads libtpu by itself.
  """
  config: Any = jax.config
  if config.jax_platforms or has_tpu():
    return
  with contextlib.suppress(RuntimeError):  # it has been started already
    backend.register_backend_factory("tpu", _no_tpu, fail_quietly=True)


def has_tpu(
  devices: pathlib.Path = pathlib.Path("/dev"),
  bus: pathlib.Path = pathlib.Path("/sys/bus/pci/devices"),
) -> bool:
  """Whether this machine may have a TPU; in doubt it has.

  Args:
    devices: where its device files are.
    bus: where PCI devices are listed.
  """
  if any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*")):
    return True
  for vendor in bus.glob("*/vendor"):
    try:
      maker = vendor.read_text().strip()
      kind = vendor.with_name("class").read_text().strip()
    except OSError:
      continue
    # Google makes virtual disks (0x01...) and network cards (0x02...) too.
    if maker == _GOOGLE and not kind.startswith(("0x01", "0x02")):
      return True
  variables = {name for name in os.environ if name.startswith("TPU_")}
  return bool(variables - _NO_SIGN_OF_TPU) or "JAX_FORCE_TPU_INIT" in os.environ


def _no_tpu() -> NoReturn:
  raise RuntimeError("this machine has no TPU")


def run(
  main: Callable[[], Any],
  subcommands: Mapping[str, Callable[[], Any]] | None = None,
  *,
  hint: str = "",
) -> NoReturn:
  """Run a command: parse its flags, call a function, print errors in one line.

  Args:
    main: called if the command line has flags alone.
    subcommands: called if the name is the only other word of it.
    hint: ends the message about a word that is neither flag nor subcommand:
      how to pass what it may be.
  """
  subcommands = subcommands or {}
  functions = {"": main, **subcommands}

  def call(argv: list[str]) -> None:
    name = " ".join(argv[1:])
    if name not in functions:
      known = ", ".join(subcommands)
      exit_with_unexpected(name, hint or (known and f"commands are {known}"))
    logging.set_verbosity(logging.WARNING)
    # It prints tracebacks of errors that `storage` reports in one line.
    py_logging.getLogger("gcsfs").setLevel(py_logging.CRITICAL)
    try:
      functions[name]()
    except (OSError, ValueError) as error:
      exit_with_error(error)

  app.run(call, flags_parser=parse_flags)
  raise AssertionError("app.run exits")


def run_script(
  define_flags: Callable[[], None],
  main: Callable[[], Any],
  description: str,
  hint: str = "",
) -> NoReturn:
  """Run a command of `SCRIPTS`, see `run`.

  Args:
    define_flags: a function of the module that `main` is in.
    main: called when flags are parsed.
    description: printed by `--help` above the flags; commands in it are shown
      as `invocation` has them.
    hint: see `run`.
  """
  for name in SCRIPTS:
    description = description.replace(name, invocation(name))
  # What `--help` prints: this, and the flags of the script itself.
  sys.modules["__main__"].__doc__ = description
  with flag_errors():
    define_flags()
  defined = flags.FLAGS.flags_by_module_dict().get(main.__module__, [])
  for flag in defined:
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  run(main, hint=hint)


def invocation(command: str) -> str:
  """How a command of `SCRIPTS` is typed in the current directory.

  Args:
    command: such as `ovi-train`.

  Returns:
    `python SCRIPT` in a clone, else the command.
  """
  script = pathlib.Path(SCRIPTS[command])
  ours = pathlib.Path(__file__).resolve().parents[1] / script
  is_clone = script.is_file() and ours.is_file() and script.samefile(ours)
  return f"python {script}" if is_clone else command


@contextlib.contextmanager
def flag_errors() -> Iterator[None]:
  """Of a flag that cannot be, say so in one line and leave."""
  try:
    yield
  except (AttributeError, KeyError) as error:
    said: object = error
    while isinstance(said, Exception):
      said = said.args[0]
    exit_with_error(f"the config has no field {' '.join(str(said).split())}")
  except ValueError as error:
    exit_with_error(error)


def parse_flags(argv: list[str]) -> list[str]:
  """Set up console and JAX, parse flags; for `app.run`, see `flag_errors`."""
  console.setup()
  argv = [_with_home(word) for word in argv]
  interrupts.setup()
  try:
    setup_jax()
  except (OSError, ValueError) as error:
    exit_with_error(f"compilation cache ({_CACHE_VARIABLE}): {error}")
  if _HELP & set(argv[1:]):
    app.usage(shorthelp=True, writeto_stdout=True)
    sys.exit(0)  # where absl's own flag exits with 1
  with flag_errors():
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      if isinstance(error.__context__, config_files.ConfigFileError):
        raise error.__context__ from None
      said = " ".join(str(error).split())
      for words, plain in _NUMBERS.items():
        said = said.replace(words, plain)
      raise ValueError(f"{said}; --help lists the flags") from error


def _with_home(word: str) -> str:
  """An argument whose paths may begin with `~`, as in `--out=~/clips`.

  Shells expand it at the beginning of a word alone.
  """
  match = _HOME_FLAG.fullmatch(word)
  if match is None:
    return word
  home = os.path.expanduser("~")
  return match[1] + re.sub(r"(?<![^,])~(?=[/,]|$)", lambda _: home, match[2])


def exit_with_parent() -> None:
  """In a worker process: end it when the process that started it is killed."""
  parent = multiprocessing.parent_process()

  def watch():
    if parent is not None:
      parent.join()
      os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def require_flags(values: flags.FlagValues, **examples: str) -> None:
  """See that flags are given, e.g. `need(FLAGS, out="DIR")`.

  Raises:
    ValueError: the first that is not.
  """
  for name, example in examples.items():
    if not values[name].value:
      raise ValueError(f"--{name}={example} is needed")


def exit_with_error(message: object) -> NoReturn:
  """End with exit code 1 and `COMMAND: message` on stderr."""
  console.error(f"{interrupts.command_name()}: {message}")
  sys.exit(1)


def exit_with_unexpected(words: str, hint: str = "") -> NoReturn:
  """End with one line about words of the command line that are no flags.

  Args:
    words: as typed.
    hint: how to pass what they may be.
  """
  shown = untrusted.printable(words, 60)
  exit_with_error(
    f"unexpected argument '{shown}'; {hint or '--help lists the flags'}"
  )


def target() -> str:
  """The kind of chip that is compiled for, as JAX names it, such as "cpu".

  It is that of the ambient mesh, whose devices need not be at hand.
  """
  skip_absent_tpu()
  device = _of_mesh()
  return (device or jax.devices()[0]).device_kind


def platform() -> str:
  """What computes: "cpu", "tpu", "cuda" (NVIDIA, Ampere or newer) or "gpu"."""
  elsewhere = _of_mesh()
  if elsewhere is not None and elsewhere.platform == "tpu":
    return "tpu"
  skip_absent_tpu()
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
