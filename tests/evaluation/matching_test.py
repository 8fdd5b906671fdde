"""Matching of events with sounds."""

import itertools

import numpy as np

from ovi_jax.evaluation import matching


def test_matching_is_maximal():
  random = np.random.default_rng(0)
  for _ in range(60):
    events, sounds = (np.sort(random.uniform(0, 0.4, 4)) for _ in range(2))
    best = max(
      sum(abs(events[i] - sounds[j]) <= 0.05 for i, j in enumerate(order))
      for order in itertools.permutations(range(4))
    )
    pairs = matching.match(events, sounds, 0.05)
    assert len(pairs) == best
    for side in zip(*pairs):
      assert len(set(side)) == len(side)
