"""Word error rates of recognized speech.

Words are compared after a normalization. That of Seed-TTS removes ASCII
punctuation except the apostrophe, replaces two spaces by one once, and lowers
the case; Verse-Bench keeps punctuation. A clip's rate is (substitutions +
deletions + insertions) / words of the reference; protocols average the rates
of clips.
"""

import math
import string
from collections.abc import Sequence

import numpy as np

from ovi_jax.evaluation import features

_REMOVED = str.maketrans("", "", string.punctuation.replace("'", ""))


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
  """Word error rate; NaN if the reference has no words."""
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
