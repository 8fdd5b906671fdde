"""Output files are complete or absent after a kill."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ovi_jax import storage
from ovi_jax.media import mp4
from ovi_jax.sampling import outputs
from tests.lib import grey_clips

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Writes a clip of grey level argv[2] and kills itself at rename number argv[3].
WRITE = """
import os, signal, sys
from tests.lib import grey_clips
rename, calls = os.replace, []
def replace(*names):
  calls.append(names)
  if len(calls) == int(sys.argv[3]):
    os.kill(os.getpid(), signal.SIGKILL)
  rename(*names)
os.replace = replace
grey_clips.write(sys.argv[1], int(sys.argv[2]))
"""


def test_a_complete_clip_is_not_generated_again(tmp_path):
  path = tmp_path / "clip.mp4"
  recipe = grey_clips.RECIPE | {"seed": 9}
  assert not outputs.is_complete(path, recipe)
  grey_clips.write(path, 9)
  assert outputs.is_complete(path, recipe, [outputs.latents_of(path)])
  moved = recipe | {"image": {"path": "elsewhere", "sha256": "0"}}
  assert outputs.is_complete(
    path, moved | {"ovi_jax": "9"}, [outputs.latents_of(path)]
  )
  path.with_suffix(".npz").unlink()
  assert outputs.is_complete(path, recipe)
  assert not outputs.is_complete(path, recipe, [outputs.latents_of(path)])
  with pytest.raises(ValueError, match=r"other settings \(seed differ\)"):
    outputs.is_complete(path, recipe | {"seed": 8})
  path.with_suffix(".json").write_text("[]")
  with pytest.raises(ValueError, match="no readable JSON"):
    outputs.is_complete(path, recipe)


def test_an_empty_file_is_no_clip_and_a_folder_is_refused(tmp_path):
  path = tmp_path / "clip.mp4"
  grey_clips.write(path, 9)
  path.write_bytes(b"")
  assert not outputs.is_complete(path, grey_clips.RECIPE | {"seed": 9})
  path.unlink()
  path.mkdir()
  with pytest.raises(ValueError, match=r"clip.mp4 is a folder; choose"):
    outputs.is_complete(path, grey_clips.RECIPE | {"seed": 9})


@pytest.mark.parametrize("left", [0, 5, 20, 100, -1])
def test_a_file_without_its_end_is_no_clip(tmp_path, log_lines, left):
  path = tmp_path / "clip.mp4"
  grey_clips.write(path, 9)
  recipe = grey_clips.RECIPE | {"seed": 9}
  assert outputs.is_complete(path, recipe)
  path.write_bytes(path.read_bytes()[:left])
  assert not outputs.is_complete(path, recipe)
  if left:
    assert f"note: {path} is made again: it is cut off" in log_lines[-1]


def test_a_wav_without_its_end_is_no_clip(tmp_path):
  path = tmp_path / "clip.wav"
  outputs.write(path, {"seed": 1}, None, np.zeros(99, np.float32), None)
  assert outputs.is_complete(path, {"seed": 1})
  path.write_bytes(path.read_bytes()[:-2])  # a sample of 16 bits
  assert not outputs.is_complete(path, {"seed": 1})


@pytest.fixture(params=["disk", "store"])
def planned(request, tmp_path):
  """The path of a clip that is planned, on a disk or in a store."""
  if request.param == "disk":
    return tmp_path / "clip.mp4"
  return storage.path(request.getfixturevalue("bucket")) / "clip.mp4"


def names(folder) -> set[str]:
  return {path.name for path in folder.iterdir()}


def content(path) -> tuple[int, int]:
  """The seed of a clip's description, and its grey level."""
  with storage.local_copy(path) as local:
    grey = int(mp4.read(local)[0].mean())
  return storage.read_json(path.with_suffix(".json"))["seed"], grey


def test_a_clip_of_another_run_is_never_replaced(planned, log_lines):
  nothing = outputs.Seen.at(planned)
  first = grey_clips.write(planned, 100, nothing)
  assert first == planned
  other = grey_clips.write(planned, 200, nothing)
  assert other == planned.with_name("clip-2.mp4")
  assert log_lines[-1].startswith("note: another run has written ")
  third = grey_clips.write(planned, 50, nothing)
  assert third == planned.with_name("clip-3.mp4")
  for path, grey in ((first, 100), (other, 200), (third, 50)):
    assert content(path) == (grey, pytest.approx(grey, abs=5))
  same = grey_clips.write(planned, 100, nothing)
  assert same == planned and len(names(planned.parent)) == 9
  assert log_lines[-1] == f"already made by another run: {planned}"
  grey_clips.write(planned, 30)  # which may replace it
  assert content(planned) == (30, pytest.approx(30, abs=5))
  assert len(names(planned.parent)) == 9


def test_what_was_there_when_a_clip_was_planned_is_replaced(planned):
  storage.create(planned)
  seen = outputs.Seen.at(planned)
  assert grey_clips.write(planned, 100, seen) == planned
  assert content(planned) == (100, pytest.approx(100, abs=5))
  assert grey_clips.write(planned, 200, seen) != planned


def test_a_name_that_is_not_used_is_given_back(tmp_path, monkeypatch):
  path = tmp_path / "clip.mp4"

  def full(self, data):
    raise OSError(errno.ENOSPC, "No space left on device", str(self))

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  with pytest.raises(OSError, match="no space left"):
    grey_clips.write(path, 200, outputs.Seen.at(path))
  assert names(tmp_path) == set()


def test_settings_that_differ_are_named(tmp_path):
  path = tmp_path / "clip.mp4"
  path.write_bytes(grey_clips.MP4)
  made = {"config": {"num_steps": 3, "seed": 1, "shift": 5.0}}
  path.with_suffix(".json").write_text(json.dumps(made))
  wanted = {"config": {"num_steps": 4, "seed": 1, "solver": "euler"}}
  message = r"\(config.num_steps, config.solver, config.shift differ\)"
  with pytest.raises(ValueError, match=message):
    outputs.is_complete(path, wanted)


def test_bytes_of_names_that_are_not_utf8_are_kept(tmp_path):
  path = tmp_path / "clip.mp4"
  frames = np.zeros((2, 32, 32, 3), np.uint8)
  name = os.fsdecode(b"img\xff \xc3\xa9.png")
  outputs.write(path, {"image": name}, iter([frames]), None, None)
  text = path.with_suffix(".json").read_text("utf-8")
  assert json.loads(text) == {"image": name} and "\u00e9" in text


def test_a_clip_whose_description_cannot_be_written_keeps_the_old_one(
  tmp_path, monkeypatch
):
  path = tmp_path / "clip.mp4"
  grey_clips.write(path, 100)

  def full(self, data):
    raise OSError(errno.ENOSPC, "No space left on device", str(self))

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  with pytest.raises(OSError, match="no space left"):
    grey_clips.write(path, 200)
  monkeypatch.undo()
  assert json.loads(path.with_suffix(".json").read_text())["seed"] == 100
  assert abs(int(mp4.read(path)[0].mean()) - 100) < 5
  left = sorted(p.name for p in tmp_path.iterdir())
  assert left == ["clip.json", "clip.mp4", "clip.npz"]


def test_a_clip_whose_latents_cannot_be_written_keeps_the_old_one(tmp_path):
  """Also where the run may replace what it saw."""
  path = tmp_path / "clip.wav"
  outputs.write(path, {"seed": 1}, None, np.zeros(99, np.float32), None)
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

  def full():
    raise OSError(errno.ENOSPC, "No space left on device")

  sound = np.ones(99, np.float32)
  seen = outputs.Seen.at(path)
  with pytest.raises(OSError, match="No space left|no space left"):
    outputs.write(path, {"seed": 2}, None, sound, full, seen=seen)
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


LORA = {"path": "a", "sha256": "1", "strength": {"video": 1.0, "audio": 1.0}}


@pytest.mark.parametrize(
  ("made", "wanted", "differs"),
  [
    ({}, {"loras": []}, ""),  # a clip of before LoRAs
    ({"loras": [LORA]}, {"loras": []}, "loras"),
    ({"loras": []}, {"loras": [LORA]}, "loras"),
    ({}, {"loras": [LORA]}, "loras"),
    ({"loras": [LORA]}, {"loras": [LORA | {"path": "./b/a"}]}, ""),
    ({"loras": [LORA]}, {"loras": [LORA | {"sha256": "2"}]}, "loras"),
    ({"given": {"continue": {"path": "x", "sha256": "0"}}}, {}, "given"),
  ],
)
def test_a_clip_is_complete_only_with_the_same_files(
  made, wanted, differs, tmp_path
):
  """LoRAs and given files are the same by their checksums."""
  path = tmp_path / "clip.mp4"
  path.write_bytes(grey_clips.MP4)
  path.with_suffix(".json").write_text(json.dumps({"seed": 1} | made))
  if not differs:
    assert outputs.is_complete(path, {"seed": 1} | wanted)
    return
  with pytest.raises(ValueError, match=rf"\({differs} differ\)"):
    outputs.is_complete(path, {"seed": 1} | wanted)


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_a_killed_write_is_not_a_complete_clip(tmp_path, rename):
  """A clip overwritten by a killed process is complete or absent."""
  path = tmp_path / "clip.mp4"
  grey_clips.write(path, 100)
  died = subprocess.run(
    [sys.executable, "-c", WRITE, str(path), "200", str(rename)],
    cwd=ROOT,
    check=False,
  )
  assert died.returncode == -signal.SIGKILL
  if path.exists():
    grey = json.loads(path.with_suffix(".json").read_text())["seed"]
    assert abs(int(mp4.read(path)[0].mean()) - grey) < 5
  grey_clips.write(path, 200)
  assert outputs.is_complete(
    path, grey_clips.RECIPE | {"seed": 200}, [outputs.latents_of(path)]
  )
  left = sorted(p.name for p in tmp_path.iterdir())
  assert left == ["clip.json", "clip.mp4", "clip.npz"]


def test_unfinished_files_of_ended_runs_are_removed_or_named(
  tmp_path, log_lines
):
  gone, day = 4_194_305, 24 * 3600
  for name, process, age in (
    ("old.mp4", gone, 2 * day),
    ("new.mp4", gone, 60),
    ("own.mp4", os.getpid(), 2 * day),
    ("other.mp4", "download", 2 * day),
  ):
    path = tmp_path / f".{name}.{process}.part"
    path.touch()
    then = time.time() - age
    os.utime(path, (then, then))
  outputs.check_directory(tmp_path)
  left = {path.name.split(".")[1] for path in tmp_path.iterdir()}
  assert left == {"new", "own", "other"}
  removed, named = log_lines
  assert removed.startswith("note: removed 1 unfinished file of")
  assert f".new.mp4.{gone}.part; delete" in named


def test_an_unusable_directory_is_reported(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="out: cannot write to the directory"):
    outputs.check_directory(tmp_path / "file")


@pytest.mark.parametrize(
  "content",
  [b"[" * 10**6, b'{"seed": ' + b"9" * 400 + b"}", b"\xff", b'{"seed": NaN}'],
  ids=["deep", "long number", "not UTF-8", "not finite"],
)
def test_a_hostile_recipe_is_refused_in_one_line(tmp_path, content):
  path = tmp_path / "clip.mp4"
  path.write_bytes(grey_clips.MP4)
  path.with_suffix(".json").write_bytes(content)
  with pytest.raises(ValueError, match="has no readable JSON"):
    outputs.is_complete(path, {"seed": 1})
  with pytest.raises(ValueError, match=r"clip.json: expected .*the recipe"):
    outputs.prompt_of(path)
