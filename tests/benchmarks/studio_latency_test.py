"""The times of the studio's jobs, with trivial models."""

from benchmarks import studio_latency
from tests.lib import fake_sampling


def test_every_case_is_timed_as_often_as_asked(tmp_path):
  pipe, models = fake_sampling.pipeline(0.001)
  times = studio_latency.measure(pipe, tmp_path, repeats=2)
  assert set(times) == {
    *("first preview", "watched clip", "unwatched clip", "plain call"),
  }
  assert {len(values) for values in times.values()} == {2}
  for first, whole in zip(times["first preview"], times["watched clip"]):
    assert 0 < first < whole
  assert len(models.batches) == 3 * 3  # nothing was there already
