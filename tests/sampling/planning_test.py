"""Which clips are denoised together."""

import pytest

from ovi_jax.sampling import planning
from tests.lib.clip_jobs import TALL
from tests.lib.clip_jobs import WIDE
from tests.lib.clip_jobs import job

JOBS = [
  job("a", WIDE),
  job("b", TALL),
  job("c", WIDE, "first.png"),
  job("d", WIDE),
  job("e", TALL),
  job("f", WIDE),
  job("g", WIDE, "other.png"),
]


@pytest.mark.parametrize(
  ("size", "expected"),
  [
    (1, ["a", "b", "c", "d", "e", "f", "g"]),
    (2, ["ad", "be", "cg", "f"]),
    (3, ["adf", "be", "cg"]),
    (9, ["adf", "be", "cg"]),
  ],
)
def test_clips_of_one_size_are_batched(size, expected):
  found = planning.batches(JOBS, size)
  assert ["".join(j.text for j in batch) for batch in found] == expected
