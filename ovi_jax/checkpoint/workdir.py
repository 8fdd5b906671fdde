"""Ties a run's directory to one config, stored in its config.json.

Fields that may change are compared at each start. A change is written to
config.json and, with the step at which it took effect, to config_changes.json.
"""

import json
import pathlib
import re
import shlex
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import jax

from ovi_jax import files
from ovi_jax import untrusted
from ovi_jax.sharding import distributed

CONFIG = "config.json"
CHANGES = "config_changes.json"
# A URL; `pathlib` drops its second slash.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/", re.ASCII)


def check_config(
  workdir: pathlib.Path | str,
  config: Mapping[str, Any],
  may_change: Iterable[str],
  instead: str = "",
  also: Callable[[], None] = lambda: None,
) -> dict[str, tuple[Any, Any]]:
  """Write a run's config at its first start; compare it at later starts.

  Args:
    workdir: directory of the run; created if it does not exist.
    config: nested mapping of names to JSON values.
    may_change: fields that may differ, by dotted name; a name includes all
      fields below it (`eval` includes `eval.split`). `record_changes` writes
      their new values.
    instead: how to start another run, for the error message.
    also: a further check, called once the config fits and before anything is
      written.

  Returns:
    The old and the new value of each field that changed, by dotted name.

  Raises:
    ValueError: the directory belongs to another config (lists every field that
      differs, with both values), its file is damaged, `config` is not JSON, or
      the directory is a URL.
    OSError: the directory cannot be written, or its disk is full.
  """
  if url := _SCHEME.match(str(workdir)):
    raise ValueError(
      f"workdir {workdir}: expected a directory of this machine, {url[1]}://"
      " is not supported; mount the bucket and pass the directory"
    )
  path = pathlib.Path(workdir) / CONFIG
  ours = _as_json(config)
  if path.exists():
    theirs = _read(path)
    before, after = _flat(theirs), _flat(ours)
    if differing := _differences(before, after, may_change):
      listed = "".join(f"\n  {line}" for line in differing)
      another = f"\n{instead}" if instead else ""
      raise ValueError(
        f"{path.parent} belongs to a run of another config; choose another"
        f" workdir, or set back what differs:{listed}{another}"
      )
    also()
    return {
      name: (_value(before.get(name)), _value(after.get(name)))
      for name in sorted(before.keys() | after.keys())
      if not _is_same(before, after, name)
    }
  # No process writes before all processes have read.
  distributed.barrier("config_read")
  if jax.process_index() == 0:
    _write(path, ours)
  distributed.barrier("config_written")
  return {}


def record_changes(
  workdir: pathlib.Path | str,
  config: Mapping[str, Any],
  changes: Mapping[str, tuple[Any, Any]],
  step: int,
) -> list[str]:
  """Write a resumed run's config, and add its changes to the journal.

  Args:
    workdir: directory of the run.
    config: as given to `check_config`.
    changes: what `check_config` returned.
    step: the step after which they take effect.

  Returns:
    A line for each change.
  """
  lines = [
    f"{name}: {_shown(old)} before, {_shown(new)} from step {step + 1} on"
    for name, (old, new) in changes.items()
  ]
  distributed.barrier("config_changes")
  if changes and jax.process_index() == 0:
    entry = {
      "step": step,
      "time": round(time.time(), 3),
      "changes": {n: list(values) for n, values in changes.items()},
    }
    add_to_journal(workdir, entry)
    _write(pathlib.Path(workdir) / CONFIG, _as_json(config))
  return lines


def add_to_journal(
  workdir: pathlib.Path | str, entry: Mapping[str, Any]
) -> None:
  """Add an entry with its `step` to the journal of a run.

  Raises:
    ValueError: the journal is damaged.
  """
  path, entries = pathlib.Path(workdir) / CHANGES, []
  if path.exists():
    entries = untrusted.read_json(path, finite=False)
    if not isinstance(entries, list):
      raise ValueError(f"{path} is damaged: expected a list; move it away")
  _write(path, [*entries, dict(entry)])


def _write(path: pathlib.Path, value: Any) -> None:
  with files.atomic_path(path) as temporary:
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _value(text: str | None) -> Any:
  return None if text is None else json.loads(text)


def _shown(value: Any) -> str:
  return "absent" if value is None else json.dumps(value)


def read_config(workdir: pathlib.Path | str) -> dict[str, Any]:
  """The config of a run; ValueError if there is none."""
  path = pathlib.Path(workdir) / CONFIG
  if not path.is_file():
    raise ValueError(
      f"{workdir} is not the directory of a run: expected {CONFIG} there"
    )
  return _read(path)


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config after a round trip through JSON; tuples become lists."""
  try:
    return json.loads(json.dumps(dict(config)))
  except TypeError as error:
    raise ValueError(f"expected a config that is JSON: {error}") from error


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    config = untrusted.read_json(path, finite=False)
    if not isinstance(config, dict):
      raise ValueError(f"expected fields by name, got {config!r:.40}")
  except ValueError as error:
    raise ValueError(
      f"{path} is damaged ({error}); delete it if the run goes on with the"
      " config it had"
    ) from error
  return config


def _differences(
  before: Mapping[str, str],
  after: Mapping[str, str],
  may_change: Iterable[str],
) -> list[str]:
  """The fields that differ although they may not, with both values."""
  heads = tuple(f"{name}." for name in may_change)
  found = []
  for name in sorted(before.keys() | after.keys()):
    had, has = before.get(name, "absent"), after.get(name, "absent")
    both = name in before and name in after
    if _is_same(before, after, name):
      continue
    if not f"{name}.".startswith(heads):
      back = f" ({flag(name, json.loads(had))} sets it back)" if both else ""
      found.append(f"{name}: {had} in the run, {has} now{back}")
  return found


def _is_same(
  before: Mapping[str, str], after: Mapping[str, str], name: str
) -> bool:
  """Whether both have equal values of JSON: 1, 1.0 and true are equal."""
  if name not in before or name not in after:
    return False
  had, has = before[name], after[name]
  return had == has or json.loads(had) == json.loads(has)


def flag(name: str, value: Any) -> str:
  """The flag that sets a field of the config, quoted for a shell."""
  text = str(_tuple(value))
  if text.startswith("(") and not set(text) & set('"$`\\!'):
    return f'--config.{name}="{text}"'
  return shlex.quote(f"--config.{name}={text}")


def _tuple(value: Any) -> Any:
  """Convert lists (JSON) to tuples (the form in flags)."""
  return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
  """Values as JSON text by dotted name; an empty branch counts as a value."""
  flat: dict[str, str] = {}
  for name, value in config.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = json.dumps(value)
  return flat
