"""Attention maps on demand, with trivial models."""

import dataclasses
import errno
import json
import os
import shutil
import threading
from concurrent import futures

import fastapi
import pytest
from PIL import Image

from ovi_jax.media import mp4
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import outputs
from ovi_jax.studio import engine as engines
from ovi_jax.studio import gallery as galleries
from ovi_jax.studio import jobs
from ovi_jax.studio import maps
from ovi_jax.studio import page
from ovi_jax.studio import requests
from tests.lib import fake_sampling

BALL = "A red ball bounces."


@pytest.fixture
def made(tmp_path):
  """An engine, its models, its gallery and a finished job."""
  pipeline, models = fake_sampling.pipeline()
  store = jobs.JobStore(tmp_path)
  with engines.Engine(pipeline, store) as engine:
    job = engine.submit(BALL, {"num_steps": 2, "seed": 5})
    job = engine.wait(job.id, 60)
    assert job.error is None
    yield engine, models, galleries.Gallery(tmp_path), job
  store.close()


def test_maps_are_drawn_once_and_removed_with_their_clip(made):
  engine, models, gallery, job = made
  clip = gallery.find(job.clip)
  film = maps.Films(engine, gallery).film(clip)
  assert film.parent.name == "attention_maps" and film.name == clip.name
  drawn, _, wave_A, _ = mp4.read(film)
  original = mp4.read(engine.store.folder / clip.name)[0]
  assert drawn.shape == original.shape and wave_A is not None
  assert (drawn[..., 0] > original[..., 0]).mean() > 0.9  # orange
  assert maps.Films(engine, gallery).film(clip) == film
  assert models.batches == [1, 0]
  engine.delete(job.id)
  assert not film.exists()


def test_maps_of_a_clip_of_sample_py_follow_from_its_recipe(made):
  engine, models, gallery, job = made
  for ending in (".mp4", ".json", ".npz"):
    path = (engine.store.folder / job.clip).with_suffix(ending)
    path.rename(path.with_stem("other"))
  maps.Films(engine, gallery).film(gallery.find("other.mp4"))
  assert models.batches == [1, 0]


def test_clips_without_maps_are_refused_in_one_line(made):
  engine, models, gallery, job = made
  path = engine.store.folder / job.clip
  recipe = json.loads(path.with_suffix(".json").read_text())

  def refused(message, **changes):
    path.with_suffix(".json").write_text(json.dumps(recipe | changes))
    with pytest.raises(ValueError, match=message) as error:
      maps.Films(engine, gallery).film(gallery.find(job.clip))
    assert "\n" not in str(error.value)

  refused("one tower", generate="video")
  refused("several windows", windows={"count": 2})
  refused("other weights or settings", weights={"sha256": {}})
  latents = outputs.latents_of(path)
  latents.write_bytes(b"PK")
  refused("do not fit")
  latents.unlink()
  refused("were not saved")
  assert models.batches == [1]


def test_calls_are_answered_between_batches_and_not_after_the_end(made):
  engine, models, _, _ = made
  models.gate.clear()
  models.began.clear()
  running = engine.submit("Rain.", {"num_steps": 2})
  assert models.began.wait(60)
  statuses = []

  def call(_):
    statuses.append(engine.get(running.id).status)

  models.gate.set()
  engine.call(call)
  assert statuses == [jobs.FINISHED]
  with pytest.raises(ZeroDivisionError):
    engine.call(lambda _: 1 / 0)
  engine.close()
  with pytest.raises(requests.RequestError, match="busy"):
    engine.call(call)


def test_a_call_that_waits_is_refused_at_the_end(tmp_path):
  pipeline, _ = fake_sampling.pipeline()
  store = jobs.JobStore(tmp_path)
  engine = engines.Engine(pipeline, store)  # which is never started
  found = []
  with futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(engine.call, found.append)
    while not engine._calls:
      pass
    engine.close()
    with pytest.raises(requests.RequestError, match="stopping"):
      waiting.result(60)
  assert found == []
  store.close()


def test_hostile_recipes_of_other_programs_are_refused(made):
  engine, _, gallery, job = made
  path = engine.store.folder / job.clip
  recipe = json.loads(path.with_suffix(".json").read_text())
  for number, changes in enumerate(
    (
      {"config": {"num_steps": "x"}},
      {"generate": ["audio"]},
      {"latent_frames": -3},
      {"prompt": ""},
    )
  ):
    name = f"hostile_{number}"
    for ending in (".mp4", ".npz"):
      target = path.with_name(name + ending)
      target.write_bytes(path.with_suffix(ending).read_bytes())
    path.with_name(f"{name}.json").write_text(json.dumps(recipe | changes))
    clip = gallery.find(f"{name}.mp4")
    with pytest.raises(ValueError):
      maps.Films(engine, gallery).film(dataclasses.replace(clip))


def test_answers_about_missing_files_have_no_paths(made, tmp_path):
  engine, _, _, job = made
  picture = tmp_path / "x.png"
  Image.new("RGB", (64, 64)).save(picture)
  settings = {"num_steps": 2, "seed": 6}
  given = engine.submit("A ball.", settings, {"image": picture})
  given = engine.wait(given.id, 60)
  shutil.rmtree(engine.store.given_folder(given.id))
  functions = page.Functions(engine)
  draw = page._answer(functions.draw_attention)
  find = page._answer(functions.find_events)
  no_image = draw(given.clip)["error"]
  made_by = engine.store.made

  def with_lora(clip):
    found = made_by(clip)
    lora = f"{tmp_path}/loras/gone.safetensors:1"
    request = dataclasses.replace(found.request, lora=lora)
    return dataclasses.replace(found, request=request)

  engine.store.made = with_lora
  no_lora = draw(job.clip)["error"]
  engine.store.made = made_by
  (tmp_path / job.clip).write_bytes(b"0123456789")
  damaged = find(job.clip)["error"]
  assert "image" in no_image and "gone.safetensors" in no_lora
  for said in (no_image, no_lora, damaged):
    assert str(tmp_path) not in said and "\n" not in said


@pytest.mark.parametrize("deleted", [True, False])
def test_a_film_is_of_the_clip_that_is_there(made, monkeypatch, deleted):
  """A clip is deleted, or removed by hand, while its maps are drawn."""
  engine, models, gallery, job = made
  clip, path = gallery.find(job.clip), engine.store.folder / job.clip
  films, read = maps.Films(engine, gallery), mp4.read

  def removed(path):
    found = read(path)
    engine.delete(job.id)
    return found

  if deleted:
    monkeypatch.setattr(maps.mp4, "read", removed)
    with pytest.raises(ValueError, match="removed"):
      films.film(clip)
    monkeypatch.undo()
  else:
    films.film(clip)
    path.unlink()
  film = attention_maps.files_of(path)[0]
  assert film.exists() is not deleted
  other = engine.submit(BALL, {"num_steps": 3, "seed": 5})
  other = engine.wait(other.id, 60)
  assert other.clip == job.clip and not film.exists()
  assert models.batches == [1, 0, 1]
  films.film(gallery.find(other.clip))
  assert models.batches == [1, 0, 1, 0]
  # Another program replaces the clip.
  os.utime(film, ns=(0, path.stat().st_mtime_ns - 1))
  with pytest.raises(fastapi.HTTPException):
    page._film(gallery, job.clip)
  films.film(gallery.find(other.clip))
  assert models.batches[-2:] == [0, 0]
  assert page._film(gallery, job.clip).status_code == 200


def test_a_film_is_drawn_once_for_all_who_ask(made, monkeypatch):
  engine, models, gallery, job = made
  films, clip = maps.Films(engine, gallery), gallery.find(job.clip)
  began, may_read, read = threading.Event(), threading.Event(), mp4.read

  def wait(path):
    began.set()
    assert may_read.wait(60)
    return read(path)

  monkeypatch.setattr(maps.mp4, "read", wait)
  asked = []

  class Drawing(dict):
    """Tells when the second caller has found the first one's drawing."""

    def setdefault(self, key, value):
      found = super().setdefault(key, value)
      asked.append(key)
      if len(asked) == 2:
        may_read.set()
      return found

  films._drawing = Drawing()
  with futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(films.film, clip)
    assert began.wait(60)
    second = pool.submit(films.film, clip)
    assert first.result(60) == second.result(60)
  assert models.batches == [1, 0] and not films._drawing


def test_a_film_that_cannot_be_written_is_told_in_one_line(made, monkeypatch):
  engine, _, gallery, job = made

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device", job.clip)

  monkeypatch.setattr(maps.attention_maps, "write", full)
  with pytest.raises(jobs.StorageError, match="^No space left on device$"):
    maps.Films(engine, gallery).film(gallery.find(job.clip))
  functions = page.Functions(engine)
  answer = page._answer(functions.draw_attention)(job.clip)
  assert "try again later" in answer["error"]
