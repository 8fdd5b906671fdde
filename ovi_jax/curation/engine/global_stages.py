"""Stages that need all shards at once: what is alike, and what writes the end.

Their marks name what all shards said, so that a change in any of them has the
stage done again; of what then turns out the same, nothing follows.
"""

import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import tqdm

from ovi_jax import console
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage as stages
from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard as shards
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import storage

RECORDS = "records"
_DONE = "done"
_RESULT_FIELDS = {
  "input_hash": shard_store.is_text,
  "result": lambda value: isinstance(value, dict),
}
Log = Callable[[str], None]


def run_pass(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  count: int,
  before: Sequence[str],
  log: Log = console.log,
) -> list[str]:
  """Do a pass that needs all shards.

  Args:
    settings: of the run.
    part: a pass of form "all" or "sink".
    count: of shards.
    before: what could not be done so far. A stage of form "all" goes on with
      the other shards, and is done again when these are; one that writes the
      end does not.
    log: called with each line for the user.

  Returns:
    What could not be done.
  """
  there = [
    n
    for n in range(count)
    if shard_store.read_marker(settings.shard_files(part.first_stage - 1, n))
  ]
  is_sink = part.kind == curation_settings.SINK
  if len(there) < count and (is_sink or not before):
    return [
      f"{part.name}: it needs all shards, and {count - len(there)} of {count}"
      " are not done; do them first (or let more clips fail: --config.max_failure_rate)"
    ]
  if is_sink:
    _run_sink(settings, part, count, log)
  else:
    _run_global(settings, part, there)
    log(summary(settings, part.first_stage, there))
  return []


def is_finished(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  place: int,
  count: int,
) -> bool:
  """Whether a stage has done all shards."""
  numbers = range(count)
  if part.kind in (curation_settings.CLIP, curation_settings.BATCH):
    return all(shards.is_done(settings, place, n) for n in numbers)
  if not all(
    shard_store.read_marker(settings.shard_files(place - 1, n)) for n in numbers
  ):
    return False
  source = _input_hash(settings, place, numbers)
  if part.kind == curation_settings.SINK:
    return (read_sink_result(settings, part) or {}).get("input_hash") == source
  marks = [
    shard_store.read_marker(settings.shard_files(place, n)) for n in numbers
  ]
  return all(found and found.input_hash == source for found in marks)


def summary(
  settings: curation_settings.Settings, place: int, numbers: Sequence[int]
) -> str:
  """A line of what a stage made of shards."""
  marks = [
    shard_store.read_marker(settings.shard_files(place, n)) for n in numbers
  ]
  done = [found for found in marks if found]
  passed = sum(found.clips for found in done)
  rejects = sum(found.rejects for found in done)
  failed = sum(found.failed for found in done)
  return (
    f"{settings.stages[place].name}: {passed} clips passed on,"
    f" {rejects - failed} refused, {failed} failed"
    f" ({len(done)} of {len(numbers)} shards)"
  )


def _input_hash(
  settings: curation_settings.Settings, place: int, numbers: Sequence[int]
) -> str:
  """Hash of what the stage before said of shards."""
  digest = hashlib.sha256()
  for number in numbers:
    found = shard_store.read_marker(settings.shard_files(place - 1, number))
    assert found is not None, "only shards that are done are asked for"
    digest.update(f"{number} {found.digest}\n".encode())
  return digest.hexdigest()


def _run_global(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  numbers: Sequence[int],
) -> None:
  """Do a stage of form "all" for those shards that have not the outcome."""
  place = part.first_stage
  source = _input_hash(settings, place, numbers)
  marks = {
    n: shard_store.read_marker(settings.shard_files(place, n)) for n in numbers
  }
  todo = [n for n, m in marks.items() if m is None or m.input_hash != source]
  if not todo:
    return

  def every() -> Iterator[clips.Clip]:
    for number in numbers:
      yield from shard_store.read_clips(settings.shard_files(place - 1, number))

  decide = part.stages[0].load()(every())
  for number in console.progress(todo, desc=part.name, unit="shard"):
    with shard_store.open_output(settings.shard_files(place, number)) as opened:
      for clip in shard_store.read_clips(
        settings.shard_files(place - 1, number)
      ):
        opened.writer.add(clip, [decide(clip)], {})
      opened.commit(source)


def _run_sink(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  count: int,
  log: Log,
) -> None:
  """Have the end written, under its name when it is whole."""
  source = _input_hash(settings, part.first_stage, range(count))
  folder = storage.join(settings.out, part.stages[0].folder)
  end = storage.join(folder, RECORDS)
  before = read_sink_result(settings, part)
  if before is None or before["input_hash"] != source:
    storage.remove(storage.join(folder, _DONE))
    made = _call_sink(settings, part, count, end)
    said = json.dumps({"input_hash": source, "result": made}, indent=1)
    storage.write(storage.join(folder, _DONE), said.encode() + b"\n")
    before = {"result": made}
  log(f"{part.stages[0].name}: {end}: {json.dumps(before['result'])}")


def _call_sink(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  count: int,
  end: str,
) -> dict:
  """Call the stage of form "sink"."""
  function = part.stages[0].load()
  total = sum(
    found.clips
    for n in range(count)
    if (
      found := shard_store.read_marker(
        settings.shard_files(part.first_stage - 1, n)
      )
    )
  )
  with console.progress(total=total, desc=part.name, unit="clip") as bar:
    every = _all_clips(settings, part.first_stage, count, bar)
    if not storage.is_remote(end):
      new = pathlib.Path(f"{end}.new")
      shutil.rmtree(new, ignore_errors=True)  # of a run that was stopped
      new.parent.mkdir(parents=True, exist_ok=True)
      made = dict(function(every, new))
      # What stood there was made of other clips.
      shutil.rmtree(end, ignore_errors=True)
      new.rename(end)
      return made
    with tempfile.TemporaryDirectory(prefix="ovi_jax-") as local:
      made = dict(function(every, pathlib.Path(local) / RECORDS))
      storage.upload(pathlib.Path(local) / RECORDS, end)
      return made


def _all_clips(
  settings: curation_settings.Settings, place: int, count: int, bar: tqdm.tqdm
) -> Iterator[tuple[clips.Clip, stages.Media]]:
  """The clips that come to a stage, of all shards, with their media."""
  for number in range(count):
    folders = [settings.shard_files(i, number).folder for i in range(place)]
    with shard_store.open_artifacts(folders, number) as keeper:
      for clip in shard_store.read_clips(
        settings.shard_files(place - 1, number)
      ):
        yield clip, shards.open_media(clip, keeper)[0]
        bar.update()


def read_sink_result(
  settings: curation_settings.Settings, part: curation_settings.Pass
) -> dict | None:
  """What was said of the end when it was whole; None if it is not.

  Returns:
    source: hash of what it was made of; made: what the stage returned.
  """
  folder = storage.join(settings.out, part.stages[0].folder)
  return shard_store.read_stored_json(
    storage.join(folder, _DONE), _RESULT_FIELDS
  )
