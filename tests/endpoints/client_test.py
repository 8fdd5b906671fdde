"""The client against a slow, faulty or unavailable server."""

import asyncio
import json
import socket
import sys
import threading
import traceback

import pytest

from ovi_jax.curation import stage
from ovi_jax.curation.captioning import chat
from ovi_jax.endpoints import client as endpoint
from ovi_jax.endpoints import credentials
from tests.lib import network_settings
from tests.lib.curation import caption_server as captioner

pytest.importorskip("httpx", reason="pip install 'ovi_jax[curate]'")

KEY = "sk-secret-0123"


class Clock:
  """Time that passes only when somebody sleeps."""

  def __init__(self):
    self.time, self.slept = 100.0, []
    self.clock = endpoint.Clock(now=lambda: self.time, sleep=self.sleep)

  async def sleep(self, seconds):
    self.slept.append(seconds)
    until = self.time + seconds
    # Others that wait for less go first.
    for _ in range(50):
      await asyncio.sleep(0)
    self.time = max(self.time, until)


def settings(url, **changes):
  return endpoint.Settings(url=url, model="m", **changes)


def request(number=0):
  """A small request; another number is another request."""
  content = [{"type": "text", "text": f"question {number}"}]
  body = {"model": "m", "messages": [{"role": "user", "content": content}]}
  return json.dumps(body).encode()


def ask(chosen, count=1, clock=None, key=""):
  """Ask some questions at once; answers or errors in order, and the client."""

  async def run():
    chat_client = endpoint.Client(
      chosen, key, (clock or Clock()).clock, chat.ROUTE
    )
    async with chat_client as client:
      asked = [client.send(request(n)) for n in range(count)]
      return await asyncio.gather(*asked, return_exceptions=True), client

  return asyncio.run(run())


def test_a_response_has_text_and_token_counts():
  with captioner.serving(
    captioner.in_turn(captioner.says("ab" * 10))
  ) as server:
    ((reply,), client) = ask(settings(server.url), key=KEY)
  assert reply.text == "ab" * 10 and reply.finish_reason == "stop"
  assert (reply.tokens_in, reply.tokens_out) == (len("question 0") // 4, 5)
  assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
  assert client.num_answered == 1


@pytest.mark.parametrize(
  "faulty",
  [
    captioner.status(500),
    captioner.status(503),
    captioner.status(429),
    captioner.status(408),
    captioner.MALFORMED,
    captioner.HALF,
    captioner.CLOSED,
  ],
  ids=lambda step: f"{step['kind']}{step.get('status', '')}",
)
def test_failed_requests_are_retried_with_backoff(faulty):
  clock = Clock()
  with captioner.serving(captioner.in_turn(faulty, faulty)) as server:
    ((reply,), _) = ask(settings(server.url), clock=clock)
  assert reply.text == captioner.words(json.loads(request()))
  assert len(server.bodies) == 3
  first, second = clock.slept
  assert 0.5 <= first < 1 <= second < 2  # exponential, half of it by chance


@pytest.mark.parametrize(
  "late", [captioner.slow(30), captioner.drip(0.1)], ids=["slow", "drip"]
)
def test_a_timed_out_request_is_retried(late):
  with captioner.serving(captioner.in_turn(late)) as server:
    chosen = settings(server.url, request_timeout=0.5, max_attempts=50)
    ((reply,), _) = ask(chosen)
  assert reply.text == captioner.words(json.loads(request()))
  assert len(server.bodies) >= 2  # more where the machine is slow, too


def test_backoff_is_seeded():
  def waits(seed):
    clock = Clock()
    with captioner.serving(lambda n, b: captioner.status(500)) as server:
      ask(settings(server.url, seed=seed, max_attempts=4), clock=clock)
    return clock.slept

  assert waits(1) == waits(1) != waits(2)
  assert len(waits(1)) == 3  # between four attempts


@pytest.mark.parametrize(
  "header, low, high",
  [("30", 30, 30.1), ("soon", 0.5, 1.0), ("-3", 0.5, 1.0), ("nan", 0.5, 1.0)],
)
def test_the_retry_after_header_is_honoured(header, low, high):
  clock = Clock()
  faulty = captioner.status(429, Retry_After=header)
  with captioner.serving(captioner.in_turn(faulty)) as server:
    ((reply,), _) = ask(settings(server.url), clock=clock)
  assert reply.text
  assert low <= clock.time - 100 <= high


def test_a_retry_after_date_is_relative_to_the_servers_clock():
  headers = {
    "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT",
    "date": "Wed, 21 Oct 2026 07:28:05 GMT",
  }
  assert endpoint._retry_after(headers) == 25
  assert endpoint._retry_after({**headers, "date": "?"}) == 0


def test_retry_after_pauses_all_requests():
  slept, held = [], asyncio.Event()
  sleeping = asyncio.Semaphore(0)
  times = [100.0]

  async def sleep(seconds):
    slept.append(seconds)
    sleeping.release()
    await held.wait()

  async def run(url):
    clock = endpoint.Clock(now=lambda: times[0], sleep=sleep)
    async with endpoint.Client(settings(url), "", clock, chat.ROUTE) as client:
      first = asyncio.create_task(client.send(request(0)))
      await sleeping.acquire()
      second = asyncio.create_task(client.send(request(1)))
      await sleeping.acquire()
      asked = len(server.bodies)
      times[0] += 50
      held.set()
      return asked, await asyncio.gather(first, second)

  faulty = captioner.status(429, Retry_After="50")
  with captioner.serving(captioner.in_turn(faulty)) as server:
    asked, replies = asyncio.run(asyncio.wait_for(run(server.url), 300))
  assert asked == 1 and slept == [50, 50]
  assert all(reply.text for reply in replies)


def test_a_retry_after_beyond_the_limit_means_unavailable():
  faulty = captioner.status(503, Retry_After="3600")
  with captioner.serving(captioner.in_turn(faulty)) as server:
    ((error,), client) = ask(settings(server.url))
  assert isinstance(error, stage.Unavailable) and client.unavailable
  assert "Retry-After is 3600 s" in str(error)
  assert len(server.bodies) == 1


@pytest.mark.parametrize("number", [401, 403, 404, 302])
def test_a_wrong_key_or_url_fails_at_once_without_showing_the_key(number):
  faulty = captioner.status(number)
  with captioner.serving(lambda n, b: faulty) as server:
    ((error,), _) = ask(settings(server.url), key=KEY)
  assert isinstance(error, stage.Unavailable)
  assert f"status {number}" in str(error) and "[key]" in str(error)
  assert KEY not in str(error) and len(server.bodies) == 1


@pytest.mark.parametrize("number", [400, 413, 422])
def test_a_rejected_request_fails_alone(number):
  script = captioner.in_turn(captioner.status(number))
  with captioner.serving(script) as server:
    ((error,), client) = ask(settings(server.url), key=KEY)
  assert isinstance(error, endpoint.RequestRejected) and not client.unavailable
  assert KEY not in str(error) and len(server.bodies) == 1


def test_an_unreachable_endpoint_is_reported():
  with socket.socket() as closed:
    closed.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    clock = Clock()
    errors, client = ask(settings(url, max_attempts=3), count=5, clock=clock)
  assert all(isinstance(error, stage.Unavailable) for error in errors)
  assert (
    "3 attempts failed" in client.unavailable
    and "ConnectError" in client.unavailable
  )


def test_one_request_may_fail_while_others_succeed():
  def script(number, body):
    bad = "question 1" in json.dumps(body)
    return captioner.status(500) if bad else captioner.OK

  with captioner.serving(script) as server:
    replies, client = ask(settings(server.url, max_attempts=4), count=4)
  assert (
    isinstance(replies[1], endpoint.AttemptsExhausted)
    and not client.unavailable
  )
  assert all(replies[n].text for n in (0, 2, 3))
  assert len(server.bodies) == 4 + 3


def test_a_busy_endpoint_is_retried_while_others_succeed():
  """Eight at once, one answered in each round: more rounds than attempts."""

  def script(number, body):
    return captioner.OK if number % 4 == 3 else captioner.status(429)

  with captioner.serving(script) as server:
    # Of four consecutive requests one is answered.
    chosen = settings(server.url, max_attempts=4)
    replies, _ = ask(chosen, count=8)
  assert all(getattr(reply, "text", None) for reply in replies)
  assert len(server.bodies) > 8 * 3


def test_requests_stay_within_the_rate_limit():
  clock = Clock()
  with captioner.serving() as server:
    chosen = settings(server.url, requests_per_minute=30)
    ask(chosen, count=5, clock=clock)
  assert clock.time - 100 == pytest.approx(8)  # four gaps of 2 s


@pytest.mark.parametrize(
  "answer, expected",
  [
    # Each takes 100 tokens, ten seconds; what was expected is corrected.
    (captioner.says("x" * 392), 1000),
    # Nobody counts: what was expected is taken for what was used.
    ({**captioner.says("x"), "counts": False}, 100),
  ],
)
def test_tokens_stay_within_the_rate_limit(answer, expected):
  async def run(clock):
    with captioner.serving(lambda n, b: answer) as server:
      limits = {"tokens_per_minute": 600, "expected_tokens": expected}
      chosen = settings(server.url, **limits)
      async with endpoint.Client(chosen, "", clock.clock, chat.ROUTE) as client:
        for number in range(4):
          await client.send(request(number))

  clock = Clock()
  asyncio.run(run(clock))
  assert clock.time - 100 == pytest.approx(30)


@pytest.mark.parametrize(
  "usage",
  [
    '{"prompt_tokens": 1e999, "completion_tokens": -4}',
    '{"prompt_tokens": "many"}',
    '"none"',
    "[1]",
    "null",
  ],
)
def test_invalid_token_counts_are_read_as_zero(usage):
  def script(number, body):
    text = '{"choices": [{"message": {"content": "Words"}}], "usage": %s}'
    return {"kind": "raw", "content": (text % usage).encode()}

  with captioner.serving(script) as server:
    (reply,), _ = ask(settings(server.url))
    assert (reply.text, reply.tokens_in, reply.tokens_out) == ("Words", 0, 0)
    assert len(server.bodies) == 1


def test_an_invalid_retry_after_date_is_ignored():
  far = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
  script = captioner.in_turn(captioner.status(429, **{"Retry-After": far}))
  with captioner.serving(script) as server:
    (reply,), _ = ask(settings(server.url))
  assert reply.text


def test_connections_stay_within_the_limit():
  three = threading.Barrier(3)

  def script(number, body):
    three.wait(timeout=60)
    return captioner.slow(0.1)

  with captioner.serving(script) as server:
    replies, _ = ask(settings(server.url, concurrency=3), count=9)
  assert all(reply.text for reply in replies) and server.most == 3


def test_real_timeouts_are_reported():
  with captioner.serving(lambda n, b: captioner.slow(30)) as server:
    chosen = settings(
      server.url, read_timeout=0.1, max_attempts=2, backoff_base=0.1
    )

    async def run():
      clock = endpoint.Clock()
      async with endpoint.Client(chosen, "", clock, chat.ROUTE) as client:
        await client.send(request())

    with pytest.raises(stage.Unavailable, match="ReadTimeout"):
      asyncio.run(run())


def test_keys_come_from_the_environment(monkeypatch):
  chosen = settings("http://127.0.0.1/v1", api_key_env="SOME_KEY")
  monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
  assert credentials.read(chosen.api_key_env) == KEY and KEY not in repr(chosen)
  monkeypatch.setenv("SOME_KEY", "")
  with pytest.raises(ValueError, match="SOME_KEY is empty"):
    credentials.read(chosen.api_key_env)
  monkeypatch.setenv("SOME_KEY", "sk-ä")
  with pytest.raises(ValueError, match="API keys cannot") as error:
    credentials.read(chosen.api_key_env)
  assert "sk-ä" not in str(error.value)


@pytest.mark.parametrize(
  "changes, expected",
  [
    ({"url": "127.0.0.1:80"}, "url: expected"),
    ({"url": "http://me:word@host/v1"}, "without a user"),
    ({"url": "http://"}, "url: expected"),
    ({"url": "http://host:port/v1"}, "url: expected"),
    ({"url": "http://host:99999/v1"}, "url: expected"),
    ({"url": "http://[::1/v1"}, "url: expected"),
    ({"url": "http://host/v1\n"}, "url: expected"),
    ({"url": "http://host/v1?"}, "url: expected"),
    ({"concurrency": 0}, "concurrency must be at least 1"),
    ({"read_timeout": 0}, "read_timeout must be positive"),
    ({"backoff_base": -1}, "backoff_base must not be negative"),
  ],
)
def test_settings_are_checked(changes, expected):
  with pytest.raises(ValueError, match=expected) as error:
    endpoint.Settings(**{"url": "http://host/v1", "model": "m", **changes})
  assert "word" not in str(error.value).replace("password", "")


PROXIES = [
  (
    "ALL_PROXY",
    "socks5://me:word@127.0.0.1:1",
    "pip install socksio, or unset",
  ),
  ("all_proxy", "SOCKS5H://127.0.0.1:1", "pip install socksio, or unset"),
  ("HTTPS_PROXY", "ftp://127.0.0.1:1", "not valid.*variable HTTPS_PROXY$"),
  ("HTTP_PROXY", "http://proxy:x", "of a proxy.*variable HTTP_PROXY$"),
  ("ALL_PROXY", "http://me:my#word@host:1", "of a proxy.*variable ALL_PROXY$"),
  ("ALL_PROXY", "http://me:my/word@host:1", "of a proxy.*variable ALL_PROXY$"),
  ("ALL_PROXY", "http://me:my?word@host:1", "of a proxy.*variable ALL_PROXY$"),
  ("NO_PROXY", "[::1", "check the variable NO_PROXY$"),
  ("SSL_CERT_FILE", "/none.pem", "No such file.*variable SSL_CERT_FILE$"),
]


@pytest.mark.parametrize(("name", "value", "message"), PROXIES)
def test_a_proxy_that_cannot_be_used_is_one_line(
  name, value, message, monkeypatch
):
  network_settings.clear(monkeypatch)
  monkeypatch.setitem(sys.modules, "socksio", None)
  monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=message) as error:
    endpoint.check_setup()
  with pytest.raises(ValueError, match=message):
    ask(settings("http://127.0.0.1:9/v1"))
  text = str(error.value)
  assert name in text and "\n" not in text
  # Of a password, which ends at `#`, `/` and `?` for httpx.
  shown = "".join(traceback.format_exception(error.value))
  shown = shown.replace("password", "")
  assert "word" not in shown and "'my'" not in shown


def test_a_missing_package_is_named_with_the_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "httpx", None)
  with pytest.raises(ValueError, match="pip install httpx"):
    endpoint.check_setup()
