"""Runs "global" and "sink" stages, which need the clips of all shards.

Their markers contain a hash of all input shards, so a change in any shard
reruns the stage. Later stages rerun only for shards whose output changed.
"""

import hashlib
import json
import logging
import pathlib
import shutil
import tempfile
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
_log = logging.getLogger(__name__)


def run_pass(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  count: int,
  before: Sequence[str],
) -> list[str]:
  """Run a pass that needs all shards.

  Args:
    settings: settings of the run.
    pass_: a pass of kind "global" or "sink".
    count: shard_index of shards.
    before: problems so far. After a failure, a "global" stage runs on the
      completed shards and reruns when the others complete; a "sink" waits.

  Returns:
    One line per problem.
  """
  completed = [
    n
    for n in range(count)
    if shard_store.read_marker(settings.shard_files(pass_.first_stage - 1, n))
  ]
  is_sink = pass_.kind == curation_settings.SINK
  if len(completed) < count and (is_sink or not before):
    return [
      f"{pass_.name}: needs all shards, but {count - len(completed)} of {count}"
      " are incomplete; run the previous passes first, or raise"
      " --config.max_failure_rate"
    ]
  if is_sink:
    _run_sink(settings, pass_, count)
  else:
    _run_global(settings, pass_, completed)
    _log.info(summary(settings, pass_.first_stage, completed))
  return []


def is_finished(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  stage_index: int,
  count: int,
) -> bool:
  """Whether a stage has completed all shards."""
  shard_indices = range(count)
  if pass_.kind in (curation_settings.CLIP, curation_settings.BATCH):
    return all(shards.is_done(settings, stage_index, n) for n in shard_indices)
  if not all(
    shard_store.read_marker(settings.shard_files(stage_index - 1, n))
    for n in shard_indices
  ):
    return False
  input_hash = _input_hash(settings, stage_index, shard_indices)
  if pass_.kind == curation_settings.SINK:
    return (read_sink_result(settings, pass_) or {}).get(
      "input_hash"
    ) == input_hash
  marks = [
    shard_store.read_marker(settings.shard_files(stage_index, n))
    for n in shard_indices
  ]
  return all(marker and marker.input_hash == input_hash for marker in marks)


def summary(
  settings: curation_settings.Settings,
  stage_index: int,
  shard_indices: Sequence[int],
) -> str:
  """One line of counts of a stage."""
  marks = [
    shard_store.read_marker(settings.shard_files(stage_index, n))
    for n in shard_indices
  ]
  done = [marker for marker in marks if marker]
  passed = sum(marker.clips for marker in done)
  rejects = sum(marker.rejects for marker in done)
  failed = sum(marker.failed for marker in done)
  return (
    f"{settings.stages[stage_index].name}: {passed} clips passed on,"
    f" {rejects - failed} rejected, {failed} failed"
    f" ({len(done)} of {len(shard_indices)} shards)"
  )


def _input_hash(
  settings: curation_settings.Settings,
  stage_index: int,
  shard_indices: Sequence[int],
) -> str:
  """Hash of the previous stage's output of all shards."""
  digest = hashlib.sha256()
  for shard_index in shard_indices:
    marker = shard_store.read_marker(
      settings.shard_files(stage_index - 1, shard_index)
    )
    assert marker is not None, "only completed shards are hashed"
    digest.update(f"{shard_index} {marker.digest}\n".encode())
  return digest.hexdigest()


def _run_global(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  shard_indices: Sequence[int],
) -> None:
  """Run a "global" stage on the outdated shards."""
  stage_index = pass_.first_stage
  input_hash = _input_hash(settings, stage_index, shard_indices)
  marks = {
    n: shard_store.read_marker(settings.shard_files(stage_index, n))
    for n in shard_indices
  }
  outdated = [
    n for n, m in marks.items() if m is None or m.input_hash != input_hash
  ]
  if not outdated:
    return

  def all_clips() -> Iterator[clips.Clip]:
    for shard_index in shard_indices:
      yield from shard_store.read_clips(
        settings.shard_files(stage_index - 1, shard_index)
      )

  decide = pass_.stages[0].load()(all_clips())
  for shard_index in console.progress(outdated, desc=pass_.name, unit="shard"):
    with shard_store.open_output(
      settings.shard_files(stage_index, shard_index)
    ) as opened:
      for clip in shard_store.read_clips(
        settings.shard_files(stage_index - 1, shard_index)
      ):
        opened.writer.add(clip, [decide(clip)], {})
      opened.commit(input_hash)


def _run_sink(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  count: int,
) -> None:
  """Run a "sink" stage; its output is published atomically."""
  input_hash = _input_hash(settings, pass_.first_stage, range(count))
  folder = storage.join(settings.out, pass_.stages[0].folder)
  output = storage.join(folder, RECORDS)
  before = read_sink_result(settings, pass_)
  if before is None or before["input_hash"] != input_hash:
    storage.remove(storage.join(folder, _DONE))
    result = _call_sink(settings, pass_, count, output)
    text = json.dumps({"input_hash": input_hash, "result": result}, indent=1)
    storage.write(storage.join(folder, _DONE), text.encode() + b"\n")
    before = {"result": result}
  _log.info(f"{pass_.stages[0].name}: {output}: {json.dumps(before['result'])}")


def _call_sink(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  count: int,
  output: str,
) -> dict:
  """Call the "sink" function and publish its folder."""
  function = pass_.stages[0].load()
  total = sum(
    marker.clips
    for n in range(count)
    if (
      marker := shard_store.read_marker(
        settings.shard_files(pass_.first_stage - 1, n)
      )
    )
  )
  with console.progress(total=total, desc=pass_.name, unit="clip") as bar:
    all_clips = _all_clips(settings, pass_.first_stage, count, bar)
    if not storage.is_remote(output):
      new = pathlib.Path(f"{output}.new")
      shutil.rmtree(new, ignore_errors=True)  # of an interrupted run
      new.parent.mkdir(parents=True, exist_ok=True)
      result = dict(function(all_clips, new))
      # The old output is outdated.
      shutil.rmtree(output, ignore_errors=True)
      new.rename(output)
      return result
    with tempfile.TemporaryDirectory(prefix="ovi_jax-") as local:
      result = dict(function(all_clips, pathlib.Path(local) / RECORDS))
      storage.upload(pathlib.Path(local) / RECORDS, output)
      return result


def _all_clips(
  settings: curation_settings.Settings,
  stage_index: int,
  count: int,
  bar: tqdm.tqdm,
) -> Iterator[tuple[clips.Clip, stages.Media]]:
  """The input clips of a stage, of all shards, with their media."""
  for shard_index in range(count):
    folders = [
      settings.shard_files(i, shard_index).folder for i in range(stage_index)
    ]
    with shard_store.open_artifacts(folders, shard_index) as read_artifact:
      for clip in shard_store.read_clips(
        settings.shard_files(stage_index - 1, shard_index)
      ):
        yield clip, shards.open_media(clip, read_artifact)[0]
        bar.update()


def read_sink_result(
  settings: curation_settings.Settings, pass_: curation_settings.Pass
) -> dict | None:
  """The result of a sink; None if it is incomplete.

  Returns:
    input_hash: hash of its inputs; result: what the stage returned.
  """
  folder = storage.join(settings.out, pass_.stages[0].folder)
  return shard_store.read_stored_json(
    storage.join(folder, _DONE), _RESULT_FIELDS
  )
