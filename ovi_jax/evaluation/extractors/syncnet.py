"""Lip sync by SyncNet, with the faces and the network of curation.

Arrays: `faces`, share of the time with a tracked face; and if a track is long
enough `confidence` (LSE-C), `distance` (LSE-D) and `seconds`, by which the
sound is early, all of the face with the highest confidence.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ovi_jax.curation import clip as curation_clip
from ovi_jax.curation.faces import crops
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.stages import av_sync
from ovi_jax.curation.stages import face_tracks
from ovi_jax.curation.sync import lip_sync
from ovi_jax.curation.sync import mfcc
from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.media import container

MIN_WINDOWS = 25  # of a track
_BATCH = 8  # chunks of 20 windows
_MAX_LEVEL = 32_767


def syncnet(
  path: str, faces: face_tracks.Config | None = None
) -> features.Extractor:
  """The extractor.

  Args:
    path: SyncNet's weights; "" for none, then it is `missing`.
    faces: how faces are found.

  Raises:
    ValueError: there is no such file.
  """
  config = faces or face_tracks.Config()
  problems = [line.split(";")[0] for line in _problems(path, config)]
  return features.Extractor(
    name="syncnet",
    version=2,
    needs=(clips.PICTURE, clips.SOUND),
    settings={
      "faces": dataclasses.asdict(config)
      if problems
      else face_tracks.fingerprint(config),
      "min_windows": MIN_WINDOWS,
    },
    weights=container.digest(container.given("--weights=syncnet", path))
    if path
    else "",
    missing="; ".join(problems),
    load=lambda: _load(path, config),
  )


def _problems(path: str, config: face_tracks.Config) -> list[str]:
  problems = face_tracks.missing_requirements(config)
  if not path:
    problems.append("needs SyncNet's weights: --weights=syncnet=FILE")
  return problems


def _load(path: str, config: face_tracks.Config) -> features.Compute:
  embed = av_sync.load_network(path)
  find_faces = face_tracks.load(config)

  def score(media: clips.Media) -> features.Arrays:
    if media.source.noise:  # which has no faces
      return {"faces": np.float64(0)}
    seconds = len(media.frames_THWC) / media.fps
    clip = curation_clip.Clip(
      id=media.source.name,
      path=str(media.source.clip.path),
      # The file begins with its sound if that is earlier than the picture.
      start=max(0.0, -media.source.clip.sound_start),
      seconds=seconds,
    )
    decoded = clip_media.Media(clip, media.source.clip.path)
    tracks = find_faces(clip, decoded).facts[face_tracks.NAME]["tracks"]
    made = crops.crop_tracks(decoded.frames_25fps, tracks)
    seen = np.zeros(len(decoded.frames_25fps), bool)
    for track in made:
      seen[track.first : track.first + len(track.frames_THWC)] = True
    arrays = {"faces": np.float64(seen.mean())}
    wave_A = media.mono(mfcc.RATE)
    samples_A = np.rint(wave_A * _MAX_LEVEL).astype(np.int16)
    windows = [lip_sync.make_windows(track, samples_A) for track in made]
    scores = [
      av_sync.score_windows(each, embed, _BATCH)
      for each in windows
      if len(each.sound_TKM) >= MIN_WINDOWS
    ]
    if scores:
      best = max(scores, key=lambda found: found.confidence)
      arrays["confidence"] = np.float64(best.confidence)
      arrays["distance"] = np.float64(best.distance)
      arrays["seconds"] = np.float64(best.offset / crops.FPS)
    return arrays

  def compute(media: Sequence[clips.Media]) -> list[features.Arrays]:
    return [score(each) for each in media]

  return compute
