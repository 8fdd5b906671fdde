"""First frames from an endpoint that is there, slow, wrong, rude or gone."""

import asyncio
import dataclasses
import errno
import json
import pathlib
import threading
from typing import Any

import numpy as np
import pytest

import ovi_jax
from ovi_jax import prompt as prompts
from ovi_jax import synthetic
from ovi_jax.endpoints import client as clients
from ovi_jax.sampling import clips
from ovi_jax.sampling import first_frames
from ovi_jax.sampling import generate
from ovi_jax.sampling import outputs
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as settings_lib
from tests.lib import image_server

pytest.importorskip("httpx", reason="pip install 'ovi_jax[curate]'")

BALL = "A red ball bounces and says, <S>Hop.<E> It rests. Audio: dull knocks."
KEY = "sk-secret-0123456789"


async def no_sleep(_: float) -> None:
  """Waits take no time."""


def fetch(url: str, folder: pathlib.Path, *asked: Any, **changes: Any):
  endpoint = first_frames.Endpoint(
    url=url, **{"model": "m", **changes.pop("endpoint", {})}
  )
  values = {"seed": 7, "samples_per_prompt": 1, "size": (64, 96), "area": 6144}
  return first_frames.fetch(
    [r for each in asked or (BALL,) for r in requests.from_prompt(each)],
    endpoint,
    folder,
    clock=clients.Clock(sleep=no_sleep),
    **{**values, **changes},
  )


def test_speech_and_sound_are_left_out_of_the_prompt():
  assert prompts.picture(BALL) == "A red ball bounces and says, It rests."
  assert prompts.picture("A <S>hi<E>, B <AUDCAP>rain<ENDAUDCAP>") == "A, B"
  assert prompts.picture("A lamp") == "A lamp"
  assert prompts.picture("<S>hi<E> Audio: rain") == ""


def test_a_picture_is_asked_for_once_by_prompt_seed_and_model(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("IMAGE_KEY", KEY)
  with image_server.serving() as (url, bodies):
    named = {"api_key_env": "IMAGE_KEY"}
    found = fetch(url, tmp_path, samples_per_prompt=2, endpoint=named)
    assert [r.seed for r in found] == [7, 8]
    assert sorted(body.pop("seed") for body in bodies) == [7, 8]
    for body in bodies:
      assert body == {
        "path": "/v1/images/generations",
        "key": f"Bearer {KEY}",
        "model": "m",
        "prompt": prompts.picture(BALL),
        "n": 1,
        "size": "96x64",
        "response_format": "b64_json",
      }
    assert found[0].image != found[1].image
    assert found[0].first_frame == {
      "model": "m",
      "prompt": prompts.picture(BALL),
      "seed": 7,
    }
    again = fetch(url, tmp_path, samples_per_prompt=2)
    assert [r.image for r in again] == [r.image for r in found]
    assert len(bodies) == 2
    fetch(url, tmp_path, endpoint={"model": "other"})
    # The whole address works, too; clips with an image need no picture.
    fetch(f"{url}/images/generations", tmp_path, BALL, BALL, seed=9)
    assert len(bodies) == 4
    (given,) = requests.from_prompt(BALL, found[0].image)
    assert not first_frames._needs_one(given)
  assert KEY not in "".join(p.read_text("latin1") for p in tmp_path.iterdir())


def test_fields_that_an_endpoint_does_not_know_are_left_out(tmp_path):
  def script(body):
    for name in ("response_format", "seed"):
      if name in body:
        return 400, {"error": {"message": f"Unknown parameter: '{name}'."}}
    return image_server.picture(body)

  with image_server.serving(script) as (url, bodies):
    (found,) = fetch(url, tmp_path)
  assert found.image is not None and "size" in bodies[-1]
  assert len(bodies) == 3


def test_requests_that_are_rejected_at_once_are_all_sent_again(tmp_path):
  both = threading.Barrier(2, timeout=30)

  def script(body):
    if "seed" in body:
      both.wait()  # neither is rejected before the other is sent
      return 400, {"error": {"message": "Unknown parameter: 'seed'."}}
    return image_server.picture(body)

  with image_server.serving(script) as (url, bodies):
    found = fetch(url, tmp_path, BALL, "A lamp")
  assert len(bodies) == 4 and all(request.image for request in found)


def test_a_prompt_is_cut_at_a_bar_only_for_windows(tmp_path):
  with image_server.serving() as (url, bodies):
    fetch(url, tmp_path, "A red|blue ball || a lamp")
    values = {"seed": 7, "samples_per_prompt": 1, "size": (64, 96)}
    first_frames.fetch(
      requests.from_prompt("A ball | A lamp", seconds=20.0),
      first_frames.Endpoint(url=url),
      tmp_path,
      area=6144,
      **values,
    )
  asked = [body["prompt"] for body in bodies]
  assert asked == ["A red|blue ball || a lamp", "A ball"]


def test_pictures_are_fetched_where_an_event_loop_runs(tmp_path):
  """As in a notebook."""

  async def cell(url):
    return fetch(url, tmp_path)

  with image_server.serving() as (url, _):
    (found,) = asyncio.run(cell(url))
  assert found.image is not None


def test_a_folder_that_cannot_be_written_is_an_oserror(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "no space left", str(tmp_path))

  monkeypatch.setattr(first_frames, "_keep", full)
  with (
    image_server.serving() as (url, _),
    pytest.raises(OSError, match="no space left"),
  ):
    fetch(url, tmp_path, BALL, "A lamp")


@pytest.mark.parametrize(
  ("answer", "message"),
  [
    ((200, b"<html>"), "expected a picture as b64_json, got"),
    ((200, {"data": []}), "expected a picture as b64_json, got IndexError"),
    ((200, {"data": [{"b64_json": "***"}]}), "got ValueError"),
    ((200, {"data": [{"b64_json": "aGVsbG8="}]}), "the picture: .*PNG, JPEG"),
    ((200, {"data": [{"url": "http://x"}]}), "got KeyError"),
    ((400, {"error": "not safe"}), "status 400: .*not safe"),
    ((401, {"error": KEY}), r"status 401: .*\[key\].*check url, model and"),
    ((500, {"error": "oh"}), "4 attempts failed, the last: status 500"),
  ],
)
def test_a_wrong_answer_is_one_line_and_loses_nothing(
  tmp_path, monkeypatch, answer, message
):
  monkeypatch.setenv("IMAGE_KEY", KEY)

  def script(body):
    return answer if "lamp" in body["prompt"] else image_server.picture(body)

  named = {"endpoint": {"api_key_env": "IMAGE_KEY"}}
  with image_server.serving(script) as (url, _):
    fetch(url, tmp_path, **named)
    kept = list(tmp_path.iterdir())
    with pytest.raises(
      ValueError, match=f"1 of 2 pictures are.*{message}"
    ) as e:
      fetch(url, tmp_path, BALL, "A lamp", **named)
  assert "\n" not in str(e.value) and KEY not in str(e.value)
  assert list(tmp_path.iterdir()) == kept and len(kept) == 1


def test_an_endpoint_that_is_gone_is_one_line(tmp_path):
  with image_server.serving() as (url, _):
    pass
  with pytest.raises(
    ValueError, match="first_frame_endpoint: 1 of 1 .*Conn"
  ) as e:
    fetch(url, tmp_path)
  assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("asked", "message"),
  [
    (
      {"first_frame_endpoint": "ftp://x"},
      "first_frame_endpoint: url: expected",
    ),
    ({"first_frame_endpoint": "http://u:p@x/v1"}, "without a user, pass"),
    ({"first_frame_model": "m"}, "first_frame_model needs first_frame_end"),
    ({"first_frame_key_env": KEY}, "first_frame_key_env needs"),
    (
      {"first_frame_endpoint": "http://x/v1", "first_frame_key_env": KEY},
      "expected the name of an environment variable",
    ),
    (
      {"first_frame_endpoint": "http://x/v1", "first_frame_key_env": "NONE_X"},
      "variable NONE_X is empty",
    ),
    (
      {"first_frame_endpoint": "http://x/v1", "mode": "t2v"},
      "first_frame_endpoint and mode t2v cannot be combined",
    ),
  ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
  tmp_path, monkeypatch, asked, message
):
  monkeypatch.chdir(tmp_path)
  pipe = ovi_jax.Pipeline.from_pretrained()
  with pytest.raises(ValueError, match=message) as error:
    pipe("a", **asked)
  assert KEY not in str(error.value) and not pipe._loaded
  with pytest.raises(ValueError, match="^the prompt has only speech and sound"):
    pipe("Audio: rain.", first_frame_endpoint="http://127.0.0.1:1/v1")


def test_the_picture_is_kept_beside_the_clip(tmp_path, monkeypatch):
  """In a run of `sample.py`, whose clips are planned but not generated."""
  made = []

  def plan_only(self, jobs, settings, finish, *args, **kwargs):
    made.extend(jobs)
    for job in jobs:
      video = np.zeros((5, 64, 64, 3), np.uint8)
      clip = clips.Clip(video=video, audio=None, latents=None, metadata={})
      one = clips.Made(job=job, decoder=None)
      one.__dict__["clip"] = clip
      finish(one)

  monkeypatch.setattr(pipelines.Pipeline, "generate", plan_only)
  with image_server.serving() as (url, _):
    generate.run(
      requests=requests.from_prompt(BALL),
      settings=settings_lib.Settings.from_overrides(
        {"num_steps": 1, "samples_per_prompt": 2, "slg_layer": 0}
      ),
      weights=synthetic.WEIGHTS,
      out=tmp_path,
      first_frame=first_frames.Endpoint(url=url, model="m"),
    )
  assert [job.request.seed for job in made] == [103, 104]
  for job in made:
    beside = job.path.with_suffix(".png")
    assert beside.read_bytes() == pathlib.Path(job.request.image).read_bytes()
    assert job.recipe["first_frame"]["model"] == "m"
    assert job.recipe["image"]["sha256"]
  # A clip made with the same picture as a file is the same clip.
  recipe = dict(made[0].recipe)
  mp4 = made[0].path
  mp4.with_suffix(".json").write_text(json.dumps(recipe))
  del recipe["first_frame"]
  assert outputs.is_complete(mp4, recipe)
  assert dataclasses.replace(made[0].request).first_frame is not None
