"""A client of an OpenAI-compatible endpoint, with retries and rate limits.

It sends the JSON of a request to a route, such as chat completions, and returns
the response, or raises `RequestRejected` (this request is invalid),
`AttemptsExhausted` (cause unknown) or `Unavailable` (the endpoint cannot be
used). Failures are retried with exponential backoff. The API key is read from
an environment variable, sent only in the request header, and redacted from
everything the endpoint returns (`credentials`).
"""

import asyncio
import dataclasses
import email.utils
import hashlib
import importlib
import logging
import random
import time
import urllib.parse
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import Generic
from typing import TypeVar

from ovi_jax import network
from ovi_jax import untrusted
from ovi_jax.endpoints import credentials

T = TypeVar("T")
_RETRYABLE = frozenset([408, 409, 425, 429])
_FATAL = frozenset(
  [401, 402, 403, 404, 405, 407, 410]
)  # regardless of the request
_MAX_CHARS_SHOWN = 300  # of endpoint messages, in errors
_MAX_BODY_SHOWN = 1 << 16  # bytes of a response that are redacted and shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Endpoint, rate limits and retries.

  Attributes:
    url: base URL with the version, such as "http://127.0.0.1:8000/v1".
    model: model name at the endpoint; required before the first request.
    api_key_env: environment variable with the API key; "" for none.
    concurrency: concurrent requests.
    requests_per_minute: rate limit; 0 for none.
    tokens_per_minute: rate limit of input and output tokens; 0 for none.
    expected_tokens: tokens per request, until responses report usage; always,
      if the endpoint does not report it.
    connect_timeout: seconds to connect.
    read_timeout: seconds between parts of a response.
    request_timeout: seconds for a whole response.
    max_attempts: attempts per request.
    backoff_base: seconds before the second attempt; doubled for each further
      one.
    backoff_max: maximum wait in seconds; if the endpoint asks for more, it is
      considered unavailable.
    seed: seed of the jitter.
  """

  url: str = "http://127.0.0.1:8000/v1"
  model: str = ""
  api_key_env: str = ""
  concurrency: int = 16
  requests_per_minute: float = 0.0
  tokens_per_minute: float = 0.0
  expected_tokens: int = 4000
  connect_timeout: float = 10.0
  read_timeout: float = 120.0
  request_timeout: float = 300.0
  max_attempts: int = 8
  backoff_base: float = 1.0
  backoff_max: float = 120.0
  seed: int = 0

  def __post_init__(self):
    _check_url(self.url)
    credentials.check_variable(self.api_key_env)
    for name in ("concurrency", "expected_tokens", "max_attempts"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}"
        )
    for name in ("connect_timeout", "read_timeout", "request_timeout"):
      if getattr(self, name) <= 0:
        raise ValueError(f"{name} must be positive")
    for name in (
      "requests_per_minute",
      "tokens_per_minute",
      "backoff_base",
      "backoff_max",
    ):
      if getattr(self, name) < 0:
        raise ValueError(
          f"{name} must not be negative, got {getattr(self, name)}"
        )


def _check_url(url: str) -> None:
  """ValueError unless it is a plain HTTP URL; the message omits it."""
  try:
    parts = urllib.parse.urlsplit(url)
    plain = parts.scheme in ("http", "https") and parts.hostname
    plain = plain and parts.port != 0 and url.isprintable() and " " not in url
  except ValueError:  # of an address or a port
    plain = False
  if not plain or "@" in url or "?" in url:
    raise ValueError(
      "url: expected a URL such as 'http://127.0.0.1:8000/v1', without a user,"
      " password or query; put the API key into the variable named by"
      " api_key_env"
    )


class Unavailable(OSError):
  """A server cannot be used, now or with these settings."""


class RequestRejected(ValueError):
  """The endpoint rejected this request."""


class AttemptsExhausted(OSError):
  """All attempts failed while other requests were answered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route(Generic[T]):
  """What is asked of an endpoint.

  Attributes:
    path: below the base URL, such as "chat/completions".
    expected: the response, in words, for messages.
    max_bytes: of a response.
    parse: from the JSON of a response; raises any of `PARSE_ERRORS` if it is
      something else. What it keeps of the response must be redacted.
    tokens: input and output tokens of a response; 0 if it does not say.
  """

  path: str
  expected: str
  max_bytes: int
  parse: Callable[[Any, credentials.Redaction], T]
  tokens: Callable[[T], int] = lambda _: 0


PARSE_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def request_hash(request: bytes) -> str:
  """Identifies a request, in caches for instance."""
  return hashlib.sha256(request).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
  """Clock of the client; replaced by tests.

  Attributes:
    now: monotonic time in seconds.
    sleep: sleeps for a number of seconds.
  """

  now: Callable[[], float] = time.monotonic
  sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Failure:
  """A failed attempt.

  Attributes:
    text: error message.
    error: exception to raise at once; None if the request may be retried.
    retry_after: wait requested by the endpoint, in seconds.
    rate_limited: the endpoint is overloaded; unrelated to this request.
    no_connection: the endpoint could not be reached.
  """

  text: str
  error: type[Exception] | None = None
  retry_after: float = 0.0
  rate_limited: bool = False
  no_connection: bool = False


def check_setup() -> None:
  """Check that requests can be sent with the settings of this process.

  Raises:
    ValueError: httpx, or what it needs for a proxy, is not installed, or it
      cannot use the proxy or the certificates that the environment names.
  """
  _new_http()


def _import_httpx() -> Any:
  """httpx; ValueError says how to install it."""
  try:
    return importlib.import_module("httpx")
  except ImportError as error:
    raise ValueError(
      "requests to endpoints need httpx: pip install httpx"
    ) from error


def _new_http(**options: Any) -> Any:
  """A client of httpx, and what it raises in words for the user."""
  httpx = _import_httpx()
  try:
    return httpx.AsyncClient(**options)
  except ImportError as error:
    raise ValueError(network.missing_package(error)) from error
  except (OSError, ValueError, httpx.InvalidURL) as error:
    said = network.shown(error, _MAX_CHARS_SHOWN)
    raise ValueError(
      f"requests to endpoints cannot be sent: {said}{network.settings_hint()}"
    ) from None  # a traceback would quote the address


class Client(Generic[T]):
  """Client of one route of an endpoint, for one event loop.

  Attributes:
    redaction: redacts the API key from everything stored or logged.
    num_answered: number of successful requests.
    answered_before: a cached response of an earlier run was used, so a failure
      may be due to the request although no other one was answered yet.
    unavailable: why no more requests are sent; "" while they are.
  """

  def __init__(
    self, settings: Settings, key: str, clock: Clock, route: Route[T]
  ):
    self._settings, self._key, self._clock = settings, key, clock
    self._route = route
    self.redaction = credentials.Redaction(key)
    self._httpx = _import_httpx()
    self._http: Any = None
    self._free_at, self._tokens_seen = 0.0, 0.0
    self._request_at = self._tokens_at = 0.0
    self.num_answered, self.answered_before, self.unavailable = 0, False, ""

  async def __aenter__(self) -> "Client[T]":
    settings, httpx = self._settings, self._httpx
    for name in ("httpx", "httpcore"):
      # Their debug logs contain headers.
      logging.getLogger(name).setLevel(logging.WARNING)
    headers = {"Content-Type": "application/json"}
    if self._key:
      headers["Authorization"] = f"Bearer {self._key}"
    self._http = _new_http(
      headers=headers,
      timeout=httpx.Timeout(
        settings.read_timeout, connect=settings.connect_timeout, pool=None
      ),
      limits=httpx.Limits(max_connections=settings.concurrency),
    )
    return self

  async def __aexit__(self, *_: object) -> None:
    await self._http.aclose()

  async def send(self, request: bytes) -> T:
    """Send a request, with retries.

    Args:
      request: JSON for the route.

    Raises:
      RequestRejected: the endpoint rejected the request.
      AttemptsExhausted: all attempts failed while other requests were answered,
        now or (`answered_before`) by an endpoint that is still reachable.
      Unavailable: all attempts failed and no other request was answered;
        or the key, the model or the URL is wrong.
    """
    before = seen = self.num_answered
    attempts = waits = 0
    while True:
      expected = await self._wait_for_slot()
      result = await self._attempt(request)
      if not isinstance(result, _Failure):
        self._record_usage(result, expected)
        return result
      if result.error is Unavailable:
        self.unavailable = self.unavailable or result.text
      elif result.error is not None:
        raise result.error(result.text)
      self._raise_if_unavailable()
      # A rate-limited endpoint that answers others is making progress.
      attempts = (
        0 if result.rate_limited and self.num_answered > seen else attempts + 1
      )
      seen = self.num_answered
      if attempts >= self._settings.max_attempts:
        break
      await self._clock.sleep(
        max(self._backoff(request, waits), result.retry_after)
      )
      waits += 1
    summary = f"{attempts} attempts failed, the last: {result.text}"
    if self.num_answered == before and (
      result.no_connection or not self.answered_before
    ):
      self.unavailable = summary
    self._raise_if_unavailable()
    raise AttemptsExhausted(f"{self._settings.url}: {summary}")

  def _raise_if_unavailable(self) -> None:
    """Raise `Unavailable` if the endpoint was found unavailable."""
    if self.unavailable:
      raise Unavailable(f"{self._settings.url}: {self.unavailable}")

  def _backoff(self, request: bytes, waits: int) -> float:
    """Seconds before the next attempt: exponential backoff with jitter."""
    name = request_hash(request)
    chance = random.Random(f"{self._settings.seed}/{name}/{waits}").random()
    # Bounded to avoid overflow.
    backoff = self._settings.backoff_base * 2 ** min(waits, 30)
    return min(backoff, self._settings.backoff_max) * (0.5 + 0.5 * chance)

  async def _wait_for_slot(self) -> float:
    """Wait for the rate limits; returns the expected tokens."""
    settings, now = self._settings, self._clock.now()
    expected = self._expected_tokens()
    start = max(now, self._request_at, self._tokens_at)
    if settings.requests_per_minute:
      self._request_at = start + 60 / settings.requests_per_minute
    if settings.tokens_per_minute:
      self._tokens_at = start + self._seconds_for_tokens(expected)
    while (wait := max(start, self._free_at) - self._clock.now()) > 0:
      await self._clock.sleep(wait)
      self._raise_if_unavailable()
    self._raise_if_unavailable()
    return expected

  def _expected_tokens(self) -> float:
    """Expected tokens per request: the mean so far."""
    if not self.num_answered:
      return self._settings.expected_tokens
    return self._tokens_seen / self.num_answered

  def _seconds_for_tokens(self, tokens: float) -> float:
    """Seconds that tokens take at the rate limit."""
    return tokens / self._settings.tokens_per_minute * 60

  def _record_usage(self, response: T, expected: float) -> None:
    """Record usage; correct the rate limit by the difference."""
    # Without reported usage, assume the expected tokens.
    used = self._route.tokens(response) or expected
    if self._settings.tokens_per_minute:
      self._tokens_at += self._seconds_for_tokens(used - expected)
    self._tokens_seen += used
    self.num_answered += 1

  async def _attempt(self, request: bytes) -> T | _Failure:
    """Send a request once."""
    try:
      async with asyncio.timeout(self._settings.request_timeout):
        status, headers, body = await self._post(request)
    except TimeoutError:
      seconds = self._settings.request_timeout
      return _Failure(text=f"no complete response within {seconds:g} s")
    except self._httpx.RequestError as error:
      text = self._safe_text(f"{type(error).__name__}: {error}")
      kinds = self._httpx.ConnectError, self._httpx.ConnectTimeout
      return _Failure(text=text, no_connection=isinstance(error, kinds))
    if status == 200:
      return self._parse_body(body)
    message = body[:_MAX_BODY_SHOWN].decode(errors="replace").strip()
    text = self._safe_text(f"status {status}: {message}")
    if status in _RETRYABLE or status >= 500:
      wait = _retry_after(headers)
      self._free_at = max(self._free_at, self._clock.now() + wait)
      if wait > self._settings.backoff_max:
        text = f"{text}; Retry-After is {wait:g} s"
        return _Failure(text=text, error=Unavailable)
      return _Failure(text=text, retry_after=wait, rate_limited=status == 429)
    if status in _FATAL or status < 400:
      return _Failure(
        text=f"{text}; check url, model and the API key",
        error=Unavailable,
      )
    return _Failure(text=text, error=RequestRejected)

  async def _post(self, request: bytes) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body; the body is limited in size."""
    url = f"{self._settings.url.rstrip('/')}/{self._route.path}"
    async with self._http.stream("POST", url, content=request) as response:
      body = bytearray()
      async for part in response.aiter_bytes():
        body += part
        if len(body) > self._route.max_bytes:
          break
      return response.status_code, response.headers, bytes(body)

  def _parse_body(self, body: bytes) -> T | _Failure:
    """Parse the body of a status 200."""
    route = self._route
    try:
      found = untrusted.parse_json(
        body, max_bytes=route.max_bytes, finite=False
      )
      return route.parse(found, self.redaction)
    except PARSE_ERRORS as error:
      message = body[:_MAX_BODY_SHOWN].decode(errors="replace")
      return _Failure(
        text=self._safe_text(
          f"expected {route.expected},"
          f" got {type(error).__name__} in {len(body)} bytes: {message}"
        )
      )

  def _safe_text(self, text: str) -> str:
    """An endpoint message, short, printable and redacted."""
    # Redact before truncating: part of a key is a secret too.
    return untrusted.printable(self.redaction.text(text), _MAX_CHARS_SHOWN)


def _retry_after(headers: Mapping[str, str]) -> float:
  """Seconds of a Retry-After header; 0 if missing or invalid."""
  value = headers.get("retry-after", "")
  try:
    return max(0.0, float(value)) if value else 0.0
  except ValueError:
    pass
  try:
    wanted = email.utils.parsedate_to_datetime(value).timestamp()
    # Relative to the endpoint's clock, if it sends one.
    date = headers.get("date")
    now = time.time()
    if date:
      now = email.utils.parsedate_to_datetime(date).timestamp()
    return max(0.0, wanted - now)
  except (OverflowError, TypeError, ValueError):
    return 0.0
