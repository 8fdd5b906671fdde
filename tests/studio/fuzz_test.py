"""Arbitrary requests get an answer with a reason, and never a traceback."""

import json

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st

from ovi_jax.studio import engine as engines
from ovi_jax.studio import jobs
from ovi_jax.studio import requests
from ovi_jax.studio import schema
from ovi_jax.studio import service
from tests.lib import fake_sampling
from tests.lib import studio_server

NAMES = st.sampled_from([*schema.CreateVideo.model_fields, "size[video]", "x"])
SCALARS = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=30)
  | st.sampled_from(
    ["64x64", "0-1", "1e999", "nan", "data:image/png;base64,AA"]
  )
)
VALUES = st.recursive(
  SCALARS,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
      st.sampled_from(["video", "audio", "a"]), inner, max_size=2
    )
  ),
  max_leaves=5,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6).map(
  lambda found: {"prompt": "Ball.", **found}
)
JSON = OBJECTS.map(lambda found: json.dumps(found).encode())
HEADER = st.sampled_from(
  [
    b'Content-Disposition: form-data; name="%s"',
    b'Content-Disposition: form-data; name="%s"; filename="../../x.png"',
    b"Content-Disposition: form-data; name*=utf-8''%s",
    b'Content-Disposition: attachment; filename="%s"',
    b'content-type: image/png; name="%s"',
    b"X: %s",
    b"%s",
  ]
)
PART = st.tuples(
  HEADER,
  NAMES.map(str.encode) | st.binary(max_size=9),
  st.sampled_from([b"\r\n\r\n", b"\n\n", b"\r\n", b""]),
  st.binary(max_size=40)
  | SCALARS.map(lambda x: str(x).encode("utf-8", "replace")),
  st.sampled_from([b"\r\n", b"", b"\r\n\r\n"]),
).map(lambda x: x[0].replace(b"%s", x[1]) + b"".join(x[2:]))
FORM = st.tuples(
  st.lists(PART, max_size=5), st.sampled_from([b"--b--\r\n", b"--b", b""])
).map(lambda x: b"".join(b"--b\r\n" + part for part in x[0]) + x[1])
KINDS = ("application/json", "multipart/form-data; boundary=b")
BODY = (
  st.tuples(st.just(KINDS[0]), JSON | st.binary(max_size=60))
  | st.tuples(st.just(KINDS[1]), FORM | st.binary(max_size=60))
  | st.tuples(
    st.sampled_from([*KINDS, "multipart/form-data", "text/plain", ""]),
    JSON | FORM,
  )
)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
  pipeline, _ = fake_sampling.pipeline()
  store = jobs.JobStore(tmp_path_factory.mktemp("out"))
  # Not started: what is accepted waits.
  limits = requests.Limits(file_bytes=1 << 20, queued=20)
  engine = engines.Engine(pipeline, store, limits=limits)
  with (
    studio_server.served(service.create_app(engine)) as address,
    httpx.Client(base_url=address, timeout=60) as found,
  ):
    yield found
  store.close()


@pytest.mark.slow
@hypothesis.settings(
  max_examples=1000,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(BODY)
def test_any_body_is_accepted_or_refused_with_a_reason(client, request_body):
  kind, body = request_body
  headers = {"Content-Type": kind} if kind else {}
  response = client.post("/v1/videos", content=body, headers=headers)
  answer = response.json()
  assert "Traceback" not in response.text and "/tmp" not in response.text
  if response.status_code == 200:
    id = answer["id"]
    assert client.delete(f"/v1/videos/{id}").status_code == 200
  else:
    assert response.status_code in (400, 413, 415), response.text
    assert answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


@pytest.mark.slow
@hypothesis.settings(
  max_examples=200,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(
  st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"]),
  st.text(max_size=20) | st.sampled_from(["videos", "videos/..", "models"]),
  st.dictionaries(
    st.sampled_from(["limit", "after", "order", "variant"]),
    st.text(max_size=9) | st.integers().map(str),
  ),
)
def test_any_address_has_an_answer(client, method, path, query):
  path = "".join(f"%{byte:02x}" for byte in path.encode())
  response = client.request(method, f"/v1/{path}", params=query)
  assert response.status_code in (200, 307, 400, 404, 405, 415), response.text
  assert "Traceback" not in response.text
