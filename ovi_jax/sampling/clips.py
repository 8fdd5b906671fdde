"""Generated clips, and clips that are decoded when they are first read."""

import base64
import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.modality import AV
from ovi_jax.pretrained import decoders
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import outputs
from ovi_jax.sampling import planning
from ovi_jax.sampling import windows as windows_lib


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Clip:
  """A video with its sound, or one alone.

  Attributes:
    video: uint8 RGB frames [T, H, W, 3]; `None` of sound alone.
    audio: float32 samples [A] in [-1, 1], mono; `None` of video alone.
    fps: frames a second.
    sample_rate: samples a second.
    latents: video_THWC and audio_TC that the clip was decoded from, float32.
    metadata: all that decides what the clip is, as in the JSON of `sample.py`.
  """

  video: Any
  audio: Any
  fps: float = geometry.FPS
  sample_rate: int = geometry.SAMPLE_RATE
  latents: AV[np.ndarray]
  metadata: Mapping[str, Any]

  def save(self, path: str | os.PathLike[str]) -> storage.AnyPath:
    """Write an mp4 (H.264, AAC) and, beside it, the metadata as JSON.

    Args:
      path: of the mp4, or of a wav for sound alone; its folder is created.

    Returns:
      The path.

    Raises:
      ValueError: the name does not end in .mp4, or .wav for sound alone.
      OSError: it cannot be written; no file is left half written.
    """
    path = storage.locate(path)
    if path.suffix.lower() != self._ending:
      raise ValueError(f"expected a name that ends in {self._ending}: {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = None if self.video is None else iter([self.video])
    outputs.write(path, self.metadata, frames, self.audio, None)
    return path

  @property
  def _ending(self) -> str:
    """Of its file's name."""
    return ".wav" if self.video is None else ".mp4"

  def __repr__(self) -> str:
    parts = []
    if self.video is not None:
      count, height, width, _ = self.video.shape
      parts.append(f"{width}x{height}, {count} frames at {self.fps:g} fps")
    if self.audio is not None:
      parts.append(f"{len(self.audio) / self.sample_rate:.2f} s of sound")
    return f"Clip({', '.join(parts)}, seed {self.metadata.get('seed')})"

  def _repr_html_(self) -> str:
    """A player, with the file inside: how a notebook shows a clip."""
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / f"clip{self._ending}"
      self.save(path)
      data = path.read_bytes()
    encoded = base64.b64encode(data).decode("ascii")
    if self.video is None:
      return f'<audio controls src="data:audio/wav;base64,{encoded}"></audio>'
    return (
      f'<video controls loop src="data:video/mp4;base64,{encoded}"></video>'
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Made:
  """A clip that is denoised; it is decoded when it is first read.

  Attributes:
    job: what was asked for.
    latents: video_BTHWC and audio_BTC, B = 1, float32, on the devices; not of a
      long clip.
    decoder: of latents.
    measure: attention maps of the clip, if they were asked for.
    long: a clip in windows, which are denoised while its frames are read.
  """

  job: planning.Job
  latents: AV[Any] = dataclasses.field(default_factory=AV)
  decoder: decoders.Decoder
  measure: Callable[[], attention_maps.Maps] | None = None
  long: windows_lib.LongClip | None = None

  @property
  def metadata(self) -> dict[str, Any]:
    """What decides what the clip is, for the JSON beside it."""
    kind = jax.devices()[0].device_kind
    return self.job.recipe | {"device": kind, "jax": jax.__version__}

  @functools.cached_property
  def clip(self) -> Clip:
    """The clip, on the host."""
    if self.long is None:
      video = audio = None
      if self.latents.video is not None:
        video = np.concatenate(list(self.decoder.frames(self.latents.video)))
      if self.latents.audio is not None:
        audio = self.decoder.wave(self.latents.audio)
      latents = jax.tree.map(lambda a: np.asarray(a[0]), self.latents)
    else:
      video = np.concatenate(list(self.long.frames(keep_latents=True)))
      audio, latents = self.long.take_sound(), self.long.joined_latents()
    return Clip(
      video=video, audio=audio, latents=latents, metadata=self.metadata
    )

  def stream(
    self, keep_latents: bool = False
  ) -> tuple[Any, Any, Callable[[], AV[np.ndarray]]]:
    """Frames and sound as `mp4.write` takes them.

    Args:
      keep_latents: keep those of a long clip in memory.

    Returns:
      Chunks of frames; the wave, or a function of its parts; `None` for what is
      not generated; and a function of the latents, for when all frames are
      read.
    """
    if self.long is not None:
      frames = self.long.frames(keep_latents)
      return frames, self.long.take_sound, self.long.joined_latents
    clip = self.clip
    frames = None if clip.video is None else iter([clip.video])
    return frames, clip.audio, lambda: clip.latents

  def write(
    self,
    path: storage.AnyPath,
    *,
    save_latents: bool = False,
    seen: outputs.Seen | None = None,
    picture: storage.AnyPath | None = None,
  ) -> storage.AnyPath:
    """Write the files of the clip, see `outputs.write`.

    Args:
      path: of the mp4, or wav.
      save_latents: write the latents beside it.
      seen: see `outputs.write`.
      picture: see `outputs.write`.

    Returns:
      The path; another one if another clip has come under this name.
    """
    frames, wave, latents = self.stream(keep_latents=save_latents)
    kept = latents if save_latents else None
    return outputs.write(
      path,
      self.metadata,
      frames,
      wave,
      kept,
      seen=seen,
      picture=picture,
    )

  @functools.cached_property
  def maps(self) -> attention_maps.Maps | None:
    """The attention maps, on the host."""
    return None if self.measure is None else self.measure()
