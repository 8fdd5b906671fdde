"""Noise files are validated before they are unpacked."""

import io
import pathlib
import struct
import zipfile

import numpy as np
import pytest

from ovi_jax.modality import AV
from ovi_jax.sampling import noise
from tests.lib import traced_memory

SHAPES = AV(video=(2, 2, 2, 3), audio=(5, 4))
VIDEO = np.arange(24, dtype=np.float32).reshape(SHAPES.video)
AUDIO = np.arange(20, dtype=np.float64).reshape(SHAPES.audio)


def npy(array: np.ndarray, **options) -> bytes:
  file = io.BytesIO()
  np.save(file, array, **options)
  return file.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
  """An .npy file with an arbitrary header."""
  said = text.encode("latin1")
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said + data


def written(tmp_path, video: bytes, method=zipfile.ZIP_DEFLATED):
  """An .npz with a video_THWC of these bytes."""
  path = tmp_path / "noise.npz"
  with zipfile.ZipFile(path, "w", method) as archive:
    archive.writestr("video_THWC.npy", video)
    archive.writestr("audio_TC.npy", npy(AUDIO))
  return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_files_written_by_numpy_are_read(tmp_path, save, order):
  path = tmp_path / "noise.npz"
  video = np.asarray(VIDEO, np.float16, order=order)
  save(path, video_THWC=video, audio_TC=AUDIO, more=np.zeros(3))
  found = noise.read(path, SHAPES)
  np.testing.assert_array_equal(found.video, VIDEO)
  np.testing.assert_array_equal(found.audio, AUDIO)
  assert {a.dtype for a in found} == {np.dtype(np.float32)}


FULL = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n"


@pytest.mark.parametrize(
  ("video", "message"),
  [
    (header(FULL % str((2**60,))), "expected video_THWC .* got .115292150460"),
    (header(FULL % "(2, 2, 2, 3)"), "ends after 0 of 96 bytes"),
    (npy(VIDEO) + b"\0", "longer than its header says"),
    (npy(VIDEO.astype(object), allow_pickle=True), "floating point, it is .O"),
    (npy(VIDEO.astype([("a", "<f4")])), "must be a plain array"),
    (npy(VIDEO.astype(np.complex64)), "floating point, it is <c8"),
    (npy(np.full(SHAPES.video, np.nan)), "must be finite"),
    (header("(" * 900), "must be a plain array"),
    (header("{'descr': __import__('os'), }"), "must be a plain array"),
    (header(FULL % ("(" + "9" * 999 + ",)")), "must be a plain array"),
    (header(FULL % ("(" + "9" * 199 + "x)")), "must be a plain array"),
    (b"\x93NUMPY\x09\x00", "no array of numpy"),
    (b"", "no array of numpy"),
    (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "must be a plain array"),
  ],
)
def test_headers_are_checked(tmp_path, video, message):
  with pytest.raises(ValueError, match=message) as error:
    noise.read(written(tmp_path, video), SHAPES)
  assert len(str(error.value).splitlines()) == 1


def test_decompression_bombs_are_refused(tmp_path):
  zeros = np.zeros(64 << 20, np.uint8).view(np.float32)
  path = written(tmp_path, npy(zeros))
  assert path.stat().st_size < 200_000
  del zeros
  with (
    traced_memory.peak() as peak,
    pytest.raises(ValueError, match=r"got \(16777216,\)"),
  ):
    noise.read(path, SHAPES)
  assert peak.bytes < 4 << 20


@pytest.mark.parametrize(
  ("method", "message"),
  [(zipfile.ZIP_LZMA, "by method 14"), (zipfile.ZIP_BZIP2, "by method 12")],
)
def test_other_compression_is_refused(tmp_path, method, message):
  with pytest.raises(ValueError, match=message):
    noise.read(written(tmp_path, npy(VIDEO), method), SHAPES)


def changed(path: pathlib.Path, offset: int, value: int) -> pathlib.Path:
  """The zip with two bytes of its members' entries changed."""
  data = bytearray(path.read_bytes())
  for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
    at = data.find(signature)
    data[at + place + offset : at + place + offset + 2] = struct.pack(
      "<H", value
    )
  path.write_bytes(data)
  return path


@pytest.mark.parametrize(
  ("offset", "value", "message"),
  [(0, 1, "encrypted"), (2, 77, "by method 77")],
)
def test_encrypted_and_unknown_members_are_refused(
  tmp_path, offset, value, message
):
  path = changed(written(tmp_path, npy(VIDEO)), offset, value)
  with pytest.raises(ValueError, match=message):
    noise.read(path, SHAPES)


def test_a_damaged_member_is_refused(tmp_path):
  path = written(tmp_path, npy(VIDEO), zipfile.ZIP_STORED)
  data = bytearray(path.read_bytes())
  data[data.find(VIDEO.tobytes()) + 5] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match="not an .npz file .*CRC"):
    noise.read(path, SHAPES)
