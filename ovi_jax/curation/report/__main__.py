"""Writes the report of a run, which may be incomplete.

Takes the config of the run:

  python -m ovi_jax.curation.report --config=configs/curate.py
    --config.out=DIR
"""

from absl import flags

from ovi_jax import cli
from ovi_jax import config_files
from ovi_jax.curation.engine import settings

FLAGS = flags.FLAGS


def main() -> None:
  try:
    # Imported here: it needs the extra.
    from ovi_jax.curation.report import document

    if FLAGS.config is None:
      raise ValueError("--config=curate is needed")
    print(document.write(settings.Settings.from_config(FLAGS.config)))
  except ImportError as error:
    cli.exit_with_error(error)


if __name__ == "__main__":
  config_files.define()
  cli.run(main)
