"""Public lists become tables that sample.py and the evaluation read."""

import csv
import json

import pytest

from ovi_jax import prompt as prompts
from ovi_jax.evaluation import clips
from ovi_jax.evaluation import lists
from ovi_jax.sampling import requests
from tests.lib import media_files

VERSE = {
  "set1": {
    "00000000": {
      "prompt": "A woman at a board says 'Hello there.'",
      "video_prompt": "A woman stands at a board.",
      "audio_prompt": ["Chalk on a board.", "A door closes."],
      "speech_prompt": {"speaker": "the woman", "text": "Hello there."},
    }
  },
  "set2": {
    "00000000": {
      "prompt": "A dog barks.",
      "audio_prompt": [],
      "speech_prompt": {},
    }
  },
}
FILES = {
  "verse_bench": ("verse.json", json.dumps(VERSE)),
  "audiocaps": (
    "test.csv",
    "audiocap_id,youtube_id,start_time,caption\n"
    '1,-abc,30,"Rain falls, then thunder"\n2,-abc,30,Rain\n3,xyz,0,A cat\n',
  ),
  "vggsound": (
    "t.tsv",
    "id\tlabel\nqq_000001\tdog barking\nww_000002\tdog barking\n",
  ),
  "seed_tts": (
    "meta.lst",
    "utt-1|Before.|p/1.wav|Get off now.\n\nutt-2|a|b|Go.|c\n",
  ),
  "ovi": ("ovi.csv", "text_prompt,image_path\nA man says <S>Hi.<E>,\n"),
}
EXPECTED = {
  "verse_bench": {
    "set1_00000000": "A woman stands at a board. The woman says: <S>Hello"
    " there.<E> <AUDCAP>Chalk on a board. A door closes.<ENDAUDCAP>",
    "set2_00000000": "A dog barks.",
  },
  "audiocaps": {
    "-abc_30_0": "<AUDCAP>Rain falls, then thunder<ENDAUDCAP>",
    "-abc_30_1": "<AUDCAP>Rain<ENDAUDCAP>",
    "xyz_0_0": "<AUDCAP>A cat<ENDAUDCAP>",
  },
  "vggsound": {
    "qq_000001": "<AUDCAP>dog barking<ENDAUDCAP>",
    "ww_000002": "<AUDCAP>dog barking<ENDAUDCAP>",
  },
  "seed_tts": {"utt-1": "<S>Get off now.<E>", "utt-2": "<S>Go.<E>"},
  "ovi": {"ovi_001": "A man says <S>Hi.<E>"},
}


@pytest.mark.parametrize("form", lists.FORMATS)
def test_each_format_becomes_prompts_with_names_and_seeds(form, tmp_path):
  name, text = FILES[form]
  (tmp_path / name).write_text(text)
  out = tmp_path / "out.csv"
  count = lists.convert(tmp_path / name, form, out, seed=2**32 - 1)
  assert count == len(EXPECTED[form])
  table = lists.read_prompts(out)
  assert table.texts == EXPECTED[form]
  made = requests.from_file(out)
  assert [request.prompt for request in made] == list(EXPECTED[form].values())
  assert [request.seed for request in made[:2]] == [2**32 - 1, 0][: len(made)]
  for request, name in zip(made, EXPECTED[form]):
    assert table.name_of(request.prompt, request.seed) == name
    assert not prompts.tag_notes(request.prompt)


def test_prompts_without_speech_and_sound_ask_for_no_speech(tmp_path):
  (tmp_path / "verse.json").write_text(json.dumps(VERSE))
  lists.convert(tmp_path / "verse.json", "verse_bench", tmp_path / "p.csv")
  name = "set2_00000000"
  media_files.write_sound(tmp_path / f"{name}.wav", media_files.tone(0.1))
  (clip,) = clips.read_folder(tmp_path, lists.read_prompts(tmp_path / "p.csv"))
  assert (clip.text, clip.speech) == ("A dog barks.", "")


def test_sounds_can_follow_audio(tmp_path):
  (tmp_path / "t.tsv").write_text(FILES["vggsound"][1])
  out = tmp_path / "out.csv"
  lists.convert(
    tmp_path / "t.tsv", "vggsound", out, audio_tag=prompts.SOUND_LINE
  )
  with open(out, newline="") as file:
    assert next(csv.DictReader(file))["text_prompt"] == "Audio: dog barking"


@pytest.mark.parametrize(
  "form, name, text",
  [
    ("verse_bench", "a.json", "[]"),
    ("verse_bench", "a.json", "no JSON"),
    ("verse_bench", "a.json", '{"set1": {"0": {}}}'),
    (
      "verse_bench",
      "a.json",
      '{"set1": {"0": {"prompt": "x", "speech_prompt": 3}}}',
    ),
    ("audiocaps", "a.csv", "youtube_id,caption\na,b\n"),
    ("seed_tts", "a.lst", "one|two\n"),
    ("seed_tts", "a.lst", "a|b|c|d\na|b|c|e\n"),
    ("ovi", "a.csv", "text_prompt\n"),
    ("vggsound", "absent.tsv", None),
    ("unknown", "a.csv", ""),
  ],
)
def test_files_of_other_formats_are_refused_in_one_line(
  form, name, text, tmp_path
):
  if text is not None:
    (tmp_path / name).write_text(text)
  out = tmp_path / "out.csv"
  wanted = "unknown" if form == "unknown" else name
  with pytest.raises(ValueError, match=wanted) as error:
    lists.convert(tmp_path / name, form, out)
  assert "\n" not in str(error.value) and not out.exists()


def test_names_occur_once(tmp_path):
  path = tmp_path / "p.csv"
  path.write_text("name,text_prompt\na,1\na,2\n,3\n")
  with pytest.raises(ValueError, match="(?s)row 2 .*occurs twice.*row 3"):
    lists.read_prompts(path)
