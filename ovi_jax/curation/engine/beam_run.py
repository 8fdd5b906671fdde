"""The same work over shards with Apache Beam (extra `[curate]`).

Shards are the elements; each is done by the functions of `shard`, in a watched
process beside Beam's own, and written where a run on one machine writes it: the
files are the same, byte by byte, and either goes on where the other stopped.
Beam's workers must see `out` and the inputs: buckets, or a file system that all
of them mount.
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
    f"Apache Beam is missing ({error}); pip install 'ovi_jax[curate]'"
  ) from error


class ShardDoFn(beam.DoFn):
  """Does shards of a pass, each worker of Beam with one process beside it."""

  def __init__(
    self, settings: curation_settings.Settings, part: curation_settings.Pass
  ):
    """Take note; the process starts with the first shard."""
    self._settings, self._part = settings, part
    self._watched: Any = None
    self._away = ""

  def setup(self) -> None:
    """Called once by each of Beam's workers."""
    self._watched = worker_pool.WorkerPool(self._settings, self._part, 1)

  def process(self, number: int) -> Iterator[int]:
    """Do a shard; what is to be said of it is said by its files."""
    if self._away:  # It would be the same with this one.
      place = shards.first_pending(self._settings, self._part, number)
      if place is not None:
        shards.write_error(
          self._settings.shard_files(place, number), self._away
        )
      yield number
      return
    for result in self._watched.work([number]):
      for name, (clips, seconds) in result.seconds.items():
        metrics.Metrics.counter(name, "clips").inc(clips)
        metrics.Metrics.counter(name, "milliseconds").inc(int(seconds * 1e3))
      if result.unavailable:
        self._away = result.failure
      yield number

  def teardown(self) -> None:
    """End the process."""
    if self._watched is not None:
      self._watched.__exit__()


def executor(options: Sequence[str]) -> run.ShardExecutor:
  """A way to do shards, for `run.run`.

  Args:
    options: Beam's, as on its command lines.
  """

  def work(
    settings: curation_settings.Settings,
    part: curation_settings.Pass,
    numbers: Sequence[int],
  ) -> Iterator[shards.Result]:
    if not numbers:
      return
    chosen = pipeline_options.PipelineOptions(list(options))
    with beam.Pipeline(options=chosen) as pipeline:
      _ = (
        pipeline
        | beam.Create(list(numbers))
        | beam.Reshuffle()  # one by one to any worker
        | beam.ParDo(ShardDoFn(settings, part))
      )
    for number in numbers:
      yield shards.Result(
        shard=number, failure=_shard_error(settings, part, number)
      )

  return work


def _shard_error(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  number: int,
) -> str:
  """Why a shard is not done, as its files say; empty if it is."""
  place = shards.first_pending(settings, part, number)
  if place is None:
    return ""
  files = settings.shard_files(place, number)
  if not storage.file_size(files.failed):
    return "it was not done; see the log of Beam's workers"
  return storage.read(files.failed).decode().splitlines()[0]
