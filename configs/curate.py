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
  ("probe", ("probe",)),
  ("dedup", ("dedup",)),
  ("shots", ("shots",)),
  ("clips", ("motion", "quality", "face_tracks", "vad", "encode")),
  ("av_sync", ("av_sync",)),
  # Before captions, which cost the most.
  ("balance", ("balance",)),
  ("captions", ("captions",)),
  ("pack", ("pack",)),
)
AUDIO = (
  ("probe", ("probe",)),
  ("dedup", ("dedup",)),
  ("clips", ("audio_segments", "vad", "encode")),
  ("captions", ("captions",)),
  ("pack", ("pack",)),
)
MINI_AREA = 64 * 64  # what the stages of training have at :mini
KINDS = ("", "mini", "audio", "audio-mini")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in KINDS:
    raise ValueError(
      f"config {arg!r} is unknown; give one of"
      f" {', '.join(':' + kind for kind in KINDS[1:])}, or nothing"
    )
  passes = AUDIO if arg.startswith("audio") else VIDEO
  config = ml_collections.ConfigDict()
  config.inputs = ("",)
  config.out = ""
  config.shard_size = 16  # files; a crash repeats a shard
  config.append = False  # make shards of files that were not there before
  config.report = True
  config.passes = passes
  config.skip = ()  # stages to leave out, such as ("synchrony",)
  config.num_workers = 0  # a process for each core
  config.timeout = 300.0  # seconds for a stage and a clip
  # Of all captions asked for at once: each request has time-outs of its own.
  config.stage_timeouts = {"captions": 86_400.0}
  if passes is VIDEO:
    config.stage_timeouts.shots = 7200.0  # It sees all of a film.
  config.max_failure_rate = 0.1  # of a stage's clips in a shard may fail
  config.stages = {
    name: settings.default_config(name) for _, names in passes for name in names
  }
  if passes is AUDIO:
    config.stages.probe.require_video = False
    config.stages.probe.min_seconds = (
      config.stages.audio_segments.min_long_seconds
    )
  if arg.endswith("mini"):
    _make_mini(config)
  return config


def _make_mini(config: ml_collections.ConfigDict) -> None:
  """Take small media, and no weights but those that packages bring."""
  config.shard_size = 2
  if "av_sync" in config.stages:
    config.stages.probe.min_area = MINI_AREA
    config.stages.encode.target_area = MINI_AREA
    config.stages.av_sync.if_missing = "pass"
