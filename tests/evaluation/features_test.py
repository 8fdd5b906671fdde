"""The cache of features."""

import dataclasses
import errno
import shutil

import numpy as np
import pytest

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from tests.lib import media_files


@pytest.fixture
def sources(tmp_path):
  folder = tmp_path / "clips"
  folder.mkdir()
  for number in range(3):
    wave = media_files.tone(0.1 * (number + 1))
    media_files.write_sound(folder / f"{number}.wav", wave)
  return [clips.Source(clip=c) for c in clips.read_folder(folder)]


class Counter:
  """An extractor that counts its calls."""

  def __init__(self, **changes):
    self.batches: list[int] = []
    settings = {"batch_size": 2, "version": 1} | changes
    self.extractor = features.Extractor(
      name="length", needs=(clips.SOUND,), load=lambda: self.compute, **settings
    )

  def compute(self, media):
    self.batches.append(len(media))
    return [{"samples": np.array(each.mono().size)} for each in media]


def lengths(tables):
  return [int(table["length.samples"]) for table in tables]


def test_stored_features_are_not_computed_again(sources, tmp_path):
  first, second = Counter(), Counter()
  found = features.extract([first.extractor], sources, tmp_path / "cache")
  assert lengths(found) == [1600, 3200, 4800] and first.batches == [2, 1]
  again = features.extract([second.extractor], sources, tmp_path / "cache")
  assert lengths(again) == lengths(found) and second.batches == []


def test_an_interrupted_extraction_resumes(sources, tmp_path):
  counter = Counter(batch_size=1)

  def stop(media):
    if len(counter.batches) == 2:
      raise KeyboardInterrupt
    return counter.compute(media)

  stopped = dataclasses.replace(counter.extractor, load=lambda: stop)
  with pytest.raises(KeyboardInterrupt):
    features.extract([stopped], sources, tmp_path)
  rest = Counter(batch_size=1)
  assert lengths(features.extract([rest.extractor], sources, tmp_path))
  assert rest.batches == [1]


@pytest.mark.parametrize(
  "changes", [{"version": 2}, {"weights": "0a"}, {"settings": {"rate": 8000}}]
)
def test_other_weights_or_settings_have_other_features(
  changes, sources, tmp_path
):
  features.extract([Counter().extractor], sources, tmp_path)
  other = Counter(**changes)
  features.extract([other.extractor], sources, tmp_path)
  assert sum(other.batches) == 3


def test_renamed_clips_keep_their_features_and_changed_ones_do_not(
  sources, tmp_path
):
  cache, path = tmp_path / "cache", sources[0].clip.path
  features.extract([Counter().extractor], sources, cache)
  shutil.move(path, path.with_name("renamed.wav"))
  media_files.write_sound(sources[1].clip.path, media_files.tone(0.25))
  again = [clips.Source(clip=c) for c in clips.read_folder(path.parent)]
  counter = Counter()
  found = features.extract([counter.extractor], again, cache)
  assert counter.batches == [1] and lengths(found) == [4000, 4800, 1600]


def test_damaged_files_of_the_cache_are_computed_again(sources, tmp_path):
  features.extract([Counter().extractor], sources, tmp_path)
  for number, path in enumerate(sorted(tmp_path.glob("length-*/*.npz"))):
    path.write_bytes((b"", b"no zip", path.read_bytes()[:90])[number])
  counter = Counter()
  found = features.extract([counter.extractor], sources, tmp_path)
  assert sum(counter.batches) == 3 and lengths(found) == [1600, 3200, 4800]


def test_clips_that_lack_what_is_needed_have_no_features(sources, tmp_path):
  counter = Counter()
  needing = dataclasses.replace(
    counter.extractor, needs=(clips.SOUND, clips.PICTURE)
  )
  assert features.extract([needing], sources, tmp_path) == [{}, {}, {}]
  assert counter.batches == []


def test_a_full_disk_is_one_line_and_keeps_what_is_done(
  sources, tmp_path, monkeypatch
):
  save, saved = np.savez, []

  def full(file, **arrays):
    if saved:
      raise OSError(errno.ENOSPC, "No space left on device")
    saved.append(file)
    save(file, **arrays)

  monkeypatch.setattr(np, "savez", full)
  counter = Counter(batch_size=1)
  with pytest.raises(OSError, match="no space left to write it"):
    features.extract([counter.extractor], sources, tmp_path)
  monkeypatch.undo()
  assert len(list(tmp_path.glob("length-*/*"))) == 1
  rest = Counter(batch_size=1)
  assert lengths(features.extract([rest.extractor], sources, tmp_path))
  assert len(rest.batches) == 2


def make() -> features.Extractor:
  return Counter().extractor


def test_extractors_are_found_by_their_dotted_path():
  assert features.custom(f"{__name__}:make").name == "length"
  for name in (
    "absent.module:make",
    f"{__name__}:absent",
    __name__,
    "os:getcwd",
  ):
    with pytest.raises(ValueError, match="extractor"):
      features.custom(name)
