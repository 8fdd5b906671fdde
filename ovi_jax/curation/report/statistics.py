"""What a run's files add up to: counts, reasons, scores, hours, examples.

In: the lines of all stages. Out: numbers for a report. A line is read once and
forgotten; of scores and examples so many are held, those with the lowest hash,
so that the choice is the same however the lines are read.
"""

import collections
import dataclasses
import hashlib
import heapq
import itertools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from ovi_jax.curation import clip as clips
from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard_store

MAX_SCORES = 5000  # scores of a kind that are held
MAX_REJECT_EXAMPLES = 4  # clips of each reason
MAX_CLIP_EXAMPLES = 12
_MAX_VALUES = 12  # different values of a fact that is worth a table
_MAX_VALUE_LENGTH = 24  # of such a value


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectReason:
  """Clips that a stage refused for the same.

  Attributes:
    count: of them.
    failed: it says nothing of the clips.
    scores: of some.
    examples: (shard, reject) of some.
  """

  count: int
  failed: bool
  scores: tuple[float, ...]
  examples: tuple[tuple[int, clips.Reject], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageStatistics:
  """What a stage did.

  Attributes:
    name: of the stage.
    shards: it has done.
    passed: clips that it passed on.
    refused: clips that it refused.
    failed: clips that it could not judge.
    seconds: of what it passed on.
    scores: name -> what it measured of some clips that it passed on.
    facts: (stage, fact) -> value -> clips that it passed on.
    reasons: by name.
    examples: (shard, clip) of some that it passed on.
    tokens: in and out; of captions.
  """

  name: str
  shards: int
  passed: int
  refused: int
  failed: int
  seconds: float
  scores: Mapping[str, tuple[float, ...]]
  facts: Mapping[tuple[str, str], Mapping[str, int]]
  reasons: Mapping[str, RejectReason]
  examples: tuple[tuple[int, clips.Clip], ...]
  tokens: tuple[int, int]


def collect(
  settings: curation_settings.Settings,
  count: int,
  progress: Callable[[Iterable], Iterable] = iter,
) -> list[StageStatistics]:
  """Add a run up.

  Args:
    settings: of the run.
    count: of shards.
    progress: goes over (stage, shard) as it is given, and may say how far.

  Returns:
    The inputs, as if a stage had passed them on, and each stage.
  """
  places = range(-1, len(settings.stages))
  gathered = {place: _Accumulator() for place in places}
  for place, shard in progress(list(itertools.product(places, range(count)))):
    files = settings.shard_files(place, shard)
    if shard_store.read_marker(files) is not None:
      gathered[place].shards += 1
      for line in shard_store.read(files):
        gathered[place].add(shard, line)
  names = [shard_store.INPUTS, *(stage.name for stage in settings.stages)]
  known: set[str] = set()
  found = []
  for name, place in zip(names, places, strict=True):
    found.append(gathered[place].stage(name, known))
    known |= set(gathered[place].scores)
  return found


class _HashSample:
  """Of all that is added, so many with the lowest hash, in its order."""

  def __init__(self, size: int):
    self._size, self._heap = size, []
    self._count = itertools.count()  # of two copies, the first one

  def add(self, id_: str, value: Any) -> None:
    digest = hashlib.sha256(id_.encode(errors="surrogateescape")).digest()
    rank = -int.from_bytes(digest[:8], "big")
    if len(self._heap) < self._size or rank > self._heap[0][0]:
      heapq.heappush(self._heap, (rank, -next(self._count), value))
      if len(self._heap) > self._size:
        heapq.heappop(self._heap)

  def values(self) -> tuple:
    return tuple(value for *_, value in sorted(self._heap, reverse=True))


class _Accumulator:
  """What the lines of a stage add up to so far."""

  def __init__(self):
    self.shards = self.passed = self.tokens_in = self.tokens_out = 0
    self.seconds = 0.0
    self.scores = collections.defaultdict(lambda: _HashSample(MAX_SCORES))
    self.facts = collections.defaultdict(collections.Counter)
    self.counts = collections.Counter()
    self.failed = {}
    self.reject_scores = collections.defaultdict(
      lambda: _HashSample(MAX_SCORES)
    )
    self.rejects = collections.defaultdict(
      lambda: _HashSample(MAX_REJECT_EXAMPLES)
    )
    self.clips = _HashSample(MAX_CLIP_EXAMPLES)

  def add(self, shard: int, line: shard_store.Line) -> None:
    clip = line.clip if isinstance(line, clips.Reject) else line
    captions = clip.facts.get("captions", {})
    self.tokens_in += captions.get("tokens_in", 0)
    self.tokens_out += captions.get("tokens_out", 0)
    if isinstance(line, clips.Reject):
      self.counts[line.reason] += 1
      self.failed[line.reason] = line.failed
      self.rejects[line.reason].add(line.clip.id, (shard, line))
      if line.score is not None:
        self.reject_scores[line.reason].add(line.clip.id, line.score)
      return
    self.passed += 1
    self.seconds += line.seconds
    self.clips.add(line.id, (shard, line))
    for name, value in line.scores.items():
      self.scores[name].add(line.id, value)
    for stage, facts in line.facts.items():
      for name, value in facts.items():
        counter = self.facts[stage, name]
        short = (
          isinstance(value, str | bool) and len(str(value)) <= _MAX_VALUE_LENGTH
        )
        if short and len(counter) <= _MAX_VALUES:
          counter[str(value)] += 1

  def stage(self, name: str, known: set[str]) -> StageStatistics:
    """All of it; scores only that no stage before had."""
    reasons = {
      reason: RejectReason(
        count=count,
        failed=self.failed[reason],
        scores=self.reject_scores[reason].values(),
        examples=self.rejects[reason].values(),
      )
      for reason, count in sorted(self.counts.items(), key=_largest_first)
    }
    failed = sum(r.count for r in reasons.values() if r.failed)
    return StageStatistics(
      name=name,
      shards=self.shards,
      passed=self.passed,
      refused=self.counts.total() - failed,
      failed=failed,
      seconds=self.seconds,
      scores={
        n: self.scores[n].values() for n in sorted(set(self.scores) - known)
      },
      facts={
        fact: dict(sorted(values.items(), key=_largest_first))
        for fact, values in sorted(self.facts.items())
        if 0 < len(values) <= _MAX_VALUES
      },
      reasons=reasons,
      examples=self.clips.values(),
      tokens=(self.tokens_in, self.tokens_out),
    )


def _largest_first(item: tuple[str, int]) -> tuple[int, str]:
  """Order of names with counts."""
  return -item[1], item[0]
