"""Score generated clips of the world; write prompts to generate them from.

Write prompts, generate clips from them, score the clips; or score codecs:

  python -m ovi_jax.synthetic.evaluation prompts --out=FILE.csv
    [--count=64 --seed=1000] [--pairs=seen|held_out|all]
    [--trained=SEED:CLIPS[:WHAT],…]
  python sample.py --prompts=FILE.csv --out=DIR …
  python -m ovi_jax.synthetic.evaluation --clips=DIR [--out=FILE.json]
    [--markdown=FILE.md]
  python -m ovi_jax.synthetic.evaluation codecs --weights=DIR
    [--count=64 --seed=1000] [--out=FILE.json] [--markdown=FILE.md]
  python -m ovi_jax.synthetic.evaluation voices --out=DIR [--count=64
    --seed=1000]
  python -m ovi_jax.synthetic.evaluation voices --clips=DIR [--markdown=FILE.md]
  python -m ovi_jax.synthetic.evaluation correlate [--count=64 --seed=1000]
    [--out=FILE.json] [--markdown=FILE.md]
"""

import json

from absl import flags

from ovi_jax import cli
from ovi_jax import files
from ovi_jax import storage
from ovi_jax.synthetic.evaluation import calibration
from ovi_jax.synthetic.evaluation import metric_correlation
from ovi_jax.synthetic.evaluation import prompts
from ovi_jax.synthetic.evaluation import report
from ovi_jax.synthetic.evaluation import voices
from ovi_jax.synthetic.evaluation import weights
from ovi_jax.synthetic.world import world

FLAGS = flags.FLAGS


def _draw() -> None:
  cli.require_flags(FLAGS, out="FILE.csv")
  path = storage.locate(FLAGS.out)
  trained = [prompts.Trained.parse(text) for text in FLAGS.trained]
  texts = prompts.draw(FLAGS.count, FLAGS.seed, FLAGS.pairs, trained)
  prompts.write(path, texts, FLAGS.seed)
  print(f"wrote {path}")


def _score() -> None:
  if not FLAGS.clips:
    raise ValueError(
      "--clips=DIR is needed: a folder that sample.py wrote clips to; or say"
      " 'prompts' to write prompts, 'calibrate' to score the world's own clips"
    )
  clips = report.read(storage.local(FLAGS.clips))
  table = report.score(clips)
  text = report.markdown(table)
  _write(json.dumps(report.plain(clips, table), indent=1) + "\n", text)


def _write(plain: str, text: str) -> None:
  """Write JSON and table to the files of the flags, and print the table."""
  for name, content in ((FLAGS.out, plain), (FLAGS.markdown, text)):
    if name:
      with files.atomic_path(storage.locate(name)) as temporary:
        temporary.write_text(content, "utf-8")
  print(text, end="")


def _calibrate() -> None:
  table = calibration.calibrate(FLAGS.count, FLAGS.seed, worn=FLAGS.worn)
  print(report.markdown(table), end="")


def _codecs() -> None:
  cli.require_flags(FLAGS, weights="DIR")
  found = weights.losses(storage.locate(FLAGS.weights), FLAGS.count, FLAGS.seed)
  losses = {name: loss._asdict() for name, loss in found.items()}
  _write(json.dumps(losses, indent=2) + "\n", weights.markdown(found))


def _voices() -> None:
  if not FLAGS.clips:
    cli.require_flags(FLAGS, out="DIR")
    voices.write(storage.local(FLAGS.out), FLAGS.count, FLAGS.seed)
    print(f"wrote {FLAGS.out}")
    return
  table = voices.score(storage.local(FLAGS.clips))
  _write(
    json.dumps(report.plain([], table), indent=1) + "\n", report.markdown(table)
  )


def _correlate() -> None:
  found = metric_correlation.correlate(FLAGS.count, FLAGS.seed)
  plain = json.dumps([each._asdict() for each in found], indent=1)
  _write(plain + "\n", metric_correlation.markdown(found))


if __name__ == "__main__":
  flags.DEFINE_string(
    "clips", "", "Folder of mp4 files, each with its JSON file."
  )
  flags.DEFINE_string("weights", "", "Weights whose codecs are scored.")
  flags.DEFINE_string(
    "out", "", "JSON report to write; with `prompts`, the CSV."
  )
  flags.DEFINE_string("markdown", "", "Markdown file for the table.")
  flags.DEFINE_integer(
    "count", 64, "Number of prompts to write, or of clips to score."
  )
  flags.DEFINE_integer("seed", 1000, "Seed of the world.")
  flags.DEFINE_list(
    "trained",
    [],
    "SEED:CLIPS or SEED:CLIPS:WHAT, separated by commas: exclude the captions"
    " of the first CLIPS clips of world SEED (of its subset WHAT).",
  )
  flags.DEFINE_bool("worn", False, "Blur the clips and add noise.")
  flags.DEFINE_enum(
    "pairs",
    world.SEEN,
    (world.SEEN, world.UNSEEN, world.ALL),
    "Pairs of a colour and a sound: trained, held out, or all.",
  )
  commands = {
    "prompts": _draw,
    "calibrate": _calibrate,
    "codecs": _codecs,
    "correlate": _correlate,
    "voices": _voices,
  }
  cli.run(_score, commands)
