"""Parses and validates the responses of a captioner.

From the text of a response, expected to be a JSON object of `schema`, to a
`Caption`; raises `InvalidResponse` with all problems, phrased for the model.
Unambiguous errors are repaired: text around the JSON, misspelt or unbalanced
speech tags if the list of spoken words determines their position, blank
attributes. (Ovi, arXiv 2510.01284, section on data: visual events with tagged
speech, then audio; of voices gender, age, accent, pitch, prosody, emotion and
rate; otherwise effects, ambience, music.)
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
MAX_RESPONSE_CHARS = 100_000  # a longer response is invalid
MAX_ATTRIBUTE_CHARS = 300
_UNKNOWN_VOICE, _NO_SOUND = "unclear", "none"  # for blank attributes
_MAX_CLEANINGS = 8  # each removes one layer of HTML entities
_MAX_JSON_STARTS = 256  # positions tried for the JSON object


class InvalidResponse(ValueError):
  """A response that is not a valid caption.

  Attributes:
    reason: a few words, the same for all responses of the kind.
  """

  def __init__(self, reason: str, problem: str):
    super().__init__(problem)
    self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
  """Requirements of a response.

  Attributes:
    has_video: the request has frames: "visual" is required.
    has_audio: the request has audio: "audio", "speech" and attributes are
      required.
    visual_chars: minimum and maximum characters, including tags.
    audio_chars: minimum and maximum characters.
  """

  has_video: bool = True
  has_audio: bool = True
  visual_chars: tuple[int, int] = (20, 3000)
  audio_chars: tuple[int, int] = (8, 1500)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
  """A validated caption.

  Attributes:
    visual: events in order, speech as `<S>words<E>`; "" without frames.
    audio: description of the audio; "" without audio.
    speech: spoken words, in order.
    attributes: "speakers", a list of objects of `VOICE_ATTRIBUTES`, and
      "sounds", an object of `SOUND_ATTRIBUTES`.
  """

  visual: str
  audio: str
  speech: tuple[str, ...]
  attributes: Mapping[str, Any]


def schema(has_video: bool, has_audio: bool) -> dict[str, Any]:
  """The JSON schema of a response, for structured output."""
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
  """The schema of an object of strings."""
  return _object({name: {"type": "string"} for name in names})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
  """The schema of an object with exactly these properties."""
  return {
    "type": "object",
    "properties": dict(properties),
    "required": list(properties),
    "additionalProperties": False,
  }


def parse(text: str, requirements: Requirements) -> Caption:
  """Parse the text of a response.

  Args:
    text: text of the response.
    requirements: required parts.

  Raises:
    InvalidResponse: invalid JSON or content; lists every problem.
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
  """The prompt of a caption, in the format of a released variant.

  Without video, the spoken words replace the visual part.

  Raises:
    InvalidResponse: the trainer's cleaning would change the prompt, or its tags
      are misplaced.
  """
  spoken = " ".join(
    f"{prompt.SPEECH}{words}{prompt.SPEECH_END}" for words in caption.speech
  )
  parts = [caption.visual or spoken]
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
  """The first JSON object with one of the names; else InvalidResponse."""
  expected = "expected one JSON object and nothing around it"
  if len(text) > MAX_RESPONSE_CHARS:
    raise InvalidResponse(
      "answer is not JSON", f"{expected}, got {len(text)} characters of text"
    )
  decoder, failure = json.JSONDecoder(), "there is none"
  for start in itertools.islice(re.finditer("{", text), _MAX_JSON_STARTS):
    try:
      _, end = decoder.raw_decode(text, start.start())
      found = untrusted.parse_json(text[start.start() : end])
    except RecursionError:
      failure = "it is nested too deeply"
    except ValueError as error:
      # Report the first error; later positions are within the same object.
      failure = str(error) if failure == "there is none" else failure
    else:
      if set(found) & set(names):
        return found
  raise InvalidResponse("answer is not JSON", f"{expected}; {failure}")


def _type_problems(
  found: Mapping[str, Any], wanted: Requirements
) -> Iterator[str]:
  """Missing or mistyped parts."""
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
  """Missing, mistyped or too long attributes."""
  for name in names:
    if name not in found:
      yield f'{where} lacks "{name}"'
    elif not isinstance(found[name], str | None):
      yield f'{where}: "{name}" must be a text, got {_short_json(found[name])}'
    elif len(found[name] or "") > MAX_ATTRIBUTE_CHARS:
      yield f'{where}: "{name}" has over {MAX_ATTRIBUTE_CHARS} characters'


def _list_of(value: Any, kind: type) -> bool:
  """Whether a JSON value is a list of values of a type."""
  return isinstance(value, list) and all(isinstance(v, kind) for v in value)


def _short_json(value: Any) -> str:
  """A JSON value, shortened for a message."""
  text = json.dumps(value)
  return text if len(text) <= 80 else f"{text[:80]}…"


def _fill_blank(
  found: Mapping[str, Any], names: Sequence[str], blank: str
) -> dict[str, str]:
  """The attributes in order, blank ones filled, unknown ones dropped."""
  return {name: _clean(found[name] or "") or blank for name in names}


def _clean(text: str) -> str:
  """Clean a text until it no longer changes."""
  for _ in range(_MAX_CLEANINGS):
    text, before = prompt.clean(text), text
    if text == before:
      break
  return text


def _clean_audio(text: str) -> str:
  """The audio description without tags."""
  text = prompt.spell_tags(_clean(text)).removeprefix(prompt.SOUND_LINE)
  for tag in (prompt.SOUND, prompt.SOUND_END):
    text = text.replace(tag, " ")
  return _clean(speech_tags.strip_tags(text))


def _clean_speech(text: str) -> str:
  """Spoken words without tags."""
  return _clean(speech_tags.strip_tags(prompt.spell_tags(_clean(text))))


def _reconcile(
  visual: str, speech: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
  """Make the visual part and the spoken words agree, if unambiguous."""
  # Balanced tags are not moved.
  if prompt.tag_notes(visual) or prompt.SPEECH not in visual:
    visual = speech_tags.insert_tags(visual, speech) or visual
  spoken = speech_tags.tagged_speech(visual)
  # Case and punctuation may differ; training uses the visual part.
  return visual, spoken if speech_tags.same_words(spoken, speech) else tuple(
    speech
  )


def _problems(
  caption: Caption, wanted: Requirements
) -> Iterator[tuple[str, str]]:
  """Reason and description of each problem."""
  for note in prompt.tag_notes(caption.visual):
    yield "speech tags are unbalanced", f'in "visual", {note}'
  spoken = speech_tags.tagged_speech(caption.visual)
  if wanted.has_video and not speech_tags.same_words(spoken, caption.speech):
    yield (
      "speech mismatch",
      f'"speech" must list what stands between {prompt.SPEECH} and'
      f' {prompt.SPEECH_END} in "visual", in order; it lists'
      f" {_short_json(caption.speech)}, there stands {_short_json(spoken)}",
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
        yield "audio tag within the text", f'"{name}" must not hold {tag}'


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
