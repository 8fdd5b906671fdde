"""Import your own clips: a folder of files and their captions to a dataset.

  python -m ovi_jax.data.from_files --clips=FOLDER --captions=FILE.csv --out=DIR
    [--size=HEIGHTxWIDTH --fit=crop|pad|keep] [--frames=121 | --seconds=5]
    [--short_clips=keep|pad|refuse] [--long_clips=first|center|split]
  python -m ovi_jax.data.from_files --audio_only --clips=FOLDER …

The table (CSV or TSV) has the columns `path` and `caption`, and may have
`split` (train or test). Files without a row take their caption from a text file
of the same name. Video is resampled to 24 fps by time stamps, audio to 16 kHz
mono. Nothing is filtered for quality. After an interruption, run the same
command again. Refused files are listed at the end with the reasons. A report
and a contact sheet are written to DIR.import. See docs/how_to/own_clips.md.
"""

import os
import pathlib
import signal
import sys
from typing import Any

from absl import flags

from ovi_jax import cli
from ovi_jax import geometry
from ovi_jax.data import builder
from ovi_jax.data import shards
from ovi_jax.data.from_files import run
from ovi_jax.data.from_files import settings as settings_lib

FLAGS = flags.FLAGS
_SAME = (
  "captions",
  "audio_only",
  "fit",
  "short_clips",
  "long_clips",
  "variant",
  "require_audio",
  "max_upscale",
  "eval_fraction",
  "seed",
  "records_per_shard",
)


def main() -> None:
  try:
    cli.require_flags(FLAGS, clips="FOLDER", out="DIR")
    run.run(_settings())
  except KeyboardInterrupt:
    print(
      "from_files: interrupted; run the same command to resume", file=sys.stderr
    )
    sys.exit(128 + signal.SIGINT)


def _settings() -> settings_lib.Settings:
  """Settings from the flags."""
  values: dict[str, Any] = {name: FLAGS[name].value for name in _SAME}
  out = shards.locate(FLAGS.out)
  if out.name in ("", ".."):
    raise ValueError(f"--out: expected a folder to make, got {FLAGS.out!r}")
  height, width = settings_lib.size_of(FLAGS.size)
  seconds = FLAGS.seconds
  if FLAGS.audio_only:
    if FLAGS.frames is not None:
      raise ValueError("--frames: audio has no frames; use --seconds")
    if seconds is not None:
      values["seconds"] = seconds
    for name in ("size", "fit", "max_upscale"):
      if FLAGS[name].present:
        raise ValueError(f"--{name}: not with --audio_only; leave it out")
  elif seconds is not None:
    if FLAGS.frames is not None:
      raise ValueError("--frames, --seconds: pass one of them")
    values["frames"] = settings_lib.frames_of(seconds)
  elif FLAGS.frames is not None:
    values["frames"] = FLAGS.frames
  workers = FLAGS.num_workers
  if workers == -1:
    # Where the system can tell, those this process may use.
    cores = getattr(
      os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1)
    )
    workers = len(cores(0))
  return settings_lib.Settings(
    clips=pathlib.Path(FLAGS.clips),
    out=out,
    height=height,
    width=width,
    num_workers=workers,
    **values,
  )


if __name__ == "__main__":
  flags.DEFINE_string("clips", "", "Folder of video or audio files.")
  flags.DEFINE_string(
    "captions", "", "Table with the columns path and caption."
  )
  flags.DEFINE_string("out", "", "Dataset to write.")
  flags.DEFINE_boolean("audio_only", False, "Import audio only.")
  flags.DEFINE_string(
    "size", "704x736", "Size of the frames: HEIGHTxWIDTH, or SIDE of a square."
  )
  flags.DEFINE_enum(
    "fit",
    "crop",
    settings_lib.FITS,
    "Crop the centre, pad with black bars, or keep the aspect at the area of"
    " --size.",
  )
  flags.DEFINE_integer(
    "frames", None, "Frames per clip, 1 + 4·k at 24 fps; default 121."
  )
  flags.DEFINE_float("seconds", None, "Length of a clip, instead of --frames.")
  flags.DEFINE_enum(
    "short_clips",
    "keep",
    settings_lib.SHORT,
    "Short clips: keep their length, pad them, or refuse them.",
  )
  flags.DEFINE_enum(
    "long_clips",
    "first",
    settings_lib.LONG,
    "Long clips: take the first part or the center, or split them.",
  )
  flags.DEFINE_enum(
    "variant",
    "",
    ("", *geometry.VARIANTS),
    "Convert audio tags for this released variant.",
  )
  flags.DEFINE_boolean("require_audio", False, "Refuse clips without audio.")
  flags.DEFINE_float(
    "max_upscale",
    0.0,
    "Refuse clips that must be enlarged by more; 0: no limit.",
  )
  flags.DEFINE_float(
    "eval_fraction", 0.1, "Fraction of files held out, unless the table says."
  )
  flags.DEFINE_integer("seed", 0, "Seed of the choice of held-out files.")
  flags.DEFINE_integer(
    "num_workers", -1, "Processes; -1: one per core, 0: no additional ones."
  )
  flags.DEFINE_integer(
    "records_per_shard",
    builder.RECORDS_PER_SHARD,
    "Records per file of the dataset.",
  )
  cli.run(main)
