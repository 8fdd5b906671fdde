"""The noise that a clip begins as: drawn from a seed, or read from a file."""

import hashlib
import pathlib
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import geometry
from ovi_jax.modality import AV

NAMES = AV(video="video_THWC", audio="audio_TC")


def shapes(clip: geometry.Clip, channels: AV[int]) -> AV[tuple[int, ...]]:
  """Shapes of the latents of a clip, without batch."""
  sides = clip.latent_height, clip.latent_width
  return AV(
    video=(clip.latent_frames, *sides, channels.video),
    audio=(clip.audio_latents, channels.audio),
  )


def draw(seed: int, clip: geometry.Clip, channels: AV[int]) -> AV[np.ndarray]:
  """Standard normal noise video_THWC and audio_TC, whatever the devices."""
  keys = jax.random.split(jax.random.key(seed))
  return AV(
    *(
      np.asarray(jax.random.normal(key, shape, jnp.float32))
      for key, shape in zip(keys, shapes(clip, channels), strict=True)
    )
  )


def read(path: pathlib.Path) -> AV[np.ndarray]:
  """Noise from an .npz with video_THWC and audio_TC, as float32.

  Raises:
    ValueError: no such file, not an .npz of finite numbers, or arrays missing.
  """
  if not path.is_file():
    raise ValueError(f"noise: {path} is not a file")
  try:
    with path.open("rb") as opened:
      loaded = np.load(opened, allow_pickle=False)
      if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("a single array; name two with numpy.savez")
      found = {name: loaded[name] for name in loaded.files}
  except (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise ValueError(f"noise: {path} is not an .npz file ({error})") from error
  missing = [name for name in NAMES if name not in found]
  if missing:
    raise ValueError(
      f"noise: {path} needs {' and '.join(NAMES)}, it has {sorted(found)}"
    )
  return AV(*(_finite(path, name, found[name]) for name in NAMES))


def _finite(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
  """The array as float32; ValueError unless it holds finite floats."""
  if array.dtype.kind != "f":
    raise ValueError(
      f"noise: {name} in {path} must be floating point, it is {array.dtype}"
    )
  with np.errstate(over="ignore"):
    array = array.astype(np.float32)
  if not np.isfinite(array).all():
    raise ValueError(f"noise: {name} in {path} must be finite float32 numbers")
  return array


def check(
  noise: AV[np.ndarray], clip: geometry.Clip, channels: AV[int]
) -> None:
  """ValueError unless the noise has the clip's shape."""
  expected, found = shapes(clip, channels), tuple(a.shape for a in noise)
  if found != tuple(expected):
    raise ValueError(
      f"noise: expected video_THWC {expected.video} and audio_TC"
      f" {expected.audio} for this clip, got {found[0]} and {found[1]}"
    )


def digest(noise: AV[np.ndarray]) -> str:
  """Identity of given noise."""
  joined = hashlib.sha256()
  for array in noise:
    joined.update(array.tobytes())
  return joined.hexdigest()
