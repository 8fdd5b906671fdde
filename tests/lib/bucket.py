"""An object store on this machine: Google Cloud Storage, emulated.

The emulator runs in a thread of the test. Each `Endpoint` is a port of the
same store: programs that get different ones share the buckets, and what each
reads and writes is counted separately. An endpoint can hold requests back
(`hold_uploads`), and a bucket can refuse access (`Store.forbidden`).
"""

import contextlib
import functools
import http.server
import json
import re
import threading
from collections.abc import Callable
from collections.abc import Iterator

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator import storage
from gcp_storage_emulator.handlers import buckets

FORBIDDEN = "forbidden"  # a bucket that exists and answers 403
_BUCKET = re.compile(r"/b/([-.\w]+)|^/(?!upload/|download/)([-.\w]+)/")


class Store:
  """Buckets in memory.

  Attributes:
    forbidden: buckets that refuse access.
  """

  def __init__(self):
    self.storage = storage.Storage(use_memory_fs=True)
    self.forbidden: set[str] = {FORBIDDEN}
    self.lock = threading.Lock()  # the emulator's storage has none
    self.create(FORBIDDEN)

  def create(self, bucket: str) -> str:
    """Create a bucket, whose name has three letters or more; its URL."""
    buckets.create_bucket(bucket, self.storage)
    return f"gs://{bucket}"

  def names(self, bucket: str, prefix: str = "") -> list[str]:
    """Names of the objects in a bucket."""
    with self.lock:
      items, _ = self.storage.get_file_list(bucket, prefix)
    return sorted(item["name"] for item in items)

  def read(self, bucket: str, name: str) -> bytes:
    """Contents of an object."""
    with self.lock:
      return self.storage.get_file(bucket, name)

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
    bytes_written: size of all requests.
    requests: method and path of each request.
    open: while cleared, requests that `held` is true for wait.
    waiting: set when a request waits.
    held: whether a request (method, path) waits while `open` is cleared.
  """

  def __init__(self, store: Store):
    self.store = store
    self.bytes_read = self.bytes_written = 0
    self.requests: list[tuple[str, str]] = []
    self.open, self.waiting = threading.Event(), threading.Event()
    self.open.set()
    self.held: Callable[[str, str], bool] = lambda method, path: False
    self.server = http.server.ThreadingHTTPServer(
      ("127.0.0.1", 0), functools.partial(_Handler, self)
    )
    self.server.daemon_threads = True
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


class _Handler(emulator.RequestHandler):
  """The emulator's handler, in threads, with counts, delays and refusals."""

  def __init__(self, endpoint: Endpoint, *args):
    self._endpoint = endpoint
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
    bucket = found and (found[1] or found[2])
    if bucket in store.forbidden:
      self._refuse(str(bucket))
      return
    with store.lock:
      emulator.Router(self).handle(method)

  def _refuse(self, bucket: str) -> None:
    said = f"the caller does not have storage.objects.list access to {bucket}"
    body = json.dumps({"error": {"code": 403, "message": said}}).encode()
    self.send_response(403)
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
    super().send_header(keyword, value)
