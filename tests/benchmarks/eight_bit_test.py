"""Arithmetic and tables of the benchmark of 8-bit weights."""

import numpy as np
import pytest

from benchmarks import eight_bit
from ovi_jax.modality import AV


def test_errors_are_relative_to_the_mean_square_of_the_reference():
  reference = AV(np.float32([3, 4]), np.float32([1, 1]))
  found = AV(np.float32([3, 4.5]), np.float32([1, 1]))
  error = eight_bit.rms_error(found, reference)
  assert error.video == pytest.approx(0.1) and error.audio == 0


def test_released_kernels_of_8_bits_take_about_half():
  wide, int8, fp8 = map(eight_bit.released_bytes, eight_bit.STORED)
  assert wide == {"fusion": 2 * 11_660_753_108, "umt5": 2 * 5_680_910_336}
  assert int8 == fp8
  assert 0.52 < int8["fusion"] / wide["fusion"] < 0.54
  assert 0.58 < int8["umt5"] / wide["umt5"] < 0.6  # the embedding is wide


def test_results_become_tables():
  error = {"video": 0.0123, "audio": 0.004}
  sizes = {kind: {"fusion": 2e6, "umt5": 1e5} for kind in eight_bit.STORED}
  score = {"name": "kind", "value": 0.5, "low": 0.25, "high": 0.75}
  score |= {"clips": 4, "unit": "%"}
  text = eight_bit.markdown(
    {
      "errors": [
        {
          "stored": "int8",
          "computed": "float32",
          "one_pass": error,
          "guided_steps": error,
        }
      ],
      "file_bytes": sizes,
      "released_bytes": sizes,
      "resident_bytes": dict.fromkeys(eight_bit.STORED, 3e8),
      "scores": [score],
    }
  )
  assert "| int8 | float32 | 1.23 %, 0.40 % | 1.23 %, 0.40 % |" in text
  assert "| fp8 | 2.00, 0.10 | 0.00, 0.00 | 300 |" in text
  assert "| kind | 100.0 % (96 to 100) | 50.0 % (25 to 75) |" in text
