"""Shared fixtures: strict numerics, goldens, the stand-in's parameters."""

import logging
import os

from tests.lib import child_env

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
  "XLA_FLAGS",
  f"--xla_force_host_platform_device_count=8 {child_env.QUICK_COMPILE}",
)

import itertools
import pathlib

import jax
import numpy as np
import pytest

from ovi_jax.convert import convert
from ovi_jax.convert import standin
from ovi_jax.convert.standin import write
from tests.lib import bucket as buckets
from tests.lib import traced_memory

HERE = pathlib.Path(__file__).resolve().parent

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", str(HERE.parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# At the end of a run each of these would keep one process busy alone.
LONG_FILES = (
  "tests/docs_test.py",
  "tests/train_processes_test.py",
  "tests/sharding/equality_test.py",
  "tests/aot/aot_test.py",
  "tests/train_kill_test.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Order files by their length; processes get them in this order."""
  rank = {name: place for place, name in enumerate(LONG_FILES)}
  items.sort(key=lambda x: rank.get(x.nodeid.split("::")[0], len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
  """The scheduler for `--dist loadfile`; xdist's own for the other modes."""
  if config.getoption("dist") != "loadfile":
    return None
  from tests.lib import file_scheduler

  return file_scheduler.FileScheduler(config, log)


@pytest.fixture(scope="module", autouse=True)
def clean_process():
  """Leave a process to the next module without what slows or ends it.

  Each compiled program takes memory maps; thousands of them in one process
  reach the kernel's limit (vm.max_map_count), which ends the process.
  """
  yield
  jax.clear_caches()
  traced_memory.stop()


@pytest.fixture(scope="module")
def one_device():
  """JAX reports a single device to the tests of a module; gives all of them.

  On eight, programs of which each device computes the whole run eight times.
  """
  everything = jax.devices()
  with pytest.MonkeyPatch.context() as patch:
    for name in ("devices", "local_devices"):
      patch.setattr(jax, name, lambda *_, **__: everything[:1])
    yield everything


@pytest.fixture
def log_lines():
  """The messages that the package logs during a test, at INFO and above."""
  lines: list[str] = []

  class Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
      lines.append(record.getMessage())

  logger, handler = logging.getLogger("ovi_jax"), Handler()
  level = logger.level
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  yield lines
  logger.removeHandler(handler)
  logger.setLevel(level)


@pytest.fixture(scope="session")
def bucket_endpoint():
  """An emulated object store that this process uses for `gs://`."""
  # TensorStore and fsspec read the variables once, so all tests share it.
  with buckets.Store().endpoint() as endpoint:
    os.environ.update(endpoint.environment)
    yield endpoint


_bucket_numbers = itertools.count()


@pytest.fixture
def bucket(bucket_endpoint) -> str:
  """The URL of a new, empty bucket."""
  return bucket_endpoint.store.create(f"test-{next(_bucket_numbers)}")


@pytest.fixture(scope="session")
def golden():
  """`golden("audio")` -> the arrays of tests/goldens/audio.npz by key."""

  def load(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / "goldens" / f"{name}.npz") as file:
      return dict(file)

  return load


@pytest.fixture(scope="session")
def release(tmp_path_factory) -> pathlib.Path:
  """The stand-in release, in the original's layout."""
  path = tmp_path_factory.mktemp("release")
  write.write_release(path)
  return path


@pytest.fixture(scope="session")
def weights(release, tmp_path_factory) -> pathlib.Path:
  """The stand-in, converted. Tests must not write here."""
  path = tmp_path_factory.mktemp("weights")
  sizes = standin.manifest()["config"]
  convert.convert(release, path, variant=None, sizes=sizes)
  return path
