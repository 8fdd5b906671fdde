"""The noise that a clip begins as: drawn from a seed, or read from a file."""

import hashlib
import math
import pathlib
import re
import struct
import zipfile
import zlib
from typing import IO
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.modality import AV

NAMES = AV(video="video_THWC", audio="audio_TC")
_LISTED = 10  # names in a message
_ENCRYPTED = 1  # bit of a zip member's flags
_MAX_HEADER = 1024  # bytes of an .npy header
_MAGIC = b"\x93NUMPY"
# Bytes of the header's length, by version.
_LENGTH_BYTES = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}
# As numpy writes it; no expression is evaluated.
_HEADER = re.compile(
  r"\{'descr': '(?P<kind>[^']{2,16})',"
  r" 'fortran_order': (?P<fortran>True|False),"
  r" 'shape': \((?P<shape>[\d, ]{0,200})\),? ?\}",
  re.ASCII,
)
_FLOAT = re.compile(r"[<>=|]?f[248]")
# zipfile raises these for members that are damaged (any), encrypted
# (RuntimeError) or of an unsupported version (NotImplementedError).
_BAD_ZIP = (
  zipfile.BadZipFile,
  zlib.error,
  NotImplementedError,
  RuntimeError,
  struct.error,
)


def shapes(clip: geometry.Clip, channels: AV[int]) -> AV[tuple[int, ...]]:
  """Shapes of the latents of a clip.

  Args:
    clip: sizes of the clip.
    channels: latent channels of each modality.

  Returns:
    (T, H, W, C) of video and (T, C) of audio, of those with channels.
  """
  sides = clip.latent_height, clip.latent_width
  cells = AV((clip.latent_frames, *sides), (clip.audio_latents,))
  return channels.map(lambda name, c: (*getattr(cells, name), c))


def sample_noise(
  seed: int, clip: geometry.Clip, channels: AV[int], window: int = 0
) -> AV[np.ndarray]:
  """Draw the initial noise of a clip, independent of devices.

  Args:
    seed: in [0, 2^32).
    clip: sizes of the clip.
    channels: latent channels of each modality.
    window: of a long clip; the first has the noise of a clip of its length.

  Returns:
    Standard normal video_THWC and audio_TC, float32.
  """
  key = jax.random.key(seed)
  keys = jax.random.split(jax.random.fold_in(key, window) if window else key)
  by_name: AV[Any] = AV(*keys)

  def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = jax.random.normal(getattr(by_name, name), shape, jnp.float32)
    return np.asarray(noise)

  return shapes(clip, channels).map(draw)


def read(
  path: storage.AnyPath, expected: AV[tuple[int, ...]]
) -> AV[np.ndarray]:
  """Read noise from an .npz with video_THWC and audio_TC.

  Shapes are read from headers; no array of another shape is unpacked.

  Args:
    path: of the file.
    expected: shape of each array, see `shapes`.

  Returns:
    The noise, float32.

  Raises:
    ValueError: there is no such file, it is not an .npz of finite numbers, or
      arrays are missing or have other shapes.
  """
  if isinstance(path, pathlib.Path) and not path.is_file():
    raise ValueError(f"noise: {path} is not a file")
  try:
    with storage.open_file(path) as file:
      return parse(file, expected)
  except ValueError as error:
    raise ValueError(f"noise: {path}: {error}") from error
  except (OSError, EOFError, *_BAD_ZIP) as error:
    raise ValueError(f"noise: {path} is not an .npz file ({error})") from error


def parse(file: IO[bytes], expected: AV[tuple[int, ...]]) -> AV[np.ndarray]:
  """Noise from an opened .npz; see `read`."""
  found = {}
  with zipfile.ZipFile(file) as archive:
    known = {info.filename: info for info in archive.infolist()}
    wanted = {getattr(NAMES, n): s for n, s in expected.present().items()}
    members = [f"{name}.npy" for name in wanted]
    if missing := [m for m in members if m not in known]:
      names = [untrusted.printable(n, 40) for n in sorted(known)[:_LISTED]]
      raise ValueError(f"expected {' and '.join(missing)}, found {names}")
    for name, shape in wanted.items():
      info = known[f"{name}.npy"]
      if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is encrypted; save it with numpy.savez")
      if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
          f"{name} is compressed by method {info.compress_type}; save it with"
          " numpy.savez or savez_compressed"
        )
      with archive.open(info) as member:
        found[name] = _array(name, member, shape)
  return expected.map(lambda name, _: found[getattr(NAMES, name)])


def _array(
  name: str, member: IO[bytes], expected: tuple[int, ...]
) -> np.ndarray:
  """One .npy, read only if its header says what is expected."""
  magic = member.read(len(_MAGIC) + 2)
  if magic[:-2] != _MAGIC or magic[-2:] not in _LENGTH_BYTES:
    raise ValueError(f"{name} is no array of numpy")
  size = int.from_bytes(member.read(_LENGTH_BYTES[magic[-2:]]), "little")
  header = member.read(min(size, _MAX_HEADER)).decode("latin1").strip()
  match = _HEADER.fullmatch(header)
  if size > _MAX_HEADER or match is None:
    raise ValueError(
      f"{name} must be a plain array of numbers, its header says"
      f" {untrusted.printable(header, 80)!r}"
    )
  kind, fortran, sizes = match["kind"], match["fortran"], match["shape"]
  if not _FLOAT.fullmatch(kind):
    raise ValueError(f"{name} must be floating point, it is {kind}")
  shape = tuple(int(n) for n in sizes.replace(" ", "").split(",") if n)
  if shape != expected:
    raise ValueError(f"expected {name} {expected} for this clip, got {shape}")
  dtype = np.dtype(kind)
  wanted = math.prod(shape) * dtype.itemsize
  data = member.read(wanted)
  if len(data) != wanted:
    raise ValueError(f"{name} ends after {len(data)} of {wanted} bytes")
  if member.read(1):  # at its end the checksum is compared
    raise ValueError(f"{name} is longer than its header says")
  order = "F" if fortran == "True" else "C"
  array = np.frombuffer(data, dtype).reshape(shape, order=order)
  with np.errstate(over="ignore"):
    array = np.ascontiguousarray(array, np.float32)
  if not np.isfinite(array).all():
    raise ValueError(f"{name} must be finite float32 numbers")
  return array


def digest(noise: AV[np.ndarray]) -> str:
  """A sha256 that identifies noise."""
  joined = hashlib.sha256()
  for array in noise.present().values():
    joined.update(array.tobytes())
  return joined.hexdigest()
