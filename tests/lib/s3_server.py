"""An object store on this machine: the requests of S3 that s3fs makes.

Objects are in memory. A bucket exists if it is in `objects`; one in `forbidden`
refuses access.
"""

import contextlib
import email.utils
import functools
import hashlib
import http.server
import re
import threading
import urllib.parse
from collections.abc import Iterator
from xml.sax import saxutils

_XML = '<?xml version="1.0" encoding="UTF-8"?>'
_TIME = "2026-01-01T00:00:00.000Z"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Server:
  """Buckets, and the requests that were made.

  Attributes:
    objects: contents by name, of each bucket.
    forbidden: buckets that refuse access.
    requests: method and path of each request.
    bytes_read: size of all contents that were sent.
    environment: variables with which programs use the server for `s3://`.
  """

  def __init__(self, address: str):
    self.objects: dict[str, dict[str, bytes]] = {}
    self.forbidden: set[str] = set()
    self.requests: list[tuple[str, str]] = []
    self.bytes_read = 0
    self.environment = {
      "AWS_ENDPOINT_URL": address,
      "AWS_ACCESS_KEY_ID": "key",
      "AWS_SECRET_ACCESS_KEY": "secret",
      "AWS_DEFAULT_REGION": "us-east-1",
      # Else contents are sent in signed pieces.
      "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
      "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def serve() -> Iterator[Server]:
  """Serve an empty store."""
  handler = functools.partial(_Handler, [])
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    found = Server(f"http://127.0.0.1:{server.server_address[1]}")
    handler.args[0].append(found)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
      yield found
    finally:
      server.shutdown()
      thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def __init__(self, holder: list[Server], *args):
    self._holder = holder
    super().__init__(*args)

  def log_message(self, *_):
    pass

  def _serve(self) -> None:
    server = self._holder[0]
    server.requests.append((self.command, self.path))
    split = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
    bucket, _, name = split.path.lstrip("/").partition("/")
    name = urllib.parse.unquote(name)
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    if bucket in server.forbidden:
      self._refuse(403, "AccessDenied", f"Access Denied to {bucket}")
    elif bucket not in server.objects:
      self._refuse(404, "NoSuchBucket", "The bucket does not exist")
    elif (
      self.headers.get("If-None-Match") == "*"
      and name in server.objects[bucket]
    ):
      self._refuse(412, "PreconditionFailed", name, "If-None-Match")
    else:
      self._answer(server.objects[bucket], name, query, body)

  do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

  def _answer(
    self, objects: dict[str, bytes], name: str, query: dict, body: bytes
  ) -> None:
    if self.command == "PUT":
      objects[name] = body
      self._send(200, b"", ETag=_tag(body))
    elif self.command == "POST" and "delete" in query:
      for each in re.findall(r"<Key>(.*?)</Key>", body.decode()):
        objects.pop(saxutils.unescape(each), None)
      self._send(200, f"{_XML}<DeleteResult/>".encode())
    elif self.command == "DELETE":
      objects.pop(name, None)
      self._send(204, b"")
    elif not name:
      self._send(200, _listing(objects, query))
    elif name not in objects:
      self._refuse(404, "NoSuchKey", "The key does not exist")
    else:
      self._content(objects[name])

  def _content(self, content: bytes) -> None:
    code, more, part = 200, {}, content
    if found := _RANGE.fullmatch(self.headers.get("Range", "")):
      first = int(found[1])
      last = min(int(found[2] or len(content)), len(content) - 1)
      part = content[first : last + 1]
      code, more = (
        206,
        {"Content-Range": f"bytes {first}-{last}/{len(content)}"},
      )
    if self.command == "GET":
      self._holder[0].bytes_read += len(part)
    self._send(code, part, ETag=_tag(content), **more)

  def _refuse(
    self, code: int, kind: str, said: str, condition: str = ""
  ) -> None:
    self._send(
      code,
      f"{_XML}<Error><Code>{kind}</Code><Message>{said}</Message>"
      f"<Condition>{condition}</Condition></Error>".encode(),
    )

  def _send(self, code: int, body: bytes, **headers: str) -> None:
    self.send_response(code)
    headers |= {
      "Content-Length": str(len(body)),
      "Last-Modified": email.utils.formatdate(0, usegmt=True),
    }
    for name, value in headers.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)


def _tag(content: bytes) -> str:
  return f'"{hashlib.md5(content).hexdigest()}"'


def _listing(objects: dict[str, bytes], query: dict) -> bytes:
  """The objects below a prefix, and the folders there with a delimiter."""
  prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
  items, folders = [], []
  for name, content in sorted(objects.items()):
    if not name.startswith(prefix):
      continue
    rest = name[len(prefix) :]
    if delimiter and delimiter in rest:
      folders.append(prefix + rest.partition(delimiter)[0] + delimiter)
      continue
    items.append(
      f"<Contents><Key>{urllib.parse.quote(name)}</Key>"
      f"<LastModified>{_TIME}</LastModified><ETag>{_tag(content)}</ETag>"
      f"<Size>{len(content)}</Size></Contents>"
    )
  common = "".join(
    f"<CommonPrefixes><Prefix>{urllib.parse.quote(f)}</Prefix></CommonPrefixes>"
    for f in dict.fromkeys(folders)
  )
  return (
    f"{_XML}<ListBucketResult><EncodingType>url</EncodingType>"
    "<IsTruncated>false</IsTruncated>"
    f"<KeyCount>{len(items)}</KeyCount>{''.join(items)}{common}"
    "</ListBucketResult>"
  ).encode()
