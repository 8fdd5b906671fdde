"""Prompts to token ids, from a `tokenizer.json` of unknown origin.

The file describes a pipeline of the `tokenizers` library: normalizer,
pre-tokenizer, model. What a pipeline can make of a prompt is bounded before it
is built: how much longer a text can get, how many ids there are. Errors of the
library, panics of its Rust code included, are raised as ValueError.
(`modules/tokenizers.py` of the original.)
"""

import base64
import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from ovi_jax import prompt as prompts_lib
from ovi_jax import storage
from ovi_jax import untrusted

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
MAX_BYTES = 64 << 20  # umt5-xxl's has 17 MB
MAX_GROWTH = 256  # characters out of one; about 72 in T5's pipelines
MAX_PARTS = 64  # of a normalizer or pre-tokenizer
MAX_PREFIX = 64  # characters put before a text
MAX_ID = 2**31 - 1  # ids are int32

# Most characters that a part makes of one; Unicode's longest composition is 18.
_GROWTH = {
  "BertNormalizer": 9,  # spaces around it, decomposed, lower case
  "ByteLevel": 4,
  "Lowercase": 3,
  "Metaspace": 2,
  "NFC": 3,
  "NFD": 4,
  "NFKC": 18,
  "NFKD": 18,
  "Nmt": 1,
  "Prepend": 1,
  "Strip": 1,
  "StripAccents": 1,
  # Pre-tokenizers that split only.
  "BertPreTokenizer": 1,
  "CharDelimiterSplit": 1,
  "Digits": 1,
  "FixedLength": 1,
  "Punctuation": 1,
  "Split": 1,
  "UnicodeScripts": 1,
  "Whitespace": 1,
  "WhitespaceSplit": 1,
}
_INSIDE = ("normalizers", "pretokenizers")  # of a Sequence


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
    """Read a `tokenizer.json`; limits as in `parse_pipeline`.

    Args:
      path: of the file.
      rows: of the text encoder's embedding; `None` if there is none.

    Returns:
      The tokenizer.

    Raises:
      ValueError: it will not do; names the path.
    """
    wanted = "expected the tokenizer.json of google/umt5-xxl"
    try:
      data = storage.read_regular(path, MAX_BYTES)
      if found := untrusted.substitute(data[:512]):
        raise ValueError(f"found {found}")
      return cls.parse(data, rows)
    except OSError as error:
      raise ValueError(
        f"{path}: {error.strerror or error}; {wanted}"
      ) from error
    except ValueError as error:
      raise ValueError(f"{path}: {error}; {wanted}") from error

  @classmethod
  def parse(cls, data: bytes, rows: int | None = None) -> "Tokenizer":
    """The tokenizer that the bytes of a file describe; see `load`."""
    model, largest = parse_pipeline(data)
    if rows is not None and largest >= rows:
      raise ValueError(
        f"it has the id {largest}, but the text encoder has {rows} rows"
      )
    pad, eos = (model.token_to_id(token) for token in (PAD, EOS))
    if pad is None or eos is None:
      raise ValueError(f"it has no {PAD} or no {EOS}")
    with library_errors("it cannot read 'a'"):
      plain = model.encode("a", add_special_tokens=False).ids
      if model.encode("a").ids != [*plain, eos]:
        raise ValueError(f"it does not end prompts with {EOS}")
    return cls(model=model, pad=pad, eos=eos)

  @property
  def count(self) -> int:
    """The number of ids, those of added tokens included."""
    return self.model.get_vocab_size()

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
    """One sentence for each prompt that is cut or has no known token."""
    notes = []
    unknown = {self.model.token_to_id(UNKNOWN)}
    for prompt, encoding in zip(prompts, self._encodings(prompts, length)):
      count = len(encoding.ids) + 1
      if set(encoding.ids) <= unknown:
        notes.append(
          "none of the prompt's words are in the vocabulary of these weights;"
          " the result is that of an empty prompt:"
          f" {prompts_lib.clean(prompt)[:80]!r}"
        )
      if count > length:
        start, _ = encoding.offsets[length - 1]
        cut = prompts_lib.clean(prompt)[start:].strip()
        notes.append(
          f"the prompt has {count} tokens, more than the limit of {length}; its"
          f" end is ignored: {cut!r}"
        )
    return tuple(notes)

  def lengths(self, prompts: Sequence[str]) -> list[int]:
    """Tokens of each prompt, the end token included, before it is cut."""
    return [len(each.ids) + 1 for each in self._encodings(prompts, 1)]

  def unread(self, prompt: str) -> list[str]:
    """The words that the tokenizer makes no token of, each once."""
    (encoding,) = self._encodings([prompt], 1)
    text = prompts_lib.clean(prompt)
    read = np.zeros(len(text), bool)
    unknown = self.model.token_to_id(UNKNOWN)
    for number, (begin, end) in zip(encoding.ids, encoding.offsets):
      read[begin:end] |= number != unknown
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
    texts = [prompts_lib.clean(p) for p in prompts]
    with library_errors("the tokenizer cannot read a prompt"):
      return self.model.encode_batch(texts, add_special_tokens=False)


def parse_pipeline(data: bytes) -> tuple[tokenizers.Tokenizer, int]:
  """Build the pipeline that a file describes.

  Args:
    data: the file.

  Returns:
    The pipeline, and the largest id that it gives.

  Raises:
    ValueError: the file is too large, is not JSON, does not describe a
      pipeline, or describes one that makes too much of a text.
  """
  content = untrusted.parse_json(data, max_bytes=MAX_BYTES)
  if not isinstance(content, Mapping):
    raise ValueError(f"does not describe a tokenizer: {content!r:.60}")
  growth = math.prod(
    _growth(part)
    for name in ("normalizer", "pre_tokenizer")
    for part in _parts(content.get(name))
  )
  if growth > MAX_GROWTH:
    raise ValueError(
      f"its normalizer may make {growth:.3g} characters of one; at most"
      f" {MAX_GROWTH} are allowed"
    )
  largest = _largest_id(content)
  if largest > MAX_ID:
    raise ValueError(f"it has the id {largest}; ids are at most {MAX_ID}")
  with library_errors("it does not describe a tokenizer"):
    model = tokenizers.Tokenizer.from_str(data.decode("utf-8-sig"))
    # The file may hold settings of its own.
    model.no_padding()
    model.no_truncation()
  return model, largest


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
  """Raise what the library raises as ValueError.

  The library raises Exception itself, and a BaseException of a module that
  cannot be imported where its Rust code panics; what is more specific is
  something else.

  Args:
    what: begins the message.
  """
  try:
    yield
  except BaseException as error:
    if type(error) is Exception or type(error).__name__ == "PanicException":
      raise ValueError(f"{what} ({error!s:.300})") from error
    raise


def _parts(part: Any) -> list[Mapping[str, Any]]:
  """The parts of a normalizer or pre-tokenizer, sequences laid out."""
  found: list[Mapping[str, Any]] = []
  todo = [part]
  while todo:
    part = todo.pop()
    if part is None:
      continue
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
      raise ValueError(f"does not describe a tokenizer: part {part!r:.60}")
    if part["type"] == "Sequence":
      inside = next((part[n] for n in _INSIDE if n in part), None)
      if not isinstance(inside, list):
        raise ValueError(f"does not describe a tokenizer: {part!r:.60}")
      todo += inside
    else:
      found.append(part)
    if len(found) + len(todo) > MAX_PARTS:
      raise ValueError(f"its normalizer has more than {MAX_PARTS} parts")
  return found


def _growth(part: Mapping[str, Any]) -> float:
  """At most so many characters a part makes of one."""
  kind = part["type"]
  if kind == "Replace":
    pattern, content = part.get("pattern"), part.get("content")
    if not isinstance(content, str) or not isinstance(pattern, Mapping):
      raise ValueError(f"does not describe a tokenizer: part {part!r:.60}")
    literal = pattern.get("String")
    if isinstance(literal, str) and literal:
      return max(1.0, len(content) / len(literal))
    return 1.0 + len(content)  # an expression may match nothing
  if kind == "Precompiled":
    return _precompiled_growth(part.get("precompiled_charsmap"))
  if kind == "Prepend" and len(str(part.get("prepend"))) > MAX_PREFIX:
    raise ValueError(f"its normalizer puts more than {MAX_PREFIX} characters")
  if kind not in _GROWTH:
    raise ValueError(f"its normalizer {untrusted.printable(kind)!r} is unknown")
  return _GROWTH[kind]


def _precompiled_growth(charsmap: Any) -> float:
  """Length of the longest text in sentencepiece's table of replacements.

  The table: bytes of a trie (uint32), the trie, texts that end in a zero.
  """
  try:
    data = base64.b64decode(charsmap, validate=True)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"its precompiled_charsmap is no base64: {error}"
    ) from None
  size = int.from_bytes(data[:4], "little")
  if len(data) < 4 or size % 4 or 4 + size > len(data):
    raise ValueError("its precompiled_charsmap is truncated")
  texts = data[4 + size :].decode("utf-8", "replace").split("\0")
  return max(1.0, *map(len, texts))


def _largest_id(content: Mapping[str, Any]) -> int:
  """The largest id of the vocabulary and of the tokens added to it."""
  model, added = content.get("model"), content.get("added_tokens")
  vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
  ids: list[Any] = [0]
  if isinstance(vocabulary, Mapping):
    ids += vocabulary.values()
  elif isinstance(vocabulary, list):
    ids.append(len(vocabulary) - 1)
  if isinstance(added, list):
    ids += (token.get("id") for token in added if isinstance(token, Mapping))
  return max(i for i in ids if type(i) is int)
