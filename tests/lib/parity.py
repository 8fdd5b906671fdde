"""Tolerances of all parity comparisons, in one table."""

import numpy as np

# Largest |difference| over largest |reference| allowed, by kind of comparison.
TOLERANCE = {
  "schedule": 1e-5,
  "forward": 1e-4,
  "time_embedding": 4e-6,
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
