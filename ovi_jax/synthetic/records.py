"""The world's clips as records, and as a dataset."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import tempfile
from collections.abc import Iterator
from collections.abc import Mapping

from ovi_jax import console
from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.data import schema
from ovi_jax.media import mp4
from ovi_jax.synthetic.world import world as worlds

_AHEAD = 64  # records made before the first of them is taken


def record(world: worlds.World, index: int) -> schema.Record:
  """One clip as a record with mp4 and PCM."""
  made = world.clip(index)
  video, height, width, frames = None, 0, 0, 0
  if made.frames_THWC is not None:
    frames, height, width = made.frames_THWC.shape[:3]
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / "clip.mp4"
      mp4.write(path, [made.frames_THWC], None, world.fps)
      video = path.read_bytes()
  return schema.Record(
    id=f"{world.what}-{world.seed}-{index}",
    source="ovi_jax.synthetic.world",
    captions=made.captions,
    video=video,
    audio=None if made.wave_A is None else clips.pcm(made.wave_A),
    fps=world.fps,
    frames=frames,
    height=height,
    width=width,
  )


def records(
  world: worlds.World, first: int, count: int
) -> Iterator[schema.Record]:
  """Records by number, made by all cores, in order."""
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    os.cpu_count(), mp_context=spawn
  ) as pool:
    waiting = []
    for index in range(first, first + count):
      waiting.append(pool.submit(record, world, index))
      if len(waiting) > _AHEAD:
        yield waiting.pop(0).result()
    for future in waiting:
      yield future.result()


def write(
  path: storage.AnyPath, world: worlds.World, counts: Mapping[str, int]
) -> None:
  """Write a dataset; its splits have different clips.

  Args:
    path: folder to make; must not exist.
    world: that clips are of.
    counts: clips by name of the split; splits of none are left out.

  Raises:
    ValueError: the folder exists, no clips are asked for, or pictures are of a
      size that the codecs do not take.
    OSError: the disk is full, or the folder is not writable.
  """
  if min(counts.values()) < 0 or not any(counts.values()):
    raise ValueError(f"expected clips of some split, got {dict(counts)}")
  if world.size % geometry.PIXEL_MULTIPLE:
    raise ValueError(
      f"size: expected a multiple of {geometry.PIXEL_MULTIPLE} pixels, as the"
      f" video autoencoder and the towers take them, got {world.size}"
    )
  splits, first = {}, 0
  for name, count in counts.items():
    if count:
      made = records(world, first, count)
      splits[name] = console.progress(
        made, total=count, unit="clip", desc=f"world, {name}"
      )
    first += count
  builder.write(path, splits, geometry=schema.Geometry())
