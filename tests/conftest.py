"""Shared fixtures: strict numerics, goldens, the stand-in's parameters."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import pathlib

import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).resolve().parent

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", str(HERE.parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# Largest |difference| over largest |reference| allowed, by kind of comparison.
TOLERANCE = {
    "schedule": 1e-5,
    "forward": 1e-4,
    "end_to_end": 1e-3,
    "bfloat16": 3e-2,
    "devices": 1e-4,
}


def relative_error(ours, reference) -> float:
  """Largest |difference| over largest |reference|; shapes must be equal."""
  ours = np.asarray(ours, np.float64)
  reference = np.asarray(reference, np.float64)
  assert ours.shape == reference.shape, (ours.shape, reference.shape)
  return float(np.abs(ours - reference).max() / np.abs(reference).max())


def assert_close(ours, reference, kind: str) -> None:
  """Fail unless the relative error is within the tolerance named `kind`."""
  error = relative_error(ours, reference)
  assert error <= TOLERANCE[kind], f"{error:.2e} > {TOLERANCE[kind]:.0e}"


@pytest.fixture(scope="session")
def golden():
  """`golden("audio")` -> the arrays of tests/goldens/audio.npz by key."""

  def load(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / "goldens" / f"{name}.npz") as file:
      return dict(file)

  return load
