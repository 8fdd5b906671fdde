"""One-to-one matching of moments: visible events and beginnings of sounds."""

from collections.abc import Sequence


def match(
  events: Sequence[float], sounds: Sequence[float], tolerance: float
) -> list[tuple[int, int]]:
  """Pair as many events with sounds as possible, each at most once.

  Args:
    events: seconds, in order.
    sounds: likewise.
    tolerance: maximum seconds between the two of a pair.

  Returns:
    Indices of the pairs.
  """
  pairs, i, j = [], 0, 0
  while i < len(events) and j < len(sounds):
    if abs(events[i] - sounds[j]) <= tolerance:
      pairs.append((i, j))
    # Both are done if they match, else the earlier one.
    earlier = events[i] - sounds[j]
    i, j = i + (earlier <= tolerance), j + (earlier >= -tolerance)
  return pairs
