"""A record's media as arrays: frames out of mp4 bytes, a wave out of PCM."""

import io

import av
import numpy as np
from av import error as av_error

from ovi_jax.data import schema

_PCM = np.float32(32768)


def frames(record: schema.Record) -> np.ndarray:
  """Decode the video: uint8 RGB [frames, height, width, 3].

  Raises:
    ValueError: the mp4 is damaged, or is not of the frames, height and width
      that the record says.
  """
  assert record.video is not None
  decoded = []
  try:
    with av.open(io.BytesIO(record.video), "r") as container:
      stream = container.streams.video[0]
      for frame in container.decode(stream):
        decoded.append(frame.to_ndarray(format="rgb24"))
  except (av_error.FFmpegError, IndexError) as error:
    raise ValueError(
      f"record {record.id!r}: its mp4 cannot be decoded: {error}; leave the"
      " clip out"
    ) from error
  wanted = record.frames, record.height, record.width, 3
  got = (len(decoded), *decoded[0].shape) if decoded else (0,)
  if got != wanted:
    raise ValueError(
      f"record {record.id!r}: its mp4 has frames of {list(got)}, expected"
      f" {list(wanted)} as the record says; it is truncated, or the record is"
      " wrong: write it again with what the mp4 holds, or leave the clip out"
    )
  return np.stack(decoded)


def wave(record: schema.Record) -> np.ndarray:
  """The sound: mono float32 [samples] in [-1, 1) at 16 kHz."""
  assert record.audio is not None
  return np.frombuffer(record.audio, "<i2").astype(np.float32) / _PCM


def pcm(wave_A: np.ndarray) -> bytes:
  """What a record keeps of mono samples in [-1, 1], clipped to it."""
  scaled = np.rint(np.asarray(wave_A, np.float32) * _PCM)
  return np.clip(scaled, -32768, 32767).astype("<i2").tobytes()
