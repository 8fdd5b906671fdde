"""Speech tags in text, `<S>words<E>`: extraction and insertion.

Tags as in `ovi_jax.prompt`.
"""

import re
from collections.abc import Sequence

from ovi_jax import prompt

_SPOKEN = re.compile(f"{prompt.SPEECH}(.*?){prompt.SPEECH_END}", re.DOTALL)


def strip_tags(text: str) -> str:
  """The text without speech tags, white space collapsed."""
  for tag in (prompt.SPEECH, prompt.SPEECH_END):
    text = text.replace(tag, " ")
  return " ".join(text.split())


def tagged_speech(text: str) -> tuple[str, ...]:
  """The texts between speech tags, in order."""
  return tuple(words.strip() for words in _SPOKEN.findall(text))


def same_words(one: Sequence[str], other: Sequence[str]) -> bool:
  """Whether two lists have the same words, ignoring case and punctuation."""
  return list(map(_normalize, one)) == list(map(_normalize, other))


def insert_tags(text: str, speech: Sequence[str]) -> str | None:
  """Replace the tags of a text by tags around the spoken words.

  Args:
    text: text with any tags.
    speech: spoken words, in order.

  Returns:
    The text; None if some speech does not occur literally, or occurs more often
    than it is spoken, so that its position is ambiguous.
  """
  if not speech:
    return None
  plain, parts, end = strip_tags(text), [], 0
  for words in speech:
    found = _word_pattern(words).search(plain, end)
    if not found or _count(plain, words) != _count_in(speech, words):
      return None
    tagged = f"{prompt.SPEECH}{words}{prompt.SPEECH_END}"
    parts += [plain[end : found.start()], tagged]
    end = found.end()
  return "".join([*parts, plain[end:]])


def _word_pattern(words: str) -> re.Pattern[str]:
  """Matches whole words."""
  return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")


def _count(text: str, words: str) -> int:
  """Number of occurrences in a text."""
  return len(_word_pattern(words).findall(text))


def _count_in(speech: Sequence[str], words: str) -> int:
  """Number of occurrences in the speech, also within longer texts."""
  return sum(_count(each, words) for each in speech)


def _normalize(words: str) -> str:
  """Lower-case letters and digits only."""
  return "".join(c for c in words.casefold() if c.isalnum())
