"""Where the sound looks: attention between the towers, measured and drawn.

A finished clip is noised again and shown to the denoiser with its prompt, at a
few noise levels; what the tokens of each tower attend to of the other, mean
over levels, blocks and heads, is a map. It needs no solver, so it can be had
of any clip's latents, generated or not. (The paper shows such maps of its
audio tower; how it took their mean is not known.)
"""

import functools
import pathlib
from typing import Any
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ovi_jax import axes
from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import media
from ovi_jax.diffusion import path as diffusion
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sampling import denoise

LEVELS = (0.2, 0.4, 0.6, 0.8)  # of noise
FOLDER = "attention_maps"  # beside the clips
_HOT_RGB = np.array([255, 60, 0], np.float32)
_OPAQUE = 0.75  # of the hottest place
# Pixels of a latent frame and of an audio step: their seconds, about alike.
_CELL_WIDTH, _CELL_HEIGHT = 16, 3
_MATRIX_GAMMA = 0.5


class Maps(NamedTuple):
  """Shares of attention: over all that one token attends to they add up to 1.

  Attributes:
    audio_STHW: of each audio token over the video's tokens.
    video_THWS: of each video token over the audio's.
  """

  audio_STHW: np.ndarray
  video_THWS: np.ndarray

  @property
  def times(self) -> AV[np.ndarray]:
    """Attention of moments over moments: video_TS and audio_ST."""
    return AV(
      video=self.video_THWS.mean((1, 2)), audio=self.audio_STHW.sum((2, 3))
    )

  def near_diagonal(self, frames: float = 1.0) -> AV[float]:
    """The share that falls on the same time, within some latent frames."""
    times = self.times
    S, T = times.audio.shape
    place_S = geometry.latent_place(_audio_seconds(S))
    near_ST = np.abs(place_S[:, None] - np.arange(T)) <= frames + 1e-6
    audio = (times.audio * near_ST).sum(1).mean()
    video = (times.video * near_ST.T).sum(1).mean()
    return AV(video=float(video), audio=float(audio))


def measure(
  model: fusion.FusionDiT,
  params: Any,
  latents: AV[jax.Array],
  noise: AV[jax.Array],
  text: AV[jax.Array],
  clean_first: bool = False,
) -> Maps:
  """The maps of one clip.

  Args:
    model: with both towers.
    params: its parameters.
    latents: clean video_BTHWC and audio_BTC, B = 1.
    noise: standard normal, in their shapes.
    text: embeddings_BSE of the prompt for each tower.
    clean_first: the first video latent was given, and never noisy.
  """
  grid = model.config.video.grid(latents.video.shape)
  found = [
    _maps(model, clean_first, params, latents, noise, text, np.float32(level))
    for level in LEVELS
  ]
  mean = jax.tree.map(lambda *x: np.mean(x, 0)[0], *jax.device_get(found))
  T, H, W = grid
  return Maps(
    audio_STHW=einops.rearrange(
      mean.audio, "s (t h w) -> s t h w", t=T, h=H, w=W
    ),
    video_THWS=einops.rearrange(
      mean.video, "(t h w) s -> t h w s", t=T, h=H, w=W
    ),
  )


@functools.partial(jax.jit, static_argnames=("model", "clean_first"))
def _maps(
  model: fusion.FusionDiT,
  clean_first: bool,
  params: Any,
  latents: AV[jax.Array],
  noise: AV[jax.Array],
  text: AV[jax.Array],
  level: jax.Array,
) -> AV[jax.Array]:
  """Maps at one noise level, whole on every device."""
  sigma_BT = jnp.full((1, 1), level)
  x = AV(*(diffusion.noised(d, n, sigma_BT) for d, n in zip(latents, noise)))
  x = denoise.with_first_frame(x, latents.video[:, :1] if clean_first else None)
  times = denoise.frame_times(x, level * diffusion.TIME_SCALE, clean_first)
  maps: Any = model.apply({"params": params}, x, times, text, method="maps")
  return jax.tree.map(lambda a: axes.constrain(a, "---"), maps)


def overlay(frames_THWC: np.ndarray, maps: Maps) -> np.ndarray:
  """Frames, uint8, with what the sound of their moment looks at in orange.

  Of an audio token's attention, the part that falls on a frame's own latent is
  drawn over it; the strongest of the clip is drawn most opaque.
  """
  frames, height, width, _ = frames_THWC.shape
  middle_F = (np.arange(frames) + 0.5) / geometry.FPS
  seconds_S = _audio_seconds(len(maps.audio_STHW))
  nearest_F = np.abs(middle_F[:, None] - seconds_S).argmin(1)
  stride = geometry.VIDEO_STRIDES[0]
  latent_F = (np.arange(frames) + stride - 1) // stride
  heat_FHW = maps.audio_STHW[nearest_F, latent_F]
  heat_FHW = heat_FHW / max(float(heat_FHW.max()), 1e-9)
  drawn = []
  for frame_HWC, heat_HW in zip(frames_THWC, heat_FHW):
    heat = Image.fromarray(heat_HW.astype(np.float32))
    large_HW = np.asarray(
      heat.resize((width, height), Image.Resampling.BILINEAR)
    )
    share_HW1 = _OPAQUE * np.clip(large_HW, 0, 1)[..., None]
    mixed_HWC = (1 - share_HW1) * frame_HWC + share_HW1 * _HOT_RGB
    drawn.append(np.rint(mixed_HWC).astype(np.uint8))
  return np.stack(drawn)


def matrices(maps: Maps) -> Image.Image:
  """Both matrices of moments over moments, audio above: time runs right, down.

  A column is a latent frame of the video, a row an audio step; below, the
  video's attention, transposed to the same axes.
  """
  times = maps.times
  pictures = []
  for matrix_ST in (times.audio, times.video.T):
    shade = (matrix_ST / max(float(matrix_ST.max()), 1e-9)) ** _MATRIX_GAMMA
    cells = np.rint(255 * (1 - shade)).astype(np.uint8)
    size = cells.shape[1] * _CELL_WIDTH, cells.shape[0] * _CELL_HEIGHT
    pictures.append(
      np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.NEAREST))
    )
  gap = np.full((8, pictures[0].shape[1]), 200, np.uint8)
  return Image.fromarray(np.concatenate([pictures[0], gap, pictures[1]]))


def files_of(clip: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """Where the maps of a clip are: frames with sound, matrices, numbers."""
  stem = clip.parent / FOLDER / clip.stem
  return tuple(stem.with_name(stem.name + e) for e in (".mp4", ".png", ".npz"))


def write(
  clip: pathlib.Path, frames_THWC: np.ndarray, wave: np.ndarray, maps: Maps
) -> None:
  """Write the maps of a clip, see `files_of`."""
  mp4, png, npz = files_of(clip)
  with files.replacing(npz) as temporary, temporary.open("wb") as file:
    np.savez(file, **maps._asdict())
  with files.replacing(png) as temporary:
    matrices(maps).save(temporary, "PNG")
  media.write_mp4(mp4, [overlay(frames_THWC, maps)], wave)


def read(clip: pathlib.Path) -> Maps:
  """The maps of a clip, as they were written."""
  with np.load(files_of(clip)[2]) as arrays:
    return Maps(**arrays)


def _audio_seconds(steps: int) -> np.ndarray:
  """The middle of each audio step."""
  return (np.arange(steps) + 0.5) / geometry.AUDIO_LATENT_RATE
