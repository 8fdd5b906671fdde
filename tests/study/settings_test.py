"""The study file: what is accepted and what each refusal says."""

import pytest

from ovi_jax.study import settings
from tests.lib import study_clips

SYSTEMS = {"ours": "a", "baseline": "b", "real": "c"}


def test_a_file_with_systems_alone_has_the_defaults(tmp_path):
  path = study_clips.write_file(tmp_path, systems=SYSTEMS)
  found = settings.read(path)
  assert found.systems["ours"] == str(tmp_path / "a")
  assert [q.id for q in found.questions] == ["audio", "video", "sync"]
  assert found.loudness == -23 and found.raters_per_item == 3
  assert settings.from_json(settings.to_json(found)) == found


def test_folders_in_object_stores_are_not_joined_to_the_files_folder(tmp_path):
  systems = {"a": "gs://bucket/a", "b": "b"}
  found = settings.read(study_clips.write_file(tmp_path, systems=systems))
  assert found.systems["a"] == "gs://bucket/a"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"systems": {"one": "a"}}, "systems: expected 2 to 20"),
    ({"systems": {"one\n": "a", "two": "b"}}, "expected a name of letters"),
    ({"question": []}, "did you mean questions"),
    ({"questions": []}, "questions: expected 1 to 9"),
    ({"questions": [{"id": "a"}]}, "text is missing"),
    ({"questions": [{"id": [], "text": {}}]}, "expected an id of letters"),
    (
      {"questions": [{"id": "a", "text": "?", "gold": "dust"}]},
      "choose from , video_noise",
    ),
    ({"pairs": [["ours", "nobody"]]}, "expected two different systems"),
    ({"pairs": [["ours", "real"]]}, "nothing connects 'baseline'"),
    ({"raters_per_item": 0}, "raters_per_item must be at least 1"),
    ({"gold_share": 0.9}, "gold_share: expected 0 to 0.3"),
    ({"loudness": 3.0}, "loudness: expected -60 to -5"),
    ({"seed": True}, "seed must be a whole number"),
    ({"title": "Ours or the others"}, "title names the system 'ours'"),
    ({"exclusion": {"min_gold": 1}}, "config.exclusion.min_gold is unknown"),
    ({"exclusion": 3}, "exclusion: expected an object"),
    (
      {"exclusion": {"min_gold_accuracy": 60}},
      "min_gold_accuracy: expected 0 to 1",
    ),
    (
      {"exclusion": {"min_repeat_agreement": -0.1}},
      "min_repeat_agreement: expected 0 to 1",
    ),
    (
      {"exclusion": {"max_side_share": 0.4}},
      "max_side_share: expected 0.5 to 1",
    ),
    (
      {"exclusion": {"min_headphones": -1}},
      "min_headphones must be at least 0",
    ),
    (
      {"exclusion": {"min_headphones": 7}},
      "min_headphones: expected at most headphone_trials, 6, got 7",
    ),
    ({"title": 3}, "title: expected text"),
  ],
)
def test_an_invalid_field_is_named(tmp_path, change, message):
  path = study_clips.write_file(tmp_path, **{"systems": SYSTEMS, **change})
  with pytest.raises(ValueError, match=message) as error:
    settings.read(path)
  assert str(error.value).startswith(str(path))


def test_a_missing_or_damaged_file_is_named(tmp_path):
  with pytest.raises(ValueError, match="expected a study file"):
    settings.read(tmp_path / "no.json")
  (tmp_path / "bad.json").write_text("{")
  with pytest.raises(ValueError, match="bad.json: expected JSON"):
    settings.read(tmp_path / "bad.json")


def test_a_session_of_few_pairs_has_fewer_repeats():
  chosen = settings.from_json({"systems": SYSTEMS})
  assert settings.session_counts(chosen, 1000, 9) == {
    "real": 38,
    "gold": 3,
    "repeat": 3,
  }
  assert settings.session_counts(chosen, 3, 0) == {
    "real": 3,
    "gold": 0,
    "repeat": 1,
  }
