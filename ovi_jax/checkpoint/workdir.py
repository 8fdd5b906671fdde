"""A run's directory: one for all processes, tied to the config in config.json.

It may be in an object store. Process 0 decides what is in it. Fields that may
change are compared at each start. A change is written to config.json and, with
the step at which it took effect, to config_changes.json.
"""

import json
import os
import pathlib
import secrets
import shlex
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.sharding import distributed

CONFIG = "config.json"
CHANGES = "config_changes.json"


def _path(name: epath.PathLike) -> epath.Path:
  """The path of a run's directory; ValueError if it is in s3://."""
  check_scheme(name, "workdir")
  return storage.path(name)


def check_scheme(name: epath.PathLike, what: str) -> None:
  """Refuse the directory of a run where no checkpoint can be.

  Args:
    name: of the directory.
    what: begins the message.

  Raises:
    ValueError: it is in s3://.
  """
  if os.fspath(name).startswith("s3://"):
    raise ValueError(
      f"{what}: {untrusted.printable(os.fspath(name))}: expected a folder or"
      " gs://BUCKET/…; Orbax, which writes and reads checkpoints, has no s3://"
    )


def locate(name: epath.PathLike) -> epath.Path:
  """The path of a run's directory; nothing is left in it.

  Raises:
    ValueError: the name is no path or URL that can be used, see `storage.path`,
      or the folder cannot be written.
    OSError: its bucket cannot be listed, read, written or described.
  """
  path = _path(name)
  if storage.is_remote(path):
    storage.check_access(path)
    storage.check_described(path)
  elif path.exists() and not path.is_dir():
    raise ValueError(f"workdir: expected a directory, {path} is a file")
  else:
    _check_writable(pathlib.Path(path))
  return path


def _check_writable(path: pathlib.Path) -> None:
  """ValueError if a folder, or the one to make it in, cannot be written."""
  existing = next(each for each in (path, *path.parents) if each.exists())
  probe = existing / f".{os.getpid()}-{secrets.token_hex(4)}.probe"
  try:
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise ValueError(
      f"workdir: cannot write to {existing} ({error.strerror}); choose another"
      " --workdir"
    ) from error


def check_config(
  workdir: epath.PathLike,
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
      the processes see different directories.
    OSError: the directory cannot be written, or its disk is full.
  """
  directory = storage.path(workdir)
  ours = _as_json(config)

  def compare() -> dict[str, Any] | None:
    if not storage.exists(directory / CONFIG):
      return None
    theirs = _read(directory / CONFIG)
    before, after = _flat(theirs), _flat(ours)
    if differing := _differences(before, after, may_change):
      listed = "".join(f"\n  {line}" for line in differing)
      another = f"\n{instead}" if instead else ""
      raise ValueError(
        f"{directory} belongs to a run of another config; choose another"
        f" workdir, or set back what differs:{listed}{another}"
      )
    return theirs

  theirs = distributed.broadcast(compare)
  if theirs is not None:
    also()
  _check_shared(directory)
  if theirs is None:
    distributed.broadcast(lambda: _write(directory / CONFIG, ours))
    return {}
  before, after = _flat(theirs), _flat(ours)
  return {
    name: (_value(before.get(name)), _value(after.get(name)))
    for name in sorted(before.keys() | after.keys())
    if not _is_same(before, after, name)
  }


def change_lines(
  changes: Mapping[str, tuple[Any, Any]], step: int
) -> list[str]:
  """A line for each change, see `record_changes`."""
  return [
    f"{name}: {_shown(old)} before, {_shown(new)} from step {step + 1} on"
    for name, (old, new) in changes.items()
  ]


def record_changes(
  workdir: epath.PathLike,
  config: Mapping[str, Any],
  changes: Mapping[str, tuple[Any, Any]],
  step: int,
) -> None:
  """Write a resumed run's config, and add its changes to `config_changes.json`.

  Args:
    workdir: directory of the run.
    config: as given to `check_config`.
    changes: what `check_config` returned.
    step: the step after which they take effect.
  """
  if changes:
    entry = {
      "step": step,
      "time": round(time.time(), 3),
      "changes": {n: list(values) for n, values in changes.items()},
    }

    def write() -> None:
      add_config_change(workdir, entry)
      _write(storage.path(workdir) / CONFIG, _as_json(config))

    distributed.broadcast(write)


def add_config_change(
  workdir: epath.PathLike, entry: Mapping[str, Any]
) -> None:
  """Add an entry with its `step` to `config_changes.json` of a run.

  Raises:
    ValueError: `config_changes.json` is damaged.
  """
  path, entries = storage.path(workdir) / CHANGES, []
  if storage.exists(path):
    entries = storage.read_json(path, finite=False)
    if not isinstance(entries, list):
      raise ValueError(f"{path} is damaged: expected a list; move it away")
  _write(path, [*entries, dict(entry)])


def _write(path: epath.Path, value: Any) -> None:
  storage.write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _value(text: str | None) -> Any:
  return None if text is None else json.loads(text)


def _shown(value: Any) -> str:
  return "absent" if value is None else json.dumps(value)


def _check_shared(directory: epath.Path) -> None:
  """Raise ValueError unless all processes see what process 0 writes."""
  if jax.process_count() == 1:
    return
  name = f".shared-{distributed.broadcast(lambda: secrets.token_hex(8))}"
  existed = distributed.broadcast(lambda: storage.exists(directory))
  distributed.broadcast(lambda: storage.write_text(directory / name, ""))
  with distributed.collective_errors():
    is_seen = storage.exists(directory / name)
  seen = distributed.gather(is_seen)

  def clear() -> None:
    with storage.store_errors(directory):
      (directory / name).unlink()
      if not all(seen) and not existed:
        directory.rmdir()

  distributed.broadcast(clear)
  if not all(seen):
    others = ", ".join(str(n) for n, each in enumerate(seen) if not each)
    raise ValueError(
      f"{directory} is another directory in process {others} than in process 0;"
      " give a directory that all processes share, or a bucket (gs://…)"
    )


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
  """The config of a run; ValueError if there is none."""
  path = _path(workdir) / CONFIG
  with storage.store_errors(path):
    found = path.exists() and not path.is_dir()
  if not found:
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


def _read(path: epath.Path) -> dict[str, Any]:
  try:
    config = storage.read_json(path, finite=False)
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
