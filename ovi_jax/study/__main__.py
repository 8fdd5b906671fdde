"""A blind preference study of systems: folders of clips of the same prompts.

  python -m ovi_jax.study power [--prompts=50,100,200] [--raters=3,6]
    [--win=0.44,0.48,0.56 --loss=0.36,0.32,0.25]
  python -m ovi_jax.study make --study=study.json --out=DIR [--bundle=DIR]
  python -m ovi_jax.study serve --study=DIR [--port=8000]
  python -m ovi_jax.study import --study=DIR --codes=FILE.csv
  python -m ovi_jax.study report --study=DIR --out=REPORT [--pairs=FILE.jsonl]

`make` re-encodes the clips alike under opaque names, `serve` shows
pairs of them to raters on a local web page, `make --bundle` writes a static
copy of the page for crowd platforms and `import` reads its codes, `report`
analyses the votes, and `power` says beforehand how many prompts and raters are
needed. See docs/how_to/preference_study.md.
"""

import logging
import pathlib

from absl import flags

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.study import build
from ovi_jax.study import bundle
from ovi_jax.study import report
from ovi_jax.study import server
from ovi_jax.study import settings as settings_lib
from ovi_jax.study.statistics import power

FLAGS = flags.FLAGS
_log = logging.getLogger(__name__)


def _usage() -> None:
  raise ValueError(
    "expected one of make, serve, report, power, import; see --help"
  )


def _folder() -> pathlib.Path:
  """The folder of a study, from --study."""
  cli.require_flags(FLAGS, study="DIR")
  return storage.local(FLAGS.study)


def _make() -> None:
  cli.require_flags(FLAGS, study="study.json", out="DIR")
  settings = settings_lib.read(storage.local(FLAGS.study))
  folder = storage.local(FLAGS.out)
  study = build.build(settings, folder)
  counts = study.counts
  _log.info(
    "%s: study %s with %d systems, %d prompts, %d pairs and %d gold items; a"
    " session has %d pairs, %d of them gold and %d repeated",
    folder,
    study.hash,
    len(study.clips),
    len(study.prompts),
    len(study.items),
    len(study.gold),
    sum(counts.values()),
    counts["gold"],
    counts["repeat"],
  )
  if FLAGS.bundle:
    number = bundle.write(folder, study, storage.local(FLAGS.bundle))
    _log.info(
      "%s: %d sessions, index.html#session=0 to %d",
      FLAGS.bundle,
      number,
      number - 1,
    )


def _serve() -> None:
  try:
    server.serve(_folder(), FLAGS.host, FLAGS.port)
  except KeyboardInterrupt:
    _log.info("stopped; the same command serves the study again")


def _report() -> None:
  cli.require_flags(FLAGS, out="REPORT")
  out = storage.locate(FLAGS.out)
  pairs = storage.locate(FLAGS.pairs) if FLAGS.pairs else None
  found = report.write(_folder(), out, pairs, FLAGS.seed)
  left_out = sum(bool(check["reasons"]) for check in found["raters"])
  _log.info(
    "%d raters, %d of them left out; wrote %s",
    len(found["raters"]),
    left_out,
    out / "report.html",
  )


def _import() -> None:
  cli.require_flags(FLAGS, codes="FILE.csv")
  found = bundle.import_sessions(_folder(), FLAGS.codes)
  _log.info("%d new sessions, %d were imported before", found.new, found.known)
  if found.problems:
    lines = untrusted.shortened(found.problems, "more codes")
    raise ValueError("\n  ".join(["codes that were left out:", *lines]))


def _power() -> None:
  wins, losses = (_numbers(n, float) for n in ("win", "loss"))
  if len(wins) != len(losses):
    raise ValueError(
      f"--win, --loss: expected as many, got {len(wins)} and {len(losses)}"
    )
  print("| prompts | raters | win | loss | power |\n|---|---|---|---|---|")
  for prompts in _numbers("prompts", int):
    for raters in _numbers("raters", int):
      for win, loss in zip(wins, losses):
        design = power.Design(
          prompts=prompts,
          raters_per_item=raters,
          win=win,
          loss=loss,
          prompt_sd=FLAGS.prompt_sd,
          rater_sd=FLAGS.rater_sd,
        )
        found = power.power(design, seed=FLAGS.seed)
        print(
          f"| {prompts} | {raters} | {win:g} | {loss:g} | {found:.2f} |",
          flush=True,
        )


def _numbers(name: str, kind: type) -> list:
  """The numbers of a list flag."""
  texts = FLAGS[name].value or []
  try:
    return [kind(text) for text in texts]
  except ValueError as error:
    raise ValueError(
      f"--{name}: expected numbers separated by commas, got {','.join(texts)!r}"
    ) from error


if __name__ == "__main__":
  flags.DEFINE_string(
    "study", "", "Study file for make; for other commands the folder of make."
  )
  flags.DEFINE_string("out", "", "Folder or file to write.")
  flags.DEFINE_string(
    "host", "127.0.0.1", "Address to serve at; 0.0.0.0 for other machines."
  )
  flags.DEFINE_integer(
    "port",
    8000,
    "Port to serve at; 0 for any.",
    lower_bound=0,
    upper_bound=65535,
  )
  flags.DEFINE_string(
    "bundle", "", "Folder for a static copy of the page, with make."
  )
  flags.DEFINE_string("codes", "", "Table with a column code, for import.")
  flags.DEFINE_string(
    "pairs", "", "JSON lines of preferred and rejected clips, with report."
  )
  flags.DEFINE_integer("seed", 0, "Seed of bootstrap, tests and simulation.")
  flags.DEFINE_list("prompts", ["50", "100", "200"], "Numbers of prompts.")
  flags.DEFINE_list("raters", ["3", "6"], "Raters of each pair.")
  flags.DEFINE_list("win", ["0.44", "0.48", "0.56"], "True shares of wins.")
  flags.DEFINE_list("loss", ["0.36", "0.32", "0.25"], "True shares of losses.")
  flags.DEFINE_float(
    "prompt_sd", 0.8, "Standard deviation of prompts, in log strength."
  )
  flags.DEFINE_float(
    "rater_sd", 0.2, "Standard deviation of raters, in log strength."
  )
  commands = {
    "make": _make,
    "serve": _serve,
    "report": _report,
    "power": _power,
    "import": _import,
  }
  cli.run(_usage, commands)
