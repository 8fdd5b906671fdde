"""Seeded mutations of bytes and of JSON, as hostile or broken files have them.

Each takes a random generator, so that a failure is repeated by its seed.
"""

import copy
import json
import random
import re
from typing import Any

DEEP, DIGITS = "@DEEP@", "@DIGITS@"  # stand for text that json.dumps refuses
_NESTED = "[" * 3000 + "]" * 3000
_INTEGERS = (0, 1, -1, 127, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, -(2**63))
_BYTES = (0x00, 0xFF, 0x7F, 0x80, 0x20, 0x22, 0x5B, 0x7B, 0x2E, 0x2F, 0x0A)
_VALUES = (
  *(None, True, False, 0, -1, 1.5, 1e308, 2**31, 2**63, "", "\0", "../x"),
  *("/dev/zero", "\x1b[31m", "\ud800", "x" * 5000, "a/" * 2000, "NaN"),
  *([], {}, [[]], [None], {"": None}, [2**62, 2**62], DEEP, DIGITS),
)
_NUMBER = re.compile(rb"\d+")


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
  """One to four changes of bytes."""
  changed = bytearray(data)
  for _ in range(draw.randint(1, 4)):
    changed = draw.choice(_CHANGES)(changed, draw)
  return bytes(changed)


def _flip(data: bytearray, draw: random.Random) -> bytearray:
  if data:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
  return data


def _set(data: bytearray, draw: random.Random) -> bytearray:
  if data:
    data[draw.randrange(len(data))] = draw.choice(_BYTES)
  return data


def _integer(data: bytearray, draw: random.Random) -> bytearray:
  """A number of 2, 4 or 8 bytes in place of what stands there."""
  size, order = draw.choice((2, 4, 8)), draw.choice(("little", "big"))
  at = draw.randrange(len(data) + 1)
  number = draw.choice(_INTEGERS) % (1 << (8 * size))
  data[at : at + size] = number.to_bytes(size, order)
  return data


def _cut(data: bytearray, draw: random.Random) -> bytearray:
  return data[: draw.randrange(len(data) + 1)]


def _remove(data: bytearray, draw: random.Random) -> bytearray:
  at = draw.randrange(len(data) + 1)
  del data[at : at + draw.randint(1, 64)]
  return data


def _insert(data: bytearray, draw: random.Random) -> bytearray:
  at = draw.randrange(len(data) + 1)
  data[at:at] = draw.randbytes(draw.randint(1, 32))
  return data


def _repeat(data: bytearray, draw: random.Random) -> bytearray:
  at = draw.randrange(len(data) + 1)
  data[at:at] = data[at : at + draw.randint(1, 64)] * draw.randint(1, 50)
  return data


def _brackets(data: bytearray, draw: random.Random) -> bytearray:
  at = draw.randrange(len(data) + 1)
  data[at:at] = draw.choice((b"[", b'{"a":', b"(", b"<S>")) * 2000
  return data


def _digits(data: bytearray, draw: random.Random) -> bytearray:
  """Another number where one is written in figures."""
  found = list(_NUMBER.finditer(data))
  if not found:
    return data
  place = draw.choice(found)
  text = draw.choice((*map(str, _INTEGERS), "1" * 400, "1e999", "NaN"))
  data[slice(*place.span())] = text.encode()
  return data


_CHANGES = (
  *(_flip, _set, _integer, _cut, _remove, _insert, _repeat, _brackets),
  _digits,
)


def mutate_json(value: Any, draw: random.Random) -> bytes:
  """One to three changes of a JSON value, as text."""
  changed = copy.deepcopy(value)
  for _ in range(draw.randint(1, 3)):
    changed = _changed(changed, draw)
  text = json.dumps(changed)
  text = text.replace(f'"{DEEP}"', _NESTED).replace(f'"{DIGITS}"', "1" * 400)
  return text.encode()


def _changed(value: Any, draw: random.Random) -> Any:
  """The value with a change at a place in it."""
  inside = isinstance(value, dict | list) and value
  if not inside or draw.random() < 0.05:
    return copy.deepcopy(draw.choice(_VALUES))
  keys = list(value) if isinstance(value, dict) else range(len(value))
  key = draw.choice(list(keys))
  kind = draw.random()
  if kind < 0.1:
    del value[key]
  elif kind < 0.2 and isinstance(value, dict):
    name = draw.choice([v for v in _VALUES if isinstance(v, str)])
    value[name] = value.pop(key)
  elif kind < 0.25 and isinstance(value, list):
    value *= draw.randint(2, 20)
  else:
    value[key] = _changed(value[key], draw)
  return value
