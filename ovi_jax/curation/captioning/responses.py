"""A captioner's answer: what a model wrote into a caption that was checked.

In: the text of an answer, which should be a JSON object of `schema`. Out: a
`Caption`, or `Unfit` with everything that is wrong, in words for the model.
What can be repaired in one way only is repaired: fences and talk around the
JSON, misspelt or unbalanced speech tags where the list of what is said tells
where they belong, blank attributes. (Ovi, arXiv 2510.01284, section on data:
visual events with speech in tags, then the sound; of voices gender, age,
accent, pitch, prosody, emotion, rate; else effects, ambience, music.)
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ovi_jax import geometry
from ovi_jax import prompt
from ovi_jax import untrusted
from ovi_jax.curation.captioning import speech_tags

VOICE_ATTRIBUTES = (
  "gender",
  "age",
  "accent",
  "pitch",
  "prosody",
  "emotion",
  "rate",
)
SOUND_ATTRIBUTES = ("effects", "ambience", "music", "acoustics")
MAX_RESPONSE_CHARS = 100_000  # characters; more is no caption
MAX_ATTRIBUTE_CHARS = 300
_UNKNOWN_VOICE, _NO_SOUND = "unclear", "none"  # for blank attributes
_MAX_CLEANINGS = 8  # each takes one layer of HTML entities off
_MAX_JSON_STARTS = 256  # places where an object may begin


class InvalidResponse(ValueError):
  """An answer that is no caption.

  Attributes:
    reason: a few words, the same for all answers of the kind.
  """

  def __init__(self, reason: str, problem: str):
    super().__init__(problem)
    self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
  """What an answer must have.

  Attributes:
    has_video: there are frames: "visual" is wanted.
    has_audio: there is sound: "audio", "speech" and attributes are wanted.
    visual_chars: fewest and most characters, tags included.
    audio_chars: likewise.
  """

  has_video: bool = True
  has_audio: bool = True
  visual_chars: tuple[int, int] = (20, 3000)
  audio_chars: tuple[int, int] = (8, 1500)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
  """A caption whose parts agree.

  Attributes:
    visual: what happens, in order, speech as `<S>words<E>`; "" without frames.
    audio: the sound described; "" without sound.
    speech: what is said, in order.
    attributes: "speakers", a mapping of `VOICE` each, and "sounds", of `SOUND`.
  """

  visual: str
  audio: str
  speech: tuple[str, ...]
  attributes: Mapping[str, Any]


def schema(has_video: bool, has_audio: bool) -> dict[str, Any]:
  """The JSON schema of an answer, strict as structured output wants it."""
  text = {"type": "string"}
  properties: dict[str, Any] = {}
  if has_video:
    properties["visual"] = text
  if has_audio:
    properties["speech"] = {"type": "array", "items": text}
    properties["audio"] = text
    properties["speakers"] = {
      "type": "array",
      "items": _texts(VOICE_ATTRIBUTES),
    }
    properties["sounds"] = _texts(SOUND_ATTRIBUTES)
  return _object(properties)


def _texts(names: Sequence[str]) -> dict[str, Any]:
  """The schema of an object of texts."""
  return _object({name: {"type": "string"} for name in names})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
  """The schema of an object that has all of its properties and no others."""
  return {
    "type": "object",
    "properties": dict(properties),
    "required": list(properties),
    "additionalProperties": False,
  }


def parse(text: str, requirements: Requirements) -> Caption:
  """Turn the text of an answer into a caption.

  Args:
    text: as the model wrote it.
    requirements: what it must have.

  Raises:
    Unfit: it is no JSON object, or its content is not what was asked for;
      names every problem.
  """
  found = _json(
    text, schema(requirements.has_video, requirements.has_audio)["properties"]
  )
  problems = list(_type_problems(found, requirements))
  if problems:
    raise InvalidResponse("caption lacks a part", "; ".join(problems))
  audio, speech = "", ()
  attributes: dict[str, Any] = {}
  if requirements.has_audio:
    audio = _clean_audio(found["audio"])
    speech = tuple(filter(None, map(_clean_speech, found["speech"])))
    attributes = {
      "speakers": [
        _fill_blank(s, VOICE_ATTRIBUTES, _UNKNOWN_VOICE)
        for s in found["speakers"]
      ],
      "sounds": _fill_blank(found["sounds"], SOUND_ATTRIBUTES, _NO_SOUND),
    }
  visual = ""
  if requirements.has_video:
    visual = _clean(prompt.spell_tags(_clean(found["visual"])))
    visual, speech = _reconcile(visual, speech)
  caption = Caption(
    visual=visual, audio=audio, speech=speech, attributes=attributes
  )
  problems = list(_problems(caption, requirements))
  if problems:
    raise InvalidResponse(
      problems[0][0], "; ".join(problem for _, problem in problems)
    )
  return caption


def to_prompt(caption: Caption, variant: geometry.Variant) -> str:
  """The prompt of a caption, as a released variant is asked.

  Of a sound alone, what is said stands where the visual part would.

  Raises:
    Unfit: the prompt is not what the trainer's cleaning would make of it, or
      its tags are out of place.
  """
  said = " ".join(
    f"{prompt.SPEECH}{words}{prompt.SPEECH_END}" for words in caption.speech
  )
  parts = [caption.visual or said]
  if caption.audio:
    parts.append(prompt.sound(caption.audio, variant.audio_tag))
  text = " ".join(filter(None, parts))
  notes = prompt.tag_notes(text)
  if notes or prompt.clean(text) != text:
    problem = "; ".join(notes) or "it holds broken characters or entities"
    raise InvalidResponse(
      "prompt is not clean", f"the caption as one text: {problem}"
    )
  return text


def _json(text: str, names: Mapping[str, Any]) -> dict[str, Any]:
  """The first JSON object that has one of the names; `Unfit` without one."""
  wanted = "expected one JSON object and nothing around it"
  if len(text) > MAX_RESPONSE_CHARS:
    raise InvalidResponse(
      "answer is not JSON", f"{wanted}, got {len(text)} characters of text"
    )
  decoder, failure = json.JSONDecoder(), "there is none"
  for start in itertools.islice(re.finditer("{", text), _MAX_JSON_STARTS):
    try:
      _, end = decoder.raw_decode(text, start.start())
      found = untrusted.parse_json(text[start.start() : end])
    except RecursionError:
      failure = "it is nested too deeply"
    except ValueError as error:
      # The first is where the answer was to be; later ones are within it.
      failure = str(error) if failure == "there is none" else failure
    else:
      if set(found) & set(names):
        return found
  raise InvalidResponse("answer is not JSON", f"{wanted}; {failure}")


def _type_problems(
  found: Mapping[str, Any], wanted: Requirements
) -> Iterator[str]:
  """What is missing from the object, or of another type."""
  texts = ["visual"] * wanted.has_video + ["audio"] * wanted.has_audio
  for name in texts:
    if not isinstance(found.get(name), str):
      yield f'"{name}" must be a text, got {_short_json(found.get(name))}'
  if not wanted.has_audio:
    return
  speech = found.get("speech")
  if not _list_of(speech, str):
    yield f'"speech" must be a list of texts, got {_short_json(speech)}'
  speakers = found.get("speakers")
  if not _list_of(speakers, dict):
    yield f'"speakers" must be a list of objects, got {_short_json(speakers)}'
    speakers = []
  for number, speaker in enumerate(speakers or []):
    yield from _attribute_problems(
      f"speakers[{number}]", speaker, VOICE_ATTRIBUTES
    )
  sounds = found.get("sounds")
  if isinstance(sounds, dict):
    yield from _attribute_problems("sounds", sounds, SOUND_ATTRIBUTES)
  else:
    yield f'"sounds" must be an object, got {_short_json(sounds)}'


def _attribute_problems(
  where: str, found: Mapping[str, Any], names: Sequence[str]
) -> Iterator[str]:
  """Attributes that are missing, no text, or too long."""
  for name in names:
    if name not in found:
      yield f'{where} lacks "{name}"'
    elif not isinstance(found[name], str | None):
      yield f'{where}: "{name}" must be a text, got {_short_json(found[name])}'
    elif len(found[name] or "") > MAX_ATTRIBUTE_CHARS:
      yield f'{where}: "{name}" has over {MAX_ATTRIBUTE_CHARS} characters'


def _list_of(value: Any, kind: type) -> bool:
  """Whether a JSON value is a list of a type."""
  return isinstance(value, list) and all(isinstance(v, kind) for v in value)


def _short_json(value: Any) -> str:
  """A JSON value, short enough for a message."""
  text = json.dumps(value)
  return text if len(text) <= 80 else f"{text[:80]}…"


def _fill_blank(
  found: Mapping[str, Any], names: Sequence[str], blank: str
) -> dict[str, str]:
  """The attributes in their order, blank ones filled, unknown ones dropped."""
  return {name: _clean(found[name] or "") or blank for name in names}


def _clean(text: str) -> str:
  """The text cleaned until cleaning changes nothing."""
  for _ in range(_MAX_CLEANINGS):
    text, before = prompt.clean(text), text
    if text == before:
      break
  return text


def _clean_audio(text: str) -> str:
  """The sound's description without the tags that are put around it."""
  text = prompt.spell_tags(_clean(text)).removeprefix(prompt.SOUND_LINE)
  for tag in (prompt.SOUND, prompt.SOUND_END):
    text = text.replace(tag, " ")
  return _clean(speech_tags.strip_tags(text))


def _clean_speech(text: str) -> str:
  """Words that are said, without tags."""
  return _clean(speech_tags.strip_tags(prompt.spell_tags(_clean(text))))


def _reconcile(
  visual: str, speech: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
  """Visual part and words that agree, if there is one way to make them so."""
  # Balanced tags stay where the model put them, whatever it lists.
  if prompt.tag_notes(visual) or prompt.SPEECH not in visual:
    visual = speech_tags.insert_tags(visual, speech) or visual
  said = speech_tags.tagged_speech(visual)
  # They may differ in letters' case and stops; the visual part is trained on.
  return visual, said if speech_tags.same_words(said, speech) else tuple(speech)


def _problems(
  caption: Caption, wanted: Requirements
) -> Iterator[tuple[str, str]]:
  """Reason and description of all that is wrong with what the parts say."""
  for note in prompt.tag_notes(caption.visual):
    yield "speech tags are unbalanced", f'in "visual", {note}'
  said = speech_tags.tagged_speech(caption.visual)
  if wanted.has_video and not speech_tags.same_words(said, caption.speech):
    yield (
      "speech in two versions",
      f'"speech" must list what stands between {prompt.SPEECH} and'
      f' {prompt.SPEECH_END} in "visual", in order; it lists'
      f" {_short_json(caption.speech)}, there stands {_short_json(said)}",
    )
  if wanted.has_video:
    yield from _length_problems("visual", caption.visual, wanted.visual_chars)
  if wanted.has_audio:
    yield from _length_problems("audio", caption.audio, wanted.audio_chars)
  if caption.speech and wanted.has_audio and not caption.attributes["speakers"]:
    yield (
      "speech without a speaker",
      'there is speech: "speakers" must describe each voice',
    )
  foreign = (prompt.SOUND, prompt.SOUND_END, prompt.SOUND_LINE)
  for name, text in (
    ("visual", caption.visual),
    ("audio", caption.audio),
    ("speech", " ".join(caption.speech)),
  ):
    for tag in foreign:
      if tag in text:
        yield "sound's tag within the text", f'"{name}" must not hold {tag}'


def _length_problems(
  name: str, text: str, bounds: tuple[int, int]
) -> Iterator[tuple[str, str]]:
  """Whether a part is blank, too short or too long."""
  if not bounds[0] <= len(text) <= bounds[1]:
    yield (
      f"{name} is too {'short' if len(text) < bounds[0] else 'long'}",
      f'"{name}" must have {bounds[0]} to {bounds[1]} characters, got'
      f" {len(text)}",
    )
