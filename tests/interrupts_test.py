"""Ctrl-C ends a command, wherever it arrives, in one line."""

import signal
import subprocess
import sys

import pytest

from tests.lib import child_env

# A program that is started in the background ignores Ctrl-C.
DEFAULT = "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
LINE = ": interrupted; the same command can be run again\n"


def python(*arguments, **environment) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=child_env.ROOT,
    env=child_env.environment(**environment),
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  "interrupted",
  [
    # JAX has such a callback.
    "def run(phase, info):\n"
    "  gc.callbacks.clear()\n"
    "  signal.raise_signal(signal.SIGINT)\n"
    "gc.callbacks.append(run)\n"
    "gc.collect()\n",
    "class Last:\n"
    "  def __del__(self):\n"
    "    signal.raise_signal(signal.SIGINT)\n"
    "last = Last()\n"
    "del last\n",
  ],
  ids=["garbage collector", "finalizer"],
)
def test_an_interrupt_that_python_drops_ends_the_run(interrupted):
  done = python(
    "-c",
    "import gc, signal, time\n"
    f"{DEFAULT}"
    "from ovi_jax import interrupts\n"
    "interrupts.setup()\n"
    f"{interrupted}"
    "print('dropped', flush=True)\n"
    "time.sleep(30)\n"
    "print('went on')\n",
  )
  assert done.returncode == -signal.SIGINT
  assert (done.stdout, done.stderr) == ("dropped\n", f"-c{LINE}")


def test_other_errors_that_python_drops_are_printed():
  done = python(
    "-c",
    "from ovi_jax import interrupts\n"
    "interrupts.setup()\n"
    "class Last:\n"
    "  def __del__(self):\n"
    "    raise ValueError('of a finalizer')\n"
    "Last()\n",
  )
  assert done.returncode == 0 and "ValueError: of a finalizer" in done.stderr


@pytest.mark.parametrize(
  ("command", "name"),
  [
    (["sample.py"], "sample"),
    (["train.py"], "train"),
    (["convert_torch_weights.py"], "convert_torch_weights"),
    (["-m", "ovi_jax.data.encode"], "encode"),
    (["-m", "ovi_jax.studio"], "studio"),
    (["-c", "from ovi_jax.commands.sample import start"], "-c"),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("error", ["", "ImportError"])
def test_an_interrupt_during_imports_is_one_line(
  tmp_path, command, name, error
):
  for module in ("absl", "jax", "numpy"):
    (tmp_path / f"{module}.py").write_text(
      "import signal\n"
      f"{DEFAULT}"
      "try:\n"
      "  signal.raise_signal(signal.SIGINT)\n"
      "except KeyboardInterrupt as error:\n"
      f"  raise {error}\n"
    )
  done = python(*command, PYTHONPATH=f"{tmp_path}:{child_env.ROOT}")
  assert done.returncode in (-signal.SIGINT, 1)
  assert done.stderr == f"{name}{LINE}"
