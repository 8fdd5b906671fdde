"""A blind preference study of systems: folders of clips of the same prompts.

  python -m ovi_jax.study power [--prompts=50,100] [--raters=3,6]
  python -m ovi_jax.study make --study=study.json --out=DIR
  python -m ovi_jax.study serve --study=DIR [--port=8000]
  python -m ovi_jax.study report --study=DIR --out=REPORT

`make` re-encodes the clips alike under names that tell nothing, `serve` shows
pairs of them to raters on a local web page, `report` analyses the votes, and
`power` says beforehand how many prompts and raters are needed. See
docs/how_to/preference_study.md.
"""

import logging
import pathlib

from absl import flags

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax.study import build
from ovi_jax.study import server
from ovi_jax.study import settings as settings_lib

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


def _serve() -> None:
  try:
    server.serve(_folder(), FLAGS.host, FLAGS.port)
  except KeyboardInterrupt:
    _log.info("stopped; the same command serves the study again")


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
  cli.run(
    _usage,
    make=_make,
    serve=_serve,
  )
