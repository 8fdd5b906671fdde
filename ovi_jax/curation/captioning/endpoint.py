"""A client of an OpenAI-compatible endpoint that does not give up lightly.

In: the JSON bytes of a chat completion. Out: what was answered, or an error
that says whose fault it is: `Refused`, of this request; `Unanswered`, of nobody
known; `stage.Unavailable`, of the endpoint or of how it is reached. Rates are
limited, failures are tried again after waits that grow. The API key is read
from an environment variable and goes nowhere but into the request's header: it
is replaced in all that the endpoint says (`credentials`).
"""

import asyncio
import dataclasses
import email.utils
import importlib
import logging
import random
import time
import types
import urllib.parse
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from ovi_jax import untrusted
from ovi_jax.curation import stage
from ovi_jax.curation.captioning import cache
from ovi_jax.curation.captioning import credentials

MAX_RESPONSE_BYTES = 4 << 20  # bytes
_RETRYABLE = frozenset([408, 409, 425, 429])
_FATAL = frozenset([401, 402, 403, 404, 405, 407, 410])  # of no request
_MAX_CHARS_SHOWN = 300  # characters of what the endpoint says, in errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Where the endpoint is, and how it may be asked.

  Attributes:
    url: up to and with the version, such as "http://127.0.0.1:8000/v1".
    model: its name there; needed before anything is asked.
    api_key_env: the environment variable that has the API key; "" for none.
    concurrency: requests at a time.
    requests_per_minute: at most; 0 for no limit.
    tokens_per_minute: at most, of requests and answers; 0 for no limit.
    expected_tokens: of one request and its answer, until some have been seen,
      or always if the endpoint does not count them.
    connect_timeout: to wait for a connection.
    read_timeout: to wait for the next bytes of an answer.
    request_timeout: to wait for a whole answer.
    max_attempts: at one request, before the endpoint is taken to be gone.
    backoff_base: seconds before the second attempt; doubled for each other one.
    backoff_max: seconds; an endpoint that asks for more is taken to be gone.
    seed: of the waits' jitter.
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
  """ValueError unless it is a plain http address; its text is not repeated."""
  parts = urllib.parse.urlsplit(url)
  plain = parts.scheme in ("http", "https") and parts.hostname
  if not plain or "@" in url or parts.query:
    raise ValueError(
      "url: expected one such as 'http://127.0.0.1:8000/v1', without a name,"
      " password or query; a key belongs in the variable that api_key_env"
      " names"
    )


class RequestRejected(ValueError):
  """The endpoint will not answer this request."""


class AttemptsExhausted(OSError):
  """This request was tried as often as allowed; others were answered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
  """Time, as the client sees it; tests bring their own.

  Attributes:
    now: seconds of a clock that never goes back.
    sleep: for so many seconds.
  """

  now: Callable[[], float] = time.monotonic
  sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Failure:
  """Why an attempt failed.

  Attributes:
    text: for people.
    error: to raise at once; None if it may be tried again.
    retry_after: seconds that the endpoint asks for.
    rate_limited: it has too much to do, which says nothing of this request.
    no_connection: there was no connection, so nothing was heard of the endpoint.
  """

  text: str
  error: type[Exception] | None = None
  retry_after: float = 0.0
  rate_limited: bool = False
  no_connection: bool = False


def import_httpx() -> types.ModuleType:
  """httpx; ImportError says how to install it."""
  try:
    return importlib.import_module("httpx")
  except ImportError as error:
    raise ImportError(
      "captions need httpx: pip install 'ovi_jax[curate]'"
    ) from error


class Client:
  """Asks one endpoint; for one event loop.

  Attributes:
    redaction: of the key, for all that is kept or said.
    num_answered: requests so far that were.
    answered_before: an answer of an earlier run was used, so that a request may be what
      is wrong, though no other is answered now.
    unavailable: why no more are made; "" while they are.
  """

  def __init__(self, settings: Settings, key: str, clock: Clock):
    self._settings, self._key, self._clock = settings, key, clock
    self.redaction = credentials.Redaction(key)
    self._httpx = import_httpx()
    self._http: Any = None
    self._free_at, self._tokens_seen = 0.0, 0.0
    self._request_at = self._tokens_at = 0.0
    self.num_answered, self.answered_before, self.unavailable = 0, False, ""

  async def __aenter__(self) -> "Client":
    settings, httpx = self._settings, self._httpx
    for name in ("httpx", "httpcore"):
      # At the level "debug" they log headers.
      logging.getLogger(name).setLevel(logging.WARNING)
    headers = {"Content-Type": "application/json"}
    if self._key:
      headers["Authorization"] = f"Bearer {self._key}"
    self._http = httpx.AsyncClient(
      headers=headers,
      timeout=httpx.Timeout(
        settings.read_timeout, connect=settings.connect_timeout, pool=None
      ),
      limits=httpx.Limits(max_connections=settings.concurrency),
    )
    return self

  async def __aexit__(self, *_: object) -> None:
    await self._http.aclose()

  async def complete(self, request: bytes) -> cache.Completion:
    """Send a request until it is answered.

    Args:
      request: JSON of a chat completion.

    Raises:
      Refused: the endpoint says that the request is wrong.
      Unanswered: all attempts failed while other requests were answered, or
        had been by an endpoint that is `answered_before` and still lets us connect.
      stage.Unavailable: all attempts failed, and nothing else was answered; or
        the key, the model or the address is wrong.
    """
    before = seen = self.num_answered
    tries = waits = 0
    while True:
      expected = await self._wait_for_slot()
      found = await self._attempt(request)
      if not isinstance(found, _Failure):
        self._record_usage(found, expected)
        return found
      if found.error is stage.Unavailable:
        self.unavailable = self.unavailable or found.text
      elif found.error is not None:
        raise found.error(found.text)
      self._raise_if_unavailable()
      # A busy endpoint that answers others will come to this one.
      tries = (
        0 if found.rate_limited and self.num_answered > seen else tries + 1
      )
      seen = self.num_answered
      if tries >= self._settings.max_attempts:
        break
      await self._clock.sleep(
        max(self._backoff(request, waits), found.retry_after)
      )
      waits += 1
    tried = f"{tries} attempts failed, the last: {found.text}"
    if self.num_answered == before and (
      found.no_connection or not self.answered_before
    ):
      self.unavailable = tried
    self._raise_if_unavailable()
    raise AttemptsExhausted(f"{self._settings.url}: {tried}")

  def _raise_if_unavailable(self) -> None:
    """`stage.Unavailable` once the endpoint has been taken to be gone."""
    if self.unavailable:
      raise stage.Unavailable(f"{self._settings.url}: {self.unavailable}")

  def _backoff(self, request: bytes, waits: int) -> float:
    """Seconds before the next attempt: exponential, half of it by chance."""
    name = cache.request_hash(request)
    chance = random.Random(f"{self._settings.seed}/{name}/{waits}").random()
    # 2**30 is beyond any wait, and no overflow.
    longest = self._settings.backoff_base * 2 ** min(waits, 30)
    return min(longest, self._settings.backoff_max) * (0.5 + 0.5 * chance)

  async def _wait_for_slot(self) -> float:
    """Wait until the rates allow another request; tokens that it may take."""
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
    """Tokens of a request and its answer: the mean of those seen."""
    if not self.num_answered:
      return self._settings.expected_tokens
    return self._tokens_seen / self.num_answered

  def _seconds_for_tokens(self, tokens: float) -> float:
    """The time that so many tokens take at the limit."""
    return tokens / self._settings.tokens_per_minute * 60

  def _record_usage(self, reply: cache.Completion, expected: float) -> None:
    """Note an answer; what it took beyond the expected is waited for."""
    # An endpoint that does not count is taken to have used what was expected.
    used = reply.tokens_in + reply.tokens_out or expected
    if self._settings.tokens_per_minute:
      self._tokens_at += self._seconds_for_tokens(used - expected)
    self._tokens_seen += used
    self.num_answered += 1

  async def _attempt(self, request: bytes) -> cache.Completion | _Failure:
    """Send a request once."""
    try:
      async with asyncio.timeout(self._settings.request_timeout):
        status, headers, body = await self._send(request)
    except TimeoutError:
      seconds = self._settings.request_timeout
      return _Failure(text=f"no whole answer within {seconds:g} s")
    except self._httpx.RequestError as error:
      text = self._shown(f"{type(error).__name__}: {error}")
      kinds = self._httpx.ConnectError, self._httpx.ConnectTimeout
      return _Failure(text=text, no_connection=isinstance(error, kinds))
    if status == 200:
      return self._reply(body)
    said = body.decode(errors="replace").strip()
    text = self._shown(f"status {status}: {said}")
    if status in _RETRYABLE or status >= 500:
      wait = _retry_after(headers)
      self._free_at = max(self._free_at, self._clock.now() + wait)
      if wait > self._settings.backoff_max:
        text = f"{text}; it asks to come back in {wait:g} s"
        return _Failure(text=text, error=stage.Unavailable)
      return _Failure(text=text, retry_after=wait, rate_limited=status == 429)
    if status in _FATAL or status < 400:
      return _Failure(
        text=f"{text}; check url, model and the API key",
        error=stage.Unavailable,
      )
    return _Failure(text=text, error=RequestRejected)

  async def _send(self, request: bytes) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body of an answer, which is cut if it is endless."""
    url = f"{self._settings.url.rstrip('/')}/chat/completions"
    async with self._http.stream("POST", url, content=request) as response:
      body = b""
      async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_RESPONSE_BYTES:
          break
      return response.status_code, response.headers, body

  def _reply(self, body: bytes) -> cache.Completion | _Failure:
    """What a body of status 200 says."""
    try:
      found = untrusted.parse_json(
        body, max_bytes=MAX_RESPONSE_BYTES, finite=False
      )
      choice, usage = found["choices"][0], found.get("usage")
      said = choice["message"].get("content") or ""
      return cache.Completion(
        text=self.redaction.text(str(said)),
        finish_reason=self.redaction.text(
          str(choice.get("finish_reason") or "")
        ),
        tokens_in=_tokens(usage, "prompt_tokens"),
        tokens_out=_tokens(usage, "completion_tokens"),
      )
    except (
      AttributeError,
      IndexError,
      KeyError,
      TypeError,
      ValueError,
    ) as error:
      said = body.decode(errors="replace")
      return _Failure(
        text=self._shown(
          "expected a chat completion,"
          f" got {type(error).__name__} in {len(body)} bytes: {said}"
        )
      )

  def _shown(self, text: str) -> str:
    """What the endpoint said, short, printable and without the key."""
    # Before it is cut: half a key is a secret too.
    return untrusted.printable(self.redaction.text(text), _MAX_CHARS_SHOWN)


def _tokens(usage: Any, name: str) -> int:
  """What an endpoint counted; 0 of what is no count: the answer stands."""
  count = usage.get(name) if isinstance(usage, dict) else None
  if not isinstance(count, int) or isinstance(count, bool):
    return 0
  return count if 0 <= count < 2**53 else 0


def _retry_after(headers: Mapping[str, str]) -> float:
  """Seconds that an answer asks to wait; 0 if it does not say, or not well."""
  value = headers.get("retry-after", "")
  try:
    return max(0.0, float(value)) if value else 0.0
  except ValueError:
    pass
  try:
    wanted = email.utils.parsedate_to_datetime(value).timestamp()
    # By the endpoint's own clock, if it tells it.
    date = headers.get("date")
    now = time.time()
    if date:
      now = email.utils.parsedate_to_datetime(date).timestamp()
    return max(0.0, wanted - now)
  except (OverflowError, TypeError, ValueError):
    return 0.0
