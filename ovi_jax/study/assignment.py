"""Who judges what: the plan of a session, the next item, the side.

Everything is a function of the study's secret key, the rater and the counts of
judgements so far, so that it can be recomputed, and not be guessed.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence

from ovi_jax.study import manifest

REAL, GOLD, REPEAT = "real", "gold", "repeat"


def plan(study: manifest.Study, rater: str) -> tuple[str, ...]:
  """The kind of item at each position of a rater's session.

  Gold items are not at the first position; repeats are in the second half.

  Args:
    study: of the session.
    rater: name of the rater.
  """
  counts = study.counts
  total = sum(counts.values())
  kinds = [REAL] * total
  later = range(total - total // 2, total)
  for position in _shuffled(study.key, later, "repeats", rater)[
    : counts[REPEAT]
  ]:
    kinds[position] = REPEAT
  free = [p for p in range(1, total) if kinds[p] == REAL]
  for position in _shuffled(study.key, free, "golds", rater)[: counts[GOLD]]:
    kinds[position] = GOLD
  return tuple(kinds)


def gold(study: manifest.Study, rater: str) -> list[int]:
  """Numbers of gold items in the order in which a rater gets them.

  Corruptions alternate, each in an order of its own.
  """
  by_kind: dict[str, list[int]] = {}
  for number, item in enumerate(study.gold):
    by_kind.setdefault(item.kind, []).append(number)
  order = _shuffled(study.key, sorted(by_kind), "kinds", rater)
  queues = [
    _shuffled(study.key, by_kind[kind], "gold", rater) for kind in order
  ]
  longest = max(map(len, queues), default=0)
  return [q[i] for i in range(longest) for q in queues if i < len(q)]


def choose(
  study: manifest.Study,
  rater: str,
  judged: Mapping[int, int],
  seen: Collection[int],
) -> int | None:
  """The item that a rater judges next: the least judged one.

  Args:
    study: of the session.
    rater: name of the rater.
    judged: raters of each item; items without any may be left out.
    seen: items that the rater has had.

  Returns:
    The number of the item, or None if each has been seen or has enough raters.
  """
  enough = study.settings.raters_per_item
  open_items = [
    i
    for i in range(len(study.items))
    if i not in seen and judged.get(i, 0) < enough
  ]
  if not open_items:
    return None
  least = min(judged.get(i, 0) for i in open_items)
  tied = [i for i in open_items if judged.get(i, 0) == least]
  return min(tied, key=lambda i: manifest.derive(study.key, "item", rater, i))


def choose_repeat(
  study: manifest.Study, rater: str, real: Sequence[tuple[int, int]], at: int
) -> int | None:
  """The item that is repeated at a position of a session.

  Args:
    study: of the session.
    rater: name of the rater.
    real: position and number of the rater's real items that are not repeated.
    at: the position.

  Returns:
    The number of the item, or None if none was judged long enough ago.
  """
  distance = max(1, sum(study.counts.values()) // 4)
  far = [item for position, item in real if at - position >= distance]
  key = study.key
  return min(
    far, key=lambda i: manifest.derive(key, "repeat", rater, i), default=None
  )


def is_flipped(
  study: manifest.Study, rater: str, what: str, number: int, balance: int = 0
) -> bool:
  """Whether the second clip of an item is on the left.

  Args:
    study: of the session.
    rater: name of the rater.
    what: `REAL` or `GOLD`.
    number: of the item.
    balance: raters that had it flipped less those that had not; the rarer side
      is chosen, so that each item is balanced.
  """
  if balance:
    return balance < 0
  return bool(manifest.derive(study.key, "side", rater, what, number)[0] & 1)


def _shuffled(key: str, values: Collection, *what: object) -> list:
  """The values in an order that depends on the key."""
  return sorted(values, key=lambda v: manifest.derive(key, "order", *what, v))
