"""Curation: raw media to the records that training reads.

  python -m ovi_jax.curation --config=configs/curate.py
    --config.inputs="('FOLDER',)" --config.out=DIR
    --config.stages.captions.url=http://HOST:8000/v1
    --config.stages.captions.model=MODEL
  python -m ovi_jax.curation --config=configs/curate.py:sounds …

Windows of 121 frames with their sound; `:sounds` for corpora of sound alone;
`:mini` and `:sounds-mini` take small media too, and pass clips by whose
synchrony no weights are there to test, to try it on any machine.
Fields of each stage are its module's `Config` (ovi_jax/curation/stages/), with
its defaults, which are the paper's where it gives them. Any machine; a core
does about what docs/curation.md says, synchrony wants an accelerator, captions
an endpoint. The result is a dataset in OUT/pack-…/records, and OUT/report.html.
"""

import ml_collections

from ovi_jax.curation.engine import settings

VIDEO = (
  # Media are decoded once in a pass; what needs many clips at once is alone.
  ("files", ("probe",)),
  ("copies", ("distinct",)),
  ("windows", ("shots",)),
  ("clips", ("motion", "look", "people", "speech", "cut")),
  ("sync", ("synchrony",)),
  # Before captions, which cost the most.
  ("shares", ("balance",)),
  ("captions", ("captions",)),
  ("pack", ("pack",)),
)
SOUNDS = (
  ("files", ("probe",)),
  ("copies", ("distinct",)),
  ("clips", ("sounds", "speech", "cut")),
  ("captions", ("captions",)),
  ("pack", ("pack",)),
)
MINI_AREA = 64 * 64  # what the stages of training have at :mini
KINDS = ("", "mini", "sounds", "sounds-mini")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in KINDS:
    raise ValueError(
      f"config {arg!r} is unknown; give one of"
      f" {', '.join(':' + kind for kind in KINDS[1:])}, or nothing"
    )
  passes = SOUNDS if arg.startswith("sounds") else VIDEO
  config = ml_collections.ConfigDict()
  config.inputs = ("",)
  config.out = ""
  config.shard_size = 16  # files; a crash repeats a shard
  config.append = False  # make shards of files that were not there before
  config.report = True
  config.passes = passes
  config.skip = ()  # stages to leave out, such as ("synchrony",)
  config.workers = 0  # a process for each core
  config.timeout = 300.0  # seconds for a stage and a clip
  # Of all captions asked for at once: each request has time-outs of its own.
  config.timeouts = {"captions": 86_400.0}
  if passes is VIDEO:
    config.timeouts.shots = 7200.0  # It sees all of a film.
  config.quota = 0.1  # of a stage's clips in a shard may fail
  config.stages = {
    name: settings.stage_fields(name) for _, names in passes for name in names
  }
  if passes is SOUNDS:
    config.stages.probe.video = False
    config.stages.probe.least_seconds = config.stages.sounds.shortest
  if arg.endswith("mini"):
    _make_mini(config)
  return config


def _make_mini(config: ml_collections.ConfigDict) -> None:
  """Take small media, and no weights but those that packages bring."""
  config.shard_size = 2
  if "synchrony" in config.stages:
    config.stages.probe.least_area = MINI_AREA
    config.stages.cut.area = MINI_AREA
    config.stages.synchrony.without_weights = "pass"
