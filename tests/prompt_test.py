import collections
import dataclasses
import random
import re

import hypothesis
import pytest
from hypothesis import strategies

from ovi_jax import geometry
from ovi_jax import prompt

TAGGED, LINED = geometry.variant("720x720_5s"), geometry.variant("960x960_5s")


@pytest.mark.parametrize(
  "raw, cleaned",
  [
    ("  a \t\n\u3000b\u00a0 ", "a b"),
    ("wind &amp;amp; <S>", "wind & <S>"),
    (f"wind &{'amp;' * 4000} <S>", "wind & <S>"),
    ("&lt;S&gt;hi&lt;E&gt;", "<S>hi<E>"),
    ("schÃ¶n â€œquotedâ€\x9d", 'schön "quoted"'),
  ],
)
def test_white_space_and_html_entities_are_cleaned(raw, cleaned):
  assert prompt.clean(raw) == cleaned


@pytest.mark.parametrize(
  "raw, variant, formatted",
  [
    ("x. Audio:  wind\n ", TAGGED, "x. <AUDCAP>wind<ENDAUDCAP>"),
    ("Audio: a Audio: b", TAGGED, "<AUDCAP>a Audio: b<ENDAUDCAP>"),
    ("Audio: Audio: a", TAGGED, "<AUDCAP>a<ENDAUDCAP>"),
    ("He walks Audio: wind", TAGGED, "He walks <AUDCAP>wind<ENDAUDCAP>"),
    (
      "He says <S>Audio: one.<E> He smiles. Audio: calm voice",
      TAGGED,
      "He says <S>Audio: one.<E> He smiles. <AUDCAP>calm voice<ENDAUDCAP>",
    ),
    (
      'A sign "Audio: off". Audio: hum',
      TAGGED,
      'A sign "Audio: off". <AUDCAP>hum<ENDAUDCAP>',
    ),
    (
      "He leaves <S>a < b > c <3<E> Audio: hum",
      TAGGED,
      "He leaves <S>a < b > c <3<E> <AUDCAP>hum<ENDAUDCAP>",
    ),
    ("走路。Audio\uff1a脚步声", TAGGED, "走路。<AUDCAP>脚步声<ENDAUDCAP>"),
    (
      "说\uff1cS\uff1e你好\uff1cE\uff1e\uff1cAUDCAP\uff1e平静\uff1cENDAUDCAP\uff1e",
      LINED,
      "说<S>你好<E>Audio: 平静",
    ),
    (
      "x &lt;AUDCAP&gt;a&amp;lt;ENDAUDCAP&amp;gt;",
      LINED,
      "x Audio: a",
    ),
    ("<AUDCAP>Audio: bark<ENDAUDCAP>", LINED, "Audio: bark"),
    ("<AUDCAP>audio : bark<ENDAUDCAP>", LINED, "Audio: bark"),
    ("Audio: **audio:** bark", TAGGED, "<AUDCAP>bark<ENDAUDCAP>"),
    ("He walks [Audio: wind]", TAGGED, "He walks [<AUDCAP>wind<ENDAUDCAP>]"),
    ("A dog (Audio: rain).", TAGGED, "A dog (<AUDCAP>rain<ENDAUDCAP>)."),
    ("A dog [Audio: a (b) ]!", TAGGED, "A dog [<AUDCAP>a (b)<ENDAUDCAP>]!"),
    ("A dog barks, Audio: a", TAGGED, "A dog barks, <AUDCAP>a<ENDAUDCAP>"),
    ("He calls the\nAudio: a", TAGGED, "He calls the <AUDCAP>a<ENDAUDCAP>"),
    ('A "no"Audio: b', TAGGED, 'A "no"<AUDCAP>b<ENDAUDCAP>'),
    ('A cat "<AUDCAP>a 3" fan<ENDAUDCAP>', LINED, 'A cat " Audio: a 3" fan'),
    (
      'A 5" fan. Audio: a 3" fan',
      TAGGED,
      'A 5" fan. <AUDCAP>a 3" fan<ENDAUDCAP>',
    ),
    ("He walks. (<AUDCAP>a<ENDAUDCAP>)", LINED, "He walks. (Audio: a)"),
  ],
)
def test_the_other_variants_tag_is_rewritten(raw, variant, formatted):
  ours, notes = prompt.format_for(raw, variant)
  assert ours == formatted
  assert len(notes) == 1 and variant.name in notes[0]
  assert prompt.format_for(ours, variant)[0] == ours


@pytest.mark.parametrize(
  "raw, formatted",
  [
    ("<AUDCAP>a\nb<ENDAUDCAP> y", "y Audio: a b"),
    ("<AUDCAP>a<ENDAUDCAP><AUDCAP>\\1.<ENDAUDCAP>", "Audio: a. \\1."),
    (
      "A man <AUDCAP>wind<ENDAUDCAP> walks in and says <S>Hi<E>.",
      "A man walks in and says <S>Hi<E>. Audio: wind",
    ),
    ("A dog <AUDCAP>bark<ENDAUDCAP>, a cat", "A dog, a cat Audio: bark"),
    ("走<AUDCAP>风<ENDAUDCAP>路。", "走路。 Audio: 风"),
    ("a<AUDCAP>b<ENDAUDCAP>c", "a c Audio: b"),
    ("A <AUDCAP>a!<ENDAUDCAP> <S>b<E> Audio: c", "A <S>b<E> Audio: a! c"),
    # What stands outside the tags stays outside the description.
    ("walks<AUDCAP>wind<ENDAUDCAP>.", "walks. Audio: wind"),
    ("A dog <AUDCAP>a<ENDAUDCAP>,", "A dog, Audio: a"),
    ("A dog <AUDCAP>a<ENDAUDCAP>\u2026", "A dog\u2026 Audio: a"),
    ("A dog <AUDCAP>a<ENDAUDCAP> \xbb", "A dog \xbb Audio: a"),
    ("A dog. <AUDCAP>a<ENDAUDCAP>.", "A dog. Audio: a"),
    ("A dog, <AUDCAP>a<ENDAUDCAP>.", "A dog. Audio: a"),
    ("\u72d7\u300c<AUDCAP>a<ENDAUDCAP>\u300d\u3002", "\u72d7\u3002 Audio: a"),
    # Brackets and quotation marks are not left around nothing.
    ("A dog (<AUDCAP>a<ENDAUDCAP>).", "A dog. Audio: a"),
    ("A dog (<AUDCAP>a<ENDAUDCAP> )", "A dog Audio: a"),
    ("A dog: '<AUDCAP>a<ENDAUDCAP>'", "A dog: Audio: a"),
    ('A dog "(<AUDCAP>a<ENDAUDCAP>)".', "A dog. Audio: a"),
    ("A dog (<AUDCAP>a<ENDAUDCAP>). Bye.", "A dog. Bye. Audio: a"),
    ("A [<AUDCAP>a<ENDAUDCAP>] <S>hi<E>.", "A <S>hi<E>. Audio: a"),
    ("A () dog <AUDCAP>a<ENDAUDCAP>.", "A () dog. Audio: a"),
    ('"No" <AUDCAP>a<ENDAUDCAP> "yes"', '"No" "yes" Audio: a'),
    ('"No"<AUDCAP>a<ENDAUDCAP>"yes"', '"No""yes" Audio: a'),
    ("\xabNo\xbb<AUDCAP>a<ENDAUDCAP>\xabb\xbb", "\xabNo\xbb\xabb\xbb Audio: a"),
    ("* <AUDCAP>a<ENDAUDCAP> * b", "* * b Audio: a"),
  ],
)
def test_a_sound_that_is_not_last_is_moved_to_the_end(raw, formatted):
  ours, notes = prompt.format_for(raw, LINED)
  assert ours == formatted
  assert len(notes) == 1 and notes[0].endswith("moved it to the end")
  assert prompt.format_for(ours, LINED) == (ours, ())


@pytest.mark.parametrize(
  "raw, formatted, count",
  [
    ("<s>a</s> b <S>c</S>", "<S>a<E> b <S>c<E>", 3),
    ("< S >a< /S >", "<S>a<E>", 2),
    ("<S>a<e/> <S>b<S/>", "<S>a<E> <S>b<E>", 2),
    ("《S》你好《E》", "<S>你好<E>", 2),
    ("x <AUDCAP>a</AUDCAP>", "x <AUDCAP>a<ENDAUDCAP>", 1),
    ("x <audcap>a<end_audcap>", "x <AUDCAP>a<ENDAUDCAP>", 2),
    ("x Audio: <AUDCAP>a<ENDAUDCAP>", "x <AUDCAP>a<ENDAUDCAP>", 1),
    ("He walks. audio: wind", "He walks. <AUDCAP>wind<ENDAUDCAP>", 2),
    ("He walks\nAUDIO : wind", "He walks <AUDCAP>wind<ENDAUDCAP>", 2),
    ("He walks. (audio: wind)", "He walks. (<AUDCAP>wind<ENDAUDCAP>)", 2),
    ("He walks\n- **Audio:** a", "He walks - <AUDCAP>a<ENDAUDCAP>", 2),
    ("He walks\n_Audio:_ a", "He walks <AUDCAP>a<ENDAUDCAP>", 2),
    ("He walks\n`Audio`: a", "He walks <AUDCAP>a<ENDAUDCAP>", 2),
    ("He walks\u203d audio: a", "He walks\u203d <AUDCAP>a<ENDAUDCAP>", 2),
    (
      "Il dit \xab oui. \xbb. audio: a",
      "Il dit \xab oui. \xbb. <AUDCAP>a<ENDAUDCAP>",
      2,
    ),
    ("He walks!\xbb audio: a", "He walks!\xbb <AUDCAP>a<ENDAUDCAP>", 2),
    (
      "\u1230\u12cd\u1362 audio: a",
      "\u1230\u12cd\u1362 <AUDCAP>a<ENDAUDCAP>",
      2,
    ),
    ("He walks.\u200b audio: a", "He walks.\u200b <AUDCAP>a<ENDAUDCAP>", 2),
    ("He walks. Audio\ufe55a", "He walks. <AUDCAP>a<ENDAUDCAP>", 2),
    ("<S\u200b>a<\u2060E>", "<S>a<E>", 2),
    ("He walks. \u0410udi\u043e: a", "He walks. <AUDCAP>a<ENDAUDCAP>", 2),
    ("<\u0405>a<\u0415>", "<S>a<E>", 2),
    ("x <\u0391UDCAP>a<END\u0410UDCA\u0420>", "x <AUDCAP>a<ENDAUDCAP>", 2),
    ("\u27e8S\u27e9a\u2039E\u203a", "<S>a<E>", 2),
    ("\\<S\\>a\\<E\\>", "<S>a<E>", 2),
    ("<\u202aS\u202c>a<E>", "<S>a<E>", 1),
    ("x <AUD\u200bCAP>a<ENDAUDCAP>", "x <AUDCAP>a<ENDAUDCAP>", 1),
    ("He walks. A\u00adudio: a", "He walks. <AUDCAP>a<ENDAUDCAP>", 2),
    ("He walks.\nAud\u200bio\u2060: a", "He walks. <AUDCAP>a<ENDAUDCAP>", 2),
    ("<S>a<\\S> <S>b<\\/S>", "<S>a<E> <S>b<E>", 2),
    ("x <AUD_CAP>a<END_AUD_CAP>", "x <AUDCAP>a<ENDAUDCAP>", 2),
  ],
)
def test_misspelt_tags_are_repaired_and_noted(raw, formatted, count):
  ours, notes = prompt.format_for(raw, TAGGED)
  assert ours == formatted
  assert len(notes) == count
  assert prompt.format_for(ours, TAGGED) == (ours, ())


@pytest.mark.parametrize(
  "raw",
  [
    "A dog. <Audio: wind>",
    "A dog. <audio: wind />",
    "A dog. <<Audio: wind>>",
    "A dog. <Audio: wind",
    "A dog. <Audio: wind</Audio>",
    "A dog. <Audio: wind </ audio >",
    "A dog. \uff1cAudio\uff1awind\uff1e",
    "A dog. &lt;Audio: wind&gt;",
    "A dog.\n<Audio: wind>",
  ],
)
def test_a_label_in_angle_brackets_is_repaired_without_them(raw):
  tagged, notes = prompt.format_for(raw, TAGGED)
  assert tagged == "A dog. <AUDCAP>wind<ENDAUDCAP>"
  assert " is read as Audio:" in notes[0]
  lined, notes = prompt.format_for(raw, LINED)
  assert lined.replace("Audio:wind", "Audio: wind") == "A dog. Audio: wind"
  assert " is read as Audio:" in notes[0]
  assert "".join(text for _, text in prompt.segments(raw)) == raw


def test_an_arrow_in_a_label_in_angle_brackets_is_no_bracket():
  for arrow in ("->", "=>"):
    for end in (">", "", "</Audio>"):
      raw = f"A dog. <Audio: wind {arrow} rain{end}"
      tagged, _ = prompt.format_for(raw, TAGGED)
      assert tagged == f"A dog. <AUDCAP>wind {arrow} rain<ENDAUDCAP>"


def test_a_tag_of_another_name_has_no_note_on_an_arrow():
  for raw in ("A dog.\n<Audio>wind</Audio>", "<Audio>wind</Audio>"):
    ours, notes = prompt.format_for(raw, TAGGED)
    assert ours == raw
    assert not [n for n in notes if n.startswith("Audio>")]


def test_angle_brackets_that_are_no_label_stay():
  for raw in (
    "A dog. Audio: a <hum> and more",
    "He says <S><Audio: wind><E>. Audio: wind",
  ):
    assert prompt.format_for(raw, LINED) == (raw, ())
  raw = "A dog. <Audio: wind> He smiles."
  for variant in (TAGGED, LINED):
    formatted, (note,) = prompt.format_for(raw, variant)
    assert formatted == raw and "is in brackets" in note


@pytest.mark.parametrize(
  "text, spelt",
  [
    ("a <s>hi</s> b", "a <S>hi<E> b"),
    ("< S >hi< /E >", "<S>hi<E>"),
    ("<S>hi<e/>", "<S>hi<E>"),
    ("<S>hi</S> </audcap>", "<S>hi<E> <ENDAUDCAP>"),
    ("<span>x < y</span>", "<span>x < y</span>"),
  ],
)
def test_tags_are_spelt_right_whether_balanced_or_not(text, spelt):
  assert prompt.spell_tags(text) == spelt


def test_a_misspelt_label_is_repaired_for_its_own_variant():
  ours = prompt.format_for("He walks. audio: wind", LINED)
  note = "audio: (character 11) is read as Audio:"
  assert ours == ("He walks. Audio: wind", (note,))


@pytest.mark.parametrize("variant", [TAGGED, LINED])
@pytest.mark.parametrize(
  "raw, note",
  [
    ("the audio: loud", "audio: (character 5) is read as plain text"),
    ("<S>a", "<S> (character 1) has no <E> before the end"),
    ("a <E> Audio: b", "<E> (character 3) has no <S> before it"),
    ("<S>a Audio: b", "<S> (character 1) has no <E>"),
    ("<AUDCAP>a <S>b<E><ENDAUDCAP>", "<AUDCAP> (character 1) has no"),
    ("<S>a <AUDCAP>b<ENDAUDCAP><E>", "<S> (character 1) has no"),
    (
      "Audio: wind. She says\n<S>a<E>",
      "Audio: (character 1) must be the last part",
    ),
    ("<s>a", "<s> (character 1) is not a tag"),
    ("<S>the <s> key<E>", "<s> (character 8) is not a tag"),
    ("<AUDIO>a</AUDIO>", "<AUDIO> (character 1) is not a tag"),
    ("a ENDAUDCAP> b", "ENDAUDCAP (character 3) is not a tag"),
    ("<START>a<END>", "<START> (character 1) is not a tag"),
    ("<dialogue>a</dialogue>", "<dialogue> (character 1) is not a tag"),
    ('<S lang="en">a', '<S lang="en"> (character 1) is not a tag'),
    ("[S]a[E]", "[S] (character 1) is not a tag"),
    ("<S1>a<E1>", "<S1> (character 1) is not a tag"),
    ("<s 2>a</s>", "<s 2> (character 1) is not a tag"),
    ('{"video": "a", "audio": "b"}', "the prompt is JSON"),
    ("```json\n[{'prompt' : 'a'}]```", "the prompt is JSON"),
    ("A man. (Audio: rain) He sits.", "Audio: (character 9) is in bra"),
    ('A man. "Audio: off" it says.', "Audio: (character 9) is in bra"),
  ],
)
def test_ambiguous_tags_are_kept_and_noted(raw, note, variant):
  ours, notes = prompt.format_for(raw, variant)
  assert ours == raw
  assert any(n.startswith(note) for n in notes)


@pytest.mark.parametrize("variant", [TAGGED, LINED])
@pytest.mark.parametrize(
  "raw, at",
  [
    ("A sign reads 'Audio: off'. A dog.", 15),
    ("A sign reads \u2018Audio: it's off\u2019. A dog.", 15),
    ("A sign reads \u201cAudio: off\u201d.", 15),
    ('A cat "Audio: b"', 8),
    ("Ein Schild \xbbAudio: aus\xab", 13),
    ("Un panneau \xabAudio: non\xbb.", 13),
    ("\u724c\u5b50\u300cAudio: \u5173\u300d\u3002", 4),
    ("*Audio: off* in red", 2),
    ("A sign. `Audio: off` in red", 10),
    ("A man. (Audio: rain) He sits.", 9),
  ],
)
def test_a_quoted_label_is_plain_text_with_one_note(raw, at, variant):
  ours, (note,) = prompt.format_for(raw, variant)
  assert ours == raw
  assert note.startswith(
    f"Audio: (character {at}) is in brackets or quotation marks and is"
    " read as plain text"
  )


@pytest.mark.parametrize("variant", [TAGGED, LINED])
@pytest.mark.parametrize(
  ("raw", "note"),
  [
    (r"A man walks.\nAudio: wind", r"\n (character 13) is read as these char"),
    (r"<S>one<E>\r\nAudio: x", r"\r\n (character 10) is read as these char"),
    (r"\u003cS\u003ehi\u003cE\u003e", r"\u003c (character 1) is read as the"),
    (r"\u003cS>hi<E>", r"\u003c (character 1) is read as these characters"),
  ],
)
def test_escape_sequences_are_noted_and_left(raw, note, variant):
  ours, notes = prompt.format_for(raw, variant)
  assert ours == raw
  assert sum(each.startswith(note) for each in notes) == 1


@pytest.mark.parametrize(
  "mark", ["`", "*", "#", "_", "<", "\n", "\u200b", "<\u200b/", "A\u200bu", "{"]
)
def test_a_prompt_of_thousands_of_marks_is_read(mark):
  """Patterns that take quadratic time would need minutes for it."""
  raw = f"A dog. <s{mark * (16_000 // len(mark))}"
  assert prompt.format_for(raw, TAGGED)[0] == raw


@pytest.mark.parametrize("variant", [TAGGED, LINED])
def test_a_path_is_no_escape_sequence(variant):
  raw = r"A screen shows C:\new\Names\note."
  assert prompt.format_for(raw, variant) == (raw, ())


@pytest.mark.parametrize("variant", [TAGGED, LINED])
def test_a_label_after_an_article_is_plain_text(variant):
  raw = "The Audio: Technica headphones on a desk."
  ours, (note,) = prompt.format_for(raw, variant)
  assert ours == raw
  assert note.startswith("Audio: (character 5) is read as plain text")


@pytest.mark.parametrize(
  "raw, note",
  [
    ("a <AUDCAP>b<ENDAUDCAP> c", "best described once, at the end"),
    ("a <AUDCAP> <ENDAUDCAP>", "nothing between <AUDCAP> (character 3)"),
    ("a Audio: b <AUDCAP>c<ENDAUDCAP>", "is read as plain text"),
    ("<AUDCAP>a. A man walks.<ENDAUDCAP>", "all of the prompt is read as"),
  ],
)
def test_sounds_in_odd_places_are_noted(raw, note):
  ours, notes = prompt.format_for(raw, TAGGED)
  assert ours == raw
  assert len(notes) == 1 and note in notes[0]


def test_a_letter_of_another_script_is_named():
  _, (note,) = prompt.format_for("He walks. \u0410udio: a", LINED)
  assert note.endswith("is read as Audio:; a letter of it is Cyrillic or Greek")


@pytest.mark.parametrize("variant", [TAGGED, LINED])
@pytest.mark.parametrize(
  "raw, line",
  [
    ("A cat. Audio: rain\nStyle: noir", "'Style: noir' (character 20)"),
    ("A cat. Audio: rain.\n\nA man walks", "'A man walks' (character 21)"),
    ("A cat. Audio: rain. Camera: pan", "'Camera: pan' (character 21)"),
    ("- Audio: rain\n- Style: noir", "'Style: noir' (character 17)"),
    (
      "\u732b\u3002Audio: \u96e8\n\u98a8\u683c: x",
      "'\u98a8\u683c: x' (character 12)",
    ),
  ],
)
def test_lines_absorbed_by_a_sound_tag_are_noted(raw, line, variant):
  ours, notes = prompt.format_for(raw, variant)
  assert notes[-1].startswith(f"{line} is read as part of the sound's")
  # As the original reads it: the sound's description runs to the end.
  (sound,) = (p for p in prompt.parse(ours) if p.is_sound)
  assert sound.description.endswith(line.split("'")[1])


@pytest.mark.parametrize(
  "raw",
  [
    "A cat.\nAudio:\nRain.",
    "A cat.\nAudio: rain and\nwind in trees.\n",
    "A cat. Audio: rain. Music: soft piano. Style of a waltz.",
  ],
)
def test_a_sound_in_lines_of_its_own_has_no_note(raw):
  assert prompt.format_for(raw, LINED) == (raw, ())


@pytest.mark.parametrize("variant", [TAGGED, LINED])
@pytest.mark.parametrize(
  "label",
  [
    *("Sound:", "SFX:", "Background music:", "Audio description:", "[Audio]"),
    *("Audio -", "Audio \u2014", "Audio;", "**Sound:", "\xc1udio:"),
    *("\xc0udio:", "## Audio\n", "**Audio**\n", "AUDIO\n", "# Sound #\n"),
    *("\u97f3\u58f0:", "\u97f3\u9891:", "\u0410\u0443\u0434\u0438\u043e:"),
    *("\u30b5\u30a6\u30f3\u30c9:", "\uc624\ub514\uc624:"),
    *("Audio ->", "AUDIO=>", "Sound \u2192", "Audio \u279c", "Audio >>"),
    *("Audio~",),
  ],
)
def test_a_sound_under_another_name_is_noted(label, variant):
  raw = f"A cat.\n{label} rain"
  ours, (note,) = prompt.format_for(raw, variant)
  assert ours == raw
  assert note.startswith(f"{label.strip()} (character 8) is read as plain text")


@pytest.mark.parametrize(
  "raw",
  [
    "The sound: rain. <AUDCAP>Sound: rain.<ENDAUDCAP>",
    "Sound: off, says the sign. <AUDCAP>rain<ENDAUDCAP>",
    "He says <S>Sound: good.<E>",
    "Sound waves - music of the spheres",
    "He plays\nmusic",
    "She says <S>Music\nplease<E>",
    '"This is {no} JSON: [a]"',
  ],
)
def test_words_for_sounds_within_a_prompt_have_no_note(raw):
  assert prompt.format_for(raw, TAGGED) == (raw, ())


def test_at_most_ten_tags_are_noted_and_the_others_counted():
  notes = prompt.tag_notes("<S>" * 25)
  assert len(notes) == 11 and notes[-1] == "and 15 more like it"
  _, notes = prompt.format_for("<S>" * 25, LINED)
  assert len(notes) == 12


def test_a_second_label_and_an_empty_sound_are_noted():
  _, (note,) = prompt.format_for("a. Audio: a.\nAudio: b", LINED)
  assert note.startswith("Audio: (character 14) is read as part")
  assert prompt.format_for("a Audio:", LINED)[1] == (
    "nothing after Audio: (character 3)",
  )


# In the manner of the original's examples, of either form.
@pytest.mark.parametrize(
  "text, description",
  [
    (
      "A singer in a silver coat lifts the microphone and shouts, <S>The night"
      " is ours.<E>. The crowd answers, and he adds <S>Louder!<E>. Lights"
      " flare..",
      "Electric guitar, cheering crowd, a hoarse male voice.",
    ),
    (
      'A man in an apron says, <S>We open at nine.<E> as a sign that reads "WE'
      " CAN'T COOK\" swings behind him.He looks up.",
      "Clear male voice; a door creaks.",
    ),
    (
      "Un hombre dice <S>¿Diez segundos? ¡Mira!<E>",
      "A warm male voice speaking Spanish, light room tone.",
    ),
    ("A dog runs over a field.", "Barking, wind."),
  ],
)
def test_prompts_in_the_original_format_have_no_notes(text, description):
  tagged = f"{text} <AUDCAP>{description}<ENDAUDCAP>"
  lined = f"{text} Audio: {description}"
  assert prompt.format_for(tagged, TAGGED) == (tagged, ())
  assert prompt.format_for(lined, LINED) == (lined, ())
  assert prompt.format_for(tagged, LINED)[0] == lined
  assert prompt.format_for(lined, TAGGED)[0] == tagged


def test_a_valid_prompt_keeps_its_white_space():
  raw = "A  dog.\n\u3000&amp; a cat \n<AUDCAP>w<ENDAUDCAP>\n"
  assert prompt.format_for(raw, TAGGED) == (raw, ())


def test_a_prompt_is_split_into_parts():
  parts = prompt.parse(" A <S>hi<E>.\nAudio: Audio: wind ")
  assert [(p.tag, p.text) for p in parts] == [
    ("", "A "),
    ("<S>", "hi"),
    ("", ". "),
    ("Audio:", " Audio: wind"),
  ]
  assert parts[-1].description == "wind"
  assert [p.start for p in parts] == [0, 5, 10, 18]
  assert "".join(map(str, parts)) == "A <S>hi<E>. Audio: Audio: wind"
  (part,) = prompt.parse("<S>a")
  assert (part.tag, part.text) == ("", "<S>a")


WORDS = strategies.text("ab \u732b.,!&<3:'\"", min_size=1, max_size=12)
PIECES = strategies.sampled_from(
  [
    *("<S>", "<E>", "<AUDCAP>", "<ENDAUDCAP>", "Audio:", "audio:", "a", ". "),
    *(" ", "\n", "</S>", "<s>", "</AUDCAP>", "&lt;", "&gt;", "&amp;", "<", ">"),
    *(
      "S",
      "E",
      "\uff1cS\uff1e",
      "Audio\uff1a",
      "\u732b",
      "\xc3\xb6",
      "**",
      "-",
    ),
  ]
)
BALANCED = strategies.sampled_from(
  [
    *("<S>hi <3<E>", "<s>Audio: b</s>", "<AUDCAP>c<ENDAUDCAP>", "<AUDCAP>d!"),
    *(
      "</AUDCAP>",
      " e",
      "f. ",
      "Audio: ",
      "\naudio: ",
      "g",
      ". ",
      "\u732b",
      ",",
    ),
  ]
)
ANYTHING = strategies.one_of(
  strategies.text(max_size=40),
  strategies.lists(PIECES, max_size=14),
  strategies.lists(BALANCED, max_size=7),
).map("".join)
CUSTOM = dataclasses.replace(LINED, audio_tag="")
properties = hypothesis.settings(
  max_examples=60, deadline=None, derandomize=True
)


@strategies.composite
def canonical(draw):
  """Text, speech and sound of a prompt as the documentation asks for it."""
  words = WORDS.map(prompt.clean).filter(
    lambda w: w and prompt.clean(w) == w and not w.startswith(".")
  )
  parts = draw(strategies.lists(words, min_size=1, max_size=4))
  said = [draw(words) for _ in parts[1:]]
  return parts, said, draw(words)


@properties
@hypothesis.given(canonical())
def test_rewriting_to_the_other_variant_and_back_is_the_identity(given):
  parts, said, description = given
  text = parts[0] + "".join(
    f" <S>{s}<E> {t}" for s, t in zip(said, parts[1:], strict=True)
  )
  tagged = f"{text}. <AUDCAP>{description}<ENDAUDCAP>"
  lined = f"{text}. Audio: {description}"
  hypothesis.assume(prompt.clean(tagged) == tagged)
  hypothesis.assume(prompt.clean(lined) == lined)
  hypothesis.assume(re.search(r"\w", text))
  assert prompt.format_for(tagged, TAGGED) == (tagged, ())
  assert prompt.format_for(lined, LINED) == (lined, ())
  assert prompt.format_for(tagged, LINED)[0] == lined
  assert prompt.format_for(lined, TAGGED)[0] == tagged


@properties
@hypothesis.given(ANYTHING, strategies.sampled_from([TAGGED, LINED, CUSTOM]))
def test_rewriting_is_idempotent(raw, variant):
  ours, _ = prompt.format_for(raw, variant)
  assert prompt.format_for(ours, variant)[0] == ours
  if ours != raw:
    assert prompt.clean(ours) == ours


@properties
@hypothesis.given(ANYTHING, strategies.sampled_from([TAGGED, LINED, CUSTOM]))
def test_speech_and_text_survive_any_rewriting(raw, variant):
  def outside(parts):
    return re.sub(r"\s", "", "".join(p.text for p in parts if not p.tag))

  ours, _ = prompt.format_for(raw, variant)
  before, after = prompt.parse(raw), prompt.parse(ours)
  if ours == raw:
    assert before == after
    return
  assert [p.text for p in before if p.tag == "<S>"] == [
    p.text for p in after if p.tag == "<S>"
  ]
  assert re.sub(r"\W", "", outside(before)) == re.sub(r"\W", "", outside(after))
  assert not collections.Counter(outside(after)) - collections.Counter(
    outside(before)
  )


MARKS = strategies.lists(
  strategies.sampled_from(
    [
      *("A dog", "No", "'s", "the", "<S>hi<E>", " ", "\n", ".", ",", "!", "?"),
      *("\u2026", "\u3002", "\uff0c", ":", "-", "(", ")", "[", "]", "{", "}"),
      *("'", '"', "*", "`", "\xab", "\xbb", "\u300c", "\u300d", "\u2019"),
    ]
  ),
  max_size=5,
).map("".join)
DESCRIPTIONS = strategies.sampled_from(
  [
    "wind",
    "Wind.",
    'a 3" fan',
    "it's (soft)",
    "a) b",
    "*crack*",
    "\u98ce\u3002",
  ]
)
many = hypothesis.settings(properties, max_examples=150)


def _words_and_sound(text):
  parts = prompt.parse(text)
  outside = "".join(str(p) for p in parts if not p.is_sound)
  return re.sub(r"\W", "", outside), [
    p.description for p in parts if p.is_sound
  ]


@many
@hypothesis.given(MARKS, DESCRIPTIONS, MARKS)
def test_marks_beside_a_tagged_sound_stay_outside_it(before, sound, after):
  tagged = prompt.clean(f"{before}<AUDCAP>{sound}<ENDAUDCAP>{after}")
  hypothesis.assume(prompt.format_for(tagged, TAGGED)[0] == tagged)
  lined, notes = prompt.format_for(tagged, LINED)
  if lined == tagged:  # `the Audio: wind` would be text
    assert notes[0].startswith("the prompt is used unchanged")
    return
  back, _ = prompt.format_for(lined, TAGGED)
  assert _words_and_sound(tagged)[1] == [sound]
  assert _words_and_sound(lined) == _words_and_sound(tagged)
  assert _words_and_sound(back) == _words_and_sound(tagged)
  assert prompt.format_for(back, LINED)[0] == lined


@many
@hypothesis.given(MARKS, DESCRIPTIONS, MARKS)
def test_a_line_of_sound_is_the_same_there_and_back(before, sound, after):
  lined = prompt.clean(f"{before}Audio: {sound}{after}")
  hypothesis.assume(prompt.format_for(lined, LINED)[0] == lined)
  tagged, _ = prompt.format_for(lined, TAGGED)
  back, _ = prompt.format_for(tagged, LINED)
  assert _words_and_sound(tagged) == _words_and_sound(lined)
  assert _words_and_sound(back) == _words_and_sound(lined)


@properties
@hypothesis.given(ANYTHING)
def test_joined_parts_are_the_cleaned_prompt(raw):
  text = prompt.clean(raw)
  if "".join(map(str, prompt.parse(raw))) != text:
    _, notes = prompt.format_for(raw, CUSTOM)
    said = ("is read as", "left out", "would change what stands beside")
    assert any(part in note for note in notes for part in said)


@pytest.mark.parametrize("variant", [TAGGED, LINED])
def test_a_valid_prompt_is_unchanged(variant):
  raw = "A man: <S>hi<E>, then <S>bye<E>."
  end = {TAGGED: "<AUDCAP>wind<ENDAUDCAP>", LINED: "Audio: wind"}[variant]
  assert prompt.format_for(raw + end, variant) == (raw + end, ())


@pytest.mark.parametrize("raw", ["Audio: a", "<AUDCAP>a<ENDAUDCAP>"])
def test_a_variant_without_audio_tag_accepts_both_forms(raw):
  custom = dataclasses.replace(LINED, audio_tag="")
  assert prompt.format_for(raw, custom) == (raw, ())


@pytest.mark.parametrize(
  "text, notes",
  [
    ("a <S>b", ["<S> (character 3) has no <E> before the end"]),
    (
      "<S>a <S>b<E> <E>",
      [
        "<S> (character 1) has no <E> before <S> (character 6)",
        "<E> (character 14) has no <S> before it",
      ],
    ),
    ("<AUDCAP>x", ["<AUDCAP> (character 1) has no <ENDAUDCAP> before"]),
    (
      "<S>a<ENDAUDCAP>",
      ["<ENDAUDCAP> (character 5) has no <AUDCAP>", "<S> (character 1)"],
    ),
    ("<S> <E>", ["nothing between <S> (character 1) and <E>"]),
    ("<s>a</S>", ["<s> (character 1) is not", "</S> (character 5) is not"]),
  ],
)
def test_misplaced_tags_are_noted(text, notes):
  ours = prompt.tag_notes(text)
  assert len(ours) == len(notes)
  assert all(note.startswith(n) for note, n in zip(ours, notes, strict=True))


@pytest.mark.parametrize(
  "text, stem",
  [
    ("", "clip"),
    ("<S>?!<E>", "clip"),
    ("CON", "clip_CON"),
    ("<S>Hi, you<E>/../c:\\x*. ", "Hi_you_c_x"),
    ("A <AUDCAP>wind<ENDAUDCAP>", "A_wind"),
    ("Ein B\xe4r l\xe4uft \U0001f388", "Ein_Bar_lauft"),
    ("Ein Ba\u0308r la\u0308uft", "Ein_Bar_lauft"),
    ("\u732b A cat", "A_cat"),
    ("\u4e16\u754c", "clip"),
    ("a b " * 60, "_".join("ab" * 13)[:49]),
  ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_a_file_stem_depends_on_the_prompt_alone(
  text, stem, encoding, monkeypatch
):
  monkeypatch.setattr("sys.getfilesystemencoding", lambda: encoding)
  assert prompt.file_stem(text) == stem


def test_file_stems_are_safe_whatever_the_prompt():
  choose = random.Random(0)
  for _ in range(300):
    text = "".join(chr(choose.randrange(1, 0x3000)) for _ in range(80))
    stem = prompt.file_stem(text)
    assert 1 <= len(stem) <= prompt.STEM_LENGTH
    assert not set(stem) & set('<>:"/\\|?*. \n\t\0')


@pytest.mark.parametrize(
  "text, segments",
  [
    ("", []),
    ("A ball.", [("text", "A ball.")]),
    (
      "A man says, <S>Hi.<E> Audio: wind",
      [
        ("text", "A man says, "),
        ("tag", "<S>"),
        ("speech", "Hi."),
        ("tag", "<E>"),
        ("text", " "),
        ("tag", "Audio:"),
        ("sound", " wind"),
      ],
    ),
    (
      "  A  dog.\n<s>Woof</S><audcap>barks\n<ENDAUDCAP>\n",
      [
        ("text", "  A  dog.\n"),
        ("tag", "<s>"),
        ("speech", "Woof"),
        ("tag", "</S><audcap>"),
        ("sound", "barks\n"),
        ("tag", "<ENDAUDCAP>\n"),
      ],
    ),
    # Cleaning makes one character of several, or as many others.
    (
      "It\u2019s &lt;b&gt; <S>ok<E>",
      [
        ("text", "It\u2019s &lt;b&gt; "),
        ("tag", "<S>"),
        ("speech", "ok"),
        ("tag", "<E>"),
      ],
    ),
    ("a <S>b", [("text", "a <S>b")]),
  ],
)
def test_segments_are_the_parts_as_they_are_written(text, segments):
  assert list(prompt.segments(text)) == segments


def test_segments_joined_are_the_prompt_whatever_it_is():
  choose = random.Random(1)
  pieces = ["<S>", "<E>", "Audio:", "&lt;", "&amp;amp;", "\ufb01", " ", "\n"]
  pieces += ["\u00e2\u20ac\u2122", "word", "<AUDCAP>", "</AUDCAP>", "\u2028"]
  for _ in range(300):
    text = "".join(choose.choices(pieces, k=choose.randrange(12)))
    found = prompt.segments(text)
    assert "".join(part for _, part in found) == text
    assert {kind for kind, _ in found} <= set(prompt.SEGMENTS)
