"""The server: API, media, blinding, requests of others."""

import contextlib
import http.client
import json
import socket
import sqlite3
import threading

import pytest

from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study import server as server_lib
from tests.lib import study_clips

SYSTEMS = ["ourmodel", "baseline"]
CHOICES = {"audio": "left", "video": "equal", "sync": "right"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  return study_clips.make(folder, SYSTEMS, 3, items_per_session=6)


@pytest.fixture
def server(made):
  with served(*made) as found:
    yield found


@contextlib.contextmanager
def served(folder, study):
  with server_lib.Server(folder, study) as found:
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield found
    finally:
      found.shutdown()
      thread.join()


def request(server, method, path, body=None, **headers):
  """Status, headers and content of a response."""
  host, port = server.server_address[:2]
  connection = http.client.HTTPConnection(host, port, timeout=20)
  headers = {name.replace("_", "-"): value for name, value in headers.items()}
  if body is not None and not isinstance(body, bytes):
    body = json.dumps(body).encode()
    headers.setdefault("Content-Type", "application/json")
  connection.request(method, path, body, headers)
  response = connection.getresponse()
  content = response.read()
  connection.close()
  return response.status, dict(response.getheaders()), content


def call(server, method, path, body=None, token=""):
  headers = {"Authorization": f"Bearer {token}"} if token else {}
  status, _, content = request(server, method, path, body, **headers)
  return status, json.loads(content)


def join(server) -> str:
  _, found = call(server, "POST", "/api/join", {"code": server.code})
  call(server, "POST", "/api/start", {"headphones": 3}, found["token"])
  return found["token"]


def answer(item, **changes):
  values = {"choices": CHOICES, "seconds": 3.5, "plays": [1, 2]}
  return {"item": item} | values | changes


def test_a_rater_judges_a_whole_session_and_each_vote_is_stored_once(server):
  before = len(server.database.votes())
  token, count = join(server), 0
  status, session = call(server, "GET", "/api/session", token=token)
  while session["items"]:
    assert status == 200 and session["answered"] == count
    item = session["items"][0]["item"]
    for _ in range(2):  # the second is a repetition after a lost response
      status, session = call(server, "POST", "/api/answer", answer(item), token)
    count += 1
  assert count == session["answered"] >= 3
  assert len(server.database.votes()) - before == 3 * count


def test_nothing_that_a_rater_receives_names_a_system(server, made):
  folder, study = made
  token = join(server)
  received = []
  for path in ("/", "/page.js", "/page.css", "/api/study", "/api/session"):
    status, headers, content = request(
      server, "GET", path, Authorization=f"Bearer {token}"
    )
    assert status == 200
    received += [json.dumps(headers), content.decode()]
  page = server_lib.read_page()  # the same for every study
  received = [text for text in received if text.encode() not in page.values()]
  _, session = call(server, "GET", "/api/session", token=token)
  for each in session["items"]:
    assert set(each) == {"item", "prompt", "media"}
    for path in each["media"]:
      status, headers, content = request(server, "GET", f"/{path}")
      assert status == 200
      received += [path, json.dumps(headers), content.decode("latin-1")]
  text = "\n".join(received).lower()
  for secret in (*SYSTEMS, study.key, "gold", "repeat", "clip_", str(folder)):
    assert secret.lower() not in text, secret
  assert "Python" not in "\n".join(received)
  # What differs between clips is their content, not the header of their file.
  clips = [(folder / "media" / n).read_bytes() for n in study.media_names]
  assert len({clip[:32] for clip in clips}) == 1


def test_every_response_forbids_content_of_other_hosts(server):
  for path in ("/", "/api/study", "/nothing"):
    _, headers, _ = request(server, "GET", path)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "http" not in policy and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
  page = "".join(x.decode() for x in server_lib.read_page().values())
  assert "http://" not in page and "https://" not in page
  assert "innerHTML" not in page and "style=" not in page


@pytest.mark.parametrize(
  ("header", "status", "span"),
  [
    ("bytes=0-9", 206, (0, 10)),
    ("bytes=10-", 206, (10, None)),
    ("bytes=-7", 206, (-7, None)),
    ("bytes=5-99999999999", 206, (5, None)),
    ("bytes=0-1,4-5", 200, (0, None)),
    ("bytes=9-2", 200, (0, None)),
    ("lines=1-2", 200, (0, None)),
    ("bytes=-", 200, (0, None)),
    ("bytes=99999999999-", 416, (0, 0)),
    ("bytes=-0", 416, (0, 0)),
  ],
)
def test_ranges_of_media_are_served(server, made, header, status, span):
  folder, study = made
  name = min(study.media_names)
  whole = (folder / "media" / name).read_bytes()
  found, headers, content = request(
    server, "GET", f"/media/{name}", Range=header
  )
  assert found == status and content == whole[slice(*span)]
  if status == 206:
    start = whole.index(content)
    end = start + len(content) - 1
    expected = f"bytes {start}-{end}/{len(whole)}"
    assert headers["Content-Range"] == expected
  _, headers, nothing = request(server, "HEAD", f"/media/{name}")
  assert nothing == b"" and int(headers["Content-Length"]) == len(whole)


@pytest.mark.parametrize(
  "path",
  [
    "/media/../study.json",
    "/media/..%2fstudy.json",
    "/study.json",
    "/media/",
    "//etc/passwd",
    "/media/" + "0" * 32 + ".mp4",
    "/votes.sqlite3",
    "/index.html",
  ],
)
def test_other_files_are_not_served(server, path):
  status, _, content = request(server, "GET", path)
  assert status == 404 and b"error" in content


@pytest.mark.parametrize(
  ("headers", "status"),
  [
    ({"Origin": "http://elsewhere.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Sec_Fetch_Site": "cross-site"}, 403),
    ({"Content_Type": "text/plain"}, 415),
    ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
  ],
)
def test_another_origin_cannot_post(server, headers, status):
  before = server.database.count()
  body = json.dumps({"code": server.code}).encode()
  headers = {"Content_Type": "application/json", **headers}
  found, _, _ = request(server, "POST", "/api/join", body, **headers)
  assert found == status and server.database.count() == before
  host, port = server.server_address[:2]
  own = {"Content_Type": "application/json", "Origin": f"http://{host}:{port}"}
  assert request(server, "POST", "/api/join", body, **own)[0] == 200


@pytest.mark.parametrize(
  "lines",
  [
    b"GET http://[ HTTP/1.1\r\n",
    b"POST http://[ HTTP/1.1\r\nContent-Length: 2\r\n",
    b"POST /api/join HTTP/1.1\r\nOrigin: http://[\r\nContent-Length: 2\r\n",
  ],
)
def test_malformed_addresses_are_refused(server, lines):
  host, port = server.server_address[:2]
  with socket.create_connection((host, port), timeout=20) as connection:
    connection.sendall(lines + b"\r\n")
    response = b""
    while part := connection.recv(4096):
      response += part
  assert response.startswith(b"HTTP/1.1 400")
  assert b"Connection: close" in response and b"malformed" in response


def test_a_preflight_of_another_origin_is_not_answered(server):
  status, headers, _ = request(server, "OPTIONS", "/api/answer")
  assert status == 501
  assert not any(name.startswith("Access-Control") for name in headers)


@pytest.mark.parametrize(
  ("body", "status"),
  [
    (b"{", 400),
    (b"[]", 400),
    (b"\xff", 400),
    (b"[" * 9000, 400),
    (b'{"a": 1, "a": 2}', 400),
    (b" " * (server_lib.MAX_BODY + 1), 413),
  ],
)
def test_bodies_that_are_no_small_json_object_are_refused(server, body, status):
  found, _, _ = request(
    server, "POST", "/api/join", body, Content_Type="application/json"
  )
  assert found == status


@pytest.mark.parametrize(
  ("request_line", "headers", "status"),
  [
    (b"POST /api/join", b"Transfer-Encoding: chunked", b"411"),
    (b"POST /api/join", b"Content-Length: 99999999999", b"411"),
    (b"POST /api/join", b"Content-Length: 999999999", b"413"),
    (b"POST /api/join", b"Content-Length: -1", b"411"),
    (b"POST /api/join", b"Content-Length: 2\r\nContent-Length: 3", b"411"),
    (
      b"POST /api/join",
      b"Content-Length: 2\r\nTransfer-Encoding: chunked",
      b"411",
    ),
    (b"GET /api/study", b"Content-Length: 30", b"200"),
    (b"GET /api/study", b"Transfer-Encoding: chunked", b"411"),
  ],
)
def test_a_body_that_is_not_read_ends_the_connection(
  server, request_line, headers, status
):
  host, port = server.server_address[:2]
  with socket.create_connection((host, port), timeout=20) as connection:
    connection.sendall(
      request_line + b" HTTP/1.1\r\nHost: x\r\n"
      b"Content-Type: application/json\r\n" + headers + b"\r\n\r\n"
      b"GET /page.css HTTP/1.1\r\n\r\n"
    )
    response = b""
    with contextlib.suppress(ConnectionResetError):
      while part := connection.recv(4096):
        response += part
  assert response.startswith(b"HTTP/1.1 " + status)
  assert b"Connection: close" in response
  assert response.count(b"HTTP/1.1") == 1


def test_without_the_code_of_the_link_nobody_joins(server):
  for code in ("", "x", None, 3, server.code + "x"):
    status, found = call(server, "POST", "/api/join", {"code": code})
    assert status == 403 and "complete link" in found["error"]


def test_requests_without_a_valid_token_are_refused(server):
  token = join(server)
  for wrong in ("", token[:-1], "x" * 300, token.partition(".")[0]):
    assert call(server, "GET", "/api/session", token=wrong)[0] == 401
    assert call(server, "POST", "/api/answer", answer("x"), wrong)[0] == 401


@pytest.mark.parametrize(
  "change",
  [
    {"item": 3},
    {"item": "\ud800"},
    {"choices": []},
    {"choices": {"audio": 1}},
    {"seconds": "1"},
    {"seconds": -1},
    {"seconds": 1e9},
    {"plays": [0, 1]},
    {"plays": [1]},
    {"plays": [True, 1]},
    {"plays": [10**9, 1]},
  ],
)
def test_malformed_answers_are_refused(server, change):
  token = join(server)
  body = answer("x") | change
  assert call(server, "POST", "/api/answer", body, token)[0] == 400


def test_the_same_item_in_two_windows_is_stored_once(tmp_path, made):
  folder, study = made
  (tmp_path / "media").symlink_to(folder / "media")
  with served(tmp_path, study) as one, served(tmp_path, study) as two:
    assert one.code == two.code
    token = join(one)
    _, session = call(one, "GET", "/api/session", token=token)
    assert call(two, "GET", "/api/session", token=token)[1] == session
    item = session["items"][0]["item"]
    assert call(one, "POST", "/api/answer", answer(item), token)[0] == 200
    other = answer(item, choices=CHOICES | {"audio": "right"})
    status, found = call(two, "POST", "/api/answer", other, token)
    assert status == 409 and "answered before" in found["error"]
    assert len(two.database.votes()) == 3


def test_an_answer_that_cannot_be_stored_is_reported_and_can_be_repeated(
  tmp_path, made, log_lines
):
  folder, study = made
  (tmp_path / "media").symlink_to(folder / "media")
  with served(tmp_path, study) as server:
    token = join(server)
    _, session = call(server, "GET", "/api/session", token=token)
    item = session["items"][0]["item"]
    store = server.database

    class Full(database.Database):
      def answer(self, *args, **kwargs):
        raise sqlite3.OperationalError("database or disk is full")

    server.database = Full(tmp_path / manifest.VOTES, study)
    status, found = call(server, "POST", "/api/answer", answer(item), token)
    assert status == 503 and "try again" in found["error"]
    assert log_lines == ["not stored: database or disk is full"]
    server.database = store
    assert call(server, "POST", "/api/answer", answer(item), token)[0] == 200
    assert len(store.votes()) == 3


def test_raters_of_a_study_that_was_replaced_are_told(
  tmp_path, made, log_lines
):
  folder, study = made
  (tmp_path / "media").symlink_to(folder / "media")
  other = study_clips.without_media(SYSTEMS, 3)
  with served(tmp_path, study) as server:
    database.Database(tmp_path / manifest.VOTES, other, replace=True)
    status, found = call(server, "POST", "/api/join", {"code": server.code})
    assert status == 410 and "was replaced" in found["error"]
    assert other.hash in log_lines[0]


def test_missing_media_and_a_taken_port_are_errors_of_one_line(tmp_path, made):
  folder, study = made
  with pytest.raises(ValueError, match="media are missing"):
    server_lib.Server(tmp_path, study)
  with (
    served(folder, study) as server,
    pytest.raises(OSError, match="choose another --port"),
  ):
    server_lib.Server(folder, study, port=server.server_address[1])
