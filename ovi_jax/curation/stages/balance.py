"""Subsamples clips so that groups have configured shares.

The group of a clip is a fact of an earlier stage, such as the number of faces.
Selection is by a hash of id and seed, so it does not depend on the order of
clips and stays the same when others are added.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping

from ovi_jax.curation import clip as clips

NAME = "balance"
VERSION = 2
KIND = "global"


def _equal_shares() -> dict[str, float]:
  return {"none": 1 / 3, "single": 1 / 3, "multiple": 1 / 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Shares of groups.

  Attributes:
    stage: stage that sets the fact.
    fact: fact whose value is the group.
    shares: group -> share, normalized by their sum. Other groups pass.
    min_kept_fraction: fraction of clips to keep at least. If exact shares would
      keep fewer, under-represented groups are kept whole and the others are
      filled in proportion. 0 for exact shares.
    seed: seed of the selection.
  """

  stage: str = "face_tracks"
  fact: str = "face_count"
  shares: Mapping[str, float] = dataclasses.field(default_factory=_equal_shares)
  min_kept_fraction: float = 0.5
  seed: int = 0

  def __post_init__(self):
    if any(not share > 0 for share in self.shares.values()):
      raise ValueError(
        f"balance.shares: expected numbers above 0, got {dict(self.shares)};"
        " to drop a group, use a small number"
      )
    if not 0 <= self.min_kept_fraction <= 1:
      raise ValueError(
        "balance.min_kept_fraction: expected a fraction in [0, 1], got"
        f" {self.min_kept_fraction}"
      )


def load(config: Config) -> Callable:
  """The stage function."""

  def collect(
    all_clips: Iterator[clips.Clip],
  ) -> Callable[[clips.Clip], clips.Clip | clips.Reject]:
    ranks: dict[str, list[int]] = {group: [] for group in config.shares}
    for clip in all_clips:
      group = _group(clip, config)
      if group in ranks:
        ranks[group].append(_rank(clip, config.seed))
    counts = {group: len(found) for group, found in ranks.items()}
    bounds = {
      group: sorted(ranks[group])[number - 1] if number else -1
      for group, number in num_kept(
        counts, config.shares, config.min_kept_fraction
      ).items()
    }

    def decide(clip: clips.Clip) -> clips.Clip | clips.Reject:
      group = _group(clip, config)
      if group not in bounds or _rank(clip, config.seed) <= bounds[group]:
        return clip.with_facts(NAME, group=group)
      return clips.Reject(
        clip=clip, stage=NAME, reason=f"over its share: {group}"
      )

    return decide

  return collect


def num_kept(
  counts: Mapping[str, int],
  shares: Mapping[str, float],
  min_kept_fraction: float,
) -> dict[str, int]:
  """The number of clips to keep per group.

  Args:
    counts: group -> number of clips.
    shares: group -> share, normalized by their sum.
    min_kept_fraction: fraction of all clips to keep at least.

  Returns:
    group -> number.
  """
  total = sum(shares.values())
  wanted = {group: share / total for group, share in shares.items()}
  floor = math.ceil(min_kept_fraction * sum(counts.values()) - 1e-9)
  # As the total grows, groups are exhausted one by one; between these points
  # the number kept is linear in the total.
  points = sorted({counts[group] / wanted[group] for group in wanted})
  total_clips = points[0] if points else 0.0
  for before, after in zip([0.0, *points], points):
    if floor and _num_kept_at(counts, wanted, after) >= floor - 1e-9:
      open_share = sum(
        share for k, share in wanted.items() if counts[k] / share > before
      )
      missing = floor - _num_kept_at(counts, wanted, before)
      total_clips = max(total_clips, before + missing / open_share)
      break
  exact = {
    k: min(counts[k], share * total_clips) for k, share in wanted.items()
  }
  found = {group: math.floor(number + 1e-9) for group, number in exact.items()}
  # Distribute the clips lost by rounding to the largest remainders.
  by_remainder = sorted(wanted, key=lambda group: found[group] - exact[group])
  for group in by_remainder[: max(0, floor - sum(found.values()))]:
    found[group] += 1
  return found


def _num_kept_at(
  counts: Mapping[str, int], wanted: Mapping[str, float], total_clips: float
) -> float:
  """Number of clips kept for a total before limits."""
  return sum(min(counts[k], share * total_clips) for k, share in wanted.items())


def _group(clip: clips.Clip, config: Config) -> str:
  """The group of a clip; "" without the fact."""
  return str(clip.facts.get(config.stage, {}).get(config.fact, ""))


def _rank(clip: clips.Clip, seed: int) -> int:
  """A pseudo-random number of a clip."""
  digest = hashlib.sha256(f"{seed}:{clip.id}".encode()).digest()
  return int.from_bytes(digest[:8], "big")
