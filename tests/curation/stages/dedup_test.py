"""The first of several copies of a clip is kept."""

from ovi_jax.curation import clip as clips
from ovi_jax.curation.stages import dedup


def test_the_first_of_several_copies_is_kept():
  paths = {"a.mp4": "1", "b.mp4": "2", "c.mp4": "1", "d.mp4": "1"}
  came = [clips.Clip(id=id_, path=path) for path, id_ in paths.items()]
  decide = dedup.load(dedup.Config())(iter(came))
  outcomes = [decide(each) for each in came]
  assert outcomes[:2] == came[:2]
  for reject in outcomes[2:]:
    assert reject.reason == "duplicate" and reject.detail == "a.mp4"
