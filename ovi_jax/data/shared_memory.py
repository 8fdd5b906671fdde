"""Shared memory that the loader's worker processes need.

Workers pass the arrays of a batch to the training process through files in
/dev/shm. If it is full, a worker is killed by SIGBUS in the middle of a run, so
the need is estimated and checked at the start.
"""

import math
import os
import pathlib
import socket

import jax
import numpy as np

from ovi_jax.data import settings as settings_lib
from ovi_jax.sharding import distributed

FOLDER = pathlib.Path("/dev/shm")
_STORED = 2  # bytes of a number of cached latents and embeddings
TOKEN, SAMPLE, PIXEL = 4, 4, 3  # bytes of int32, float32 and RGB
_COPIED = 1  # batches that the training process copies


def batch_bytes(
  settings: settings_lib.LoaderConfig, bucket: settings_lib.Bucket, rows: int
) -> int:
  """The largest size of a batch as workers send it.

  Args:
    settings: of the loader.
    bucket: sizes of the arrays.
    rows: of this process.

  Returns:
    Bytes, with prompts of the largest length.
  """
  sizes = settings.geometry
  text = settings.max_text_len
  row = text * (TOKEN if settings.tokenizer else sizes.text_dim * _STORED)
  if bucket.video is not None:
    T, H, W = bucket.video
    time, height, width = sizes.video_strides
    pixels = (1 + time * (T - 1)) * H * height * W * width
    cached = T * H * W * sizes.video_channels * _STORED
    row += pixels * PIXEL if settings.encode_on_the_fly else cached
  if bucket.audio is not None:
    samples = bucket.audio * sizes.samples_per_audio_latent
    cached = bucket.audio * sizes.audio_channels * _STORED
    row += samples * SAMPLE if settings.encode_on_the_fly else cached
  return rows * row


def required_bytes(batch: int, num_workers: int, prefetch_batches: int) -> int:
  """Shared memory that one process's workers need at most.

  Each worker fills a queue of `prefetch_batches` and has the next one ready. A
  thread of the training process takes batches out and does the same.

  Args:
    batch: bytes of a batch.
    num_workers: worker processes.
    prefetch_batches: see `settings.LoaderConfig`.
  """
  if not num_workers:
    return 0
  return batch * (2 * num_workers * (prefetch_batches + 1) + _COPIED)


def check(
  batch: int,
  num_workers: int,
  prefetch_batches: int,
  folder: pathlib.Path = FOLDER,
) -> None:
  """Check that the shared memory of this host suffices for its processes.

  All processes of a run call it together.

  Args:
    batch: bytes of a batch of one process.
    num_workers: worker processes of each.
    prefetch_batches: see `settings.LoaderConfig`.
    folder: where shared memory is mounted; not checked if it does not exist.

  Raises:
    ValueError: less is free than needed.
  """
  if not num_workers or not folder.exists():
    return
  host, count = socket.gethostname(), 1
  if jax.distributed.is_initialized():  # else JAX would start its devices
    count = distributed.gather(host).count(host)
  needed = count * required_bytes(batch, num_workers, prefetch_batches)
  found = os.statvfs(folder)
  free = found.f_bavail * found.f_frsize
  if needed > free:
    whose = f" in each of {count} processes" if count > 1 else ""
    raise ValueError(
      f"{num_workers} data workers{whose} need up to {_GiB(needed)} of shared"
      f" memory, but {folder} has {_GiB(free)} free; make it larger (docker run"
      f" --shm-size={math.ceil(needed / 2**30)}g; in Kubernetes an emptyDir of"
      f" medium Memory mounted at {folder}), or set a lower"
      " --config.data.num_workers or --config.data.prefetch_batches"
    )


def copied(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
  """The array of a worker in this process's memory; other arrays unchanged.

  A view would keep the file in /dev/shm, and one that is left at the end of the
  process is reported as leaked.

  Args:
    array: of a batch.
    dtype: that it is converted to; `None` for its own.
  """
  is_shared = type(array) is not np.ndarray
  return np.array(array, dtype, copy=True if is_shared else None)


def _GiB(size: int) -> str:
  return f"{size / 2**30:.1f} GiB"
