"""Scores of one name that differ between protocols, each by its own rule."""

import math

import numpy as np
import pytest

from ovi_jax.evaluation import distributions
from ovi_jax.evaluation import intervals
from ovi_jax.evaluation import protocols


def score(protocol: str, name: str) -> protocols.Score:
  return next(s for s in protocols.known()[protocol].scores if s.name == name)


def test_verse_bench_keeps_punctuation_in_the_wer_and_ovi_does_not():
  clip = {
    "text.speech": np.array("Stay here, friend."),
    "whisper.text": np.array("Stay here friend."),
  }
  assert score("ovi", "WER").compute(clip, None) == 0
  assert score("verse_bench", "WER").compute(clip, None) == pytest.approx(1 / 3)


def test_the_wer_of_ovi_is_without_chinese_punctuation_as_in_seed_tts():
  # Some that zhon.hanzi.punctuation has; U+FF0E is not in it.
  marks = (
    "\u00b7\u2013\u2014\u2018\u2019\u201c\u201d\u201e\u2026\u3001\u3002"
    "\u300c\u300d\u3010\u3011\u300a\u300b\uff01\uff0c\uff1a\uff1f\uff5e"
  )
  for mark in marks:
    clip = {
      "text.speech": np.array(f"Don{mark}t stay"),
      "whisper.text": np.array("dont stay"),
    }
    assert score("ovi", "WER").compute(clip, None) == 0, mark
    assert score("verse_bench", "WER").compute(clip, None) > 0, mark
  for mark in "'\uff0e\u00e9\u00a3":
    clip["text.speech"] = np.array(f"Don{mark}t stay")
    assert score("ovi", "WER").compute(clip, None) == 0.5, mark


@pytest.mark.parametrize("protocol", ["speech", "ovi", "verse_bench"])
@pytest.mark.parametrize("speech", ["你好", "Say こんにちは", "안녕", "カ"])
def test_speech_that_is_not_written_in_words_has_no_wer(protocol, speech):
  clip = {"text.speech": np.array(speech), "whisper.text": np.array("hello")}
  wer = score(protocol, "WER")
  assert math.isnan(wer.compute(clip, None))
  assert "Chinese, Japanese or Korean is left out" in wer.note


def test_verse_bench_averages_signed_offsets_and_ovi_their_absolute_values():
  clip = {"synchformer.offsets": np.array([0.4, -0.2])}
  assert score("verse_bench", "AV-A").compute(clip, None) == pytest.approx(0.1)
  assert score("ovi", "DeSync").compute(clip, None) == pytest.approx(0.3)


def test_is_has_ten_splits_for_ovi_and_one_for_mova():
  logits = np.random.default_rng(0).normal(0, 2, (40, 9))
  values = {}
  for protocol, extractor, splits in (
    ("ovi", "panns_16k", 10),
    ("mova", "panns_32k", 1),
  ):
    clips = [{f"{extractor}.logits": row} for row in logits]
    found = score(protocol, "IS").compute(clips, None)
    values[protocol] = found.value(np.arange(40))
    assert values[protocol] == distributions.split_scores(logits, splits, True)
  assert values["ovi"] < values["mova"]


def test_the_dnsmos_of_mova_is_p808():
  clip = {"dnsmos.p808": np.float64(3.1), "dnsmos.ovrl": np.float64(2.5)}
  assert score("mova", "DNSMOS").compute(clip, None) == 3.1
  assert score("speech", "DNSMOS OVRL").compute(clip, None) == 2.5


def test_mova_averages_the_means_of_its_sets():
  names = ["set1_01", "set1_02", "set1_03", "set2_01"]
  groups = score("mova", "CLAP").groups_of(names)
  assert groups == ["set1", "set1", "set1", "set2"]
  value_N = np.array([1.0, 2.0, 3.0, 8.0])
  assert intervals.bootstrap_mean(value_N, 50, 0, groups).value == 5
  assert intervals.bootstrap_mean(value_N, 50, 0).value == 3.5
  part = intervals.bootstrap_mean(
    np.array([1.0, math.nan, 3.0, math.nan]), 50, 0, groups
  )
  assert part.value == 2


def test_the_javis_score_is_the_mean_of_the_lowest_two_fifths():
  clip = {"imagebind_windows.cosines": np.array([0.5, 0.1, 0.9, 0.2, 0.7])}
  found = score("javis", "JavisScore").compute(clip, None)
  assert found == pytest.approx(0.15)


def test_consistency_is_with_the_frame_before_and_the_first():
  frames = np.random.default_rng(0).normal(1, 1, (5, 6))
  unit = frames / np.linalg.norm(frames, axis=1, keepdims=True)
  expected = np.mean(
    [
      (max(0, unit[i] @ unit[i - 1]) + max(0, unit[i] @ unit[0])) / 2
      for i in range(1, 5)
    ]
  )
  found = score("vbench", "subject consistency").compute(
    {"dino.frames": frames}, None
  )
  assert found == pytest.approx(expected)


def test_vbench_averages_consistency_over_pairs_of_frames():
  random = np.random.default_rng(0)
  clips = [{"dino.frames": random.normal(1, 1, (n, 6))} for n in (3, 9)]
  consistency = score("vbench", "subject consistency")
  values = [consistency.compute(clip, None) for clip in clips]
  weights = consistency.weights_of([*clips, {}])
  assert weights is not None and weights.tolist() == [2, 8, 0]
  found = intervals.bootstrap_mean(
    np.array([*values, math.nan]), 50, 0, None, weights
  )
  assert found.value == pytest.approx((2 * values[0] + 8 * values[1]) / 10)
  assert min(values) <= found.low < found.high <= max(values)
  assert score("vbench", "temporal flickering").weights_of(clips) is None
