"""Word error rates of recognized speech.

Words are compared after a normalization. That of Seed-TTS removes punctuation
of ASCII and of Chinese texts (which has typographic quotation marks and dashes)
except the ASCII apostrophe, replaces two spaces by one once, and lowers the
case; Verse-Bench keeps punctuation. A clip's rate is (substitutions +
deletions + insertions) / words of the reference; protocols average the rates
of clips. Speech in Chinese, Japanese or Korean has no rate: recognition is in
English.
"""

import math
import re
import string
from collections.abc import Sequence

import numpy as np

from ovi_jax.evaluation import features

# First and last code of the stretches that the package zhon, which Seed-TTS
# uses, lists as Chinese punctuation.
_CHINESE = (
  ("\u00b7", "\u00b7"),
  ("\u2013", "\u2014"),
  ("\u2018", "\u2019"),
  ("\u201b", "\u201f"),
  ("\u2026", "\u2027"),
  ("\u3000", "\u3003"),
  ("\u3008", "\u3011"),
  ("\u3014", "\u301f"),
  ("\u3030", "\u3030"),
  ("\u303e", "\u303f"),
  ("\ufe4f", "\ufe4f"),
  ("\ufe51", "\ufe51"),
  ("\ufe54", "\ufe54"),
  ("\uff01", "\uff0d"),
  ("\uff0f", "\uff0f"),
  ("\uff1a", "\uff20"),
  ("\uff3b", "\uff40"),
  ("\uff5b", "\uff64"),
)
_REMOVED = dict.fromkeys(
  [
    *map(ord, string.punctuation.replace("'", "")),
    *(code for a, b in _CHINESE for code in range(ord(a), ord(b) + 1)),
  ]
)
# Kana, ideographs and Hangul.
_NO_WORDS = re.compile(
  "[\u1100-\u11ff\u3005-\u3007\u3041-\u318f\u31f0-\u31ff\u3400-\u4dbf"
  "\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc"
  "\U00020000-\U0003ffff]"
)


def normalize(text: str, *, keep_punctuation: bool = False) -> str:
  """A text as it is compared."""
  if not keep_punctuation:
    text = text.translate(_REMOVED)
  return text.replace("  ", " ").lower()


def distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
  """Edit distance: substitutions, deletions and insertions."""
  row = list(range(len(hypothesis) + 1))
  for i, word in enumerate(reference, 1):
    diagonal, row[0] = row[0], i
    for j, other in enumerate(hypothesis, 1):
      changed = diagonal + (word != other)
      diagonal = row[j]
      row[j] = min(changed, row[j] + 1, row[j - 1] + 1)
  return row[-1]


def rate(reference: str, hypothesis: str, *, keep_punctuation: bool) -> float:
  """Word error rate; NaN if the reference is not in words, or has none."""
  if _NO_WORDS.search(reference):
    return math.nan
  asked, given = (
    normalize(text, keep_punctuation=keep_punctuation).split()
    for text in (reference, hypothesis)
  )
  return distance(asked, given) / len(asked) if asked else math.nan


def word_error_rate(
  clip: features.Arrays,
  reference: features.Arrays | None,
  *,
  array: str = "whisper.text",
  keep_punctuation: bool = False,
) -> float:
  """The rate of a clip against the speech of its prompt; a rule of clips.

  Args:
    clip: with `text.speech` and the recognized text.
    reference: ignored.
    array: name of the recognized text.
    keep_punctuation: compare words with the punctuation at their ends.
  """
  del reference
  if array not in clip or "text.speech" not in clip:
    return math.nan
  return rate(
    _text(clip["text.speech"]),
    _text(clip[array]),
    keep_punctuation=keep_punctuation,
  )


def _text(value: np.ndarray) -> str:
  return str(np.asarray(value).item())
