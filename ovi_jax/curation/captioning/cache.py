"""Answers that were paid for, on disk: a file an answer, named by its request.

The name is the sha256 of the request's bytes, in which model, instruction,
settings and media are, so that the same question is asked once, whichever run,
shard or clip it comes from. A file is whole or absent.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from ovi_jax import files
from ovi_jax import untrusted

_PREFIX = 3  # letters of a name that choose its folder: 4,096 folders


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
  """What the endpoint answered.

  Attributes:
    text: of the answer.
    finish_reason: why it ended; "length" if it was cut.
    tokens_in: of the request, as the endpoint counts; 0 if it does not.
    tokens_out: of the answer, likewise.
  """

  text: str
  finish_reason: str = ""
  tokens_in: int = 0
  tokens_out: int = 0


_OPTIONAL = dataclasses.fields(Completion)[1:]


def request_hash(request: bytes) -> str:
  """The name of the answer to a request."""
  return hashlib.sha256(request).hexdigest()


def load(folder: pathlib.Path, name: str) -> Completion | None:
  """The answer of that name; None if there is none, or its file is damaged."""
  try:
    found = untrusted.read_json(_path(folder, name))
  except FileNotFoundError:
    return None
  except ValueError:
    return None  # asked again, and written anew
  return Completion(**found) if _is_completion(found) else None


def _is_completion(value: Any) -> bool:
  """Whether JSON is what `store` writes."""
  kinds = {field.name: type(field.default) for field in _OPTIONAL}
  return (
    isinstance(value, dict)
    and set(value) == {"text", *kinds}
    and isinstance(value["text"], str)
    and all(type(value[name]) is kind for name, kind in kinds.items())
  )


def store(folder: pathlib.Path, name: str, reply: Completion) -> None:
  """Keep an answer; it is there whole, or not at all.

  Raises:
    OSError: the disk is full, or the folder is not writable.
  """
  text = json.dumps(dataclasses.asdict(reply))
  with files.replacing(_path(folder, name)) as temporary:
    temporary.write_text(text)


def _path(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Where an answer lies."""
  return folder / name[:_PREFIX] / f"{name}.json"
