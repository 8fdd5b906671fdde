"""Curation: raw media to training records.

  python -m ovi_jax.curation --config=configs/curate.py
    --config.inputs="('FOLDER',)" --config.out=DIR
    --config.stages.captions.url=http://HOST:8000/v1
    --config.stages.captions.model=MODEL
  python -m ovi_jax.curation --config=configs/curate.py:audio …

The default config makes windows of 121 frames with audio; `:audio` is for audio
without video. `:mini` and `:audio-mini` are for trying the pipeline on any
machine: they accept small media, and without lip-sync weights they keep all
clips untested. The fields of a stage are those of its module's `Config`
(ovi_jax/curation/stages/); defaults follow the paper where it gives values.
docs/explanation/curation.md has costs. The outputs are OUT/pack-…/records and
OUT/report.html.
"""

from typing import Any

import ml_collections

from ovi_jax.curation.engine import settings

VIDEO = (
  # Media is decoded once per pass; batch and global stages have their own.
  ("probe", ("probe",)),
  ("dedup", ("dedup",)),
  ("shots", ("shots",)),
  ("clips", ("motion", "quality", "face_tracks", "vad", "encode")),
  ("av_sync", ("av_sync",)),
  # Before captions, the most expensive stage.
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
MINI_AREA = 64 * 64  # matches the training configs of :mini
KINDS = ("", "mini", "audio", "audio-mini")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in KINDS:
    raise ValueError(
      f"config {arg!r} is unknown; use one of"
      f" {', '.join(':' + kind for kind in KINDS[1:])}, or nothing"
    )
  passes = AUDIO if arg.startswith("audio") else VIDEO
  config: Any = ml_collections.ConfigDict()
  config.inputs = ("",)
  config.out = ""
  config.shard_size = (
    16  # input files per shard; an interrupted shard is repeated
  )
  config.append = False  # add new inputs as further shards
  config.report = True
  config.passes = passes
  config.skip = ()  # stages to leave out, such as ("av_sync",)
  config.num_workers = 0  # 0: one per core
  config.timeout = 300.0  # seconds per stage and clip
  # For a batch of captions; each request has its own time limits.
  timeouts = {"captions": 86_400.0}
  if passes is VIDEO:
    timeouts["shots"] = 7200.0  # reads whole files
  config.stage_timeouts = timeouts
  config.max_failure_rate = 0.1  # per stage and shard
  stages: Any = ml_collections.ConfigDict(
    {
      name: settings.default_config(name)
      for _, names in passes
      for name in names
    }
  )
  if passes is AUDIO:
    stages.probe.require_video = False
    stages.probe.min_seconds = stages.audio_segments.min_long_seconds
  config.stages = stages
  if arg.endswith("mini"):
    _make_mini(config)
  return config


def _make_mini(config: Any) -> None:
  """Accept small media, and need only weights that come with packages."""
  config.shard_size = 2
  if "av_sync" in config.stages:
    config.stages.probe.min_area = MINI_AREA
    config.stages.encode.target_area = MINI_AREA
    config.stages.av_sync.if_missing = "pass"
