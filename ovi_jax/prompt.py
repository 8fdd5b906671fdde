"""Prompts: cleaning, the grammar of their tags, file names.

A prompt is a sequence of text, speech `<S>words<E>` and sound. The sound is
described once, at the end: `<AUDCAP>...<ENDAUDCAP>` for 720x720_5s,
`Audio: ...`, which runs to the end, for the 960x960 variants. Tags do not nest;
`Audio:` within speech, sound or quotation marks is text. Prompts reach the text
encoder cleaned, as token ids cut and padded to its length, so tags are looked
for in the cleaned prompt. (`ovi_fusion_engine.py`, `modules/tokenizers.py` of
the original.)
"""

import dataclasses
import functools
import html
import itertools
import re
import unicodedata
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import ftfy

from ovi_jax import geometry
from ovi_jax import untrusted

SPEECH, SPEECH_END = "<S>", "<E>"
SOUND, SOUND_END = "<AUDCAP>", "<ENDAUDCAP>"
SOUND_LINE = "Audio:"
CLOSING = {SPEECH: SPEECH_END, SOUND: SOUND_END}
# What `segments` marks: what is seen, said and heard, and tags between them.
SEGMENTS = TEXT, SPEECH_TEXT, SOUND_TEXT, TAG = "text", "speech", "sound", "tag"
STEM_LENGTH = 50
MAX_CHARACTERS = 2**14  # of a prompt; 512 tokens are about 2500
# Control characters that are no white space, and bytes that were no UTF-8.
_UNREADABLE = re.compile("[\0-\x08\x0e-\x1b\x7f\ud800-\udfff]")

_OPENING = {closing: opening for opening, closing in CLOSING.items()}
_TAGS = frozenset([*CLOSING, *_OPENING])
# Characters that are not seen, which editors and web pages leave behind; at
# most so many beside each other.
_HIDDEN = (
  r"\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
  r"\ufeff"
)
_MOST_HIDDEN = 8
# Cyrillic and Greek letters that are seen as Latin ones.
_LOOKALIKES = {
  "a": "\u0430\u03b1",
  "c": "\u0441\u03f2",
  "e": "\u0435\u03b5",
  "i": "\u0456\u03b9",
  "n": "\u03b7",
  "o": "\u043e\u03bf",
  "p": "\u0440\u03c1",
  "s": "\u0455",
  "u": "\u03c5",
}
_LATIN = str.maketrans(
  {other: latin for latin, others in _LOOKALIKES.items() for other in others}
)


def _seen_as(word: str) -> str:
  """A pattern of a word in Latin letters or those that look like them.

  Characters that are not seen may stand within it.
  """
  letters = (f"[{c}{_LOOKALIKES.get(c, '')}]" for c in word)
  return f"[{_HIDDEN}]{{0,{_MOST_HIDDEN}}}".join(letters)


_BLANKS = rf"[\s{_HIDDEN}]{{0,{_MOST_HIDDEN}}}"


# Tags, and what people write for them: <s>, </S>, < E >, </AUDCAP>, 《S》, ...
_TAG = re.compile(
  rf"\\?[<〈《⟨⟪\u2039≪﹤]{_BLANKS}(?P<close>[/\\]{{0,4}}){_BLANKS}"
  rf"(?P<name>{_seen_as('s')}|{_seen_as('e')}"
  rf"|(?P<end>{_seen_as('end')}[\s_{_HIDDEN}-]{{0,4}})?{_seen_as('aud')}[\s_{_HIDDEN}-]{{0,4}}"
  rf"{_seen_as('cap')})"
  rf"{_BLANKS}(?P<late>/?){_BLANKS}\\?[>〉》⟩⟫\u203a≫﹥]",
  re.IGNORECASE,
)
# Neither a tag nor text that anyone would describe a clip with.
_UNKNOWN_TAG = re.compile(
  r"</?(?:start_?|end_?)?(?:speech|speak|say|voice|dialog(?:ue)?|sound|sfx|music"
  r"|audio(?:_?cap(?:tion)?)?|aud|start|end)/?>|</?s\s[^<>]{1,40}>"
  r"|<(?:audio|sound|sfx|speech)\s[^<>:=]{1,80}>|</?[se][ _-]?\d{1,3}>"
  r"|[\[{«](?-i:S|E)[\]}»]|(?:end)?audcap",
  re.IGNORECASE,
)
_COLON = "[:\ufe55\ufe13\u2236\ua789]"
# `Audio:`, and what people write for it: audio:, AUDIO :, **Audio:**, ...
_LABEL = re.compile(
  r"(?<![A-Za-z0-9_])(?:(?P<mark>\*{1,3}|_{1,3}|`)"
  rf"{_seen_as('audio')}(?:(?P=mark) ?{_COLON}|{_COLON}(?P=mark))"
  rf"|{_seen_as('audio')}{_BLANKS}{_COLON})",
  re.IGNORECASE,
)
# What else people begin the sound's description with.
_SOUND_WORDS = (
  "audio[ -]?(?:track|caption|description|prompt|cues?)?|soundtrack|soundscape"
  "|(?:background |ambient )?(?:sounds?|music)|sound[ -]?(?:effects?|design)"
  "|sfx|ambien[ct]e|[\xe0\xe1]udio|sonidos?|som|sons?|bruitages?|suon[oi]"
  "|ger\xe4usche?|ton|\u0430\u0443\u0434\u0438\u043e|\u0437\u0432\u0443\u043a\u0438?"
  "|\u97f3[\u58f0\u8072\u9891\u983b\u6548\u97ff\u54cd\u8a0a\u8baf]|[\u58f0\u8072]\u97f3"
  "|\u30b5\u30a6\u30f3\u30c9|\u30aa\u30fc\u30c7\u30a3\u30aa"
  "|\uc624\ub514\uc624|\uc18c\ub9ac|\uc0ac\uc6b4\ub4dc"
)
_ARROW = r"[-=]{1,3}>|>{1,3}|[\u2190-\u21ff\u2794-\u27be]"
_ANGLE = re.compile(r"(?<![-=])>")  # that is not of an arrow
_OTHER_LABEL = re.compile(
  rf"(?<!\w)(?:[*_`#]{{1,6}} ?)?(?:{_SOUND_WORDS})"
  rf"[*_`]{{0,6}} ?(?:{_COLON}|{_ARROW}|[=;~\uff1b\u2013\u2014]|-(?= ))"
  r"|\[(?:audio|sounds?|sfx)\]",
  re.IGNORECASE,
)
_IN_TAG = re.compile(r"<\s?/?\s?$")
# A line of its own, as a heading has it.
_HEADING = re.compile(
  rf"(?:#{{1,6}} ?)?[*_`]{{0,6}}(?:{_SOUND_WORDS})[*_`]{{0,6}} ?#{{0,6}}",
  re.IGNORECASE,
)
# What describes the picture, and so begins no sentence of a sound.
_PICTURE_LABEL = re.compile(
  r"(?:(?:visual )?style|camera|video|visuals?|scene|setting|lighting|shot"
  rf"|negative(?: prompt)?) ?{_COLON}",
  re.IGNORECASE,
)
# What JSON and programs write for a line end, `<` and `>`; not C:\\new.
_ESCAPE = re.compile(
  r"\\u003[ceCE]|(?<![:\w])(?:\\r)?\\n(?=[A-Z\W]|$)", re.MULTILINE
)
# Escaped more often than anybody resolves it.
_CACHED = 1 << 14  # prompts whose repaired text is kept: of a long table
_AMPERSANDS = re.compile("&(?:amp;){3,}")
# How JSON, and dicts of Python, begin.
_JSON = re.compile(r"(?:```\w{0,10} ?)?[\[{ ]{1,4}[\"']\w[\w -]{0,40}[\"'] ?:")
_QUOTES = r"""["')\]\u201d\u2019\u203a\u300d\u300f\u00bb]{0,3}"""
_ENDS = r".!?\u2026\u203d\u3002\u061f\u06d4\u0964\u0965\u0589\u1362\u104b\u17d4"
_SENTENCE_END = re.compile(
  rf"(?:[{_ENDS}]{_QUOTES}|>)[ {_HIDDEN}]{{0,3}}[(\[<]?$"
)
_PAUSE = re.compile(rf"[{_ENDS},;:\u3001]")
_BULLET = re.compile(r"(?:[-*\u2022] )?[(\[<]?")
_BRACKETS = {"(": ")", "[": "]", "{": "}", "\u3010": "\u3011"}
# Curly quotation marks are straight in a cleaned prompt.
_QUOTATION = {
  **{mark: mark for mark in "\"'*`"},
  **{"\xab": "\xbb", "\xbb": "\xab", "\u2039": "\u203a", "\u203a": "\u2039"},
  **{"\u300c": "\u300d", "\u300e": "\u300f"},
}
_ENCLOSING = {**_BRACKETS, **_QUOTATION}
# What ends no sentence, so that `Audio:` after it is a word of the text.
_DETERMINER = re.compile(r"\b(?:the|an|my|your|our|their) $", re.IGNORECASE)
_few = functools.partial(untrusted.shortened, noun="more like it")
# Windows opens a device, not a file, under these names.
_DEVICES = frozenset(
  ["con", "prn", "aux", "nul"]
  + [f"{port}{digit}" for port in ("com", "lpt") for digit in range(10)]
)


def unreadable(text: Any) -> str:
  """Why something is not a valid prompt; empty if it is valid."""
  if not isinstance(text, str):
    return f"must be text, got {type(text).__name__}"
  if len(text) > MAX_CHARACTERS:
    return (
      f"has {len(text)} characters; the limit is {MAX_CHARACTERS}. Shorten it"
      " to a few hundred"
    )
  if strange := _UNREADABLE.search(text):
    return (
      f"has the character U+{ord(strange[0]):04X} at place"
      f" {strange.start() + 1}; remove it, and save the text as UTF-8"
    )
  return ""


def clean(prompt: str) -> str:
  """Repair broken Unicode, resolve HTML entities, collapse white space."""
  return " ".join(_unescaped(prompt).split())


@functools.lru_cache(maxsize=_CACHED)
def _unescaped(prompt: str) -> str:
  """The prompt as `clean` makes it, with its white space."""
  # ftfy resolves a level of them at a time.
  prompt = _AMPERSANDS.sub("&amp;amp;", prompt)
  # Twice: scraped captions hold `&amp;amp;`.
  return html.unescape(html.unescape(ftfy.fix_text(prompt)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A piece of a prompt.

  Attributes:
    tag: what opens it: `SPEECH`, `SOUND`, `SOUND_LINE`, or nothing for text.
    text: what is written after it, without the tag that closes it.
    start: character of the prompt where `text` begins.
  """

  tag: str = ""
  text: str
  start: int = 0

  def __str__(self) -> str:
    return f"{self.tag}{self.text}{CLOSING.get(self.tag, '')}"

  @property
  def is_sound(self) -> bool:
    """Whether it describes the sound."""
    return self.tag in (SOUND, SOUND_LINE)

  @property
  def description(self) -> str:
    """The text of a sound, without a label of its own."""
    text = self.text.lstrip()
    while label := _LABEL.match(text):
      text = text[label.end() :].lstrip()
    return text.rstrip()


class _Cleaned(NamedTuple):
  """A cleaned prompt.

  Attributes:
    text: what `clean` makes of the prompt.
    line_starts: characters of it where lines of the prompt begin.
  """

  text: str
  line_starts: frozenset[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reading:
  """One way to read a prompt.

  Attributes:
    parts: in order.
    repairs: one entry for each misspelt tag: what it is read as.
    problems: why it cannot be read; `parts` mean nothing if there are any.
  """

  parts: tuple[Part, ...] = ()
  repairs: tuple[str, ...] = ()
  problems: tuple[str, ...] = ()


def parse(prompt: str) -> tuple[Part, ...]:
  """Split a prompt into text, speech and sound.

  Returns:
    The parts. Put together they give the cleaned prompt, but for misspelt tags,
    which are repaired. One text if tags are unbalanced or nested.
  """
  cleaned = _cleaned(prompt)
  reading = _read(cleaned)
  return (Part(text=cleaned.text),) if reading.problems else reading.parts


def picture(prompt: str) -> str:
  """What a prompt says of the picture: without its speech and sound.

  Returns:
    The text outside of tags; empty if there is none.
  """
  text, removed = "", False
  for part in parse(prompt):
    if not part.tag:
      text = _joined(text, part.text) if removed else text + part.text
    removed = bool(part.tag)
  return text.strip() if re.search(r"\w", text) else ""


def segments(prompt: str) -> tuple[tuple[str, str], ...]:
  """Split a prompt, as it is written, for an editor that marks its parts.

  Returns:
    Pairs of a name of `SEGMENTS` and a text; the texts joined are the prompt.
    Texts and parts agree exactly, unless HTML entities or broken Unicode are
    repaired on both sides of a boundary.
  """
  text = _cleaned(prompt).text
  kinds = [TAG] * len(text)
  for part in parse(prompt):
    end = part.start + len(part.text)
    kinds[part.start : end] = [_segment(part)] * len(part.text)
  places = _places(text, prompt)
  starts = [
    at for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1]
  ]
  cuts = [0, *(places[at] for at in starts[1:]), len(prompt)]
  if not starts:
    return ((TEXT, prompt),) if prompt else ()
  return tuple(
    (kinds[at], prompt[begin:end])
    for at, begin, end in zip(starts, cuts, cuts[1:])
  )


def _segment(part: Part) -> str:
  """What an editor marks a part as."""
  if part.is_sound:
    return SOUND_TEXT
  return SPEECH_TEXT if part.tag == SPEECH else TEXT


def _places(text: str, prompt: str) -> list[int]:
  """Where each character of a cleaned prompt is written."""
  unescaped = _unescaped(prompt)
  places, at = [], 0
  for character in text:
    while character != " " and unescaped[at].isspace():
      at += 1
    places.append(at)
    at += character != " "
  if unescaped == prompt:
    return places
  # Exact before the first repaired character and after the last one.
  ends = len(unescaped), len(prompt)
  head = _equal_start(unescaped, prompt)
  tail = _equal_start(unescaped[::-1], prompt[::-1])
  tail = min(tail, *(end - head for end in ends))
  inside, outside = (end - head - tail for end in ends)

  def written(place: int) -> int:
    if place <= head:
      return place
    if place >= ends[0] - tail:
      return place + ends[1] - ends[0]
    return head + (place - head) * outside // inside

  return [written(place) for place in places]


def _equal_start(one: str, other: str) -> int:
  """How many characters two texts begin with alike."""
  pairs = enumerate(zip(one, other))
  least = min(len(one), len(other))
  return next((at for at, (a, b) in pairs if a != b), least)


def sound(description: str, audio_tag: str) -> str:
  """Write a sound's description, between tags unless a variant has `Audio:`."""
  if audio_tag == SOUND_LINE:
    return f"{SOUND_LINE} {description}".rstrip()
  return f"{SOUND}{description}{SOUND_END}"


def format_for(
  prompt: str, variant: geometry.Variant
) -> tuple[str, tuple[str, ...]]:
  """Write the sound's description the way a variant was trained with.

  Args:
    prompt: as the user wrote it.
    variant: the variant that will read it; one without a tag takes both forms.

  Returns:
    The prompt, unchanged if it fits or cannot be read in one way only, else
    cleaned and rewritten; and notes to show the user: what was rewritten, and
    tags that are unbalanced, nested, misspelt or in the wrong place.
  """
  cleaned = _cleaned(prompt)
  text, reading = cleaned.text, _read(cleaned)
  if reading.problems:
    left = "the prompt is used unchanged"
    return prompt, (
      *_few([*reading.problems, *_lookalike_notes(text)]),
      left,
      *_program_text(text),
    )
  formatted = _printed(reading.parts, variant.audio_tag)
  beside = (*_swallowed(reading.parts, cleaned), *_program_text(text))
  if formatted == text:
    hints = (*_hints(reading.parts), *_unlabelled(reading.parts, cleaned))
    return prompt, (*tag_notes(text), *hints, *beside)
  line, span = sound("...", SOUND_LINE), sound("...", SOUND)
  found, wanted = line, span
  if variant.audio_tag == SOUND_LINE:
    found, wanted = span, line
  parts = _same(reading.parts, formatted, variant.audio_tag)
  if parts is None:
    return prompt, (
      f"the prompt is used unchanged: the sound tag cannot be converted for"
      f" {variant.name} without changing other text. Write the sound last, as"
      f" {wanted}",
      *tag_notes(text),
      *_program_text(text),
    )
  notes = _few(reading.repairs)
  if any(p.is_sound and p.tag not in wanted for p in reading.parts):
    rewritten = (
      f"the sound's description is written {wanted} for {variant.name};"
      f" rewrote {found}"
    )
    if variant.audio_tag == SOUND_LINE and not _in_place(reading.parts):
      rewritten += " and moved it to the end"
    notes.append(rewritten)
  return formatted, (*notes, *tag_notes(formatted), *_hints(parts), *beside)


def tag_notes(prompt: str) -> tuple[str, ...]:
  """One readable sentence for each tag that is out of place."""
  reading = _balanced(prompt, repair=False)
  empty = [
    f"nothing between {_at(part.tag, part.start - len(part.tag))} and"
    f" {_at(CLOSING[part.tag], part.start + len(part.text))}"
    for part in reading.parts
    if part.tag and not part.text.strip()
  ]
  return tuple(_few([*reading.problems, *empty, *_lookalike_notes(prompt)]))


def spell_tags(text: str) -> str:
  """Correct misspelt tags: `<s>`, `</S>`, `< e >`, `</AUDCAP>`, ...

  What closes in the manner of HTML ends speech or sound. Whether tags are
  balanced does not matter.
  """
  return _TAG.sub(lambda match: _meant(match, ""), text)


def _cleaned(prompt: str) -> _Cleaned:
  """A prompt without needless white space, and where its lines were."""
  lines, starts, at = [], set(), 0
  for line in _unescaped(prompt).splitlines():
    words = " ".join(line.split())
    if words:
      bullet = _BULLET.match(words)
      starts.update((at, at + (bullet.end() if bullet else 0)))
      at += len(words) + 1
      lines.append(words)
  return _Cleaned(" ".join(lines), frozenset(starts))


def _read(cleaned: _Cleaned) -> _Reading:
  """Read a cleaned prompt; misspelt tags count if it is balanced with them."""
  reading = _balanced(cleaned.text, repair=True)
  if reading.problems:
    reading = _balanced(cleaned.text, repair=False)
  if reading.problems:
    return reading
  return _with_line(_without_labels(reading, cleaned), cleaned)


def _balanced(text: str, *, repair: bool) -> _Reading:
  """Split at tags of speech and sound; misspelt ones count with `repair`."""
  parts, repairs, problems = [], [], []
  opened, opening, end = "", "", 0
  for match in _TAG.finditer(text):
    if match[0] not in _TAGS and not repair:
      continue
    tag, at = _meant(match, opening), _at(match[0], match.start())
    if tag != match[0]:
      repairs.append(f"{at} is read as {tag}{_foreign(match[0])}")
    within = text[end : match.start()]
    if tag in CLOSING:
      if opening:
        problems.append(f"{opened} has no {CLOSING[opening]} before {at}")
      elif within:
        parts.append(Part(text=within, start=end))
      opened, opening = at, tag
    elif CLOSING.get(opening) == tag:
      parts.append(Part(tag=opening, text=within, start=end))
      opening = ""
    else:
      problems.append(f"{at} has no {_OPENING[tag]} before it")
    end = match.end()
  if opening:
    problems.append(f"{opened} has no {CLOSING[opening]} before the end")
  elif text[end:]:
    parts.append(Part(text=text[end:], start=end))
  return _Reading(
    parts=tuple(parts), repairs=tuple(repairs), problems=tuple(problems)
  )


def _meant(match: re.Match[str], opening: str) -> str:
  """The tag that a match of `_TAG` stands for; `opening` is what is open."""
  if match[0] in _TAGS:
    return match[0]
  name = re.sub(f"[{_HIDDEN}]", "", match["name"]).lower().translate(_LATIN)
  if name == "e":
    return SPEECH_END
  tag = SPEECH if name == "s" else SOUND
  # A slash at the end closes what is open, and else means nothing.
  ends = match["close"] or match["end"] or (match["late"] and opening == tag)
  return CLOSING[tag] if ends else tag


def _foreign(tag: str) -> str:
  """Why a tag that looks right is none, if that is so; ends a sentence."""
  same = tag.lower().translate(_LATIN) == tag.lower()
  return "" if same else "; a letter of it is Cyrillic or Greek"


def _without_labels(reading: _Reading, cleaned: _Cleaned) -> _Reading:
  """Drop an `Audio:` directly before `<AUDCAP>`."""
  parts, repairs = [], list(reading.repairs)
  for part, following in zip(reading.parts, [*reading.parts[1:], None]):
    if following is not None and following.tag == SOUND:
      for label in _labels(part, cleaned):
        if not part.text[label.end() :].strip():
          at = _at(label[0], part.start + label.start())
          repairs.append(f"{at} before {SOUND} is left out")
          part = dataclasses.replace(part, text=part.text[: label.start()])
          break
    if part.tag or part.text:
      parts.append(part)
  return dataclasses.replace(
    reading, parts=tuple(parts), repairs=tuple(repairs)
  )


def _with_line(reading: _Reading, cleaned: _Cleaned) -> _Reading:
  """Find the `Audio:` from which the sound's description runs to the end."""
  spans = any(part.tag == SOUND for part in reading.parts)
  found = []
  for i, part in enumerate(reading.parts):
    for label in _labels(part, cleaned):
      exact = label[0] == SOUND_LINE
      leads = _leads(cleaned, part.start + label.start())
      # Beside <AUDCAP>, only what cannot be a word of the text counts.
      if not spans or (exact and leads):
        found.append((not (exact and leads), not exact, i, label))
  if not found:
    return reading
  # The first of those that begin a sentence; else the first of all.
  _, misspelt, i, label = min(found, key=lambda f: f[:3])
  part = reading.parts[i]
  at = _at(label[0], part.start + label.start())
  if len(reading.parts) > i + 1:
    if misspelt:
      return reading
    after = reading.parts[i + 1]
    return _Reading(
      problems=(
        f"{at} must be the last part of the prompt: everything after it, also"
        f" {_at(after.tag, after.start - len(after.tag))}, is read as sound",
      )
    )
  head, end = part.text[: label.start()], len(part.text)
  closing = _BRACKETS.get(head[-1:])
  if closing and closing in part.text[label.end() :]:
    end = part.text.rindex(closing)  # of `(Audio: wind).`
  text, rest = part.text[label.end() : end], part.text[end:]
  repair = f"{at} is read as {SOUND_LINE}{_foreign(label[0])}"
  if head.endswith("<"):  # as in `<Audio: wind>`
    head, text, misspelt = *_without_angles(head, text), True
    at = _at(f"<{label[0]}", part.start + label.start() - 1)
    repair = f"{at} is read as {SOUND_LINE}"
  pieces = (
    dataclasses.replace(part, text=head),
    Part(tag=SOUND_LINE, text=text, start=part.start + label.end()),
    Part(text=rest, start=part.start + end),
  )
  return _Reading(
    parts=(*reading.parts[:i], *(p for p in pieces if p.tag or p.text)),
    repairs=(*reading.repairs, *([repair] if misspelt else [])),
  )


def _without_angles(head: str, text: str) -> tuple[str, str]:
  """What is written before `<Audio:`, and the sound, without `<` and `>`."""
  while head.endswith("<"):
    head = head[:-1]
    angles = list(_ANGLE.finditer(text))
    tail = text[angles[-1].end() :] if angles else ""
    if angles and not re.search(r"\w", tail):
      inner = re.sub(r"<\s*/\s*\w*\s*$", "", text[: angles[-1].start()])
      text = inner.rstrip(" /") + tail.rstrip()
  return head, text


def _labels(part: Part, cleaned: _Cleaned) -> Iterator[re.Match[str]]:
  """`Audio:` in a text, and misspelt ones that begin a sentence or line."""
  if not part.tag:
    for label in _LABEL.finditer(part.text):
      noun = _DETERMINER.search(part.text[: label.start()][-8:])
      exact = label[0] == SOUND_LINE and not noun
      leads = _leads(cleaned, part.start + label.start())
      if (exact or leads) and not _is_enclosed(part.text, label):
        yield label


def _is_enclosed(text: str, label: re.Match[str]) -> bool:
  """Whether a label is quoted, or in brackets with words after them."""
  opening, rest = text[: label.start()][-1:], text[label.end() :]
  if opening in _QUOTATION:
    # An apostrophe closes nothing.
    return bool(re.search(rf"{re.escape(_QUOTATION[opening])}(?!\w)", rest))
  if opening == "<":
    _, *after = _ANGLE.split(rest, maxsplit=1)
    return bool(after and re.search(r"\w", after[0]))
  if closing := _BRACKETS.get(opening):
    return bool(re.search(r"\w", rest.partition(closing)[2]))
  return False


def _leads(cleaned: _Cleaned, at: int) -> bool:
  """Whether a sentence or line begins at a character, or a tag ends there."""
  return at in cleaned.line_starts or bool(
    _SENTENCE_END.search(cleaned.text[max(0, at - 8) : at])
  )


def _printed(parts: Sequence[Part], audio_tag: str) -> str:
  """The prompt of parts, with sounds in a variant's form."""
  if audio_tag == SOUND:
    return "".join(
      sound(part.description, SOUND) if part.tag == SOUND_LINE else str(part)
      for part in parts
    )
  if audio_tag != SOUND_LINE or all(part.tag != SOUND for part in parts):
    return "".join(map(str, parts))
  if _in_place(parts):
    before, after = _around(parts)
    last = before[-1:]
    # `"Audio: ...` may be read as quoted.
    gap = " " if _is_word(last) or (not after and last in _ENCLOSING) else ""
  else:
    before, after, removed = "", "", False
    for part in parts:
      if not part.is_sound:
        before = _joined(before, str(part)) if removed else before + str(part)
      removed = part.is_sound
    before = before.rstrip()
    gap = " " if before else ""
  return f"{before}{gap}{sound(_described(parts), SOUND_LINE)}{after}"


def _around(parts: Sequence[Part]) -> tuple[str, str]:
  """What is written before and after the sounds."""
  at = [i for i, part in enumerate(parts) if part.is_sound]
  return (
    "".join(map(str, parts[: at[0]])),
    "".join(map(str, parts[at[-1] + 1 :])),
  )


def _in_place(parts: Sequence[Part]) -> bool:
  """Whether `Audio:` can be written where the sound is described."""
  if sum(part.is_sound for part in parts) != 1:
    return False
  before, after = _around(parts)
  return after in ("", _BRACKETS.get(before[-1:]))


def _described(parts: Sequence[Part]) -> str:
  """The descriptions of all sounds as one."""
  sounds = (part.description for part in parts if part.is_sound)
  return functools.reduce(_sentences, sounds, "")


def _is_last(parts: Sequence[Part]) -> bool:
  """Whether one sound is described, and no word follows its description."""
  sounds = [i for i, part in enumerate(parts) if part.is_sound]
  return len(sounds) == 1 and not any(
    part.tag or re.search(r"\w", part.text) for part in parts[sounds[0] + 1 :]
  )


def _joined(left: str, right: str) -> str:
  """Join the text before and after a part that was removed."""
  while _is_emptied(left, right):
    left, right = left.rstrip()[:-1], right.lstrip()[1:]
  head, tail = left.rstrip(), right.lstrip()
  spaced = len(head) < len(left) or len(tail) < len(right)
  if _PAUSE.match(tail):
    # No second one after that of the text before.
    if re.search(rf"[{_ENDS}]{_QUOTES}$", head):
      return head + re.sub("^[.\u3002]", "", tail)
    return re.sub("[,;:\u3001]$", "", head) + tail
  if not head or tail[:1] in set(")]}"):
    return head + tail
  between = spaced or (_is_word(head[-1]) and _is_word(tail[:1]))
  return head + " " * between + tail


def _is_emptied(left: str, right: str) -> bool:
  """Whether brackets or quotation marks stand around nothing."""
  head, tail = left.rstrip(), right.lstrip()
  opening, closing = head[-1:], tail[:1]
  if not closing or _ENCLOSING.get(opening) != closing:
    return False
  if opening not in _QUOTATION.values():
    return True
  # One that may as well close a quotation opens one here.
  before = head[-2:-1].strip()
  opens = not before or before in _ENCLOSING
  closes = not re.match(r"\w", tail[1:])
  return (head, tail) == (left, right) and opens and closes


def _sentences(one: str, other: str) -> str:
  """Two descriptions as one."""
  if not one or not other:
    return one or other
  return f"{one}{'.' if one[-1].isalnum() else ''} {other}"


def _is_word(character: str) -> bool:
  """Whether it is a letter or digit of a script that puts spaces."""
  return character.isascii() and character.isalnum()


def _same(
  parts: Sequence[Part], formatted: str, audio_tag: str
) -> tuple[Part, ...] | None:
  """Read a rewritten prompt; None if words, sound or form have changed."""
  cleaned = _cleaned(formatted)
  reading = _read(cleaned)
  if cleaned.text != formatted or reading.problems or reading.repairs:
    return None
  if _printed(reading.parts, audio_tag) != formatted:
    return None
  return reading.parts if _kept(reading.parts) == _kept(parts) else None


def _kept(parts: Sequence[Part]) -> tuple[str, list[str], str]:
  """What no rewriting may change: words of the text, speech and sound."""
  text = "".join(part.text for part in parts if not part.tag)
  speech = [part.text for part in parts if part.tag == SPEECH]
  return re.sub(r"\W", "", text), speech, _described(parts)


def _hints(parts: Sequence[Part]) -> Iterator[str]:
  """One sentence for each way to describe the sound that models do not know."""
  sounds = [part for part in parts if part.is_sound]
  if sounds and not _is_last(parts):
    yield "the sound is best described once, at the end of the prompt"
  words = any(not p.is_sound and re.search(r"\w", p.text) for p in parts)
  if not words and any(re.search(r"[.!?] +\w", p.description) for p in sounds):
    yield (
      "all of the prompt is read as the sound's description; write what to see"
      " before it"
    )
  for part in sounds:
    if part.tag == SOUND_LINE and not part.text.strip():
      yield f"nothing after {_at(SOUND_LINE, part.start - len(part.tag))}"
    second = part.text.find(SOUND_LINE)
    if part.tag == SOUND_LINE and second >= 0:
      yield (
        f"{_at(SOUND_LINE, part.start + second)} is read as part of the sound's"
        " description, which has begun before"
      )
  for part in parts:
    for label in _LABEL.finditer(part.text) if not part.tag else ():
      # Beside a sound, what is quoted or written small is meant as text.
      quoted = part.text[: label.start()][-1:] in _QUOTATION
      if sounds and (quoted or label[0] != SOUND_LINE):
        continue
      where = ""
      if _is_enclosed(part.text, label):
        where = " is in brackets or quotation marks and"
      yield (
        f"{_at(label[0], part.start + label.start())}{where} is read as plain"
        f" text; begin the sound's description with {SOUND_LINE} at the start"
        " of a sentence"
      )


def _swallowed(parts: Sequence[Part], cleaned: _Cleaned) -> Iterator[str]:
  """One sentence if lines or fields after `Audio:` are read as the sound's."""
  text, line_starts = cleaned
  for part in parts:
    if part.tag != SOUND_LINE:
      continue
    begin = part.start + len(part.text) - len(part.text.lstrip())
    end = part.start + len(part.text)
    fields = {
      part.start + match.start() for match in _PICTURE_LABEL.finditer(part.text)
    }
    for at in sorted(line_starts | fields):
      # A line that goes on in lower case was broken by an editor.
      new = text[at].isalnum() and not text[at].islower()
      if not begin < at < end or _LABEL.match(text, at):
        continue
      if new if at in line_starts else _leads(cleaned, at):
        quoted = text[at : at + 30].partition(". ")[0]
        yield (
          f"{_at(repr(quoted), at)} is read as part of the sound's description,"
          f" which runs to the end; write it before {SOUND_LINE} if it is not"
        )
        return


def _program_text(text: str) -> Iterator[str]:
  """One sentence each if the prompt is JSON, or has escape sequences."""
  if _JSON.match(text):
    yield (
      "the prompt is JSON, and its names and brackets are read as words; write"
      f" what to see, then {SOUND_LINE} and what to hear"
    )
  if found := _ESCAPE.search(text):
    yield (
      f"{_at(found[0], found.start())} is read as these characters; write"
      f" {'a tag' if 'u' in found[0] else 'a line end'} itself"
    )


def _unlabelled(parts: Sequence[Part], cleaned: _Cleaned) -> Iterator[str]:
  """One sentence for a sound that is described in a way no model knows."""
  if any(part.is_sound for part in parts):
    return
  headings = dict(_headings(cleaned))
  for part in (part for part in parts if not part.tag):
    found = {
      at: label[0]
      for label in _OTHER_LABEL.finditer(part.text)
      # `_hints` has a note on `Audio:` as text.
      if _leads(cleaned, at := part.start + label.start())
      and not _LABEL.search(label[0])
      # A tag, as in `<audio>`, is none.
      and not _IN_TAG.search(part.text[: label.start()][-4:])
    }
    end = part.start + len(part.text)
    found |= {a: h for a, h in headings.items() if part.start <= a < end}
    if found:
      at = min(found)
      yield (
        f"{_at(found[at], at)} is read as plain text; if it describes the"
        f" sound, begin it with {SOUND_LINE}"
      )
      return


def _headings(cleaned: _Cleaned) -> Iterator[tuple[int, str]]:
  """Lines with others below that hold nothing but a word for the sound."""
  for at, end in itertools.pairwise(sorted(cleaned.line_starts)):
    line = cleaned.text[at:end].rstrip()
    if _HEADING.fullmatch(line):
      yield at, line


def _lookalike_notes(text: str) -> Iterator[str]:
  """One sentence for each misspelt tag."""
  tags = [m for m in _TAG.finditer(text)]
  within = {at for m in tags for at in range(m.start(), m.end())}
  others = [m for m in _UNKNOWN_TAG.finditer(text) if m.start() not in within]
  for match in sorted([*tags, *others], key=lambda m: m.start()):
    if match[0] not in _TAGS:
      yield (
        f"{_at(match[0], match.start())} is not a tag and is read as plain"
        f" text; speech is {SPEECH}...{SPEECH_END}, sound"
        f" {SOUND}...{SOUND_END}"
      )


def _at(tag: str, start: int) -> str:
  """A tag and where it stands, counted from 1."""
  return f"{tag} (character {start + 1})"


def file_stem(prompt: str) -> str:
  """Name an output after its prompt, whatever the locale.

  Returns:
    At most 50 ASCII letters, digits and `_`: no tags, accented letters without
    their marks, other scripts left out; never empty.
  """
  text = unicodedata.normalize("NFKD", _TAG.sub(" ", clean(prompt)))
  safe = (
    c if c.isascii() and c.isalnum() else " "
    for c in text
    if not unicodedata.combining(c)
  )
  stem = "_".join("".join(safe).split())[:STEM_LENGTH].strip("_")
  if stem.casefold() in _DEVICES:
    stem = f"clip_{stem}"
  return stem or "clip"
