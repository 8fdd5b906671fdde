"""Prompts: cleaning, the tags for speech and sound, token ids, file names.

Speech is written `<S>words<E>`. The sound is described once, at the end:
`<AUDCAP>...<ENDAUDCAP>` for 720x720_5s, `Audio: ...` for the 960x960 variants.
Prompts reach the text encoder cleaned, as token ids cut and padded to its
length. (`ovi_fusion_engine.py`, `modules/tokenizers.py` of the original.)
"""

import dataclasses
import html
import os
import pathlib
import re
import unicodedata
from collections.abc import Sequence

import ftfy
import numpy as np
import tokenizers

from ovi_jax import geometry
from ovi_jax import tokenizer_file

SPEECH, SPEECH_END = "<S>", "<E>"
SOUND, SOUND_END = "<AUDCAP>", "<ENDAUDCAP>"
SOUND_LINE = "Audio:"
CLOSING = {SPEECH: SPEECH_END, SOUND: SOUND_END}
PAD, EOS = "<pad>", "</s>"
STEM_LENGTH = 50

_TAG = re.compile("|".join(map(re.escape, [*CLOSING, *CLOSING.values()])))
# What people write when they mean a tag: <s>, </S>, < E >, </AUDCAP>, ...
_LOOKALIKE = re.compile(
  r"<\s*/?\s*(?:s|e|(?:end)?\s*_?audcap)\s*/?\s*>", re.IGNORECASE
)
_SOUND_SPAN = re.compile(f"{SOUND}(.*?){SOUND_END}", re.DOTALL)
# Windows opens a device, not a file, under these names.
_DEVICES = frozenset(
  ["con", "prn", "aux", "nul"]
  + [f"{port}{digit}" for port in ("com", "lpt") for digit in range(10)]
)


def clean(prompt: str) -> str:
  """Repair broken Unicode, resolve HTML entities, collapse white space."""
  text = ftfy.fix_text(prompt)
  # Twice: scraped captions hold `&amp;amp;`.
  text = html.unescape(html.unescape(text))
  return " ".join(text.split())


def format_for(
  prompt: str, variant: geometry.Variant
) -> tuple[str, tuple[str, ...]]:
  """Write the sound's description the way a variant was trained with.

  Args:
    prompt: as the user wrote it.
    variant: the variant that will read it; one without a tag takes both forms.

  Returns:
    The prompt, unchanged if it fits, and notes to show the user: what was
    rewritten, and tags that are unbalanced, nested or misspelt.
  """
  span, line = f"{SOUND}...{SOUND_END}", f"{SOUND_LINE} ..."
  formatted, found, expected = prompt, "", ""
  if variant.audio_tag == SOUND:
    found, expected = line, span
    formatted = _with_span(prompt)
  elif variant.audio_tag == SOUND_LINE:
    found, expected = span, line
    formatted = _SOUND_SPAN.sub(lambda m: f"{SOUND_LINE} {m[1]}", prompt)
  notes = tag_notes(formatted)
  if formatted != prompt:
    rewritten = (
      f"the sound's description is written {expected} for {variant.name};"
      f" rewrote {found}"
    )
    notes = (rewritten, *notes)
  return formatted, notes


def _with_span(prompt: str) -> str:
  """The prompt with all that follows `Audio:` between tags instead."""
  head, line, tail = prompt.partition(SOUND_LINE)
  return f"{head}{SOUND}{tail.lstrip()}{SOUND_END}" if line else prompt


def tag_notes(prompt: str) -> tuple[str, ...]:
  """One readable sentence for each tag that is out of place."""
  notes = []
  opened: re.Match[str] | None = None
  for tag in _TAG.finditer(prompt):
    if tag[0] in CLOSING:
      if opened:
        notes.append(_unclosed(opened, f"before {_at(tag)}"))
      opened = tag
    elif opened and CLOSING[opened[0]] == tag[0]:
      if not prompt[opened.end() : tag.start()].strip():
        notes.append(f"nothing between {_at(opened)} and {_at(tag)}")
      opened = None
    else:
      opening = next(o for o, c in CLOSING.items() if c == tag[0])
      notes.append(f"{_at(tag)} has no {opening} before it")
  if opened:
    notes.append(_unclosed(opened, "before the end"))
  for match in _LOOKALIKE.finditer(prompt):
    if not _TAG.fullmatch(match[0]):
      notes.append(
        f"{_at(match)} is not a tag and is read as plain text; speech is"
        f" {SPEECH}...{SPEECH_END}, sound {SOUND}...{SOUND_END}"
      )
  return tuple(notes)


def _at(tag: re.Match[str]) -> str:
  """A tag and where it stands, counted from 1."""
  return f"{tag[0]} (character {tag.start() + 1})"


def _unclosed(tag: re.Match[str], where: str) -> str:
  """The note on a tag that nothing closes."""
  return f"{_at(tag)} has no {CLOSING[tag[0]]} {where}"


def file_stem(prompt: str) -> str:
  """Name an output after its prompt.

  Returns:
    At most 50 letters, digits, `-` and `_`: no tags, nothing that a file
    system or shell reads otherwise, never empty.
  """
  text = unicodedata.normalize("NFC", _TAG.sub(" ", clean(prompt)))
  # Letters, marks and numbers of any script.
  safe = (c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
  stem = "_".join("".join(safe).split())[:STEM_LENGTH].strip("_")
  if stem.casefold() in _DEVICES:
    stem = f"clip_{stem}"
  return stem or "clip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
  """Prompts to token ids, from a `tokenizer.json` of the T5 family.

  Attributes:
    model: the pipeline that the file describes.
    pad: id of `<pad>`.
    eos: id of `</s>`, the last token of every prompt.
  """

  model: tokenizers.Tokenizer
  pad: int
  eos: int

  @classmethod
  def load(
    cls, path: str | os.PathLike[str], rows: int | None = None
  ) -> "Tokenizer":
    """Read a `tokenizer.json`, see `tokenizer_file`.

    Args:
      path: of the file.
      rows: of the text encoder's embedding; `None` if there is none.

    Raises:
      ValueError: it will not do; names the path.
    """
    path = pathlib.Path(path)
    wanted = "expected the tokenizer.json of google/umt5-xxl"
    try:
      with path.open("rb") as file:
        data = file.read(tokenizer_file.MAX_BYTES + 1)
      return cls.parse(data, rows)
    except OSError as error:
      raise ValueError(f"{path}: {error.strerror}; {wanted}") from error
    except ValueError as error:
      raise ValueError(f"{path}: {error}; {wanted}") from error

  @classmethod
  def parse(cls, data: bytes, rows: int | None = None) -> "Tokenizer":
    """The tokenizer that the bytes of a file describe; see `load`."""
    model, largest = tokenizer_file.parse(data)
    if rows is not None and largest >= rows:
      raise ValueError(
        f"it has the id {largest}, but the text encoder has {rows} rows"
      )
    pad, eos = (model.token_to_id(token) for token in (PAD, EOS))
    if pad is None or eos is None:
      raise ValueError(f"it has no {PAD} or no {EOS}")
    with tokenizer_file.library_errors("it cannot read 'a'"):
      plain = model.encode("a", add_special_tokens=False).ids
      if model.encode("a").ids != [*plain, eos]:
        raise ValueError(f"it does not end prompts with {EOS}")
    return cls(model=model, pad=pad, eos=eos)

  def encode(
    self, prompts: Sequence[str], length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Turn prompts into ids for the text encoder.

    Args:
      prompts: B prompts; they are cleaned here.
      length: tokens a prompt, the end token included; at least 1.

    Returns:
      ids_BS, cut to `length` with the end token kept, then padded with `pad`;
      and mask_BS, 1 for the prompt's own tokens and 0 for padding; int32.

    Raises:
      ValueError: length is not positive.
    """
    ids_BS = np.full((len(prompts), length), self.pad, np.int32)
    mask_BS = np.zeros_like(ids_BS)
    for row, encoding in enumerate(self._encodings(prompts, length)):
      ids = [*encoding.ids[: length - 1], self.eos]
      ids_BS[row, : len(ids)] = ids
      mask_BS[row, : len(ids)] = 1
    return ids_BS, mask_BS

  def notes(self, prompts: Sequence[str], length: int) -> tuple[str, ...]:
    """One sentence for each prompt longer than `length`: what was cut."""
    notes = []
    for prompt, encoding in zip(prompts, self._encodings(prompts, length)):
      count = len(encoding.ids) + 1
      if count > length:
        cut = clean(prompt)[encoding.offsets[length - 1][0] :].strip()
        notes.append(
          f"the prompt has {count} tokens, {length} are read; its end was"
          f" cut: {cut!r}"
        )
    return tuple(notes)

  def unread(self, prompt: str) -> list[str]:
    """The words that the tokenizer makes no token of, each once."""
    (encoding,) = self._encodings([prompt], 1)
    text = clean(prompt)
    read = np.zeros(len(text), bool)
    for begin, end in encoding.offsets:
      read[begin:end] = True
    words = re.finditer(r"\w+(?:['\u2019]\w+)*", text)
    return list(
      dict.fromkeys(w[0] for w in words if not read[w.start() : w.end()].any())
    )

  def _encodings(
    self, prompts: Sequence[str], length: int
  ) -> list[tokenizers.Encoding]:
    """Ids and places in the cleaned prompts, without the end token."""
    if length < 1:
      raise ValueError(f"length must be at least 1 token, got {length}")
    texts = [clean(p) for p in prompts]
    with tokenizer_file.library_errors("the tokenizer cannot read a prompt"):
      return self.model.encode_batch(texts, add_special_tokens=False)
