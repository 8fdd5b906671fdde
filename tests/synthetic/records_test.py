"""Clips of the world are written as a dataset."""

import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.synthetic import records
from ovi_jax.synthetic.world import world as worlds


def test_a_dataset_holds_the_clips(tmp_path):
  world = worlds.World(size=32, frames=25)
  records.write(tmp_path / "data", world, {"train": 4, "test": 2})
  splits = builder.splits(tmp_path / "data")
  assert sorted(splits) == ["test", "train"]
  train, test = (
    builder.read(tmp_path / "data", name) for name in ("train", "test")
  )
  assert (len(train), len(test)) == (4, 2)
  for index, record in enumerate([*train, *test]):
    made = world.clip(index)
    assert record.captions == made.captions
    if made.frames_THWC is not None:
      frames = clips.frames(record).astype(int)
      error = np.abs(frames - made.frames_THWC.astype(int)).mean()
      assert error < 8  # H.264
    if made.wave_A is not None:
      np.testing.assert_allclose(clips.wave(record), made.wave_A, atol=1e-4)


@pytest.mark.parametrize(
  "size, counts, message",
  [
    (70, {"train": 1}, "multiple of 32 pixels.*got 70"),
    (64, {"train": -3, "test": 2}, "clips of some split, got.*-3"),
    (64, {"train": 0}, "clips of some split"),
  ],
)
def test_a_folder_without_a_dataset_is_refused(tmp_path, size, counts, message):
  with pytest.raises(ValueError, match=message):
    records.write(tmp_path / "out", worlds.World(size=size), counts)
  assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept(tmp_path):
  with pytest.raises(ValueError, match="exists"):
    records.write(tmp_path, worlds.World(), {"train": 1})
