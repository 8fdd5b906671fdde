"""Train a stage: audio, video, or both towers together; or a codec.

  ovi-train --config=small --workdir=DIR
    --config.data.sources="('DIR',)"
  ovi-train --config=codec_video:mini --workdir=DIR

Run the same command again to go on from the newest checkpoint. Exit codes: 0
finished, 75 told to stop (SIGTERM, Ctrl-C) and saved, 1 an error that is said.
With --aot=v5p:4x4x4 the step is compiled for those TPUs, and what it needs is
reported.
"""

import pathlib
import signal
import sys

from absl import flags

from ovi_jax import cli
from ovi_jax import config_files
from ovi_jax.aot import train_step
from ovi_jax.sharding import distributed
from ovi_jax.training import loop
from ovi_jax.training import settings
from ovi_jax.training import trainer
from ovi_jax.training.codecs import run
from ovi_jax.training.codecs import settings as codecs

FLAGS = flags.FLAGS


def define_flags() -> None:
  config_files.define()
  flags.DEFINE_string("workdir", "", "Directory of the run.")
  flags.DEFINE_string("aot", "", "Only compile, for a topology of TPUs.")


def main(argv: list[str]) -> None:
  cli.setup(argv)
  try:
    if not FLAGS.aot:
      distributed.initialize()
    with distributed.collective_errors():
      if FLAGS.config is None or not FLAGS.workdir:
        raise ValueError("--config=CONFIG and --workdir=DIR are needed")
      codec = "component" in FLAGS.config
      kind, train = (codecs, run.train) if codec else (settings, trainer.train)
      chosen = kind.Settings.from_config(FLAGS.config)
    workdir = pathlib.Path(FLAGS.workdir)
    if FLAGS.aot:
      sys.exit(not train_step.run(FLAGS.aot, chosen, workdir))
    finished = train(chosen, FLAGS.config.to_dict(), workdir)
  except (OSError, ValueError) as error:
    cli.exit_with_error(error)
  except KeyboardInterrupt:
    name = cli.command_name()
    print(f"{name}: interrupted; the same command goes on from its checkpoint")
    sys.exit(128 + signal.SIGINT)
  sys.exit(0 if finished else loop.INTERRUPTED)


def start() -> None:
  """Run the command."""
  cli.run(define_flags, main, __doc__ or "")
