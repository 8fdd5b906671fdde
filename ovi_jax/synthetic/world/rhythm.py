"""When things happen that happen several times: almost, not quite, evenly."""

import numpy as np

_JITTER = 0.12  # seconds, either way
_LEAD = (0.25, 0.8)  # seconds before the first
_TAIL = 0.15  # seconds kept after the last has ended


def times(
  random: np.random.Generator, count: int, length: float, seconds: float
) -> np.ndarray:
  """Begins of `count` events, each `length` long, that fit into `seconds`.

  They are at least `length` plus 0.2 s apart.
  """
  if not count:
    return np.zeros(0)
  first = random.uniform(*_LEAD)
  room = seconds - first - length - _TAIL
  shortest = length + 0.2 + _JITTER
  period = random.uniform(0.65, 1.05)
  if count > 1:
    period = max(shortest, min(period, room / (count - 0.5)))
  begins = first + period * np.arange(count)
  begins[1:] += random.uniform(-_JITTER, _JITTER, count - 1) / 2
  return begins[begins + length + _TAIL / 2 < seconds]
