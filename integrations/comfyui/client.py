"""A client of the service, with the standard library alone."""

import json
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

TIMEOUT = 60.0  # seconds without an answer
MAX_ANSWER = 1 << 30  # bytes


class ServiceError(Exception):
  """The service refused a request, or does not answer."""


class Client:
  """A service at an address."""

  def __init__(self, url: str, api_key: str = ""):
    """Connect to nothing yet.

    Args:
      url: such as `http://127.0.0.1:8000`.
      api_key: empty if the service has none.

    Raises:
      ServiceError: it is no http or https address.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
      raise ServiceError(f"expected http://HOST:PORT, got {url!r}")
    self._root = url.rstrip("/").removesuffix("/v1") + "/v1"
    self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

  def create(
    self, fields: Mapping[str, str], files: Mapping[str, bytes]
  ) -> dict[str, Any]:
    """Queue a clip; returns it as the service shows it."""
    kind, body = multipart(fields, files)
    return self._json("POST", "/videos", body, {"Content-Type": kind})

  def get(self, id: str) -> dict[str, Any]:
    """A clip as the service shows it."""
    return self._json("GET", f"/videos/{id}")

  def cancel(self, id: str) -> dict[str, Any]:
    """End a clip that is not finished."""
    return self._json("POST", f"/videos/{id}/cancel", b"")

  def content(self, id: str) -> bytes:
    """The mp4 of a finished clip."""
    return self._request("GET", f"/videos/{id}/content")

  def _json(
    self,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
  ) -> dict[str, Any]:
    found = json.loads(self._request(method, path, body, headers))
    if not isinstance(found, dict):
      raise ServiceError(f"{self._root}: expected the ovi_jax service")
    return found

  def _request(
    self,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
  ) -> bytes:
    request = urllib.request.Request(
      self._root + path,
      body,
      {**self._headers, **(headers or {})},
      method=method,
    )
    try:
      with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return response.read(MAX_ANSWER)
    except urllib.error.HTTPError as error:
      raise ServiceError(_message(error)) from error
    except OSError as error:
      reason = getattr(error, "reason", error)
      raise ServiceError(
        f"{self._root} does not answer ({reason}); start it with python -m"
        " ovi_jax.studio"
      ) from error


def _message(error: urllib.error.HTTPError) -> str:
  """What the service says of an error."""
  try:
    return str(json.loads(error.read(1 << 20))["error"]["message"])
  except (ValueError, KeyError, TypeError):
    return f"{error.code} {error.reason}"


def multipart(
  fields: Mapping[str, str], files: Mapping[str, bytes]
) -> tuple[str, bytes]:
  """The content type and body of a form with files."""
  boundary = secrets.token_hex(16)
  parts = [
    f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
    + value.encode()
    for name, value in fields.items()
  ]
  parts += [
    f'Content-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n".encode()
    + data
    for name, data in files.items()
  ]
  start = f"--{boundary}\r\n".encode()
  body = b"".join(start + part + b"\r\n" for part in parts)
  end = f"--{boundary}--\r\n".encode()
  return f"multipart/form-data; boundary={boundary}", body + end
