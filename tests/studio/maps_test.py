"""Attention maps on demand, with trivial models."""

import dataclasses
import json

import pytest

from ovi_jax.media import mp4
from ovi_jax.sampling import outputs
from ovi_jax.studio import engine as engines
from ovi_jax.studio import gallery as galleries
from ovi_jax.studio import jobs
from ovi_jax.studio import maps
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
  film = maps.film(engine, clip)
  assert film.parent.name == "attention_maps" and film.name == clip.name
  drawn, _, wave_A, _ = mp4.read(film)
  original = mp4.read(engine.store.folder / clip.name)[0]
  assert drawn.shape == original.shape and wave_A is not None
  assert (drawn[..., 0] > original[..., 0]).mean() > 0.9  # orange
  assert maps.film(engine, clip) == film
  assert models.batches == [1, 0]
  engine.delete(job.id)
  assert not film.exists()


def test_maps_of_a_clip_of_sample_py_follow_from_its_recipe(made):
  engine, models, gallery, job = made
  for ending in (".mp4", ".json", ".npz"):
    path = (engine.store.folder / job.clip).with_suffix(ending)
    path.rename(path.with_stem("other"))
  maps.film(engine, gallery.find("other.mp4"))
  assert models.batches == [1, 0]


def test_clips_without_maps_are_refused_in_one_line(made):
  engine, models, gallery, job = made
  path = engine.store.folder / job.clip
  recipe = json.loads(path.with_suffix(".json").read_text())

  def refused(message, **changes):
    path.with_suffix(".json").write_text(json.dumps(recipe | changes))
    with pytest.raises(ValueError, match=message) as error:
      maps.film(engine, gallery.find(job.clip))
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
  from concurrent import futures

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
      maps.film(engine, dataclasses.replace(clip))
