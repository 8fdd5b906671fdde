"""The clips of a folder: what is found, searched and shown of hostile files."""

import contextlib
import json
import os

import pytest

from ovi_jax.studio import gallery as galleries

RECIPE = {
  "prompt": "A red ball bounces.",
  "seed": 7,
  "height": 64,
  "width": 64,
  "image": {"path": "/home/me/face.png", "sha256": "ab"},
  "given": {
    "video": {"path": "/secret/a.mp4", "sha256": "cd"},
    "keep": [[0, 2]],
  },
  "config": {"num_steps": 20, "guidance_scale": {"video": 1.5, "audio": 2.0}},
  "loras": [{"path": "/secret/l.safetensors", "strength": {"video": 0.5}}],
}


def add(folder, name, recipe=RECIPE, seconds=0.0):
  (folder / f"{name}.mp4").write_bytes(b"mp4")
  content = recipe if isinstance(recipe, bytes) else json.dumps(recipe).encode()
  path = folder / f"{name}.json"
  path.write_bytes(content)
  os.utime(path, (seconds, seconds))


def test_clips_are_listed_from_the_newest_with_what_decides_them(tmp_path):
  add(tmp_path, "old", {"prompt": "A lamp.", "seed": 1}, 10.0)
  add(tmp_path, "new", seconds=20.0)
  (tmp_path / "unfinished.mp4").write_bytes(b"no recipe")
  (tmp_path / "alone.json").write_text("{}")
  new, old = galleries.Gallery(tmp_path).clips()
  assert (old.name, old.prompt, old.seed) == ("old.mp4", "A lamp.", 1)
  assert (new.name, new.seed) == ("new.mp4", 7)
  shown = dict(new.settings)
  assert shown["Steps"] == "20" and shown["Size"] == "64x64"
  assert shown["Guidance"] == "video 1.5, audio 2"
  assert shown["Given video"] == shown["First frame"] == "given"
  assert shown["LoRA"] == "video 0.5"


def test_no_path_of_the_server_is_kept(tmp_path):
  add(tmp_path, "clip")
  (clip,) = galleries.Gallery(tmp_path).clips()
  said = json.dumps([clip.recipe, clip.settings])
  assert "cd" in said and "secret" not in said and "/home" not in said


def test_files_that_are_deleted_while_a_folder_is_read_are_left_out(
  tmp_path, monkeypatch
):
  add(tmp_path, "clip")
  add(tmp_path, "gone")
  real = os.scandir

  @contextlib.contextmanager
  def scandir(folder):
    with real(folder) as entries:
      found = list(entries)
    (tmp_path / "gone.json").unlink()
    yield found

  monkeypatch.setattr(os, "scandir", scandir)
  gallery = galleries.Gallery(tmp_path)
  assert [clip.name for clip in gallery.clips()] == ["clip.mp4"]


def test_a_search_finds_clips_with_all_words(tmp_path):
  add(tmp_path, "ball")
  add(tmp_path, "lamp", {"prompt": "A RED lamp flashes.", "seed": 4242})
  gallery = galleries.Gallery(tmp_path)
  names = {
    query: sorted(clip.name for clip in gallery.search(query))
    for query in ("", "red", "red LAMP", "4242", "steps 20", "green")
  }
  both = ["ball.mp4", "lamp.mp4"]
  assert names == {
    "": both,
    "red": both,
    "red LAMP": ["lamp.mp4"],
    "4242": ["lamp.mp4"],
    "steps 20": ["ball.mp4"],
    "green": [],
  }


def test_a_recipe_is_read_again_when_its_file_changes(tmp_path, monkeypatch):
  add(tmp_path, "clip", seconds=1.0)
  gallery = galleries.Gallery(tmp_path)
  first = gallery.clips()
  assert gallery.clips()[0] is first[0]
  add(tmp_path, "clip", {"prompt": "Another."}, seconds=2.0)
  assert gallery.clips()[0].prompt == "Another."
  (tmp_path / "clip.mp4").unlink()
  assert gallery.clips() == []


@pytest.mark.parametrize(
  "recipe",
  [
    b"not JSON",
    b"[" * 100 + b"]" * 100,
    b"[1, 2]",
    b'{"prompt": 5, "seed": "x", "config": [], "loras": {}, "given": 3}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": null, "seed": -1, "width": {"a": [1]}, "loras": [1]}',
    b'{"seed": true, "config": {"num_steps": NaN}}',
    b" " * (galleries.MAX_RECIPE_BYTES + 1),
  ],
)
def test_hostile_recipes_are_shown_by_the_name_of_the_clip(tmp_path, recipe):
  add(tmp_path, "clip", recipe)
  (clip,) = galleries.Gallery(tmp_path).clips()
  assert (clip.prompt, clip.seed) == ("clip.mp4", 0)
  json.dumps([clip.recipe, clip.settings], ensure_ascii=False).encode()


def test_only_regular_files_of_the_folder_are_found(tmp_path):
  folder, outside = tmp_path / "clips", tmp_path / "outside"
  folder.mkdir()
  outside.mkdir()
  add(outside, "secret")
  for ending in ("mp4", "json"):
    (folder / f"link.{ending}").symlink_to(outside / f"secret.{ending}")
  os.mkfifo(folder / "pipe.mp4")
  (folder / "pipe.json").write_text("{}")
  (folder / "dir.mp4").mkdir()
  (folder / "dir.json").write_text("{}")
  add(folder, ".hidden")
  (folder / os.fsdecode(b"\xff.mp4")).write_bytes(b"")
  (folder / os.fsdecode(b"\xff.json")).write_text("{}")
  gallery = galleries.Gallery(folder)
  assert gallery.clips() == []
  for name in ("../outside/secret.mp4", "link.mp4", "pipe.mp4", "/etc/passwd"):
    with pytest.raises(ValueError, match="no such clip"):
      gallery.path(name)
