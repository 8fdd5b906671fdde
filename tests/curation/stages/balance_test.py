"""Shares are kept; the selection does not depend on the order."""

import random

import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.stages import balance


def clip(number: int, kind: str) -> clips.Clip:
  made = clips.Clip(id=f"clip-{number}", path=f"{number}.mp4")
  return made.with_facts("face_tracks", face_count=kind)


def many(**counts: int) -> list[clips.Clip]:
  kinds = [kind for kind, count in counts.items() for _ in range(count)]
  return [clip(number, kind) for number, kind in enumerate(kinds)]


def stay(config: balance.Config, came: list[clips.Clip]) -> dict[str, set[str]]:
  """Kind -> ids of the clips that stay."""
  decide = balance.load(config)(iter(came))
  found: dict[str, set[str]] = {}
  for each in came:
    outcome = decide(each)
    if isinstance(outcome, clips.Clip):
      kind = outcome.facts["face_tracks"]["face_count"]
      found.setdefault(kind, set()).add(outcome.id)
    else:
      assert outcome.reason.startswith("over its share: ")
      assert outcome.clip == each and not outcome.failed
  return found


def sizes(found: dict[str, set[str]]) -> dict[str, int]:
  return {kind: len(ids) for kind, ids in found.items()}


def test_shares_are_exact_if_there_are_enough_clips():
  config = balance.Config(
    shares={"none": 2, "single": 1, "multiple": 1}, min_kept_fraction=0.0
  )
  found = stay(config, many(none=1000, single=300, multiple=50))
  assert sizes(found) == {"none": 100, "single": 50, "multiple": 50}


@pytest.mark.parametrize(
  "counts, least, wanted",
  [
    ((10, 10, 10), 0.5, (10, 10, 10)),
    ((600, 300, 100), 0.0, (100, 100, 100)),
    ((600, 300, 100), 0.5, (200, 200, 100)),
    ((600, 300, 100), 0.8, (400, 300, 100)),
    ((600, 300, 100), 1.0, (600, 300, 100)),
    ((600, 0, 100), 0.0, (0, 0, 0)),
    ((600, 0, 100), 0.5, (250, 0, 100)),
    ((0, 0, 0), 0.5, (0, 0, 0)),
    # Rounding leaves no fewer.
    ((1, 1, 0), 0.5, (1, 0, 0)),
    ((0, 0, 1), 0.5, (0, 0, 1)),
    ((5, 5, 5), 0.5, (5, 5, 5)),
  ],
)
def test_the_minimum_number_of_clips_is_kept(counts, least, wanted):
  names = "none", "single", "multiple"
  shares = {name: 1 / 3 for name in names}
  found = balance.num_kept(dict(zip(names, counts)), shares, least)
  assert tuple(found[name] for name in names) == wanted


def test_the_selection_depends_on_id_and_seed_only():
  came = many(none=400, single=100, multiple=100, nobody=7)
  found = stay(balance.Config(min_kept_fraction=0.0), came)
  assert sizes(found) == {
    "none": 100,
    "single": 100,
    "multiple": 100,
    "nobody": 7,
  }
  other = came[:]
  random.Random(0).shuffle(other)
  assert stay(balance.Config(min_kept_fraction=0.0), other) == found
  again = stay(balance.Config(min_kept_fraction=0.0, seed=1), came)
  assert sizes(again) == sizes(found) and again["none"] != found["none"]
  # Neither the first nor the last ones.
  numbers = sorted(int(id_.split("-")[1]) for id_ in found["none"])
  assert 150 < sum(numbers) / len(numbers) < 250
  # More clips of the others: all that stayed still stay.
  more = [clip(number, "single") for number in range(700, 750)]
  more += [clip(number, "multiple") for number in range(800, 850)]
  assert (
    stay(balance.Config(min_kept_fraction=0.0), came + more)["none"]
    > found["none"]
  )


def test_invalid_settings_are_refused():
  with pytest.raises(ValueError, match="numbers above 0"):
    balance.Config(shares={"none": 0.0})
  with pytest.raises(
    ValueError, match=r"expected a fraction in \[0, 1\], got 2"
  ):
    balance.Config(min_kept_fraction=2)
