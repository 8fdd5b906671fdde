"""A text-to-image server for tests: OpenAI's protocol, by a script."""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from PIL import Image

Answer = tuple[int, Any]  # status, and the JSON or bytes of the response


def picture(body: dict[str, Any]) -> Answer:
  """A picture whose colour depends on prompt and seed."""
  key = f"{body['prompt']} {body.get('seed')}".encode()
  colour = tuple(hashlib.sha256(key).digest()[:3])
  content = io.BytesIO()
  Image.new("RGB", (96, 64), colour).save(content, "PNG")
  encoded = base64.b64encode(content.getvalue()).decode()
  return 200, {"data": [{"b64_json": encoded}]}


@contextlib.contextmanager
def serving(
  script: Callable[[dict[str, Any]], Answer] = picture,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
  """Answer requests by a script; gives the URL and the requests."""
  bodies: list[dict[str, Any]] = []

  class Handler(http.server.BaseHTTPRequestHandler):
    timeout = 20

    def log_message(self, *_: Any) -> None:
      pass

    def do_POST(self) -> None:
      length = int(self.headers["Content-Length"])
      body = json.loads(self.rfile.read(length))
      body["path"], body["key"] = self.path, self.headers["Authorization"]
      bodies.append(body)
      status, found = script(body)
      if not isinstance(found, bytes):
        found = json.dumps(found).encode()
      self.send_response(status)
      self.send_header("Content-Length", str(len(found)))
      self.end_headers()
      with contextlib.suppress(ConnectionError):
        self.wfile.write(found)

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", bodies
  finally:
    server.shutdown()
    thread.join()
    server.server_close()
