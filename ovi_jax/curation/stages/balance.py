"""Clips of each kind in shares that are configured; too many are refused.

In: the clips of all shards, with a fact that says their kind, such as whether
none, a single or several people are seen. Out: of each kind so many that the
shares hold. Which ones is a matter of a hash of their id and the seed: not of
their order, and the same when others are added.
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
  """The shares.

  Attributes:
    stage: that left the fact.
    fact: whose value is the kind.
    shares: kind -> share wanted; they are taken relative to their sum. Kinds
      that are not named here pass unweighed.
    min_kept_fraction: share of the clips that stays at least. Where exact shares would
      keep fewer, kinds of which there are too few are kept whole and the
      others fill up in proportion. 0 for exact shares at any price.
    seed: of the choice.
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
        " to drop a kind, give it a small one"
      )
    if not 0 <= self.min_kept_fraction <= 1:
      raise ValueError(
        f"balance.min_kept_fraction: expected a share in [0, 1], got {self.min_kept_fraction}"
      )


def load(config: Config) -> Callable:
  """The stage; see `stage` for its form."""

  def see(
    every: Iterator[clips.Clip],
  ) -> Callable[[clips.Clip], clips.Clip | clips.Reject]:
    ranks: dict[str, list[int]] = {kind: [] for kind in config.shares}
    for clip in every:
      kind = _group(clip, config)
      if kind in ranks:
        ranks[kind].append(_rank(clip, config.seed))
    counts = {kind: len(found) for kind, found in ranks.items()}
    bounds = {
      kind: sorted(ranks[kind])[number - 1] if number else -1
      for kind, number in num_kept(
        counts, config.shares, config.min_kept_fraction
      ).items()
    }

    def decide(clip: clips.Clip) -> clips.Clip | clips.Reject:
      kind = _group(clip, config)
      if kind not in bounds or _rank(clip, config.seed) <= bounds[kind]:
        return clip.with_facts(NAME, group=kind)
      return clips.Reject(
        clip=clip, stage=NAME, reason=f"more than its share: {kind}"
      )

    return decide

  return see


def num_kept(
  counts: Mapping[str, int],
  shares: Mapping[str, float],
  min_kept_fraction: float,
) -> dict[str, int]:
  """How many clips of each kind stay.

  Args:
    counts: clips of each kind that there are.
    shares: wanted, relative to their sum.
    min_kept_fraction: share of all clips that stays at least.

  Returns:
    kind -> number.
  """
  total = sum(shares.values())
  wanted = {kind: share / total for kind, share in shares.items()}
  floor = math.ceil(min_kept_fraction * sum(counts.values()) - 1e-9)
  # Kinds are used up one after another as the whole grows; between two such
  # points the number kept grows evenly.
  points = sorted({counts[kind] / wanted[kind] for kind in wanted})
  whole = points[0] if points else 0.0
  for before, after in zip([0.0, *points], points):
    if floor and _num_kept_at(counts, wanted, after) >= floor - 1e-9:
      open_share = sum(
        share for k, share in wanted.items() if counts[k] / share > before
      )
      missing = floor - _num_kept_at(counts, wanted, before)
      whole = max(whole, before + missing / open_share)
      break
  exact = {k: min(counts[k], share * whole) for k, share in wanted.items()}
  found = {kind: math.floor(number + 1e-9) for kind, number in exact.items()}
  # What rounding took goes to the kinds that lost the most by it.
  losers = sorted(wanted, key=lambda kind: found[kind] - exact[kind])
  for kind in losers[: max(0, floor - sum(found.values()))]:
    found[kind] += 1
  return found


def _num_kept_at(
  counts: Mapping[str, int], wanted: Mapping[str, float], whole: float
) -> float:
  """Clips kept if a whole of so many were shared out."""
  return sum(min(counts[k], share * whole) for k, share in wanted.items())


def _group(clip: clips.Clip, config: Config) -> str:
  """What the fact says; nothing where there is none."""
  return str(clip.facts.get(config.stage, {}).get(config.fact, ""))


def _rank(clip: clips.Clip, seed: int) -> int:
  """A number that is drawn for a clip."""
  digest = hashlib.sha256(f"{seed}:{clip.id}".encode()).digest()
  return int.from_bytes(digest[:8], "big")
