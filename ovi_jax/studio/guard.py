"""What every request to the server passes: its host, origin and size.

A page of another origin can make a browser send requests to this machine. It
cannot read the answers, since no CORS headers are sent: those that Gradio adds
are left out. `Guard` refuses requests that change something (CSRF), and those
that name a host that is not served (DNS rebinding). Bodies are bounded while
they arrive, whatever their header says.
"""

import http
import ipaddress
import json
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

from starlette import exceptions

Scope = Mapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
_SAFE = ("GET", "HEAD", "OPTIONS")
_HEADERS = (
  (b"x-content-type-options", b"nosniff"),
  (b"referrer-policy", b"no-referrer"),
  (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
  """ASGI middleware."""

  def __init__(self, app: App, *, hosts: Collection[str], max_body: int):
    """Args:
    app: what is guarded.
    hosts: names of this server besides `localhost` and addresses.
    max_body: bytes of a request's body.
    """
    self._app, self._max_body = app, max_body
    self._hosts = {"localhost", *(name.lower() for name in hosts)}

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] not in ("http", "websocket"):
      await self._app(scope, receive, send)
      return
    if problem := self._problem(scope):
      await _refuse(scope, send, *problem)
      return
    if scope["type"] == "websocket":
      await self._app(scope, receive, send)
      return
    left = self._max_body

    async def bounded() -> Any:
      nonlocal left
      message = await receive()
      left -= len(message.get("body", b""))
      if left < 0:
        raise exceptions.HTTPException(413, too_large(self._max_body))
      return message

    async def send_with_headers(message: Any) -> None:
      if message["type"] == "http.response.start":
        kept = [
          (name, value)
          for name, value in message["headers"]
          if not name.lower().startswith(b"access-control-")
        ]
        message = {**message, "headers": [*kept, *_HEADERS]}
      await send(message)

    await self._app(scope, bounded, send_with_headers)

  def _problem(self, scope: Scope) -> tuple[int, str] | None:
    """Status and message of a request that is refused."""
    headers = {
      name: value.decode("latin-1") for name, value in scope["headers"]
    }
    host = headers.get(b"host", "").lower()
    if not self._is_served(host_name(host)):
      return 403, (
        "this host name is not served; start the server with --allowed_hosts"
      )
    changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
    origin = headers.get(b"origin")
    own = (None, f"http://{host}", f"https://{host}")
    if changes and (origin and origin.lower()) not in own:
      return 403, "another origin may not send this request"
    site = headers.get(b"sec-fetch-site", "none")
    if changes and site not in ("same-origin", "none"):
      return 403, "another site may not send this request"
    length = headers.get(b"content-length", "0")
    if length.isdigit() and int(length) > self._max_body:
      return 413, too_large(self._max_body)
    return None

  def _is_served(self, name: str) -> bool:
    """Whether it is ours: rebinding needs a name, so addresses are."""
    try:
      ipaddress.ip_address(name)
    except ValueError:
      return name in self._hosts
    return True


def host_name(host: str) -> str:
  """The name or address in a Host header, without its port."""
  if host.startswith("["):
    return host[1:].partition("]")[0]
  return host.partition(":")[0]


def too_large(limit: int) -> str:
  """The message about a body beyond the limit."""
  return f"expected a request of at most {limit / 2**20:g} MiB"


def error_body(status: int, message: str, **more: Any) -> dict[str, Any]:
  """An error as OpenAI's API has it.

  Args:
    status: of HTTP.
    message: one line.
    **more: `code` and `param`.
  """
  kinds = {401: "authentication_error", 429: "rate_limit_error"}
  kind = "server_error" if status >= 500 else "invalid_request_error"
  error = {"message": message, "type": kinds.get(status, kind)}
  return {"error": error | {"param": None, "code": None} | more}


async def _refuse(scope: Any, send: Any, status: int, message: str) -> None:
  """Answer without the application."""
  if scope["type"] == "websocket":
    await send({"type": "websocket.close", "code": 1008, "reason": message})
    return
  body = json.dumps(error_body(status, message)).encode()
  headers = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(body)).encode()),
    (b"connection", b"close"),
    *_HEADERS,
  ]
  await send(
    {
      "type": "http.response.start",
      "status": int(http.HTTPStatus(status)),
      "headers": headers,
    }
  )
  await send({"type": "http.response.body", "body": body})
