"""Train a stage: audio, video, or both towers together; or a codec.

  python train.py --config=configs/small.py --workdir=DIR
    --config.data.sources="('DIR',)"
  python train.py --config=configs/codec_video.py:mini --workdir=DIR

Run the same command again to go on from the newest checkpoint. Exit codes: 0
finished, 75 told to stop (SIGTERM, Ctrl-C) and saved, 1 an error that is said.
With --aot=v5p:4x4x4 the step is compiled for those TPUs, and what it needs is
reported.
"""

import pathlib
import signal
import sys

from absl import app
from absl import flags
from ml_collections import config_flags

from ovi_jax import cli
from ovi_jax.aot import train_step
from ovi_jax.sharding import distributed
from ovi_jax.training import loop
from ovi_jax.training import settings
from ovi_jax.training import trainer

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config")
flags.DEFINE_string("workdir", "", "Directory of the run.")
flags.DEFINE_string("aot", "", "Only compile, for a topology of TPUs.")


def main(argv: list[str]) -> None:
  cli.setup(argv)
  try:
    if not FLAGS.aot:
      distributed.initialize()
    with distributed.collective_errors():
      if FLAGS.config is None or not FLAGS.workdir:
        raise ValueError("--config=configs/STAGE.py, --workdir=DIR are needed")
      chosen = settings.from_config(FLAGS.config)
    workdir = pathlib.Path(FLAGS.workdir)
    if FLAGS.aot:
      sys.exit(not train_step.run(FLAGS.aot, chosen, workdir))
    finished = trainer.train(chosen, FLAGS.config.to_dict(), workdir)
  except (OSError, ValueError) as error:
    cli.exit_with_error(f"train: {error}")
  except KeyboardInterrupt:
    print("train: interrupted; the same command goes on from its checkpoint")
    sys.exit(128 + signal.SIGINT)
  sys.exit(0 if finished else loop.INTERRUPTED)


if __name__ == "__main__":
  app.run(main, flags_parser=cli.parse_flags)
