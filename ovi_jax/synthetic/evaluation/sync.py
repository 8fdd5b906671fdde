"""Whether what is seen is heard when it happens.

Visible events are matched with beginnings of sounds, one to one, at most a
frame apart; the same pictures with the sound of another clip of their kind say
the chance level. Times are seconds.
"""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ovi_jax import geometry
from ovi_jax.evaluation import matching

TOLERANCE = 1 / geometry.FPS
# What is this near the end may be cut off in the one and not in the other; it
# counts if it has a partner, and is forgotten if it has none.
END = 0.1
ROTATIONS = 4  # other clips whose sound each clip gets


class Count(NamedTuple):
  """Events and sounds, and how many of them belong together."""

  matched: int = 0
  events: int = 0
  sounds: int = 0

  def plus(self, other: "Count") -> "Count":
    return Count(*(a + b for a, b in zip(self, other)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
  """Times of visible and audible events of a clip.

  Attributes:
    kind: clips of one kind lend each other their sounds.
    events: seconds of visible events.
    sounds: seconds at which sounds begin.
    seconds: length of the clip.
  """

  kind: str
  events: tuple[float, ...]
  sounds: tuple[float, ...]
  seconds: float


def count(track: Track) -> Count:
  """Count a clip's pairs, and what has no partner and should."""
  pairs = matching.match(track.events, track.sounds, TOLERANCE)
  last = track.seconds - END
  counts = [len(pairs)]
  for side, times in enumerate((track.events, track.sounds)):
    paired = {pair[side] for pair in pairs}
    alone = [t for i, t in enumerate(times) if i not in paired and t < last]
    counts.append(len(pairs) + len(alone))
  return Count(*counts)


def offsets(track: Track) -> list[float]:
  """Seconds by which each matched sound is late."""
  pairs = matching.match(track.events, track.sounds, TOLERANCE)
  return [track.sounds[j] - track.events[i] for i, j in pairs]


def swapped(tracks: Sequence[Track], seed: int = 0) -> list[Count | None]:
  """Count every clip's pairs with the sounds of others of its kind.

  The clips of a kind stand in a ring, in an order that the seed decides; each
  gets the sound of the next one, of that after it, and so on.

  Returns:
    A count for each clip, over all it was given; `None` for one alone.
  """
  counts: list[Count | None] = [None] * len(tracks)
  for ring in _rings(tracks, seed):
    for turn in range(1, min(ROTATIONS, len(ring) - 1) + 1):
      for index, other in zip(ring, np.roll(ring, -turn)):
        given = dataclasses.replace(tracks[index], sounds=tracks[other].sounds)
        counts[index] = (counts[index] or Count()).plus(count(given))
  return counts


def _rings(tracks: Sequence[Track], seed: int) -> Iterator[np.ndarray]:
  """Indices of the tracks of each kind, shuffled."""
  random = np.random.default_rng(seed)
  for kind in sorted({track.kind for track in tracks}):
    ring = [i for i, track in enumerate(tracks) if track.kind == kind]
    yield random.permutation(ring)
