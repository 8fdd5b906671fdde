"""Matching of events with sounds, and swapped audio."""

import numpy as np

from ovi_jax.synthetic.evaluation import sync


def track(events=(), sounds=(), kind="ball", seconds=5.0) -> sync.Track:
  return sync.Track(
    kind=kind, events=tuple(events), sounds=tuple(sounds), seconds=seconds
  )


def test_counts_equal_values_computed_by_hand():
  # A pair, a pair a bit late, an event alone, two sounds alone.
  count = sync.count(track([1.0, 2.0, 3.0], [1.0, 2.04, 2.06, 4.0]))
  assert count == sync.Count(matched=2, events=3, sounds=4)


def test_events_cut_off_at_the_end_count_only_if_matched():
  assert sync.count(track([4.95], [])) == sync.Count()
  assert sync.count(track([], [4.95])) == sync.Count()
  assert sync.count(track([4.95], [4.96])) == sync.Count(1, 1, 1)
  assert sync.count(track([4.85], [])) == sync.Count(0, 1, 0)


def test_offsets_are_audio_minus_video():
  late = sync.offsets(track([1.0, 2.0], [1.01, 1.98]))
  np.testing.assert_allclose(late, [0.01, -0.02], atol=1e-9)


def test_swapped_sounds_come_from_clips_of_the_same_kind():
  # Each clip has its own event times, so no other audio matches.
  tracks = [
    track([n / 3], [n / 3], kind=("ball", "lamp")[n % 2]) for n in range(9)
  ]
  tracks.append(track([1.0], [1.0], kind="face"))
  counts = sync.swapped(tracks, seed=3)
  for index, count in enumerate(counts[:9]):
    turns = min(sync.ROTATIONS, (5, 4)[index % 2] - 1)
    assert count == sync.Count(0, turns, turns)
  assert counts[9] is None  # one alone
  same = [track([1.0], [1.0]), track([1.0], [1.0])]
  assert sync.swapped(same) == [sync.Count(1, 1, 1)] * 2
