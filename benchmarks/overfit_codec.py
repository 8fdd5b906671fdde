"""Clips to latents and back, by principal components; and how near two are.

Stands for the VAEs, of which only random ones are at hand: linear and fitted to
the clips themselves. Latents have mean 0, and mean square 1 over all channels:
one scale for all, so that distances between them are those of pixels.
Pixels are in [0, 1], mels are log10 of magnitudes. numpy only.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from collections.abc import Sequence

import einops
import numpy as np

from benchmarks import overfit_data
from ovi_jax import files
from ovi_jax import geometry
from ovi_jax.modality import AV

VIDEO_CHANNELS, AUDIO_CHANNELS = 48, 20
_ROWS = 2048  # to fit from, spread over all
_TIME, _ROW, _COLUMN = geometry.VIDEO_STRIDES
_MELS = geometry.MELS_PER_AUDIO_LATENT


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Components:
  """An affine map to few numbers.

  Attributes:
    mean_N: of the rows.
    directions_CN: orthonormal, of most variance first.
    scale: of a latent number.
  """

  mean_N: np.ndarray
  directions_CN: np.ndarray
  scale: np.ndarray

  @classmethod
  def fit(cls, rows: np.ndarray, channels: int) -> "Components":
    """The `channels` directions of most variance of rows [n, N].

    Raises:
      ValueError: fewer rows than directions.
    """
    if len(rows) <= channels:
      raise ValueError(f"{channels} directions need more than {len(rows)} rows")
    mean_N = rows.mean(0, dtype=np.float64)
    some = rows[:: -(-len(rows) // _ROWS)] - mean_N
    # The products of few rows are a smaller matrix than the covariance.
    energy, turned = np.linalg.eigh(some @ some.T)
    kept = turned[:, ::-1][:, :channels]
    directions_CN = (kept / np.sqrt(energy[::-1][:channels])).T @ some
    square = np.square((rows - mean_N) @ directions_CN.T).mean()
    return cls(
      mean_N=mean_N, directions_CN=directions_CN, scale=np.sqrt(square)
    )

  def encode(self, rows: np.ndarray) -> np.ndarray:
    """[..., N] -> [..., C] float32."""
    flat = (rows - self.mean_N) @ self.directions_CN.T / self.scale
    return flat.astype(np.float32)

  def decode(self, latents: np.ndarray) -> np.ndarray:
    """[..., C] -> [..., N] float32."""
    rows = latents * self.scale @ self.directions_CN + self.mean_N
    return rows.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Codec:
  """Both modalities."""

  video: Components
  audio: Components

  @classmethod
  def fit(cls, clips: Iterable[overfit_data.Clip]) -> "Codec":
    """Fit to the clips."""
    clips = list(clips)
    video = [_video_rows(c.frames).reshape(-1, _patch()) for c in clips]
    audio = [_audio_rows(c.log_mel) for c in clips]
    return cls(
      video=Components.fit(np.concatenate(video), VIDEO_CHANNELS),
      audio=Components.fit(np.concatenate(audio), AUDIO_CHANNELS),
    )

  @classmethod
  def load(
    cls, folder: pathlib.Path, clips: Iterable[overfit_data.Clip]
  ) -> "Codec":
    """The codec kept in `folder`; where there is none, fit it and keep it."""
    file = folder / "codec.npz"
    if not file.exists():
      codec, arrays = cls.fit(clips), {}
      for name, components in dataclasses.asdict(codec).items():
        arrays |= {f"{name}/{k}": v for k, v in components.items()}
      with files.atomic_path(file) as temporary, temporary.open("wb") as opened:
        np.savez(opened, **arrays)
    with np.load(file) as kept:
      return cls(
        **{
          name: Components(
            **{
              field.name: kept[f"{name}/{field.name}"]
              for field in dataclasses.fields(Components)
            }
          )
          for name in AV._fields
        }
      )

  def encode_video(self, frames_THWC: np.ndarray) -> np.ndarray:
    """1 + 4·k frames -> latents [1 + k, H / 16, W / 16, 48]."""
    return self.video.encode(_video_rows(frames_THWC))

  def decode_video(self, latents_THWC: np.ndarray) -> np.ndarray:
    """Back to frames in [0, 1]; the four of the first latent are averaged."""
    frames = einops.rearrange(
      self.video.decode(latents_THWC),
      "T H W (f p q C) -> (T f) (H p) (W q) C",
      f=_TIME,
      p=_ROW,
      q=_COLUMN,
    )
    first = frames[:_TIME].mean(0, keepdims=True)
    return np.clip(np.concatenate([first, frames[_TIME:]]), 0, 1)

  def encode_audio(self, mel_TM: np.ndarray) -> np.ndarray:
    """Two mel frames -> a latent: [T / 2, 20]."""
    return self.audio.encode(_audio_rows(mel_TM))

  def decode_audio(self, latents_TC: np.ndarray) -> np.ndarray:
    """Back to mel frames."""
    rows = self.audio.decode(latents_TC)
    return einops.rearrange(rows, "T (f M) -> (T f) M", f=_MELS)


def _patch() -> int:
  """Numbers of a video patch."""
  return _TIME * _ROW * _COLUMN * 3


def _video_rows(frames_THWC: np.ndarray) -> np.ndarray:
  """Patches [T, H, W, N]; the first frame stands for four."""
  first = np.repeat(frames_THWC[:1], _TIME - 1, axis=0)
  return einops.rearrange(
    np.concatenate([first, frames_THWC]),
    "(T f) (H p) (W q) C -> T H W (f p q C)",
    f=_TIME,
    p=_ROW,
    q=_COLUMN,
  )


def _audio_rows(mel_TM: np.ndarray) -> np.ndarray:
  """Pairs of mel frames [T / 2, N]."""
  return einops.rearrange(mel_TM, "(T f) M -> T (f M)", f=_MELS)


def psnr(ours: np.ndarray, clip: np.ndarray) -> float:
  """Peak signal-to-noise ratio of pixels in [0, 1], dB."""
  error = np.square(ours.astype(np.float64) - clip).mean()
  return float(-10 * np.log10(max(error, 1e-10)))


def mel_distance(ours: np.ndarray, clip: np.ndarray) -> float:
  """Mean absolute difference of log10 mels, as dB of magnitude."""
  return float(20 * np.abs(ours.astype(np.float64) - clip).mean())


def table(
  measure, samples: Sequence[np.ndarray], clips: Sequence[np.ndarray]
) -> np.ndarray:
  """[samples, clips]: the measure of each sample beside each clip.

  A clip counts as far as the sample goes.
  """
  return np.array([[measure(s, c[: len(s)]) for c in clips] for s in samples])
