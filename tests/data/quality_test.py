"""Losses of tokenizer and codecs are measured, reported and limited."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers

from ovi_jax import synthetic
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.data import encode
from ovi_jax.data import quality

WORDS = tokenizer_lib.Tokenizer.load(synthetic.WEIGHTS / "tokenizer.json")


def test_unknown_words_and_merged_captions_are_counted():
  captions = [
    "A red ball on a furry zebra.",
    "A red ball on a golden zebra.",
    "A red ball on a golden zebra.",  # the same text is no loss
    "A green ball.",
  ]
  found = quality.coverage(WORDS, captions, 48)
  assert (found.captions, found.words, found.unknown) == (3, 17, 4)
  assert found.merged == 2
  assert found.examples[0] == "zebra"
  assert found.line() == (
    "captions: the tokenizer does not know 4 of 17 words (24%: zebra, furry,"
    " golden, …); 2 of 3 captions become the same text as another"
  )


def test_captions_that_are_too_long_are_counted():
  text = "A red ball bounces."
  length = WORDS.lengths([text])[0]
  assert "too long" not in quality.coverage(WORDS, [text], length).line()
  found = quality.coverage(WORDS, [text, "A red ball."], length - 1)
  assert found.cut == 1
  assert found.line().endswith(", 1 are too long and lose their end")


def test_a_word_encoded_as_the_unknown_token_is_unknown():
  vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "ball": 3}
  model = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer = dataclasses.replace(WORDS, model=model)
  assert tokenizer.unread("zebra ball") == ["zebra"]


def test_tags_are_no_words():
  found = quality.coverage(WORDS, ["A face says <S>ah<E>."], 48)
  assert (found.words, found.unknown) == (4, 0)


def test_names_of_unknown_words_are_printed_escaped():
  found = dataclasses.replace(
    quality.coverage(WORDS, ["A"], 48), examples=("a\x1b[31m",)
  )
  assert "\x1b" not in found.line()


def measured(**changes) -> quality.Quality:
  covered = quality.Coverage(
    captions=2, words=10, unknown=3, examples=("cat",), merged=0
  )
  given = {"coverage": covered, "psnr": 16.0, "mel_error": 9.0}
  return quality.Quality(**given | changes)


def test_every_limit_that_is_exceeded_is_named():
  with pytest.raises(ValueError) as error:
    measured().check(quality.Limits(), "Do this.")
  assert str(error.value) == (
    "30% of the captions' words are unknown to the tokenizer, at most 20% are"
    " accepted (max_unknown_words); the video autoencoder reaches 16.0 dB PSNR"
    " on these clips, at least 20 are expected (min_codec_psnr); audio VAE and"
    " vocoder change sounds by 9.0 dB, at most 8 are accepted"
    " (max_codec_mel_error). Do this."
  )
  limits = quality.Limits(
    max_unknown_words=0.3, min_codec_psnr=0, max_codec_mel_error=0
  )
  measured().check(limits, "")
  measured(accepted=True).check(quality.Limits(), "")


@pytest.mark.parametrize(
  "wrong",
  [
    {"max_unknown_words": 1.5},
    {"max_unknown_words": float("nan")},
    {"min_codec_psnr": -1.0},
  ],
)
def test_impossible_limits_are_refused(wrong):
  with pytest.raises(ValueError, match="must be"):
    quality.Limits(**wrong)


def test_measurements_are_read_back(tmp_path):
  path = tmp_path / quality.FILE
  assert quality.Quality.read(path) is None
  measured().save(path)
  found = quality.Quality.read(path)
  assert found is not None and found.psnr == 16.0
  assert found.coverage is not None and found.coverage.share == 0.3
  for text in (
    "{",
    "[1]",
    '{"psnr": 1, "walks": 2}',
    '{"psnr": "1"}',
    '{"accepted": 1}',
    '{"coverage": 7}',
    '{"coverage": {"captions": 1, "words": "1", "unknown": 0, "examples": [],'
    ' "merged": 0}}',
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=r"quality\.json is damaged"):
      quality.Quality.read(path)


@pytest.mark.slow
def test_encoding_stops_at_a_limit_unless_forced(
  dataset, weights, tmp_path, log_lines
):
  job = encode.Job(
    data=dataset,
    weights=weights,
    out=tmp_path / "out",
    limits=quality.Limits(max_unknown_words=1.0, max_codec_mel_error=0),
  )
  # The stand-in's codecs are random.
  with pytest.raises(ValueError, match="dB PSNR .* encode anyway with --force"):
    encode.run(job)
  assert not list(tmp_path.iterdir())
  assert any(line.startswith("video autoencoder:") for line in log_lines)
  assert any(line.startswith("audio VAE and vocoder:") for line in log_lines)
  assert encode.run(dataclasses.replace(job, force=True))
  stored = json.loads((job.out / quality.FILE).read_text())
  assert stored["accepted"] and 0 < stored["psnr"] < 20
  assert np.isfinite(stored["mel_error"])
  assert stored["coverage"]["captions"] >= 1
