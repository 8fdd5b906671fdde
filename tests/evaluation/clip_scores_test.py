"""Scores of a few clips, for the logs."""

import json

import pytest

from ovi_jax.evaluation import clip_scores
from ovi_jax.evaluation import features
from ovi_jax.training.evaluators import eval_samples
from tests.lib import media_files


def test_means_are_over_the_clips_that_have_a_value(tmp_path):
  frames = media_files.moving(12)
  still = [frames[0]] * 12
  paths = [tmp_path / name for name in ("a.mp4", "b.mp4")]
  times = media_files.even(12)
  media_files.write(paths[0], frames, times, media_files.tone(0.5))
  media_files.write(paths[1], still, times)
  found = clip_scores.means(paths, ["", ""], ["basic", "ovi"])
  assert found["basic/stillness"] == pytest.approx(0.5, abs=0.1)
  assert found["basic/duration of the sound"] == pytest.approx(0.5, abs=0.05)
  assert found["basic/duration of the picture"] == pytest.approx(0.5)
  assert not [name for name in found if name.startswith("ovi/")]


def test_all_clips_are_extracted_at_once_and_pairs_are_left_out(
  tmp_path, monkeypatch
):
  calls, extract = [], features.extract

  def counted(extractors, sources, cache):
    calls.append(([e.name for e in extractors], len(sources)))
    return extract([], sources, cache)

  monkeypatch.setattr(features, "extract", counted)
  pair = {
    "name": "pair",
    "rule": "kl",
    "features": ["picture"],
    "params": {"array": "picture.motion_T"},
  }
  path = tmp_path / "p.json"
  path.write_text(json.dumps({"p": {"source": "", "scores": [pair]}}))
  paths = [tmp_path / f"{number}.wav" for number in range(3)]
  for each in paths:
    media_files.write_sound(each, media_files.tone(0.1))
  assert clip_scores.means(paths, [""] * 3, [str(path)]) == {}
  assert calls == [([], 3)]


def test_protocols_of_samples_are_checked_before_training():
  with pytest.raises(ValueError, match="eval_samples: protocol 'basics'"):
    eval_samples.EvalSamplesConfig(num_samples=1, protocols=("basics",))
