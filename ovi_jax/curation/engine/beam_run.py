"""The same work over shards with Apache Beam (extra `[curate]`).

  python -m ovi_jax.curation.engine.beam_run --config=configs/curate.py
    --config.inputs="('gs://BUCKET/videos',)" --config.out=gs://BUCKET/run
    --only_pass=clips -- --runner=DataflowRunner --project=… --region=…

What follows `--` is Beam's. Shards are the elements; each is done by the
functions of `shard`, in a watched process beside Beam's own, and written where
a run on one machine writes it: the files are the same, byte by byte, and either
goes on where the other stopped. Beam's workers must see `out` and the inputs:
buckets, or a file system that all of them mount.
"""

import importlib
import signal
import sys
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from absl import app
from absl import flags
from ml_collections import config_flags

from ovi_jax import runtime
from ovi_jax.curation.engine import places
from ovi_jax.curation.engine import run
from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard as shards
from ovi_jax.curation.engine import watch

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

FLAGS = flags.FLAGS


class Work(beam.DoFn):
  """Does shards of a pass, each worker of Beam with one process beside it."""

  def __init__(
    self, settings: curation_settings.Settings, part: curation_settings.Pass
  ):
    """Take note; the process starts with the first shard."""
    self._settings, self._part = settings, part
    self._watched: Any = None

  def setup(self) -> None:
    """Called once by each of Beam's workers."""
    self._watched = watch.Watched(self._settings, self._part, 1)

  def process(self, number: int) -> Iterator[int]:
    """Do a shard; what is to be said of it is said by its files."""
    for result in self._watched.work([number]):
      for name, (clips, seconds) in result.seconds.items():
        metrics.Metrics.counter(name, "clips").inc(clips)
        metrics.Metrics.counter(name, "milliseconds").inc(int(seconds * 1e3))
      if result.failure:
        files = self._settings.files(self._part.first, number)
        places.write(files.failed, result.failure.encode(errors="replace"))
      yield number

  def teardown(self) -> None:
    """End the process."""
    if self._watched is not None:
      self._watched.__exit__()


def with_options(options: Sequence[str]) -> run.Work:
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
        | beam.ParDo(Work(settings, part))
      )
    for number in numbers:
      yield shards.Result(
        shard=number, failure=_failure(settings, part, number)
      )

  return work


def _failure(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  number: int,
) -> str:
  """Why a shard is not done, as its files say; empty if it is."""
  end = part.first + len(part.stages)
  if all(shards.is_done(settings, i, number) for i in range(part.first, end)):
    return ""
  for place in range(part.first, end):
    files = settings.files(place, number)
    if places.size(files.failed):
      return places.read(files.failed).decode().splitlines()[0]
  return "it was not done; see the log of Beam's workers"


def main(argv: list[str]) -> None:
  try:
    if FLAGS.config is None:
      raise ValueError("--config=configs/curate.py is needed")
    chosen = curation_settings.Settings.from_config(FLAGS.config)
    share = run.Share(only=FLAGS.only_pass, shards=FLAGS.shards)
    problems = run.run(chosen, share, work=with_options(argv[1:]))
  except (OSError, ValueError) as error:
    runtime.leave(f"beam_run: {error}")
  except KeyboardInterrupt:
    print("beam_run: interrupted; the same command goes on")
    sys.exit(128 + signal.SIGINT)
  if problems:
    runtime.leave("\n".join(["beam_run: not all is done:", *problems]))


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config")
  flags.DEFINE_string("only_pass", "", "One pass of the config; all if empty.")
  flags.DEFINE_string("shards", "", "A:B, or I/N; all if empty.")
  app.run(main, flags_parser=runtime.parse_flags)
