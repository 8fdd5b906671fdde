"""Response cache on disk, one file per request.

Files are named by the sha256 of the request (model, instruction, parameters and
media), so identical requests are sent once across runs, shards and
clips. Files are written atomically.
"""

import dataclasses
import json
import pathlib
from typing import Any

from ovi_jax import files
from ovi_jax import untrusted

_PREFIX = 3  # hex digits of the subfolder: 4,096 subfolders


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
  """A response of the endpoint.

  Attributes:
    text: text of the response.
    finish_reason: why generation stopped; "length" if truncated.
    tokens_in: input tokens reported by the endpoint; 0 if not reported.
    tokens_out: output tokens, likewise.
  """

  text: str
  finish_reason: str = ""
  tokens_in: int = 0
  tokens_out: int = 0


_OPTIONAL = dataclasses.fields(Completion)[1:]


def load(folder: pathlib.Path, name: str) -> Completion | None:
  """A cached response; None if missing or damaged."""
  try:
    found = untrusted.read_json(_path(folder, name))
  except FileNotFoundError:
    return None
  except ValueError:
    return None  # requested and written again
  return Completion(**found) if _is_completion(found) else None


def _is_completion(value: Any) -> bool:
  """Whether a JSON value is a stored response."""
  kinds = {field.name: type(field.default) for field in _OPTIONAL}
  return (
    isinstance(value, dict)
    and set(value) == {"text", *kinds}
    and isinstance(value["text"], str)
    and all(type(value[name]) is kind for name, kind in kinds.items())
  )


def store(folder: pathlib.Path, name: str, completion: Completion) -> None:
  """Store a response atomically.

  Raises:
    OSError: the disk is full, or the folder is not writable.
  """
  text = json.dumps(dataclasses.asdict(completion))
  with files.atomic_path(_path(folder, name)) as temporary:
    temporary.write_text(text)


def _path(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Path of a response."""
  return folder / name[:_PREFIX] / f"{name}.json"
