"""Score clips of any model, side by side, with intervals and checks.

  python -m ovi_jax.evaluation run --clips=[NAME=]DIR,… --out=DIR
    [--reference=DIR] [--protocol=basic,…] [--prompts=FILE.csv]
    [--weights=EXTRACTOR=PATH,…] [--extractors=package.module:function,…]
    [--features=NAME=DIR,…] [--cache=DIR] [--sanity_clips=64]

  python -m ovi_jax.evaluation import-features --source=DIR,… --out=DIR
  python -m ovi_jax.evaluation convert-list --format=audiocaps --source=FILE
    --out=FILE.csv [--audio_line] [--seed=0]

Each folder has the clips of one system (mp4 or other video, or sound files);
clips of the same prompt have the same name in all folders. The report
(report.md, report.json, report.html) is written to --out, and the features of
the clips to its folder `features`, from where later runs take them. The second
command converts caches of av-benchmark for --features, the third public lists
of prompts for sample.py and --prompts.
See docs/how_to/evaluate_clips.md.
"""

import pathlib

from absl import flags

from ovi_jax import cli
from ovi_jax import prompt as prompts
from ovi_jax import storage
from ovi_jax.evaluation import av_benchmark
from ovi_jax.evaluation import intervals
from ovi_jax.evaluation import lists
from ovi_jax.evaluation import protocols
from ovi_jax.evaluation import report
from ovi_jax.evaluation import run

FLAGS = flags.FLAGS
_CACHE = "features"


def _usage() -> None:
  raise ValueError(
    "expected a command: run, import-features or convert-list; see"
    " python -m ovi_jax.evaluation --help"
  )


def _run() -> None:
  cli.require_flags(FLAGS, clips="DIR", out="DIR")
  out = storage.locate(FLAGS.out)
  if not FLAGS.cache and storage.is_remote(out):
    raise ValueError("--cache=DIR is needed: features are kept on this machine")
  settings = run.Settings(
    systems=systems(FLAGS.clips),
    reference=storage.local(FLAGS.reference) if FLAGS.reference else None,
    cache=storage.local(FLAGS.cache or out / _CACHE),
    protocols=tuple(FLAGS.protocol),
    prompts=(
      lists.read_prompts(storage.locate(FLAGS.prompts))
      if FLAGS.prompts
      else lists.PromptTable()
    ),
    weights=_pairs("weights", FLAGS.weights),
    extractors=tuple(FLAGS.extractors),
    imported={
      name: storage.local(path)
      for name, path in _pairs("features", FLAGS.features).items()
    },
    sanity_clips=FLAGS.sanity_clips,
    draws=FLAGS.bootstrap,
    set_draws=min(FLAGS.bootstrap, run.SET_DRAWS),
    seed=FLAGS.seed,
  )
  result = run.run(settings)
  report.write(out, result, FLAGS.examples)
  print(report.markdown(result), end="")


def _import() -> None:
  cli.require_flags(FLAGS, source="DIR", out="DIR")
  caches = [storage.local(path) for path in FLAGS.source]
  counts = av_benchmark.convert(caches, storage.local(FLAGS.out))
  for name, count in counts.items():
    print(f"{name}: {count} clips")


def _convert_list() -> None:
  cli.require_flags(FLAGS, source="FILE", out="FILE.csv")
  if len(FLAGS.source) != 1:
    raise ValueError("--source: expected one file")
  count = lists.convert(
    storage.local(FLAGS.source[0]),
    FLAGS.format,
    storage.locate(FLAGS.out),
    audio_tag=prompts.SOUND_LINE if FLAGS.audio_line else prompts.SOUND,
    seed=FLAGS.seed,
  )
  print(f"wrote {count} prompts to {FLAGS.out}")


def systems(given: list[str]) -> dict[str, pathlib.Path]:
  """Folders by system from `DIR` or `NAME=DIR`.

  Raises:
    ValueError: two systems have one name.
  """
  found: dict[str, pathlib.Path] = {}
  for text in given:
    name, equals, path = text.partition("=")
    folder = storage.local(path if equals else text)
    name = name if equals else folder.resolve().name
    if not name or name in found:
      raise ValueError(
        f"--clips: two systems have the name {name!r}; give --clips=NAME=DIR,…"
      )
    found[name] = folder
  return found


def _pairs(flag: str, given: list[str]) -> dict[str, str]:
  """`NAME=VALUE` texts of a flag."""
  found: dict[str, str] = {}
  for text in given:
    name, equals, value = text.partition("=")
    if not (name and equals and value) or name in found:
      raise ValueError(f"--{flag}: expected NAME=PATH once each, got {text!r}")
    found[name] = value
  return found


if __name__ == "__main__":
  flags.DEFINE_list("clips", [], "Folders of clips: DIR or NAME=DIR.")
  flags.DEFINE_string("reference", "", "Folder of true clips.")
  flags.DEFINE_string("out", "", "Folder of the report.")
  flags.DEFINE_list(
    "protocol",
    ["basic"],
    "Protocols, by name or as JSON files: " + ", ".join(protocols.known()),
  )
  flags.DEFINE_string(
    "prompts", "", "Table with the columns name, text_prompt and seed."
  )
  flags.DEFINE_list("weights", [], "EXTRACTOR=PATH of weights.")
  flags.DEFINE_list("extractors", [], "Further extractors by dotted path.")
  flags.DEFINE_list(
    "features", [], "NAME=DIR of imported features of a system or reference."
  )
  flags.DEFINE_string("cache", "", "Folder of features; OUT/features if empty.")
  flags.DEFINE_integer(
    "sanity_clips", 64, "Clips of which distorted versions are scored."
  )
  flags.DEFINE_integer(
    "bootstrap",
    intervals.DRAWS,
    f"Bootstrap resamplings; of FD, KID and IS at most {run.SET_DRAWS}.",
  )
  flags.DEFINE_integer(
    "seed", 0, "Seed of the resamplings, or of the first prompt of a list."
  )
  flags.DEFINE_integer("examples", 4, "Clips that the HTML page shows.")
  flags.DEFINE_list(
    "source", [], "Caches of av-benchmark, or a list, to convert."
  )
  flags.DEFINE_enum(
    "format", "verse_bench", list(lists.FORMATS), "Format of the list."
  )
  flags.DEFINE_bool(
    "audio_line",
    False,
    "Write sounds after `Audio:`, not between <AUDCAP> and <ENDAUDCAP>.",
  )
  commands = {
    "run": _run,
    "import-features": _import,
    "convert-list": _convert_list,
  }
  cli.run(_usage, commands)
