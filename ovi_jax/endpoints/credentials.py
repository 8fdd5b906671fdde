"""API keys: read from the environment, detected in settings, redacted.

An endpoint sees the key and may repeat it in a response or error, also encoded.
`Redaction` replaces the key and its common encodings in everything that comes
from the endpoint, before it is cached, recorded, reported or logged. Values
that look like a key are rejected in settings, and are not printed.
"""

import base64
import html.entities
import os
import re
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

REDACTED = "[key]"
MIN_KEY_CHARS = 8  # shorter keys are placeholders such as "EMPTY"
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*", re.ASCII)
_MAX_VARIABLE_CHARS = 64
_MAX_WORD_CHARS = 20  # without `_`; longer names may be base32 keys
# Keys of public APIs, and bearer headers.
_KEY = re.compile(
  r"(?<![A-Za-z0-9])(?:sk|pk|rk|hf|gsk|xai|ghp|gho|github_pat|glpat|r8|nvapi)"
  r"[-_][A-Za-z0-9_-]{12,}|(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{30,}"
  r"|(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}"
  r"|(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"
  r"|(?i:bearer)\s+\S{8,}"
)
_FIELD = re.compile(
  r"(?:api|access|private|secret|auth)[-_ ]?(?:key|token)|secret|passw|"
  r"authori[sz]ation|credential|bearer|cookie|^(?:x-)?(?:key|token|auth)$",
  re.IGNORECASE,
)
# Allowed between the characters of a key: white space, zero-width characters.
_BETWEEN = r"[\s\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufeff]*"
_BETWEEN_BYTES = r"(?:\\+x|0x|[\s:,-])*"
_FULL_WIDTH = (
  0xFF01 - 0x21
)  # from ASCII to full-width forms, which NFKC maps to ASCII


def check_variable(name: str) -> None:
  """Check the name of an environment variable.

  Args:
    name: as configured; "" for no key.

  Raises:
    ValueError: it is invalid, or looks like a key; the message omits it.
  """
  if not name:
    return
  if (
    not _VARIABLE.fullmatch(name)
    or len(name) > _MAX_VARIABLE_CHARS
    or ("_" not in name and len(name) > _MAX_WORD_CHARS)
    or _KEY.search(name)
  ):
    raise ValueError(
      "api_key_env: expected the name of an environment variable in capitals,"
      " such as OPENAI_API_KEY, got something else (not shown, it may be a"
      " key); put the key into that variable"
    )


def check_settings(settings: Mapping[str, Any]) -> None:
  """Check that settings contain no key: they are hashed, stored and reported.

  Args:
    settings: JSON values by name.

  Raises:
    ValueError: names the settings, without their values.
  """
  if found := sorted(set(_find_keys(settings, ""))):
    raise ValueError(
      f"{', '.join(found)}: looks like a credential (not shown), and settings"
      " are written into reports; put the key into an environment variable and"
      " name that in api_key_env"
    )


def _find_keys(value: Any, path: str, inside: bool = False) -> Iterator[str]:
  """Paths of values that look like keys, and of fields named like keys."""
  if isinstance(value, str):
    if _KEY.search(value):
      yield path
  elif isinstance(value, Mapping):
    for name, each in value.items():
      # A field name may be a key.
      hidden = bool(_KEY.search(str(name)))
      below = f"{path}.{'(a name)' if hidden else name}".lstrip(".")
      if hidden or (inside and each and _FIELD.search(str(name))):
        yield below
      yield from _find_keys(each, below, True)
  elif isinstance(value, list | tuple):
    for each in value:
      yield from _find_keys(each, path, inside)


def read(variable: str) -> str:
  """Read the key from an environment variable.

  Args:
    variable: name; "" for an endpoint without keys.

  Raises:
    ValueError: it is empty or contains characters that keys cannot have.
  """
  check_variable(variable)
  if not variable:
    return ""
  key = os.environ.get(variable, "").strip()
  if not key:
    raise ValueError(
      f"the environment variable {variable} is empty; put the API key there,"
      " or set api_key_env to '' for an endpoint without keys"
    )
  if not key.isascii() or not key.isprintable():
    raise ValueError(
      f"the environment variable {variable} contains characters that API keys"
      " cannot have; copy the key again"
    )
  return key


class Redaction:
  """Redacts a key in text and JSON; cannot be printed or pickled."""

  def __init__(self, key: str):
    """Compile the pattern of a key and its common encodings.

    Args:
      key: ASCII; keys shorter than `MIN_KEY_CHARS` are not redacted.
    """
    self._pattern = _pattern(key) if len(key) >= MIN_KEY_CHARS else None

  def __repr__(self) -> str:
    return "Redaction()"

  def __getstate__(self) -> None:
    raise TypeError("a Redaction contains a key and cannot be pickled")

  def text(self, text: str) -> str:
    """The text with the key replaced."""
    return self._pattern.sub(REDACTED, text) if self._pattern else text

  def json(self, value: Any) -> Any:
    """A JSON value with the key replaced in all texts and names."""
    if isinstance(value, str):
      return self.text(value)
    if isinstance(value, Mapping):
      return {self.json(name): self.json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
      return type(value)(self.json(each) for each in value)
    return value


def _pattern(key: str) -> re.Pattern[str]:
  """A pattern of the key: plain; with URL, JSON, HTML or full-width
  characters; hexadecimal; base64 at any offset.
  """
  pairs = [f"{byte:02x}" for byte in key.encode()]
  # Not from within backslashes: a run of n would be tried n times.
  plain = rf"(?<!\\){_BETWEEN.join(map(_character, key))}"
  ways = [plain, _BETWEEN_BYTES.join(pairs)]
  for before in range(3):
    encoded = base64.b64encode(b"\0" * before + key.encode()).decode()
    # Omit characters that also encode neighbouring bytes.
    start, end = (before * 8 + 5) // 6, (before + len(key)) * 8 // 6
    part = encoded[start:end]
    ways.append(f"(?-i:{re.escape(part)})")
    ways.append(f"(?-i:{re.escape(part.translate({43: '-', 47: '_'}))})")
  return re.compile("|".join(ways), re.IGNORECASE)


def _character(character: str) -> str:
  """A pattern of one character in all encodings."""
  code = ord(character)
  forms = [
    re.escape(character),
    f"%(?:25)*{code:02x}",
    rf"(?<=\\)u00{code:02x}",
    f"&(?:amp;)*#0*{code};?",
    f"&(?:amp;)*#x0*{code:x};?",
  ]
  names = [n for n, c in html.entities.html5.items() if c == character]
  forms += [f"&(?:amp;)*{re.escape(name)}" for name in names]
  if 0x21 <= code <= 0x7E:
    forms.append(re.escape(chr(code + _FULL_WIDTH)))
  return rf"\\*(?:{'|'.join(forms)})"
