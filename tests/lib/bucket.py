"""An object store on this machine: Google Cloud Storage, emulated.

The emulator runs in a thread of the test. Each `Endpoint` is a port of the
same store: programs that get different ones share the buckets, and what each
reads and writes is counted separately. An endpoint can hold requests back
(`hold_uploads`), and a bucket can refuse access (`Store.forbidden`).

Programs have the permissions of the roles that docs/how_to/pods.md gives them:
`roles/storage.objectAdmin` for objects, and `roles/storage.legacyBucketReader`
to describe a bucket, unless it is in `Store.undescribed`. No bucket may be
created.
"""

import collections
import contextlib
import email
import functools
import http.server
import json
import logging
import re
import threading
import urllib.parse
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

from gcp_storage_emulator import exceptions
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator import storage
from gcp_storage_emulator.handlers import buckets

logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
FORBIDDEN = "forbidden"  # a bucket that exists and answers 403
# Of the length of real accounts; and what Google Cloud Storage answers it.
ACCOUNT = f"{'training-nodes':-<30}@{'project':-<30}.iam.gserviceaccount.com"
_DENIED = (
  "{account} does not have {permission} access to the Google Cloud Storage"
  " bucket. Permission '{permission}' denied on resource (or it may not exist)."
)
_BUCKET = re.compile(r"^(?:/(?:upload|download))?(?:/storage/v1)?/b/([-.\w]+)")
_DESCRIBED = re.compile(r"^(?:/storage/v1)?/b(?:/[-.\w]+)?/?(?:\?.*)?$")


_read_data = emulator._read_data


class _OtherGenerationError(Exception):
  """An object is not of the generation that the request expects."""


def _read_whole(handler: Any, query: Any) -> Any:
  """Read a request as the emulator does, but all bytes of an object.

  The emulator reads an upload of two parts as an e-mail, and so drops a
  carriage return at the end of the contents.
  """
  kind = handler.headers.get("Content-Type") or ""
  if not kind.startswith("multipart/related"):
    return _read_data(handler, query)
  raw: Any = emulator._decode_raw_data(
    emulator._read_raw_data(handler), handler
  )
  boundary = b"--" + kind.partition("boundary=")[2].strip("\"' ").encode()
  _, meta, rest = raw.split(boundary, 2)
  line = b"\r\n" if meta.startswith(b"\r\n") else b"\n"
  content = rest.rpartition(line + boundary)[0]
  headers, _, content = content.partition(line * 2)
  named = email.message_from_bytes(headers.lstrip())
  described = json.loads(meta.partition(line * 2)[2])
  handler.check_generation(described["name"])
  return {
    "meta": described,
    "content": content,
    "content-type": named.get_content_type(),
  }


emulator._read_data = _read_whole


class Store:
  """Buckets in memory.

  Attributes:
    forbidden: buckets that refuse access.
    undescribed: buckets that refuse the permission `storage.buckets.get`.
  """

  def __init__(self):
    self.storage = storage.Storage(use_memory_fs=True)
    self.forbidden: set[str] = {FORBIDDEN}
    self.undescribed: set[str] = set()
    self.lock = threading.Lock()  # the emulator's storage has none
    self.create(FORBIDDEN)

  def create(self, bucket: str) -> str:
    """Create a bucket, whose name has three letters or more; its URL."""
    buckets.create_bucket(bucket, self.storage)
    return f"gs://{bucket}"

  @contextlib.contextmanager
  def empty_objects(self, folder: str, names: Iterable[str]) -> Iterator[None]:
    """Add empty objects to a folder that has one; removed with the block.

    The emulator writes the descriptions of all objects at each upload.
    """
    bucket, _, prefix = folder.removeprefix("gs://").partition("/")
    before = self.storage.objects[bucket]
    other = next(o for n, o in before.items() if n.startswith(f"{prefix}/"))
    added = {
      name: {**other, "name": name, "size": "0"}
      for name in (f"{prefix}/{each}" for each in names)
    }
    with self.lock:
      self.storage.objects[bucket] = before | added
    yield
    with self.lock:
      self.storage.objects[bucket] = before

  def names(self, bucket: str, prefix: str = "") -> list[str]:
    """Names of the objects in a bucket."""
    with self.lock:
      items, _ = self.storage.get_file_list(bucket, prefix)
    return sorted(item["name"] for item in items)

  def read(self, bucket: str, name: str) -> bytes:
    """Contents of an object."""
    with self.lock:
      return self.storage.get_file(bucket, name)

  def generation(self, bucket: str, name: str) -> int:
    """Generation of an object; 0 if there is none. Hold `lock`."""
    try:
      return int(self.storage.get_file_obj(bucket, name)["generation"])
    except exceptions.NotFound:
      return 0

  @contextlib.contextmanager
  def endpoint(self) -> Iterator["Endpoint"]:
    """Serve the store at another port."""
    found = Endpoint(self)
    thread = threading.Thread(target=found.server.serve_forever, args=(0.05,))
    thread.start()
    try:
      yield found
    finally:
      found.open.set()
      found.server.shutdown()
      thread.join()
      found.server.server_close()


class Endpoint:
  """A port of a store.

  Attributes:
    environment: variables with which programs use the port for `gs://`.
    bytes_read: size of all responses.
    bytes_read_from: by bucket; earlier tests may still send requests of theirs.
    bytes_written: size of all requests.
    requests: method and path of each request.
    open: while cleared, requests that `held` is true for wait.
    waiting: set when a request waits.
    held: whether a request (method, path) waits while `open` is cleared.
  """

  def __init__(self, store: Store):
    self.store = store
    self.bytes_read = self.bytes_written = 0
    self.bytes_read_from: collections.Counter[str] = collections.Counter()
    self.requests: list[tuple[str, str]] = []
    self.open, self.waiting = threading.Event(), threading.Event()
    self.open.set()
    self.held: Callable[[str, str], bool] = lambda method, path: False
    self.server = http.server.ThreadingHTTPServer(
      ("127.0.0.1", 0), functools.partial(_Handler, self)
    )
    # So that what a killed program sent is stored before the endpoint ends.
    self.server.daemon_threads = False
    address = f"http://127.0.0.1:{self.server.server_address[1]}"
    self.environment = {
      "STORAGE_EMULATOR_HOST": address,  # gcsfs, and so etils and fsspec
      "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record
      "TENSORSTORE_GCS_HTTP_URL": address,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # tensorstore
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }

  def hold_uploads(self, pattern: str = "") -> None:
    """Hold back uploads of objects whose request matches a pattern."""
    self.waiting.clear()
    self.held = lambda method, path: (
      method in ("POST", "PUT")
      and "/upload/" in path
      and re.search(pattern, path) is not None
    )
    self.open.clear()

  def release(self) -> None:
    """Let requests that wait, and all later ones, through."""
    self.open.set()


def _query(path: str, name: str) -> str | None:
  """A parameter of a request."""
  found = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)
  return found[name][0] if name in found else None


class _Handler(emulator.RequestHandler):
  """The emulator's handler, in threads, with counts, delays and refusals."""

  def __init__(self, endpoint: Endpoint, *args):
    self._endpoint, self._generation, self._bucket = endpoint, 0, ""
    super().__init__(endpoint.store.storage, *args)

  def handle_one_request(self) -> None:
    # A program that is killed leaves its requests half done.
    with contextlib.suppress(ConnectionError):
      super().handle_one_request()

  def _serve(self, method: str) -> None:
    endpoint, store = self._endpoint, self._endpoint.store
    with store.lock:
      endpoint.bytes_written += int(self.headers.get("Content-Length") or 0)
      endpoint.requests.append((method, self.path))
    if not endpoint.open.is_set() and endpoint.held(method, self.path):
      endpoint.waiting.set()
      endpoint.open.wait()
    found = _BUCKET.search(self.path)
    self._bucket = found[1] if found else ""
    if self._bucket in store.forbidden:
      said = (
        f"the caller does not have storage.objects access to {self._bucket}"
      )
      self._refuse(403, said)
      return
    is_object = not _DESCRIBED.match(self.path)
    is_refused = method != "GET" or self._bucket in store.undescribed
    if not is_object and is_refused:
      permission = f"storage.buckets.{'get' if method == 'GET' else 'create'}"
      self._refuse(403, _DENIED.format(account=ACCOUNT, permission=permission))
      return
    if "/moveTo/" in self.path:  # the emulator has none: gcsfs copies instead
      self._refuse(400, "moveTo is not supported")
      return
    with store.lock:
      found = store.generation(self._bucket, self._object_name())
      self._generation = found if method == "GET" else 0
      try:
        if method == "POST":
          self.check_generation(self._object_name())
        emulator.Router(self).handle(method)
      except _OtherGenerationError:
        self._refuse(412, "the object has another generation")

  def check_generation(self, name: str) -> None:
    """Refuse a request whose precondition is not met.

    Args:
      name: of the object; of an upload of two parts, it is in the first.
    """
    if not name:
      return
    found = self._endpoint.store.generation(self._bucket, name)
    if _query(self.path, "ifGenerationMatch") not in (None, str(found)):
      raise _OtherGenerationError

  def _object_name(self) -> str:
    parts = urllib.parse.urlsplit(self.path).path.partition("/o/")
    name = _query(self.path, "name")
    return urllib.parse.unquote(parts[2]) if name is None else name

  def end_headers(self) -> None:
    if self._generation:  # TensorStore reads it, the emulator does not send it
      self.send_header("x-goog-generation", str(self._generation))
    super().end_headers()

  def _refuse(self, code: int, said: str) -> None:
    body = json.dumps({"error": {"code": code, "message": said}}).encode()
    self.send_response(code)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def do_GET(self) -> None:
    self._serve("GET")

  def do_POST(self) -> None:
    self._serve("POST")

  def do_PUT(self) -> None:
    self._serve("PUT")

  def do_PATCH(self) -> None:
    self._serve("PATCH")

  def do_DELETE(self) -> None:
    self._serve("DELETE")

  def send_header(self, keyword: str, value: str) -> None:
    if keyword.lower() == "content-length":
      self._endpoint.bytes_read += int(value)
      self._endpoint.bytes_read_from[self._bucket] += int(value)
    super().send_header(keyword, value)
