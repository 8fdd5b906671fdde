"""Where the sound looks: attention between the towers, measured and drawn.

A finished clip is noised again and shown to the denoiser with its prompt, at a
few noise levels; what the tokens of each tower attend to of the other, mean
over the levels, is a map. Few heads keep time, most attend to anything: a map
is the mean of the heads of each tower that attend most to the same moment,
over all blocks, unless heads of the sound are named. It needs no solver, so it
can be had of any clip's latents, generated or not. (The paper shows such maps;
how it took their mean is not known.)
"""

import functools
import glob
import re
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ovi_jax import diffusion
from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.media import mp4
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sampling import denoise
from ovi_jax.sharding import logical_axes

LEVELS = (0.2, 0.4, 0.6, 0.8)  # of noise
SHARPEST = 1 / 16  # of a tower's heads are drawn
NEAR = 1.0  # latent frames from a token's own time
FOLDER = "attention_maps"  # beside the clips, and the heads if they are named
_HOT_RGB = np.array([255, 60, 0], np.float32)
_NAME = 200  # characters of a folder's name, at most
_OPAQUE = 0.75  # of the hottest place
# Pixels of a latent frame and of an audio step: their seconds, about alike.
_CELL_WIDTH, _CELL_HEIGHT = 16, 3
_MATRIX_GAMMA = 0.5
_NUMBER = re.compile("[0-9]{1,6}")

Heads = tuple[tuple[int, int], ...]  # of a tower: block and head, from 0
_NONE: AV[Any] = AV()


class Maps(NamedTuple):
  """Shares of attention: over all that one token attends to they add up to 1.

  Attributes:
    audio_STHW: of each audio token over the video's tokens.
    video_THWS: of each video token over the audio's.
    audio_near_GN: of each head of each block, the share within `NEAR` of the
      token's own time; the maps are means of the heads that have most of it.
    video_near_GN: likewise.
  """

  audio_STHW: np.ndarray
  video_THWS: np.ndarray
  audio_near_GN: np.ndarray
  video_near_GN: np.ndarray

  @property
  def times(self) -> AV[np.ndarray]:
    """Attention of moments over moments: video_TS and audio_ST."""
    return AV(
      video=self.video_THWS.mean((1, 2)), audio=self.audio_STHW.sum((2, 3))
    )

  def near_diagonal(self, frames: float = NEAR) -> AV[float]:
    """The share that falls on the same time, within some latent frames."""
    times = self.times
    S, T = times.audio.shape
    alignment_ST = _near(S, T, frames)
    audio = (times.audio * alignment_ST).sum(1).mean()
    video = (times.video * alignment_ST.T).sum(1).mean()
    return AV(video=float(video), audio=float(audio))


def measure(
  model: fusion.FusionDiT,
  params: Any,
  latents: AV[jax.Array],
  noise: AV[jax.Array],
  text: AV[jax.Array],
  clean_BT: AV[jax.Array | None] = _NONE,
  heads: Heads = (),
  references: AV[Any] = _NONE,
) -> Maps:
  """The maps of one clip.

  Args:
    model: with both towers.
    params: its parameters.
    latents: clean video_BTHWC and audio_BTC, B = 1.
    noise: standard normal, in their shapes.
    text: embeddings_BSE of the prompt for each tower.
    clean_BT: masks of latents that were given clean, and are not noised.
    heads: of the audio tower that its map is of, each counting the same; none
      for those that attend most to the same moment.
    references: latents that are appended to the clip's; attention over them is
      no part of the maps.
  """
  T, H, W = model.config.video.grid(latents.video.shape)
  S = latents.audio.shape[1]
  alignment_ST = jnp.asarray(_near(S, T, NEAR), jnp.float32)
  alignment_SL = jnp.repeat(alignment_ST, H * W, axis=1)
  alignment_mask = AV(video=alignment_SL.T, audio=alignment_SL)

  def mean(weights: AV[np.ndarray]) -> tuple[AV[Any], AV[Any]]:
    map_spec = fusion.AttentionMapSpec(
      jax.tree.map(jnp.asarray, weights), alignment_mask
    )
    given = params, latents, noise, text, clean_BT, references, map_spec
    found = [_at_level(model, np.float32(level), *given) for level in LEVELS]
    return jax.tree.map(lambda *x: np.mean(x, 0), *jax.device_get(found))

  sizes = model.config.map(lambda _, c: (c.num_layers, c.num_heads))
  none = sizes.map(lambda _, size: np.zeros(size, np.float32))
  shares = jax.tree.map(lambda x_GBN: x_GBN[:, 0], mean(none)[1])
  weights = jax.tree.map(sharpest, shares)
  if heads:
    weights = weights._replace(audio=named(heads, sizes.audio))
  maps, _ = mean(weights)
  return Maps(
    audio_STHW=maps.audio[0].reshape(S, T, H, W),
    video_THWS=maps.video[0].reshape(T, H, W, S),
    audio_near_GN=shares.audio,
    video_near_GN=shares.video,
  )


def parse(text: str) -> Heads:
  """Heads from BLOCK.HEAD each, counted from 0, with commas between them.

  Raises:
    ValueError: it is something else.
  """
  found = set()
  for one in filter(None, text.split(",")):
    parts = one.strip().split(".")
    if len(parts) != 2 or not all(map(_NUMBER.fullmatch, parts)):
      raise ValueError(
        "config.attention_heads: expected BLOCK.HEAD such as 2.3, got"
        f" {one!r:.40}"
      )
    found.add((int(parts[0]), int(parts[1])))
  return tuple(sorted(found))


def named(heads: Heads, size: tuple[int, int]) -> np.ndarray:
  """Weights of some heads [G, N]: equal, together 1.

  Raises:
    ValueError: there is no such head.
  """
  weights = np.zeros(size, np.float32)
  for block, head in heads:
    if block >= size[0] or head >= size[1]:
      raise ValueError(
        f"config.attention_heads: the audio tower has {size[0]} blocks of"
        f" {size[1]} heads, counted from 0; it has no {block}.{head}"
      )
    weights[block, head] = 1.0
  return weights / weights.sum()


def sharpest(alignment_GN: np.ndarray) -> np.ndarray:
  """Weights of the heads with the largest shares: equal, together 1."""
  count = max(1, round(SHARPEST * alignment_GN.size))
  chosen = np.argsort(-alignment_GN, axis=None, kind="stable")[:count]
  weights = np.zeros(alignment_GN.size, np.float32)
  weights[chosen] = 1 / count
  return weights.reshape(alignment_GN.shape)


@functools.partial(jax.jit, static_argnames="model")
def _at_level(
  model: fusion.FusionDiT,
  level: jax.Array,
  params: Any,
  latents: AV[jax.Array],
  noise: AV[jax.Array],
  text: AV[jax.Array],
  clean_BT: AV[jax.Array | None],
  references: AV[Any],
  map_spec: fusion.AttentionMapSpec,
) -> Any:
  """Maps and shares at one noise level, whole on every device."""
  sigma_BT = jnp.full((1, 1), level)
  x = AV(
    *(diffusion.interpolate(d, n, sigma_BT) for d, n in zip(latents, noise))
  )
  given = AV(
    *(
      m if m is None else denoise.Given(d, m) for d, m in zip(latents, clean_BT)
    )
  )
  x = denoise.insert_given(x, given, level)
  found: Any = model.apply(
    {"params": params},
    x,
    denoise.times(x, level * diffusion.TIME_SCALE),
    text,
    map_spec,
    clean_BT,
    references,
    method="attention_maps",
  )
  return jax.tree.map(lambda a: logical_axes.constrain(a, "---"), found)


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
  mixed = []
  for frame_HWC, heat_HW in zip(frames_THWC, heat_FHW):
    heat = Image.fromarray(heat_HW.astype(np.float32))
    large_HW = np.asarray(
      heat.resize((width, height), Image.Resampling.BILINEAR)
    )
    share_HW1 = _OPAQUE * np.clip(large_HW, 0, 1)[..., None]
    mixed_HWC = (1 - share_HW1) * frame_HWC + share_HW1 * _HOT_RGB
    mixed.append(np.rint(mixed_HWC).astype(np.uint8))
  return np.stack(mixed)


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


def files_of(
  clip: storage.AnyPath, heads: Heads = ()
) -> tuple[storage.AnyPath, ...]:
  """Where the maps of a clip are: frames with sound, matrices, numbers."""
  folder = "_".join([FOLDER, *(f"{b}.{h}" for b, h in heads)])[:_NAME]
  stem = clip.parent / folder / clip.stem
  return tuple(stem.with_name(stem.name + e) for e in (".mp4", ".png", ".npz"))


def remove_stale(clip: storage.AnyPath) -> None:
  """Remove all maps of a clip, of whichever heads."""
  for found in clip.parent.glob(f"{FOLDER}*/{glob.escape(clip.stem)}.*"):
    found.unlink(missing_ok=True)


def write(
  clip: storage.AnyPath,
  frames_THWC: np.ndarray,
  wave: np.ndarray,
  maps: Maps,
  heads: Heads = (),
) -> None:
  """Write the maps of a clip, see `files_of`."""
  film, png, npz = files_of(clip, heads)
  with files.atomic_path(npz) as temporary, temporary.open("wb") as file:
    np.savez(file, **maps._asdict())
  with files.atomic_path(png) as temporary:
    matrices(maps).save(temporary, "PNG")
  mp4.write(film, [overlay(frames_THWC, maps)], wave)


def read(clip: storage.AnyPath, heads: Heads = ()) -> Maps:
  """The maps of a clip, as they were written."""
  with (
    storage.open_file(files_of(clip, heads)[2]) as file,
    np.load(file) as arrays,
  ):
    return Maps(**arrays)


def _near(steps: int, latents: int, frames: float) -> np.ndarray:
  """Whether an audio step and a video latent are of one time: bool [S, T]."""
  place_S = geometry.latent_place(_audio_seconds(steps))
  return np.abs(place_S[:, None] - np.arange(latents)) <= frames + 1e-6


def _audio_seconds(steps: int) -> np.ndarray:
  """The middle of each audio step."""
  return (np.arange(steps) + 0.5) / geometry.AUDIO_LATENT_RATE
