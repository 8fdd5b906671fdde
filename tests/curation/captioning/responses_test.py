"""Parsing, repair and validation of a model's caption."""

import json

import pytest

from ovi_jax import geometry
from ovi_jax import prompt
from ovi_jax.curation.captioning import responses

VISUAL = "A man in a red coat turns and says <S>Good morning.<E> to a dog."
SPEAKER = dict.fromkeys(responses.VOICE_ATTRIBUTES, "calm")
SOUNDS = dict.fromkeys(responses.SOUND_ATTRIBUTES, "soft")
WANTED = responses.Requirements()
TAGGED = geometry.variant("720x720_5s")
LINED = geometry.variant("960x960_5s")


def fields(**changes):
  """A fit answer, changed; None takes a field out."""
  whole = {
    "visual": VISUAL,
    "speech": ["Good morning."],
    "audio": "A low male voice in a quiet street.",
    "speakers": [SPEAKER],
    "sounds": SOUNDS,
    **changes,
  }
  return {name: value for name, value in whole.items() if value != "absent"}


def text(**changes):
  return json.dumps(fields(**changes))


def test_a_valid_answer_is_parsed():
  caption = responses.parse(text(), WANTED)
  assert caption.visual == VISUAL
  assert caption.speech == ("Good morning.",)
  assert caption.audio == "A low male voice in a quiet street."
  assert caption.attributes == {"speakers": [SPEAKER], "sounds": SOUNDS}


@pytest.mark.parametrize(
  "around",
  ["```json\n{}\n```", "Sure {{here}} it is:\n{} I hope it helps {{}}", "[{}]"],
)
def test_text_around_the_json_is_dropped(around):
  whole = around.replace("{}", text(), 1).replace("{{", "{")
  assert responses.parse(whole, WANTED) == responses.parse(text(), WANTED)


@pytest.mark.parametrize(
  "visual",
  [
    VISUAL.replace("<E>", ""),
    VISUAL.replace("<S>", ""),
    VISUAL.replace("<S>", "").replace("<E>", ""),
    VISUAL.replace("<S>", "<s>").replace("<E>", "</s>"),
    VISUAL.replace("<S>", "&lt;S&gt;").replace("<E>", "&amp;lt;E&amp;gt;"),
    VISUAL.replace("<S>", "<S><S>"),
    f"  {VISUAL}\n",
  ],
)
def test_unambiguous_tags_are_repaired(visual):
  assert responses.parse(text(visual=visual), WANTED).visual == VISUAL


def test_the_speech_is_taken_from_the_visual_part():
  caption = responses.parse(text(speech=["good morning"]), WANTED)
  assert caption.speech == ("Good morning.",)


@pytest.mark.parametrize(
  "audio",
  [
    "Audio: A voice and wind.",
    "<AUDCAP>A voice and wind.<ENDAUDCAP>",
    "A voice <S>and<E> wind.",
  ],
)
def test_the_audio_description_has_no_tags(audio):
  assert responses.parse(text(audio=audio), WANTED).audio == "A voice and wind."


def test_blank_attributes_are_filled_and_unknown_ones_dropped():
  speaker = {**SPEAKER, "age": None, "mood": "x"}
  sounds = {**SOUNDS, "music": " "}
  found = responses.parse(text(speakers=[speaker], sounds=sounds), WANTED)
  assert found.attributes["speakers"] == [{**SPEAKER, "age": "unclear"}]
  assert found.attributes["sounds"] == {**SOUNDS, "music": "none"}


@pytest.mark.parametrize(
  "wrong, reason, problem",
  [
    ("no", "answer is not JSON", "there is none"),
    ("{" * 2000, "answer is not JSON", "Expecting property name"),
    ('{"audio":' + "[" * 90_000, "answer is not JSON", "nested too deeply"),
    (text()[:-30], "answer is not JSON", "line 1 column"),
    (" " * 100_001, "answer is not JSON", "100001 characters"),
    (text(visual="absent"), "caption lacks a part", '"visual" must be a text'),
    (text(audio=3, speech="hi"), "caption lacks a part", '"speech" must be a'),
    (text(speakers=[{"age": "1"}]), "caption lacks a part", 'lacks "accent"'),
    (text(sounds=[]), "caption lacks a part", '"sounds" must be an object'),
    (
      text(sounds={**SOUNDS, "music": "x" * 301}),
      "caption lacks a part",
      '"music" has over 300',
    ),
    (
      text(visual=VISUAL.replace("<E>", ""), speech=["Go!"]),
      "speech tags are unbalanced",
      "<S> (character 36) has no <E>",
    ),
    (text(speech=["Good night."]), "speech mismatch", "Good night."),
    (text(speech=[]), "speech mismatch", "Good morning."),
    (
      text(visual="A man stands there.", speech=["Hi"]),
      "speech mismatch",
      "Hi",
    ),
    (text(speakers=[]), "speech without a speaker", "each voice"),
    (text(visual=f"{VISUAL} Audio: wind"), "audio tag within", "Audio:"),
    (text(visual=f"{VISUAL} <AUDCAP>w<ENDAUDCAP>"), "audio tag", "<AUDCAP>"),
    (text(visual="Hi", speech=[]), "visual is too short", "20 to 3000"),
    (text(audio=""), "audio is too short", "got 0"),
    (text(audio="x" * 1501), "audio is too long", "got 1501"),
  ],
)
def test_invalid_answers_are_explained(wrong, reason, problem):
  with pytest.raises(responses.InvalidResponse) as error:
    responses.parse(wrong, WANTED)
  assert error.value.reason.startswith(reason)
  assert problem in str(error.value)


def test_all_problems_are_listed_at_once():
  with pytest.raises(responses.InvalidResponse) as error:
    responses.parse(text(audio="", speakers=[], speech=["Go"]), WANTED)
  for part in ('"audio" must', '"speakers" must', '"speech" must'):
    assert part in str(error.value)


@pytest.mark.parametrize("variant", [TAGGED, LINED])
def test_prompts_have_the_format_of_the_trainer(variant):
  ours = responses.to_prompt(responses.parse(text(), WANTED), variant)
  sound = "A low male voice in a quiet street."
  end = {
    TAGGED: f"<AUDCAP>{sound}<ENDAUDCAP>",
    LINED: f"Audio: {sound}",
  }[variant]
  assert ours == f"{VISUAL} {end}"
  assert prompt.format_for(ours, variant) == (ours, ())
  assert prompt.clean(ours) == ours


def test_an_audio_clip_has_speech_and_description():
  wanted = responses.Requirements(has_video=False)
  caption = responses.parse(
    text(visual="absent", speech=["Go.", "<S>On!"]), wanted
  )
  assert responses.to_prompt(caption, TAGGED) == (
    "<S>Go.<E> <S>On!<E> <AUDCAP>A low male voice in a quiet street.<ENDAUDCAP>"
  )


def test_a_silent_clip_has_only_its_visual_part():
  wanted = responses.Requirements(has_audio=False)
  seen = "A man in a red coat turns to a dog."
  caption = responses.parse(json.dumps({"visual": seen}), wanted)
  assert responses.to_prompt(caption, LINED) == seen


def test_hostile_characters_do_not_reach_the_prompt():
  layers = "&" + 9 * "amp;"
  visual = VISUAL.replace("dog", f"\ud800dog\x00\u0007 {layers}lt;b")
  ours = responses.to_prompt(
    responses.parse(text(visual=visual), WANTED), TAGGED
  )
  assert "\x00" not in ours and "\ud800" not in ours and "&amp;" not in ours
  assert ours.encode().decode() == ours == prompt.clean(ours)


def test_answers_that_cannot_be_cleaned_are_invalid():
  entities = f"&{40 * 'amp;#38;'}lt;"
  caption = responses.parse(text(visual=f"{VISUAL} {entities}"), WANTED)
  with pytest.raises(
    responses.InvalidResponse, match="broken characters or entities"
  ):
    responses.to_prompt(caption, TAGGED)


def test_the_schema_names_the_parsed_fields():
  schema = responses.schema(True, True)
  assert set(fields()) == set(schema["required"]) == set(schema["properties"])
  assert not schema["additionalProperties"]
  voice = schema["properties"]["speakers"]["items"]
  assert voice["required"] == list(responses.VOICE_ATTRIBUTES)
  assert responses.schema(True, False)["required"] == ["visual"]
  assert "visual" not in responses.schema(False, True)["properties"]
