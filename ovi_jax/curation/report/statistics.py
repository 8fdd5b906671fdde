"""Aggregates the output lines of a run: counts, reasons, scores, examples.

Lines are streamed. Of scores and examples, a fixed number with the lowest
hashes is kept, so the selection does not depend on the order.
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

MAX_SCORES = 5000  # per score
MAX_REJECT_EXAMPLES = 4  # per reason
MAX_CLIP_EXAMPLES = 12
_MAX_VALUES = 12  # maximum distinct values of a fact in the table
_MAX_VALUE_LENGTH = 24  # maximum length of such a value


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectReason:
  """Clips that a stage rejected for one reason.

  Attributes:
    count: number of clips.
    failed: the stage failed on them.
    scores: a sample of their scores.
    examples: a sample of (shard, reject).
  """

  count: int
  failed: bool
  scores: tuple[float, ...]
  examples: tuple[tuple[int, clips.Reject], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageStatistics:
  """Statistics of a stage.

  Attributes:
    name: name of the stage.
    shards: completed shards.
    passed: clips passed on.
    rejected: clips rejected.
    failed: clips on which the stage failed.
    seconds: total length of the clips passed on.
    scores: name -> sample of the scores of clips passed on.
    facts: (stage, fact) -> value -> number of clips passed on.
    reasons: reason -> rejected clips.
    examples: a sample of (shard, clip) passed on.
    tokens: input and output tokens of captions.
  """

  name: str
  shards: int
  passed: int
  rejected: int
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
  """Collect the statistics of a run.

  Args:
    settings: settings of the run.
    count: number of shards.
    progress: wraps the iterable of (stage, shard) with a progress bar.

  Returns:
    Statistics of the inputs and of each stage.
  """
  stage_indices = range(-1, len(settings.stages))
  accumulators = {stage_index: _Accumulator() for stage_index in stage_indices}
  for stage_index, shard in progress(
    list(itertools.product(stage_indices, range(count)))
  ):
    files = settings.shard_files(stage_index, shard)
    if shard_store.read_marker(files) is not None:
      accumulators[stage_index].shards += 1
      for line in shard_store.read(files):
        accumulators[stage_index].add(shard, line)
  names = [shard_store.INPUTS, *(stage.name for stage in settings.stages)]
  earlier_scores: set[str] = set()
  result = []
  for name, stage_index in zip(names, stage_indices, strict=True):
    result.append(accumulators[stage_index].stage(name, earlier_scores))
    earlier_scores |= set(accumulators[stage_index].scores)
  return result


class _HashSample:
  """Keeps a fixed number of values with the lowest hashes."""

  def __init__(self, size: int):
    self._size, self._heap = size, []
    self._count = itertools.count()  # prefers the first of equal hashes

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
  """Accumulates the lines of a stage."""

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

  def stage(self, name: str, earlier_scores: set[str]) -> StageStatistics:
    """The statistics; without scores of earlier stages."""
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
      rejected=self.counts.total() - failed,
      failed=failed,
      seconds=self.seconds,
      scores={
        n: self.scores[n].values()
        for n in sorted(set(self.scores) - earlier_scores)
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
  """Sort key by decreasing count."""
  return -item[1], item[0]
