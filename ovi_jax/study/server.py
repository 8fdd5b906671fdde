"""The web server of a study: static page, media with ranges, a JSON API.

  GET  /  /page.js  /page.css        the page
  GET  /media/NAME.mp4               with range requests
  GET  /api/study                    texts, questions
  POST /api/join    {code}           -> {token}
  POST /api/start   {headphones}     consent
  GET  /api/session                  items to answer
  POST /api/answer  {item, choices, seconds, plays}

A rater's token is in the Authorization header, and in the page in the part of
the URL after #, which browsers do not send. No CORS headers are sent, and POST
requires JSON and the page's own origin, so pages of other origins can neither
read nor post.
"""

import http
import http.server
import json
import logging
import pathlib
import re
import socket
import sqlite3
import sys
import threading
import urllib.parse
from collections.abc import Mapping
from importlib import resources
from typing import Any

from ovi_jax import console
from ovi_jax import untrusted
from ovi_jax.study import database
from ovi_jax.study import manifest

_log = logging.getLogger(__name__)

MAX_BODY = 16 << 10  # bytes
MAX_CONNECTIONS = 256
MAX_SECONDS = 86_400.0
MAX_PLAYS = 10_000
_TIMEOUT = 60  # seconds without a byte
_CHUNK = 1 << 18
PAGE = {
  "index.html": "text/html; charset=utf-8",
  "page.js": "text/javascript; charset=utf-8",
  "page.css": "text/css; charset=utf-8",
}
_HEADERS = {
  "Content-Security-Policy": "default-src 'none'; script-src 'self';"
  " style-src 'self'; media-src 'self'; connect-src 'self'; base-uri 'none';"
  " form-action 'none'; frame-ancestors 'none'",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


class _RequestError(Exception):
  """A request that is refused: status and one line for the rater."""

  def __init__(self, status: http.HTTPStatus, message: str):
    super().__init__(message)
    self.status, self.message = status, message


class Server(http.server.ThreadingHTTPServer):
  """Serves one study; a thread for each connection, up to a limit."""

  daemon_threads = True
  request_queue_size = 64

  def __init__(
    self,
    folder: pathlib.Path,
    study: manifest.Study,
    host: str = "127.0.0.1",
    port: int = 0,
  ):
    """Bind the port and open the database.

    Args:
      folder: of the study.
      study: what the folder's `study.json` says.
      host: address to listen at.
      port: 0 for any free one.

    Raises:
      ValueError: media are missing, or the database is of another study.
      OSError: the port is taken, or the folder is not writable.
    """
    self.study, self.media = study, folder / manifest.MEDIA
    missing = sorted(
      name for name in study.media_names if not (self.media / name).is_file()
    )
    if missing:
      raise ValueError(
        f"{self.media}: {len(missing)} media are missing, such as"
        f" {missing[0]}; run make again"
      )
    self.database = database.Database(folder / manifest.VOTES, study)
    self.code = self.database.access_code()
    self.page = read_page()
    self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
    if ":" in host:
      self.address_family = socket.AF_INET6
    try:
      super().__init__((host, port), _Handler)
    except OSError as error:
      raise OSError(
        f"cannot listen at {host}:{port}: {error.strerror}; choose another"
        " --port"
      ) from error

  @property
  def link(self) -> str:
    """The address that new raters open."""
    host, port = self.server_address[:2]
    name = str(host)
    if name in ("0.0.0.0", "::"):
      name = socket.gethostname()
    if ":" in name:
      name = f"[{name}]"
    return f"http://{name}:{port}/#code={self.code}"

  def process_request(self, request: Any, client_address: Any) -> None:
    if not self._room.acquire(blocking=False):
      self.shutdown_request(request)
      return
    super().process_request(request, client_address)

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    try:
      super().process_request_thread(request, client_address)
    finally:
      self._room.release()

  def handle_error(self, request: Any, client_address: Any) -> None:
    """A client that closes its connection is no error of the server."""
    error = sys.exc_info()[1]
    if not isinstance(error, ConnectionError | TimeoutError):
      _log.error("request failed: %s", untrusted.printable(repr(error)))


def read_page() -> dict[str, bytes]:
  """The files of the page by name."""
  folder = resources.files("ovi_jax.study") / "page"
  return {name: (folder / name).read_bytes() for name in PAGE}


def texts(study: manifest.Study) -> dict[str, Any]:
  """What the page shows; nothing of it depends on systems."""
  settings = study.settings
  return {
    "id": study.hash,
    "title": settings.title,
    "instructions": settings.instructions,
    "consent": settings.consent,
    "headphone_trials": settings.headphone_trials,
    "questions": [{"id": q.id, "text": q.text} for q in settings.questions],
  }


class _Handler(http.server.BaseHTTPRequestHandler):
  """One connection."""

  server: Server
  protocol_version = "HTTP/1.1"
  timeout = _TIMEOUT

  def version_string(self) -> str:
    return "study"

  def log_message(self, format: str, *args: Any) -> None:
    """Nothing: addresses of raters are not recorded."""

  def do_GET(self) -> None:
    self._handle(self._get)

  def do_HEAD(self) -> None:
    self._handle(self._get)

  def do_POST(self) -> None:
    self._handle(self._post)

  def _handle(self, respond: Any) -> None:
    lengths = self.headers.get_all("Content-Length", [])
    if self.command != "POST" and lengths:
      # The body stays unread: it must not be taken for the next request of a
      # proxy's connection.
      self.close_connection = True
    try:
      if "Transfer-Encoding" in self.headers or len(lengths) > 1:
        self.close_connection = True
        raise _RequestError(
          http.HTTPStatus.LENGTH_REQUIRED, "Expected a length."
        )
      respond(urllib.parse.urlsplit(self.path).path)
    except _RequestError as error:
      self._send_json({"error": error.message}, error.status)
    except database.ReplacedError as error:
      _log.error("refused: %s", untrusted.printable(str(error)))
      self._send_json(
        {"error": "This study was replaced. Please ask for a new link."},
        http.HTTPStatus.GONE,
      )
    except ValueError as error:
      # Text that is no URL, or that has no UTF-8. The body may be unread.
      self.close_connection = True
      _log.warning("malformed: %s", untrusted.printable(str(error), 200))
      self._send_json(
        {"error": "The request is malformed."}, http.HTTPStatus.BAD_REQUEST
      )
    except (sqlite3.Error, OSError) as error:
      if isinstance(error, ConnectionError | TimeoutError):
        raise
      # A full disk, a lock that is held too long.
      _log.error("not stored: %s", untrusted.printable(str(error)))
      self._send_json(
        {"error": "The server cannot store this now. Please try again."},
        http.HTTPStatus.SERVICE_UNAVAILABLE,
      )

  def _get(self, path: str) -> None:
    if path == "/":
      self._send_page("index.html")
    elif path[1:] in PAGE and path != "/index.html":
      self._send_page(path[1:])
    elif path == "/favicon.ico":
      self._send(b"", "image/x-icon", http.HTTPStatus.NO_CONTENT)
    elif path.startswith("/media/"):
      self._send_media(path.removeprefix("/media/"))
    elif path == "/api/study":
      self._send_json(texts(self.server.study))
    elif path == "/api/session":
      self._send_json(self._session(self._rater()))
    else:
      raise _RequestError(http.HTTPStatus.NOT_FOUND, "There is no such page.")

  def _post(self, path: str) -> None:
    known = {
      "/api/join": self._join,
      "/api/start": self._start,
      "/api/answer": self._answer,
    }
    try:
      values = self._body()
    except _RequestError:
      self.close_connection = True  # the body was not read
      raise
    if path not in known:
      raise _RequestError(http.HTTPStatus.NOT_FOUND, "There is no such page.")
    try:
      self._send_json(known[path](values))
    except database.ConflictError as error:
      raise _RequestError(http.HTTPStatus.CONFLICT, str(error)) from error

  def _body(self) -> dict[str, Any]:
    """The JSON object of a request from the page itself."""
    status = http.HTTPStatus
    origin = self.headers.get("Origin")
    host = self.headers.get("Host", "")
    if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
      raise _RequestError(status.FORBIDDEN, "Another origin may not post.")
    if self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
      raise _RequestError(status.FORBIDDEN, "Another site may not post.")
    if self.headers.get_content_type() != "application/json":
      raise _RequestError(status.UNSUPPORTED_MEDIA_TYPE, "Expected JSON.")
    length = self.headers.get("Content-Length", "")
    if not re.fullmatch(r"[0-9]{1,9}", length):
      raise _RequestError(status.LENGTH_REQUIRED, "Expected a length.")
    if int(length) > MAX_BODY:
      raise _RequestError(
        status.REQUEST_ENTITY_TOO_LARGE, "The request is too large."
      )
    try:
      # As large as the limit at most, and read until all of it has come.
      body = self.rfile.read(int(length))
      values = untrusted.parse_json(body, max_bytes=MAX_BODY)
    except ValueError as error:
      raise _RequestError(status.BAD_REQUEST, "Expected JSON.") from error
    if not isinstance(values, dict):
      raise _RequestError(status.BAD_REQUEST, "Expected an object.")
    return values

  def _rater(self) -> str:
    """The rater of the request's token."""
    scheme, _, token = self.headers.get("Authorization", "").partition(" ")
    found = None
    if scheme == "Bearer" and len(token) <= 200:
      found = self.server.database.authenticate(token)
    if found is None:
      raise _RequestError(
        http.HTTPStatus.UNAUTHORIZED, "This link is not valid any more."
      )
    return found

  def _join(self, values: Mapping[str, Any]) -> dict[str, Any]:
    code = values.get("code")
    if not isinstance(code, str) or not database.same(code, self.server.code):
      raise _RequestError(
        http.HTTPStatus.FORBIDDEN,
        "Please open the complete link that you were given.",
      )
    return {"token": self.server.database.join()}

  def _start(self, values: Mapping[str, Any]) -> dict[str, Any]:
    rater, headphones = self._rater(), values.get("headphones")
    trials = self.server.study.settings.headphone_trials
    if headphones is not None and not (
      type(headphones) is int and 0 <= headphones <= trials
    ):
      raise _RequestError(
        http.HTTPStatus.BAD_REQUEST, "Expected the result of the sound check."
      )
    self.server.database.start(rater, headphones)
    return self._session(rater)

  def _answer(self, values: Mapping[str, Any]) -> dict[str, Any]:
    rater = self._rater()
    item, choices = values.get("item"), values.get("choices")
    seconds, plays = values.get("seconds"), values.get("plays")
    if not (
      isinstance(item, str)
      and isinstance(choices, dict)
      and all(isinstance(c, str) for c in choices.values())
      and isinstance(seconds, int | float)
      and 0 <= seconds <= MAX_SECONDS
      and isinstance(plays, list)
      and len(plays) == 2
      and all(type(p) is int and 1 <= p <= MAX_PLAYS for p in plays)
    ):
      raise _RequestError(
        http.HTTPStatus.BAD_REQUEST, "Expected answers, seconds and plays."
      )
    answer = database.Answer(
      choices=choices, seconds=float(seconds), plays=(plays[0], plays[1])
    )
    self.server.database.answer(rater, item, answer)
    return self._session(rater)

  def _session(self, rater: str) -> dict[str, Any]:
    study = self.server.study
    found = self.server.database.session(rater)
    return {
      "consented": found.consented,
      "answered": found.answered,
      "total": found.total,
      "items": [
        {
          "item": each.id,
          "prompt": each.prompt(study),
          "media": [f"media/{name}" for name in each.media(study)],
        }
        for each in found.open
      ],
    }

  def _send_page(self, name: str) -> None:
    self._send(self.server.page[name], PAGE[name])

  def _send_json(
    self, value: Any, status: http.HTTPStatus = http.HTTPStatus.OK
  ) -> None:
    self._send(json.dumps(value).encode(), "application/json", status)

  def _send(
    self,
    content: bytes,
    kind: str,
    status: http.HTTPStatus = http.HTTPStatus.OK,
  ) -> None:
    self.send_response_only(status)
    self._send_headers(kind, len(content), "no-store")
    if self.command != "HEAD":
      self.wfile.write(content)

  def _send_headers(self, kind: str, length: int, cache: str) -> None:
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(length))
    self.send_header("Cache-Control", cache)
    for name, value in _HEADERS.items():
      self.send_header(name, value)
    if self.close_connection:
      self.send_header("Connection", "close")
    self.end_headers()

  def _send_media(self, name: str) -> None:
    """A clip or the range of it that was asked for."""
    if name not in self.server.study.media_names:
      raise _RequestError(http.HTTPStatus.NOT_FOUND, "There is no such clip.")
    with open(self.server.media / name, "rb") as file:
      size = file.seek(0, 2)
      start, end, status = _range(self.headers.get("Range"), size)
      if status is http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        self.send_response_only(status)
        self.send_header("Content-Range", f"bytes */{size}")
        self._send_headers("video/mp4", 0, "no-store")
        return
      self.send_response_only(status)
      self.send_header("Accept-Ranges", "bytes")
      if status is http.HTTPStatus.PARTIAL_CONTENT:
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
      cache = "private, max-age=86400, immutable"
      self._send_headers("video/mp4", end - start, cache)
      if self.command == "HEAD":
        return
      file.seek(start)
      left = end - start
      while left > 0 and (part := file.read(min(left, _CHUNK))):
        self.wfile.write(part)
        left -= len(part)


def _range(header: str | None, size: int) -> tuple[int, int, http.HTTPStatus]:
  """First byte, the byte after the last, and the status of a response.

  Several ranges, or what is no range, get the whole file.
  """
  found = _RANGE.fullmatch((header or "").strip())
  if not found or found.groups() == ("", ""):
    return 0, size, http.HTTPStatus.OK
  first, last = found.groups()
  if first:
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
      return 0, size, http.HTTPStatus.OK
  else:
    start, end = max(0, size - int(last)), size
  if start >= end:
    return 0, 0, http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
  return start, end, http.HTTPStatus.PARTIAL_CONTENT


def serve(folder: pathlib.Path, host: str, port: int) -> None:
  """Serve a study until it is interrupted."""
  study = manifest.read(folder)
  with Server(folder, study, host, port) as server:
    console.log(
      f"study {study.hash}: {len(study.items)} pairs,"
      f" {server.database.count()} raters so far\n"
      f"link for raters: {server.link}\n"
      "press Ctrl-C to stop; answers are stored as they come"
    )
    server.serve_forever()
