"""The command's flags, and what becomes of its errors; see `__main__`."""

import signal
import sys

from absl import app
from absl import flags
from ml_collections import config_flags

from ovi_jax import runtime
from ovi_jax.curation.engine import run
from ovi_jax.curation.engine import settings

FLAGS = flags.FLAGS
TOLD_TO_STOP = 75  # "try again": what batch systems restart


def main(argv: list[str]) -> None:
  if len(argv) > 1 and not FLAGS.beam:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(TOLD_TO_STOP))
  try:
    if FLAGS.config is None:
      raise ValueError("--config=configs/curate.py is needed")
    chosen = settings.Settings.from_config(FLAGS.config)
    share = run.ShardSelection(
      only_pass=FLAGS.only_pass,
      shards=FLAGS.shards,
      retry_failed=FLAGS.retry_failed,
    )
    work = None
    if FLAGS.beam:
      from ovi_jax.curation.engine import beam_run

      work = beam_run.executor(argv[1:])
    reports = chosen.report and not FLAGS.only_pass
    if reports:
      # Before any work: it needs the extra.
      from ovi_jax.curation.report import document
    problems = run.run(chosen, share, executor=work)
    if reports:
      print(f"read {document.write(chosen, problems)} before you train")
  except (ImportError, OSError, ValueError) as error:
    runtime.leave(f"curation: {error}")
  except KeyboardInterrupt:
    print("curation: interrupted; the same command goes on")
    sys.exit(128 + signal.SIGINT)
  if problems:
    runtime.leave("\n".join(["curation: not all is done:", *problems]))


def start() -> None:
  """Define the flags and run `main`."""
  config_flags.DEFINE_config_file("config")
  flags.DEFINE_string("only_pass", "", "One pass of the config; all if empty.")
  flags.DEFINE_string("shards", "", "A:B, or I/N; all if empty.")
  flags.DEFINE_boolean(
    "retry_failed", False, "Do shards again of which clips failed."
  )
  flags.DEFINE_boolean(
    "beam", False, "Do shards with Apache Beam; what follows -- is Beam's."
  )
  app.run(main, flags_parser=runtime.parse_flags)
