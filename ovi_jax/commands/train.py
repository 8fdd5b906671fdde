"""Train the audio tower, the video tower, both together, or a codec.

  ovi-train --config=small --workdir=DIR
    --config.data.sources="('DIR',)"
  ovi-train --config=codec_video:mini --workdir=DIR

Run the same command again to resume from the newest checkpoint. Exit codes: 0
finished; 75 interrupted (SIGTERM, Ctrl-C), a checkpoint was saved unless
preemption_grace_seconds expired; 76 a step took longer than
step_timeout_seconds; 130 second Ctrl-C; 1 an error, printed in one line; 3 with
--aot, the step does not fit.
--config.FIELD=VALUE sets a field of the config. The guides are
docs/how_to/fine_tune.md and docs/how_to/train.md of the repository.
"""

import signal
import sys

from absl import flags

from ovi_jax import cli
from ovi_jax import config_files
from ovi_jax import flag_profiles
from ovi_jax import interrupts
from ovi_jax import storage
from ovi_jax.aot import train_step
from ovi_jax.models import quantized
from ovi_jax.sharding import distributed
from ovi_jax.training import goodput
from ovi_jax.training import loop
from ovi_jax.training import settings
from ovi_jax.training import trainer

FLAGS = flags.FLAGS


def define_flags() -> None:
  config_files.define()
  flags.DEFINE_string(
    "workdir",
    "",
    "Directory for checkpoints, logs and samples; may be a bucket"
    " (gs://BUCKET/RUN).",
  )
  flags.DEFINE_string(
    "aot",
    "",
    "Do not train: compile the step for this TPU topology, such as v5p:4x4x4,"
    " and report HBM, FLOPs and collective traffic.",
  )
  flags.DEFINE_enum(
    "aot_quantize",
    "",
    ("", *quantized.DTYPES),
    "With --aot and trainable=lora: assume an 8-bit frozen base model, as"
    " convert --quantize stores it. Only if init_from names no local weights.",
  )
  flags.DEFINE_enum(
    "flags_profile",
    flag_profiles.NONE,
    flag_profiles.names(),
    "Compiler flags for a kind of chip, see docs/how_to/many_devices.md of the"
    " repository.",
  )
  flags.DEFINE_integer(
    "rollback_to",
    None,
    "Do not train: make the run in --workdir resume from the checkpoint of this"
    " step. Newer checkpoints are renamed, not deleted.",
    lower_bound=0,
  )


def main() -> None:
  timer = goodput.Timer()
  try:
    if FLAGS.rollback_to is not None:
      if not FLAGS.workdir:
        raise ValueError("--workdir=DIR is needed")
      if distributed.process_info()[0] == 0:
        trainer.rollback(FLAGS.workdir, FLAGS.rollback_to)
      sys.exit(0)
    flag_profiles.apply(FLAGS.flags_profile, flag_profiles.TRAIN)
    if not FLAGS.aot:
      distributed.initialize()
    with distributed.collective_errors():
      if FLAGS.config is None or not FLAGS.workdir:
        raise ValueError("--config=CONFIG and --workdir=DIR are needed")
      chosen = settings.from_config(FLAGS.config)
      config = settings.stored_config(FLAGS.config)
    if FLAGS.aot:
      reports = storage.locate(FLAGS.workdir)
      fits = train_step.run(
        FLAGS.aot, chosen, reports, FLAGS.flags_profile, FLAGS.aot_quantize
      )
      sys.exit(0 if fits else cli.DOES_NOT_FIT)
    if FLAGS.aot_quantize:
      raise ValueError(
        "--aot_quantize needs --aot; name a topology, such as --aot=v5p:4x4x4"
      )
    finished = trainer.train(chosen, config, FLAGS.workdir, timer)
  except KeyboardInterrupt:
    name = interrupts.command_name()
    print(f"{name}: interrupted; the same command resumes from its checkpoint")
    sys.exit(128 + signal.SIGINT)
  sys.exit(0 if finished else loop.INTERRUPTED)


def start() -> None:
  """Run the command."""
  cli.run_script(define_flags, main, __doc__ or "")
