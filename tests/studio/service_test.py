"""The HTTP API over a real socket, with trivial models."""

import base64
import io
import json
import socket
import wave

import fastapi
import httpx
import numpy as np
import pytest
from fastapi import testclient
from fastapi.middleware import cors
from PIL import Image

from ovi_jax.media import mp4
from ovi_jax.studio import engine as engines
from ovi_jax.studio import guard
from ovi_jax.studio import jobs
from ovi_jax.studio import requests
from ovi_jax.studio import schema
from ovi_jax.studio import service
from tests.lib import fake_sampling
from tests.lib import studio_server

BALL = "A red ball bounces."
QUICK = {"prompt": BALL, "num_steps": 2}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
  pipeline, _ = fake_sampling.pipeline()
  store = jobs.JobStore(tmp_path_factory.mktemp("out"))
  limits = requests.Limits(file_bytes=1 << 20)
  with engines.Engine(pipeline, store, limits=limits) as found:
    yield found
  store.close()


@pytest.fixture(scope="module")
def client(engine):
  with (
    studio_server.served(service.create_app(engine)) as address,
    httpx.Client(base_url=address, timeout=60) as found,
  ):
    yield found


@pytest.fixture
def gate(engine):
  """The models wait until it is set."""
  found = engine.pipeline._loaded["denoiser"].gate
  found.clear()
  yield found
  found.set()


def picture() -> bytes:
  buffer = io.BytesIO()
  Image.new("RGB", (64, 64), "teal").save(buffer, "PNG")
  return buffer.getvalue()


def problem(response, status):
  """The error of a response, which has no path and no traceback."""
  assert response.status_code == status, response.text
  assert response.headers["content-type"] == "application/json"
  error = response.json()["error"]
  assert set(error) == {"message", "type", "param", "code"}
  assert "\n" not in error["message"] and "Traceback" not in response.text
  return error


def done(client, engine, response):
  assert response.status_code == 200, response.text
  engine.wait(response.json()["id"], 60)
  return client.get(f"/v1/videos/{response.json()['id']}").json()


@pytest.mark.slow  # the client is imported for two seconds
@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_openai_client_makes_lists_downloads_and_deletes_a_clip(
  client, engine, tmp_path
):
  import openai

  with openai.OpenAI(
    base_url=f"{client.base_url}/v1", api_key="none"
  ) as openai_client:
    videos = openai_client.videos
    found = videos.create_and_poll(
      prompt=BALL,
      size="1280x720",
      seconds="5",
      input_reference=("a/../b.png", picture(), "image/png"),
      poll_interval_ms=20,
      extra_body={"num_steps": 2, "guidance_scale": {"video": 3.0}},
    )
    assert (found.status, found.progress) == ("completed", 100)
    assert found.prompt == BALL and found.size == "64x64"
    videos.download_content(found.id).write_to_file(tmp_path / "a.mp4")
    assert len(mp4.read(tmp_path / "a.mp4")[0]) == 5
    content = videos.download_content(found.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(content)).format == "WEBP"
    settings = engine.get(found.id).request.settings
    assert settings["guidance_scale"] == {"video": 3.0}
    plain = videos.create(prompt=BALL, extra_body={"num_steps": 2, "seed": 3})
    assert found.id in [video.id for video in videos.list(limit=1)]
    assert videos.poll(plain.id).status == "completed"
    assert [model.id for model in openai_client.models.list()] == ["ovi"]
    for each in (found.id, plain.id):
      assert videos.delete(each).deleted
    with pytest.raises(openai.NotFoundError, match="no clip of this id"):
      videos.retrieve(found.id)
    with pytest.raises(openai.BadRequestError, match="model: expected 'ovi'"):
      videos.create(prompt=BALL, model="sora-2")


def test_all_fields_of_a_form_are_read(client, engine):
  fields = QUICK | {
    "size": "64x64",
    "seed": "4294967295",
    "solver": "euler",
    "flow_shift": "2.5",
    "guidance_scale[video]": "2",
    "guidance_scale[audio]": "1.5",
    "negative_prompt": "blur",
    "slg_layer": "0",
    "conditioning": "clean",
    "keep": "0-1,2-3",
    "trim[audio]": "1-6",
    "seconds": "4",
    "generate": "both",
    "voice_guidance_scale": "2",
    "trim[voice]": "0.5-2",
  }
  sound = io.BytesIO()
  with wave.open(sound, "wb") as file:
    file.setparams((1, 2, 16000, 0, "NONE", ""))
    tone = np.sin(2 * np.pi * 220 * np.arange(16000 * 6) / 16000)
    file.writeframes((9000 * tone).astype("<i2").tobytes())
  given = ("../../x.wav", sound.getvalue(), "audio/wav")
  files = {"audio": given, "voice": given}
  found = done(
    client, engine, client.post("/v1/videos", data=fields, files=files)
  )
  assert found["status"] == "completed", found
  request = engine.get(found["id"]).request
  assert request.settings == {
    "num_steps": 2,
    "width": 64,
    "height": 64,
    "seed": 4294967295,
    "solver": "euler",
    "flow_shift": 2.5,
    "guidance_scale": {"video": 2.0, "audio": 1.5},
    "negative_prompt": "blur",
    "slg_layer": 0,
    "conditioning": "clean",
    "voice_guidance_scale": 2.0,
  }
  assert request.given == {
    "audio": "audio",
    "voice": "voice",
    "keep": [[0.0, 1.0], [2.0, 3.0]],
    "trim": {"audio": [1.0, 6.0], "voice": [0.5, 2.0]},
  }
  assert (request.seconds, request.generate) == (4.0, "both")
  assert found["seconds"] == "4.04"


def test_sound_alone_is_a_wav(client, engine):
  asked = QUICK | {"generate": "audio", "seconds": 0.5}
  found = done(client, engine, client.post("/v1/videos", json=asked))
  assert found["status"] == "completed", found
  at = f"/v1/videos/{found['id']}/content"
  content = client.get(at)
  assert content.headers["content-type"] == "audio/wav"
  assert content.content.startswith(b"RIFF")
  error = problem(client.get(at, params={"variant": "thumbnail"}), 404)
  assert error["message"] == "the clip is sound alone"


def test_json_may_hold_a_picture(client, engine):
  url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
  for reference in (url, {"image_url": url}):
    found = done(
      client,
      engine,
      client.post("/v1/videos", json=QUICK | {"input_reference": reference}),
    )
    assert found["status"] == "completed", found
  for wrong in ("http://127.0.0.1/x.png", "data:image/png;base64,?", "/etc/x"):
    error = problem(
      client.post("/v1/videos", json=QUICK | {"input_reference": wrong}), 400
    )
    assert error["param"] == "input_reference"


def test_every_file_of_a_clip_can_be_downloaded_and_no_path_is_in_it(
  client, engine
):
  found = done(client, engine, client.post("/v1/videos", json=QUICK))
  at = f"/v1/videos/{found['id']}/content"
  response = client.get(at, headers={"Range": "bytes=0-9"})
  assert response.status_code == 206 and len(response.content) == 10
  assert response.headers["content-type"] == "video/mp4"
  for name, value in (
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "same-origin"),
  ):
    assert response.headers[name] == value
  assert "access-control-allow-origin" not in response.headers
  recipe = client.get(at, params={"variant": "metadata"}).json()
  assert recipe["prompt"] == BALL and "path" not in str(recipe["image"])
  latents = client.get(at, params={"variant": "latents"}).content
  assert latents.startswith(b"PK")
  problem(client.get(at, params={"variant": "x"}), 400)
  (engine.store.folder / found["file_name"]).unlink()
  problem(client.get(at), 404)
  client.delete(f"/v1/videos/{found['id']}")


def test_a_running_clip_has_progress_previews_and_can_be_cancelled(
  client, engine, gate, monkeypatch
):
  real = engine.pipeline.preview

  def preview(*arguments):
    gate.clear()  # no further step until the test goes on
    return real(*arguments)

  monkeypatch.setattr(engine.pipeline, "preview", preview)
  first, second = (
    client.post("/v1/videos", json=QUICK | {"num_steps": n}).json()
    for n in (900, 2)
  )
  assert first["status"] in ("queued", "in_progress")
  assert (second["status"], second["progress"]) == ("queued", 0)
  at = f"/v1/videos/{first['id']}"
  problem(client.get(f"{at}/content"), 409)
  assert (
    "no preview yet"
    in problem(client.get(f"{at}/content", params={"variant": "preview"}), 409)[
      "message"
    ]
  )
  gate.set()
  next(_ for _ in engine.events(first["id"]) if engine.preview(first["id"]))
  response = client.get(f"{at}/content", params={"variant": "preview"})
  assert response.status_code == 200 and response.content[4:8] == b"ftyp"
  assert int(response.headers["X-Step"]) % engine.preview_every == 0
  cancelled = client.post(f"{at}/cancel").json()
  assert cancelled["status"] == "failed"
  assert cancelled["error"]["code"] == "cancelled"
  gate.set()
  assert engine.wait(second["id"], 60).status == jobs.FINISHED
  assert client.delete(at).json()["deleted"]
  problem(client.get(at), 404)
  problem(client.post(f"{at}/cancel"), 404)
  problem(client.delete(at), 404)


@pytest.mark.parametrize(
  ("values", "field", "message"),
  [
    ({}, "prompt", "required"),
    ({"prompt": ""}, "prompt", "at least 1"),
    ({"prompt": 5}, "prompt", "string"),
    ({"prompt": BALL, "steps": 5}, "steps", "not permitted"),
    ({"prompt": BALL, "size": "big"}, "size", "WIDTHxHEIGHT"),
    ({"prompt": BALL, "size": "1x9"}, None, "8 to 1"),
    ({"prompt": BALL, "seconds": "301"}, None, "at most 300"),
    ({"prompt": BALL, "seconds": 0.01}, None, "at least 0.17"),
    ({"prompt": BALL, "generate": "smell"}, "generate", "'both'"),
    ({"prompt": BALL, "trim": {"image": "0-1"}}, "trim", "not permitted"),
    ({"prompt": BALL, "seconds": "x"}, "seconds", "a number"),
    ({"prompt": BALL, "seed": -1}, None, "seeds must be"),
    ({"prompt": BALL, "guidance_scale": {"x": 1}}, "guidance_scale", ""),
    ({"prompt": BALL, "model": "gpt"}, "model", "expected 'ovi'"),
  ],
)
def test_wrong_fields_are_named(client, values, field, message):
  error = problem(client.post("/v1/videos", json=values), 400)
  assert error["type"] == "invalid_request_error"
  assert error["param"] == field and message in error["message"]


def test_malformed_requests_are_refused(client):
  post = client.post
  kind = {"Content-Type": "application/json"}
  for body in (b"", b"{", b"[]", b"\xff", b"[" * 99, b'{"prompt": NaN}'):
    problem(post("/v1/videos", content=body, headers=kind), 400)
  problem(post("/v1/videos", content=b"{}"), 415)
  problem(
    post(
      "/v1/videos",
      content=b"{}",
      headers={"Content-Type": "text/plain; application/json"},
    ),
    415,
  )
  for boundary in ("", "; boundary=x"):
    kind = {"Content-Type": f"multipart/form-data{boundary}"}
    problem(post("/v1/videos", content=b"--y\r\n", headers=kind), 400)
  kind = {"Content-Type": "multipart/form-data; boundary=x"}
  cut = b"--x\r\nContent-Disposition: form-data; name=prompt\r\n\r\nA ball."
  for end in (b"", b"\r\n--x", b"\r\n--x\r\nContent-Dis"):
    error = problem(post("/v1/videos", content=cut + end, headers=kind), 400)
    assert error["message"] == "the form is cut off"
  twice = [("prompt", (None, "a")), ("prompt", (None, "b"))]
  assert "twice" in problem(post("/v1/videos", files=twice), 400)["message"]
  file = {"prompt": ("a.png", b"x")}
  problem(post("/v1/videos", files=file), 400)
  problem(post("/v1/videos", data={"video": "x"}, files={"audio": b""}), 400)
  many = [("audio", (f"{n}.wav", b"x")) for n in range(9)]
  problem(post("/v1/videos", files=many), 400)
  kind = {"Content-Type": "Application/JSON; charset=utf-8"}
  problem(post("/v1/videos", content=b"{}", headers=kind), 400)
  problem(client.get("/v1/videos?limit=0"), 400)
  problem(client.get("/v1/videos?after=video_0"), 404)
  problem(client.get("/v1/nothing"), 404)
  problem(client.put("/v1/videos"), 405)
  problem(client.get(f"/v1/videos/{'x' * 200}"), 400)
  problem(client.get("/v1/videos/..%2f..%2fetc%2fpasswd/content"), 404)


def test_large_requests_are_refused_before_they_are_read(client, engine):
  files = {"audio": ("a.wav", bytes((1 << 20) + 1))}
  error = problem(client.post("/v1/videos", data=QUICK, files=files), 400)
  assert error["message"].startswith("audio: expected a file of at most 1 MiB")
  files = {"audio": ("a.wav", bytes(8 << 20))}
  problem(client.post("/v1/videos", data=QUICK, files=files), 413)

  def chunks():  # without a length
    yield b"--x\r\nContent-Disposition: form-data; name=audio;"
    yield b" filename=a\r\n\r\n"
    for _ in range(8):
      yield bytes(1 << 20)

  kind = {"Content-Type": "multipart/form-data; boundary=x"}
  problem(client.post("/v1/videos", content=chunks(), headers=kind), 413)
  assert not [x for x in engine.query(limit=100) if x.request.prompt == "x"]


def test_other_hosts_and_origins_are_refused(client):
  own = f"http://{client.base_url.host}:{client.base_url.port}"
  local = f"localhost:{client.base_url.port}"
  for headers, status in (
    ({"Origin": own}, 200),
    ({"Origin": own, "Sec-Fetch-Site": "same-origin"}, 200),
    ({"Host": local, "Origin": f"http://{local}"}, 200),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": f"http://{local}"}, 403),
    ({"Origin": f"{own}.evil.example"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Host": "evil.example"}, 403),
    ({"Host": "evil.example:80", "Origin": "http://evil.example:80"}, 403),
    ({"Host": "127.0.0.1.evil.example"}, 403),
  ):
    response = client.post("/v1/videos", json=QUICK, headers=headers)
    assert response.status_code == status, headers
    if status == 403:
      problem(response, 403)
  problem(client.get("/v1/videos", headers={"Host": "evil.example"}), 403)
  assert client.get("/v1/videos", headers={"Host": "[::1]:8"}).is_success


def test_pages_of_other_origins_cannot_read_answers():
  app = fastapi.FastAPI()
  app.add_middleware(
    cors.CORSMiddleware, allow_origin_regex=".*", allow_credentials=True
  )
  headers = {"Origin": "http://evil.example"}
  for given, is_open in (
    (app, True),
    (guard.Guard(app, hosts=(), max_body=1), False),
  ):
    client = testclient.TestClient(given, "http://localhost")
    found = client.get("/openapi.json", headers=headers)
    assert found.status_code == 200
    names = [x for x in found.headers if x.startswith("access-control-")]
    assert bool(names) == is_open


def test_host_names_are_found_in_headers():
  found = ["a.b:80", "a.b", "[::1]:8000", "[::1]", "", "127.0.0.1:1"]
  names = ["a.b", "a.b", "::1", "::1", "", "127.0.0.1"]
  assert list(map(guard.host_name, found)) == names


def test_a_key_is_needed_where_one_is_set(engine):
  app = service.create_app(
    engine, api_key="sésame", allowed_hosts=["Studio.example"]
  )
  with (
    studio_server.served(app) as address,
    httpx.Client(base_url=address) as client,
  ):
    for header in ("", "Bearer", "Bearer x", "Basic sésame", "sésame"):
      headers = {"Authorization": header.encode()} if header else {}
      error = problem(client.get("/v1/videos", headers=headers), 401)
      assert error["code"] == "invalid_api_key"
    key = {"Authorization": "Bearer sésame".encode()}
    assert client.get("/v1/videos", headers=key).is_success
    host = key | {"Host": "studio.example:8000"}
    assert client.get("/v1/videos", headers=host).is_success
    document = client.get("/openapi.json").json()
    assert document["security"] == [{"key": []}]


def test_a_lost_client_and_a_full_disk_are_told_apart(client, engine):
  host, port = client.base_url.host, client.base_url.port
  with socket.create_connection((host, port)) as connection:
    connection.sendall(
      b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\n"
      b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
  real = engine.store.add
  try:

    def add(*_, **__):
      raise jobs.StorageError("/secret is full")

    engine.store.add = add
    error = problem(client.post("/v1/videos", json=QUICK), 503)
    assert error["message"].startswith("the server cannot store this now")
    assert error["type"] == "server_error"

    def fails(*_, **__):
      raise RuntimeError("/secret")

    engine.store.add = fails
    error = problem(client.post("/v1/videos", json=QUICK), 500)
    assert error["message"] == "internal error; see the server's log"
  finally:
    engine.store.add = real


def test_the_openapi_document_is_valid(client):
  import openapi_spec_validator

  document = client.get("/openapi.json").json()
  openapi_spec_validator.validate(document)
  create = document["paths"]["/v1/videos"]["post"]
  assert create["requestBody"] == {"$ref": "#/components/requestBodies/Video"}
  content = document["components"]["requestBodies"]["Video"]["content"]
  form = content["multipart/form-data"]["schema"]["properties"]
  assert form["input_reference"]["format"] == "binary"
  assert "422" not in json.dumps(document)
  assert set(create["responses"]) >= {"200", "400", "413", "429", "503"}
  # Pages that would load scripts of other hosts.
  assert client.get("/docs").status_code == 404


def test_every_status_of_a_job_is_one_of_openai():
  assert set(schema.STATUSES) == set(jobs.STATUSES)
