"""Clips of the world as mp4 files, analyzed once."""

import pytest

from ovi_jax.synthetic.evaluation import calibration
from ovi_jax.synthetic.evaluation import report

COUNT, SEED = 12, 560  # all kinds, and two balls at once


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """Clips as `sample.py` writes them. Tests must not write here."""
  path = tmp_path_factory.mktemp("world")
  calibration.write(path, COUNT, SEED, worn=False)
  return path


@pytest.fixture(scope="session")
def clips(folder):
  return report.read(folder)


@pytest.fixture(scope="session")
def worn(tmp_path_factory):
  """The same clips blurred and noisy, and what they are of."""
  path = tmp_path_factory.mktemp("worn")
  shown = calibration.write(path, COUNT, SEED, worn=True)
  return report.read(path), shown
