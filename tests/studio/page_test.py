"""What the page asks the server, and the page without a browser."""

import asyncio
import json
import os
import pathlib
import re

import fastapi
import numpy as np
import pytest
from fastapi import testclient

import ovi_jax
from ovi_jax.media import probe
from ovi_jax.modality import AV
from ovi_jax.sampling import previews
from ovi_jax.studio import engine as engines
from ovi_jax.studio import jobs
from ovi_jax.studio import page
from tests.lib import child_env

PROMPT = "A face in a blue hat says <S>ah oh<E>. Audio: a deep voice."
HOSTILE = "<img src=x onerror=alert(1)>{{value}}${value}`"


@pytest.fixture(scope="module")
def pipeline():
  return ovi_jax.Pipeline.from_pretrained()


@pytest.fixture
def engine(pipeline, tmp_path):
  """An engine whose thread is not started: jobs stay in the queue."""
  store = jobs.JobStore(tmp_path)
  yield engines.Engine(pipeline, store)
  store.close()


def mounted(engine, api_key=""):
  """An application with the page, as `service.create_app` gives one."""
  app = fastapi.FastAPI()

  async def mount():
    page.mount(app, engine, api_key)

  # Where no event loop runs, Gradio makes some that it does not close.
  asyncio.run(mount())
  return app


def add_clip(folder, name, recipe):
  (folder / f"{name}.mp4").write_bytes(b"0123456789")
  (folder / f"{name}.json").write_text(json.dumps(recipe))


def test_a_prompt_is_read_with_its_parts_and_the_notes_of_sampling(engine):
  functions = page.Functions(engine)
  found = functions.read_prompt(f"{PROMPT} A dragon")
  assert [kind for kind, _ in found["segments"]] == [
    *("text", "tag", "speech", "tag", "text", "tag", "sound"),
  ]
  assert found["segments"][2] == ("speech", "ah oh")
  assert found["notes"] == (
    "these words are not in the vocabulary and are left out: dragon",
  )
  cut = functions.read_prompt("a red ball " * 20)
  assert any("its end is ignored" in note for note in cut["notes"])
  mended = functions.read_prompt("<s>ah</S>")
  assert any("is read as" in note for note in mended["notes"])
  assert functions.read_prompt(" \n")["notes"] == ()


@pytest.mark.parametrize("text", [None, 5, ["a"], {"a": 1}, "a" * 10_001])
def test_what_is_no_prompt_is_refused_in_one_line(engine, text):
  with pytest.raises(ValueError, match="expected a text"):
    page.Functions(engine).read_prompt(text)


def test_unreadable_prompts_are_answered_as_json(engine):
  found = page.Functions(engine).read_prompt("a\ud800\0")
  assert "U+D800" in found["notes"][0]
  assert json.dumps(found, ensure_ascii=False).encode()


def test_the_page_offers_words_that_the_small_ovi_knows(engine):
  about = page.Functions(engine).about()
  names = [group["name"] for group in about["words"]]
  assert {"Colours", "Things", "Floors", "Sounds"} <= set(names)
  assert about["words"][0]["words"][0] == {
    "text": "red",
    "colour": "rgb(214, 36, 36)",
  }
  assert [preset["settings"] for preset in about["presets"]] == [
    *({}, {"num_steps": 12}, {"num_steps": 6}),
  ]
  assert about["loras"] == []
  # The small Ovi does not know reference voices.
  assert about["voices"] is False
  assert about["weights"] == "small Ovi: 64x64 pixels by default, 5.0 s"
  assert len(about["examples"]) == 6
  json.dumps(about)


def test_jobs_are_followed_with_place_step_and_error(engine):
  functions = page.Functions(engine)
  first, second = (engine.submit(PROMPT, {"seed": seed}) for seed in (1, 2))
  found = functions.live([second.id])["jobs"]
  assert [(job["id"], job["position"], job["seed"]) for job in found] == [
    (first.id, 1, 1),
    (second.id, 2, 2),
  ]
  assert functions.cancel(second.id)["status"] == "cancelled"
  listed = functions.live([second.id, second.id])["jobs"]
  assert [job["status"] for job in listed] == ["queued", "cancelled"]
  assert len(functions.live(["unknown"])["jobs"]) == 1
  for strange in (None, 3, [], {"job": 5}, "a", [None, 3]):
    assert len(functions.live(strange)["jobs"]) == 1
  refused = page._answer(functions.cancel)("unknown")
  assert refused == {"error": "there is no such job; it may have been removed"}


def test_the_step_of_the_latest_preview_is_told(engine, monkeypatch):
  functions = page.Functions(engine)
  job = engine.submit(PROMPT)
  assert functions.live([job.id])["preview"] is None
  engine.store.take()
  assert functions.live([job.id])["preview"] is None
  nothing = np.zeros((1, 8, 8, 3), np.uint8)
  made = previews.Preview(
    step=4, frames=nothing, fps=12.0, audio=np.zeros(99, np.float32)
  )
  monkeypatch.setattr(engine, "preview", lambda id: made)
  assert functions.live([job.id])["preview"] == 4
  assert functions.live()["preview"] is None


def test_a_clip_is_made_again_with_its_settings_and_another_seed(
  engine, tmp_path
):
  config = {"num_steps": 3, "solver": "euler", "seed": 1, "dtype": "float32"}
  recipe = {"prompt": PROMPT, "seed": 1, "config": config}
  add_clip(tmp_path, "clip", recipe)
  add_clip(tmp_path, "given", recipe | {"image": {"sha256": "ab"}})
  face = child_env.ROOT / "docs/images/face.png"
  job = engine.submit(PROMPT, {"num_steps": 4}, {"image": face})
  engine.store.take()
  engine.store.finish(job.id, "mine.mp4", owns_clip=True)
  add_clip(tmp_path, "mine", recipe | {"image": {"sha256": "ab"}})
  functions = page.Functions(engine)
  repeatable = {
    clip["name"]: clip["repeatable"] for clip in functions.list_clips()["clips"]
  }
  assert repeatable == {
    **{"clip.mp4": True, "mine.mp4": True, "given.mp4": False}
  }
  copied = functions.again({"name": "mine.mp4", "seed": 5})
  own = engine.get(copied["id"]).request
  assert own.settings == {"num_steps": 4, "seed": 5}
  assert own.given == {"image": "image"}
  made = functions.again({"name": "clip.mp4", "seed": 2})
  job = engine.get(made["id"])
  assert (made["seed"], made["num_steps"]) == (2, 3)
  assert job.request.prompt == PROMPT
  assert job.request.settings["solver"] == "euler"
  with pytest.raises(ValueError, match="files or LoRAs"):
    functions.again({"name": "given.mp4", "seed": 2})
  for strange in (None, {}, {"name": "none.mp4"}, {"name": 3}):
    with pytest.raises(ValueError, match="no such clip"):
      functions.again(strange)
  with pytest.raises(ValueError, match="seed"):
    functions.again({"name": "clip.mp4", "seed": "x"})


def test_the_gallery_is_shown_in_parts(engine, tmp_path, monkeypatch):
  monkeypatch.setattr(page, "MAX_SHOWN", 2)
  for number in range(3):
    add_clip(tmp_path, f"a #{number}%", {"prompt": f"ball {number}"})
  functions = page.Functions(engine)
  found = functions.list_clips({"query": "ball", "start": 2})
  assert found["total"] == 3 and len(found["clips"]) == 1
  assert len(functions.list_clips()["clips"]) == 2
  (one,) = functions.list_clips({"name": "a #1%.mp4"})["clips"]
  assert one["prompt"] == "ball 1" and "/a%20%231%25.mp4?v=" in one["source"]
  for strange in ({"start": "x"}, {"start": -5}, {"query": 3}, [], 7):
    assert functions.list_clips(strange)["total"] == 3


def test_saved_latents_can_be_downloaded(engine, tmp_path):
  for name in ("saved", "plain", "link"):
    add_clip(tmp_path, name, {"prompt": "A ball."})
  (tmp_path / "saved.npz").write_bytes(b"PK")
  (tmp_path / "link.npz").symlink_to("/etc/hostname")
  functions = page.Functions(engine)
  found = functions.list_clips()["clips"]
  assert {clip["name"]: clip["latents"] for clip in found} == {
    **{"saved.mp4": "/clips/saved.npz", "plain.mp4": "", "link.mp4": ""}
  }
  response = page._file(functions.gallery, "saved.npz")
  assert isinstance(response, fastapi.responses.FileResponse)
  assert response.path == tmp_path / "saved.npz"
  for name in ("plain.npz", "link.npz", "none.npz"):
    with pytest.raises(fastapi.HTTPException):
      page._file(functions.gallery, name)


def test_browsers_are_asked_for_the_key(engine):
  with testclient.TestClient(mounted(engine, "s3cret")) as client:
    for path in ("/", "/studio/", "/clips/a.mp4", "/other"):
      refused = client.get(path)
      assert refused.status_code == 401
      assert refused.headers["www-authenticate"].startswith("Basic ")
    for strange in ("Basic", "Basic %%", "Bearer s3cret", "Basic czNjcmV0"):
      headers = {"authorization": strange}
      assert client.get("/", headers=headers).status_code == 401
    assert client.get("/", auth=("me", "wrong")).status_code == 401
    assert client.get("/", auth=("me", "s3cret")).status_code == 200
    assert client.get("/v1/videos").status_code == 404  # of the service
  assert page.Functions(engine, "s3cret").about()["key"] == "s3cret"


@pytest.fixture(scope="module")
def client(pipeline, tmp_path_factory):
  folder = tmp_path_factory.mktemp("clips")
  recipe = {"prompt": HOSTILE, "image": {"path": "/secret/x"}}
  add_clip(folder, "clip", recipe)
  store = jobs.JobStore(folder)
  app = mounted(engines.Engine(pipeline, store))
  with testclient.TestClient(app) as found:
    yield found
  store.close()


def test_the_page_loads_nothing_from_other_hosts(client):
  found = client.get("/", follow_redirects=True)
  assert found.status_code == 200
  text = found.text
  loaded = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", text)
  foreign = [url for url in loaded if re.match(r"(?:https?:)?//", url)]
  assert loaded and not foreign
  policy = found.headers["content-security-policy"]
  assert policy.startswith("default-src 'self'") and "http" not in policy
  assert HOSTILE not in text


def test_tags_that_load_from_other_hosts_are_left_out():
  text = (
    '<head><link rel="preconnect" href="https://fonts.example">'
    "<script async src='//cdn.example/a.js'></script>"
    '<script src="./own.js"></script><link href="/own.css">'
    '<link rel="manifest" href="/manifest.json"></head>'
  )
  assert page.local_page(text, "p {}") == (
    '<head><script src="./own.js"></script><link href="/own.css">'
    "<style>p {}</style></head>"
  )


def test_clips_are_served_in_ranges_and_recipes_without_paths(client):
  found = client.get("/clips/clip.mp4", headers={"range": "bytes=2-4"})
  assert (found.status_code, found.content) == (206, b"234")
  assert found.headers["content-type"] == "video/mp4"
  recipe = client.get("/clips/clip.json")
  assert recipe.json()["prompt"] == HOSTILE and "secret" not in recipe.text
  assert recipe.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
  "name", ["none.mp4", "..%2fjobs.mp4", "%2e%2e/x.mp4", "clip", "clip.npz", ""]
)
def test_other_names_are_not_found(client, name):
  assert client.get(f"/clips/{name}").status_code == 404


def test_the_page_takes_no_files(client):
  files = {"files": ("a.png", b"0123456789")}
  for path in ("/studio/gradio_api/upload", "/studio/upload"):
    found = client.post(path, files=files)
    assert found.status_code in (404, 405, 413, 500), found.text
    assert "/tmp" not in found.text


def test_the_examples_are_clips_with_sound(client, engine):
  for example in page.Functions(engine).about()["examples"]:
    found = client.get(example["source"])
    assert found.status_code == 200 and found.content[4:8] == b"ftyp"


def test_texts_are_never_put_into_the_page_as_markup():
  script = page._read("studio.js")
  for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"):
    assert way not in script
  markup = page._read("studio.html")
  assert not re.search(r"\{\{|\$\{|`|<script|\son\w+=|https?:", markup)


def test_a_clip_to_extend_is_accepted_and_made_again(engine, tmp_path):
  example = page._assets() / "examples/1.mp4"
  job = engine.submit(PROMPT, {"num_steps": 1}, {"extend": example})
  assert job.request.given == {"extend": "extend"}
  assert job.seconds > probe.seconds(example)  # which is shown before
  engine.store.take()
  engine.store.finish(job.id, "longer.mp4", owns_clip=True)
  add_clip(tmp_path, "longer", {"prompt": PROMPT, "given": {"extend": {}}})
  again = page.Functions(engine).again({"name": "longer.mp4", "seed": 1})
  assert engine.get(again["id"]).request.given == {"extend": "extend"}


@pytest.mark.slow
@pytest.mark.nightly
def test_the_small_ovi_extends_a_clip(pipeline, tmp_path):
  example = page._assets() / "examples/1.mp4"
  store = jobs.JobStore(tmp_path)
  with engines.Engine(pipeline, store) as engine:
    job = engine.submit(PROMPT, {"num_steps": 2}, {"extend": example})
    done = engine.wait(job.id, 600)
    short = engine.submit(PROMPT, {"num_steps": 2}, seconds=0.5)
    short = engine.wait(short.id, 600)
    functions = page.Functions(engine)
    found = page._answer(functions.draw_attention)(short.clip)
    stem = pathlib.Path(short.clip).stem
    assert found["source"].startswith(f"/maps/{stem}.mp4?v="), found
    film = page._film(functions.gallery, short.clip)
    assert film.status_code == 200 and film.media_type == "video/mp4"
    refused = page._answer(functions.draw_attention)(done.clip)
    assert "several windows" in refused["error"]
  store.close()
  assert done.error is None and done.step == done.num_steps
  before, after = probe.seconds(example), probe.seconds(tmp_path / done.clip)
  assert after > 1.5 * before
  assert done.seconds == pytest.approx(after, abs=0.1)


def test_events_are_found_once_for_each_version_of_a_clip(
  engine, tmp_path, monkeypatch
):
  add_clip(tmp_path, "clip", {"prompt": PROMPT})
  called = []

  def find(path):
    called.append(path.name)
    return AV(audio=[0.5])

  monkeypatch.setattr(page.events, "find", find)
  functions = page.Functions(engine)
  for _ in range(2):
    assert functions.find_events("clip.mp4") == {"audio": [0.5]}
  assert called == ["clip.mp4"]
  os.utime(tmp_path / "clip.json", (1.0, 1.0))
  functions.find_events("clip.mp4")
  assert len(called) == 2
  for strange in (None, 3, "../clip.mp4", {"a": 1}):
    assert "error" in page._answer(functions.find_events)(strange)


def test_events_are_answered_though_they_are_forgotten_meanwhile(
  engine, tmp_path, monkeypatch
):
  class Forgetful(dict):
    """Another thread clears it as soon as something is stored."""

    def __setitem__(self, key, value):
      pass

  add_clip(tmp_path, "clip", {"prompt": PROMPT})
  monkeypatch.setattr(page.events, "find", lambda _: AV(audio=[0.5]))
  functions = page.Functions(engine)
  functions._events = Forgetful()
  assert functions.find_events("clip.mp4") == {"audio": [0.5]}


def test_sound_alone_is_in_the_gallery(engine, tmp_path):
  add_clip(tmp_path, "clip", {"prompt": PROMPT})
  (tmp_path / "clip.mp4").rename(tmp_path / "clip.wav")
  functions = page.Functions(engine)
  (clip,) = functions.list_clips()["clips"]
  assert (clip["kind"], clip["attention"]) == ("audio", False)
  assert clip["source"].startswith("/clips/clip.wav?v=")
  response = page._file(functions.gallery, "clip.wav")
  assert response.media_type == "audio/wav"
  assert page._file(functions.gallery, "clip.json").status_code == 200


def test_a_repetition_has_the_length_and_the_tower_of_its_clip(
  engine, tmp_path
):
  recipe = {"prompt": PROMPT, "latent_frames": 4, "generate": "audio"}
  add_clip(tmp_path, "clip", recipe)
  again = page.Functions(engine).again({"name": "clip.mp4", "seed": 5})
  request = engine.get(again["id"]).request
  assert (request.seconds, request.generate) == (0.5, "audio")
  assert request.settings["seed"] == 5
