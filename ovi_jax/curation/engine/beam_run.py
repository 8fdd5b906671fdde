"""Runs shards with Apache Beam (extra `[curate]`).

Each element is a shard, processed by `shard.process` in a supervised process
beside Beam's worker. Outputs are the same bytes in the same files as those of a
local run, so local and Beam runs can resume each other. Beam's workers need
access to `out` and to the inputs: buckets or a shared file system.
"""

import importlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from ovi_jax.curation.engine import run
from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard as shards
from ovi_jax.curation.engine import storage
from ovi_jax.curation.engine import worker_pool

try:
  beam: Any = importlib.import_module("apache_beam")
  metrics: Any = importlib.import_module("apache_beam.metrics")
  pipeline_options: Any = importlib.import_module(
    "apache_beam.options.pipeline_options"
  )
except ImportError as error:
  raise ImportError(
    f"Apache Beam is missing ({error}); pip install -c constraints-curate.txt"
    " -e '.[curate]'"
  ) from error


class ShardDoFn(beam.DoFn):
  """Processes shards of a pass; one worker process per Beam worker."""

  def __init__(
    self, settings: curation_settings.Settings, pass_: curation_settings.Pass
  ):
    """Store the settings; the process starts with the first shard."""
    self._settings, self._pass = settings, pass_
    self._pool: Any = None
    self._unavailable = ""

  def setup(self) -> None:
    """Called once by each of Beam's workers."""
    self._pool = worker_pool.WorkerPool(self._settings, self._pass, 1)

  def process(self, shard_index: int) -> Iterator[int]:
    """Process a shard; its outcome is written to its files."""
    if self._unavailable:  # This shard would fail in the same way.
      stage_index = shards.first_pending(
        self._settings, self._pass, shard_index
      )
      if stage_index is not None:
        shards.write_error(
          self._settings.shard_files(stage_index, shard_index),
          self._unavailable,
        )
      yield shard_index
      return
    for result in self._pool.work([shard_index]):
      for name, (clips, seconds) in result.seconds.items():
        metrics.Metrics.counter(name, "clips").inc(clips)
        metrics.Metrics.counter(name, "milliseconds").inc(int(seconds * 1e3))
      if result.unavailable:
        self._unavailable = result.failure
      yield shard_index

  def teardown(self) -> None:
    """Terminate the worker process."""
    if self._pool is not None:
      self._pool.__exit__()


def executor(options: Sequence[str]) -> run.ShardExecutor:
  """An executor for `run.run`.

  Args:
    options: Beam pipeline options, as command-line arguments.
  """

  def execute(
    settings: curation_settings.Settings,
    pass_: curation_settings.Pass,
    shard_indices: Sequence[int],
  ) -> Iterator[shards.Result]:
    if not shard_indices:
      return
    beam_options = pipeline_options.PipelineOptions(list(options))
    with beam.Pipeline(options=beam_options) as pipeline:
      _ = (
        pipeline
        | beam.Create(list(shard_indices))
        | beam.Reshuffle()  # distributes single shards
        | beam.ParDo(ShardDoFn(settings, pass_))
      )
    for shard_index in shard_indices:
      yield shards.Result(
        shard=shard_index, failure=_shard_error(settings, pass_, shard_index)
      )

  return execute


def _shard_error(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  shard_index: int,
) -> str:
  """The error in a shard's files; empty if it is complete."""
  stage_index = shards.first_pending(settings, pass_, shard_index)
  if stage_index is None:
    return ""
  files = settings.shard_files(stage_index, shard_index)
  if not storage.file_size(files.failed):
    return "not completed; see the logs of Beam's workers"
  return storage.read(files.failed).decode().splitlines()[0]
