"""Speech within a text, `<S>words<E>`: found, and put in its place.

Text in, text out; tags as in `ovi_jax.prompt`.
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
  """What stands between speech tags, in order."""
  return tuple(words.strip() for words in _SPOKEN.findall(text))


def same_words(one: Sequence[str], other: Sequence[str]) -> bool:
  """Whether two lists have the same words, case and stops aside."""
  return list(map(_normalize, one)) == list(map(_normalize, other))


def insert_tags(text: str, speech: Sequence[str]) -> str | None:
  """Put tags around what is said, in place of those that are there.

  Args:
    text: with any tags.
    speech: what is said, in order.

  Returns:
    The text; None if some of the speech is not there word for word, or stands
    there more often than it is said, so that its place is a guess.
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
  """Finds words that are no part of longer ones."""
  return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")


def _count(text: str, words: str) -> int:
  """How often words stand in a text."""
  return len(_word_pattern(words).findall(text))


def _count_in(speech: Sequence[str], words: str) -> int:
  """How often words are said, within longer speech too."""
  return sum(_count(each, words) for each in speech)


def _normalize(words: str) -> str:
  """Letters and digits alone, of one case."""
  return "".join(c for c in words.casefold() if c.isalnum())
