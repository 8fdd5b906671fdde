"""Protocols from JSON, and their errors."""

import json

import pytest

from ovi_jax.evaluation import av_benchmark
from ovi_jax.evaluation import protocols
from ovi_jax.evaluation.extractors import registry

SCORE = {
  "name": "x",
  "rule": "value",
  "features": ["picture"],
  "params": {"array": "picture.flicker"},
}


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"rule": "valu"}, "rule 'valu' is unknown"),
    ({"params": {}}, "params.array is missing"),
    ({"params": {"array": "a", "arra": "b"}}, "params.arra is unknown"),
    ({"params": {"array": 3}}, "params.array: expected str, found 3"),
    (
      {"rule": "av_align", "params": {"threshold": True}},
      "params.threshold: expected float, found True",
    ),
    (
      {"rule": "is", "params": {"array": "a.b", "splits": 0}},
      "params.splits: expected at least 1",
    ),
    ({"better": "up"}, "better 'up' is unknown"),
    ({"orders": [["true", "later"]], "better": "lower"}, "'later' is unknown"),
    ({"orders": [["true", "noise"]]}, "need a score with"),
    ({"digits": True}, "digits must be a whole number"),
    ({"feature": []}, "feature is unknown"),
  ],
)
def test_scores_that_cannot_be_are_refused(changes, message, tmp_path):
  path = tmp_path / "p.json"
  path.write_text(
    json.dumps({"p": {"source": "", "scores": [SCORE | changes]}})
  )
  with pytest.raises(ValueError, match=message):
    protocols.load([str(path)])


@pytest.mark.parametrize(
  "text", ["[]", "{}", '{"p": 3}', '{"p": {"scores": 1}}', "x"]
)
def test_files_that_are_no_protocols_are_refused(text, tmp_path):
  path = tmp_path / "p.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=r"p\.json"):
    protocols.load([str(path)])
  with pytest.raises(ValueError, match="No such file"):
    protocols.load([str(tmp_path / "absent.json")])


def test_two_scores_of_one_name_are_refused(tmp_path):
  path = tmp_path / "p.json"
  path.write_text(json.dumps({"p": {"source": "", "scores": [SCORE, SCORE]}}))
  with pytest.raises(ValueError, match="two scores have one name"):
    protocols.load([str(path)])


def test_features_of_the_protocols_are_computed_or_imported():
  computed = {*registry.FIXED, *registry.WEIGHTED}
  imported = {extractor for extractor, _ in av_benchmark.FILES.values()}
  # Of extractors that users write.
  others = {"clap_fusion", "synchformer", "i3d", "imagebind_windows"}
  others.add("dino")
  for protocol in protocols.known().values():
    assert protocol.source
    for score in protocol.scores:
      known = computed | imported | others
      assert set(score.features) <= known, (protocol.name, score.name)
