"""Flags and error handling of the command; see `__main__`."""

import signal
import sys

from absl import app
from absl import flags

from ovi_jax import cli
from ovi_jax import config_files
from ovi_jax.curation.engine import run
from ovi_jax.curation.engine import settings

FLAGS = flags.FLAGS
EX_TEMPFAIL = 75  # batch systems restart the job


def main(argv: list[str]) -> None:
  if len(argv) > 1 and not FLAGS.beam:
    cli.exit_with_unexpected(" ".join(argv[1:]))
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(EX_TEMPFAIL))
  try:
    if FLAGS.config is None:
      raise ValueError("--config=curate is needed")
    chosen = settings.Settings.from_config(FLAGS.config)
    selection = run.ShardSelection(
      only_pass=FLAGS.only_pass,
      shards=FLAGS.shards,
      retry_failed=FLAGS.retry_failed,
    )
    executor = None
    if FLAGS.beam:
      from ovi_jax.curation.engine import beam_run

      executor = beam_run.executor(argv[1:])
    reports = chosen.report and not FLAGS.only_pass
    if reports:
      # Imported before any work: it needs the extra.
      from ovi_jax.curation.report import document
    problems = run.run(chosen, selection, executor=executor)
    if reports:
      print(f"review {document.write(chosen, problems)} before training")
  except (ImportError, OSError, ValueError) as error:
    cli.exit_with_error(error)
  except KeyboardInterrupt:
    print("curation: interrupted; run the same command to resume")
    sys.exit(128 + signal.SIGINT)
  if problems:
    cli.exit_with_error("\n".join(["incomplete:", *problems]))


def start() -> None:
  """Define the flags and run `main`."""
  config_files.define()
  flags.DEFINE_string("only_pass", "", "Pass to run; all if empty.")
  flags.DEFINE_string(
    "shards", "", "Shard range A:B, or part I/N; all if empty."
  )
  flags.DEFINE_boolean(
    "retry_failed", False, "Rerun shards that have failed clips."
  )
  flags.DEFINE_boolean(
    "beam", False, "Run shards with Apache Beam; Beam options follow --."
  )
  app.run(main, flags_parser=cli.parse_flags)
