"""A caption server for tests: OpenAI's protocol, with scripted faults.

`python -m tests.lib.curation.caption_server [port]` runs it alone.
"""

import contextlib
import hashlib
import http.server
import json
import sys
import threading
import time

OK = {"kind": "ok"}
MALFORMED = {"kind": "malformed"}
HALF = {"kind": "half"}
CLOSED = {"kind": "closed"}


def status(number, **headers):
  """An error of HTTP; header names with `_` for `-`."""
  headers = {k.replace("_", "-"): v for k, v in headers.items()}
  return {"kind": "status", "status": number, "headers": headers}


def slow(seconds):
  """Wait before the answer."""
  return {"kind": "slow", "seconds": seconds}


def drip(seconds):
  """A byte of the answer at a time, so long apart."""
  return {"kind": "drip", "seconds": seconds}


def says(text, finish="stop"):
  """A well-formed completion of this text."""
  return {"kind": "ok", "text": text, "finish": finish}


def words(body):
  """A caption that depends on the media alone, as that of a model would."""
  content = body["messages"][0]["content"]
  media = [part for part in content if part["type"] != "text"]
  name = hashlib.sha256(json.dumps(media).encode()).hexdigest()[:8]
  kinds = {part["type"] for part in media}
  answer = {}
  if "image_url" in kinds:
    speech = f"<S>I am {name}.<E> " if "input_audio" in kinds else ""
    answer["visual"] = f"Somebody looks up and says {speech}in a bright room."
  if "input_audio" in kinds:
    voice = ("gender", "age", "accent", "pitch", "prosody", "emotion", "rate")
    rest = ("effects", "ambience", "music", "acoustics")
    answer |= {
      "speech": [f"I am {name}."],
      "audio": f"A calm voice, close by, over a soft hum; {name}.",
      "speakers": [dict.fromkeys(voice, "calm")],
      "sounds": dict.fromkeys(rest, "soft"),
    }
  return json.dumps(answer)


class Server(http.server.ThreadingHTTPServer):
  """Answers by a script and records requests.

  Attributes:
    script: number of the request and its body -> what to do.
    bodies: of the requests, in order of arrival.
    headers: of the requests.
    most: requests at one time.
  """

  daemon_threads = True
  request_queue_size = 128

  def __init__(self, script, port=0):
    super().__init__(("127.0.0.1", port), Handler)
    self.script, self.bodies, self.headers = script, [], []
    self.lock, self.running, self.most = threading.Lock(), 0, 0

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_address[1]}/v1"

  def handle_error(self, *_):
    """Ignore clients that close the connection."""


class Handler(http.server.BaseHTTPRequestHandler):
  """One request."""

  protocol_version = "HTTP/1.1"
  timeout = 20

  def log_message(self, *_):
    pass

  def do_POST(self):
    server = self.server
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    with server.lock:
      number = len(server.bodies)
      server.bodies.append(body)
      server.headers.append(dict(self.headers))
      server.running += 1
      server.most = max(server.most, server.running)
    try:
      self.behave(body, server.script(number, body))
    finally:
      with server.lock:
        server.running -= 1

  def behave(self, body, wanted):
    kind = wanted["kind"]
    text = wanted.get("text", words(body))
    size = sum(
      len(part["text"])
      for part in body["messages"][0]["content"]
      if part["type"] == "text"
    )
    whole = {
      "choices": [
        {
          "message": {"role": "assistant", "content": text},
          "finish_reason": wanted.get("finish", "stop"),
        }
      ],
      "usage": {
        "prompt_tokens": size // 4,
        "completion_tokens": len(text) // 4,
      },
    }
    if not wanted.get("counts", True):
      del whole["usage"]
    content = json.dumps(whole).encode()
    if kind == "raw":
      content = wanted["content"]
    if kind == "slow":
      time.sleep(wanted["seconds"])
    if kind == "closed":
      self.close_connection = True
    elif kind == "status":
      error = {
        "error": {"message": f"you sent {self.headers['Authorization']}"}
      }
      content = json.dumps(error).encode()
      self.head(wanted["status"], len(content), wanted["headers"])
      self.wfile.write(content)
    elif kind == "malformed":
      self.head(200, len(content) // 2, {})
      self.wfile.write(content[: len(content) // 2])
    elif kind == "half":
      self.head(200, len(content), {})
      self.wfile.write(content[: len(content) // 2])
      self.close_connection = True
    elif kind == "drip":
      self.head(200, len(content), {})
      for byte in content:
        self.wfile.write(bytes([byte]))
        time.sleep(wanted["seconds"])
    else:
      self.head(200, len(content), {})
      self.wfile.write(content)

  def head(self, number, length, headers):
    self.send_response(number)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(length))
    self.end_headers()


def in_turn(*steps):
  """A script: the steps, then valid answers."""
  return lambda number, body: steps[number] if number < len(steps) else OK


@contextlib.contextmanager
def serving(script=None, port=0):
  """Run a server in a thread during the block."""
  server = Server(script or in_turn(), port)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


if __name__ == "__main__":
  alone = Server(in_turn(), int(sys.argv[1]) if sys.argv[1:] else 0)
  print(alone.url, flush=True)
  alone.serve_forever()
