"""Reading a `tokenizer.json` of unknown origin.

The file describes a pipeline of the `tokenizers` library: normalizer,
pre-tokenizer, model. What a pipeline can make of a prompt is bounded before it
is built: how much longer a text can get, how many ids there are. Errors of the
library, panics of its Rust code included, are raised as ValueError.
"""

import base64
import contextlib
import math
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import tokenizers

from ovi_jax import untrusted

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


def parse(data: bytes) -> tuple[tokenizers.Tokenizer, int]:
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
    model = tokenizers.Tokenizer.from_str(data.decode())
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
