"""Sync metrics of real clips against the exact sync F1 of the world."""

import importlib.util

import numpy as np
import pytest

from ovi_jax.synthetic.evaluation import metric_correlation


def test_the_rank_correlation_is_spearmans():
  random = np.random.default_rng(0)
  exact_N = random.random(200)
  found = metric_correlation._correlation("x", np.exp(3 * exact_N), exact_N)
  assert found.value == pytest.approx(1) and found.clips == 200
  noise_N = random.random(200)
  noise_N[:20] = np.nan
  none = metric_correlation._correlation("x", noise_N, exact_N)
  assert none.low < 0 < none.high and none.clips == 180
  with pytest.raises(ValueError, match="at least 3 clips"):
    metric_correlation.correlate(2, 0)


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("cv2") is None, reason="needs OpenCV"
)
def test_metrics_rise_with_the_exact_f1(tmp_path):
  exact = metric_correlation.write(tmp_path, 12, 7)
  assert exact[0] == exact[4] == exact[8] == 1 and min(exact) < 0.5
  found = metric_correlation.correlate(24, 7)
  assert {each.metric for each in found} == {*metric_correlation.METRICS}
  assert all(-1 <= each.low <= each.value <= each.high <= 1 for each in found)
