"""Latents of given files, which are encoded before the DiT is loaded."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.modality import AV
from ovi_jax.pretrained import encoders
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import given_media
from ovi_jax.sampling import job_errors
from ovi_jax.sampling import planning
from ovi_jax.sampling import windows as windows_lib


class Encoded(NamedTuple):
  """Latents of a clip's given files, on the host.

  Attributes:
    given: clean video_THWC and audio_TC, where the clip is given any.
    voice_RC: of the reference voice, or `None`.
  """

  given: AV[np.ndarray]
  voice_RC: np.ndarray | None


EncodedOf = Callable[[planning.Job], Encoded]


@dataclasses.dataclass(frozen=True)
class GivenEncoder:
  """Encodes the files of planned clips.

  Attributes:
    components: the opened weights.
    load: gives a component by name, made by a function unless it is kept.
  """

  components: denoisers.SamplingComponents
  load: Callable[[str, Callable[[], Any]], Any]

  @contextlib.contextmanager
  def encoded(self, jobs: Sequence[planning.Job]) -> Iterator[EncodedOf]:
    """Encode given files; their latents wait on disk, not in memory.

    Yields:
      A function of the latents of a clip.
    """
    with storage.spool() as folder:
      paths: dict[Any, AV[Any]] = {}
      for name, load, encode in (
        ("video", encoders.VideoEncoder.load, self._encode_video),
        ("audio", encoders.AudioEncoder.load, self._encode_audio),
      ):
        by_files = {
          _files(job): job
          for job in jobs
          if getattr(job.given, name) is not None
        }
        saved = self._save(name, by_files, load, encode, folder)
        for files, path in saved.items():
          paths[files] = paths.get(files, AV())._replace(**{name: path})
      voices = self._save(
        "voice",
        {_voice(job): job for job in jobs if job.voice_latents},
        encoders.AudioEncoder.load,
        self._encode_voice,
        folder,
      )

      def read(job: planning.Job) -> Encoded:
        given = jax.tree.map(np.load, paths.get(_files(job), AV()))
        voice = voices.get(_voice(job))
        return Encoded(given, None if voice is None else np.load(voice))

      yield read

  def _save(
    self,
    name: str,
    jobs: Mapping[Any, planning.Job],
    load: Callable[[Any], Any],
    encode: Callable[[planning.Job, Any], np.ndarray],
    folder: pathlib.Path,
  ) -> dict[Any, pathlib.Path]:
    """Encode one kind of given files; the encoder is freed at the end."""
    if not jobs:
      return {}
    modality = "video" if name == "video" else "audio"
    encoder = self.load(f"{modality}_encoder", lambda: load(self.components))
    paths = {}
    for number, (files, job) in enumerate(jobs.items()):
      paths[files] = folder / f"{name}_{number}.npy"
      with job_errors.named(job):
        np.save(paths[files], encode(job, encoder))
    return paths

  def _encode_video(
    self, job: planning.Job, encoder: encoders.VideoEncoder
  ) -> np.ndarray:
    request, area = job.request, self.components.geometry.area
    if job.extended is not None and request.given.extend is not None:
      latents_THWC = given_media.encode_extended(
        request.given.extend, job.extended, job.clip, encoder
      )
    else:
      latents_THWC = given_media.encode_video(
        request.image, request.given, job.clip, area, encoder
      )
    return self.components.require_finite(latents_THWC, "video_vae")

  def _encode_audio(
    self, job: planning.Job, encoder: encoders.AudioEncoder
  ) -> np.ndarray:
    given = job.request.given
    if job.extended is not None and given.extend is not None:
      latents_TC = given_media.encode_extended_audio(
        given.extend, job.extended, job.clip, encoder
      )
    else:
      latents_TC = given_media.encode_audio(given, job.clip, encoder)
    return self.components.require_finite(latents_TC, "audio_vae")

  def _encode_voice(
    self, job: planning.Job, encoder: encoders.AudioEncoder
  ) -> np.ndarray:
    path, voice = _voice(job)
    latents_RC = given_media.encode_voice(path, voice, encoder)
    return self.components.require_finite(latents_RC, "audio_vae")


def _voice(job: planning.Job) -> Any:
  """What the latents of a reference voice depend on."""
  return job.request.given.voice, job.request.voice


def _files(job: planning.Job) -> Any:
  """What the given latents of a clip depend on."""
  given = job.request.given
  spans = tuple(each for each in given.spans if each[0] != "voice")
  given = dataclasses.replace(given, voice=None, spans=spans)
  return job.request.image, given, job.clip, job.extended


def before(job: planning.Job) -> windows_lib.Before | None:
  """The extended file of a clip."""
  end, path = job.extended, job.request.given.extend
  if end is None or path is None:
    return None
  audio_T, samples = job.given.audio, geometry.SAMPLES_PER_AUDIO_LATENT
  # As many at the beginning as are given without a gap.
  count = (
    0 if audio_T is None else int(np.logical_and.accumulate(audio_T).sum())
  )
  return windows_lib.Before(
    frames=lambda: given_media.frames_of(
      "extend", path, (end.offset, math.inf), end.frames, job.clip
    ),
    count=end.frames,
    wave=given_media.wave_of(path, end.offset, end.frames / geometry.FPS),
    overlap=end.overlap,
    sound_given=samples * count,
  )
