"""Captions from a faulty or unavailable endpoint, and after kills."""

import base64
import errno
import itertools
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ovi_jax import files
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.stages import captions
from ovi_jax.endpoints import client as endpoint
from tests.lib.curation import caption_client
from tests.lib.curation import caption_server as captioner

pytest.importorskip("httpx", reason="pip install 'ovi_jax[curate]'")


def test_no_answer_is_lost_on_server_errors(tmp_path):
  """All faults at random: the outcome is that of a server without faults."""
  faulty = [
    captioner.status(500),
    captioner.status(429, Retry_After="0.01"),
    captioner.status(429),
    captioner.status(502),
    captioner.MALFORMED,
    captioner.HALF,
    captioner.CLOSED,
    captioner.slow(0.1),
  ]
  choose = random.Random(1)
  script = lambda n, b: choose.choice([*faulty, *[captioner.OK] * 6])  # noqa: E731
  pairs = [caption_client.pair(n) for n in range(30)]
  changes = {"concurrency": 8, "max_attempts": 20}
  with captioner.serving(script) as server:
    ours = caption_client.captioned(
      server.url, tmp_path / "a", pairs, **changes
    )
    assert len(server.bodies) > 40
  assert ours == caption_client.undisturbed(pairs, tmp_path / "b")
  assert all(isinstance(made, clips.Clip) for made in ours)
  assert caption_client.spent(tmp_path / "a") == caption_client.spent(
    tmp_path / "b"
  )


def test_an_unavailable_endpoint_leaves_the_shard_pending(tmp_path):
  pairs, counter = (
    [caption_client.pair(n) for n in range(12)],
    itertools.count(),
  )

  def script(number, body):
    return captioner.OK if next(counter) < 5 else captioner.CLOSED

  changes = {"concurrency": 2, "max_attempts": 3}
  with (
    captioner.serving(script) as server,
    pytest.raises(stage.Unavailable) as error,
  ):
    caption_client.captioned(server.url, tmp_path, pairs, **changes)
  assert str(error.value).startswith("5 of 12 clips have a response")
  found = re.search(
    r"no response for clip clip-\d+(?: and (\d+) more)?: ", str(error.value)
  )
  assert found is not None
  assert server.url in str(error.value) and str(tmp_path) in str(error.value)
  assert caption_client.spent(tmp_path)[0] == 5
  # Some may have failed before the last response: others are then tried.
  failed = 1 + int(found[1] or 0)
  assert failed < 7, "a gone endpoint is left alone"
  assert len(server.bodies) <= 5 + 3 * failed
  with captioner.serving() as server:
    ours = caption_client.captioned(server.url, tmp_path, pairs)
    assert len(server.bodies) == 7
  assert ours == caption_client.undisturbed(pairs, tmp_path / "other")


def test_an_unreachable_endpoint_is_reported(tmp_path):
  with socket.socket() as closed:
    closed.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(stage.Unavailable, match="0 of 3 clips"):
      caption_client.captioned(
        url,
        tmp_path,
        [caption_client.pair(n) for n in range(3)],
        max_attempts=2,
      )


def _fails_on_2(number, body):
  second = base64.b64encode(b"frame_0.jpg 2").decode()
  bad = second in body["messages"][0]["content"][0]["image_url"]["url"]
  return captioner.status(500) if bad else captioner.OK


def test_a_clip_that_always_fails_is_retried_then_excluded(tmp_path):
  pairs = [caption_client.pair(n) for n in range(6)]
  changes = {"max_attempts": 3, "concurrency": 2, "backoff_base": 0.02}
  with captioner.serving(_fails_on_2) as server:
    with pytest.raises(
      stage.Unavailable, match="5 of 6 .* no response for clip clip-2:"
    ):
      caption_client.captioned(server.url, tmp_path, pairs, **changes)
    # Others were answered: it is this clip, not the endpoint.
    ours = caption_client.captioned(
      server.url, tmp_path, pairs, on_timeout="reject", **changes
    )
  assert [made.id for made in ours if isinstance(made, clips.Clip)] == [
    f"clip-{n}" for n in (0, 1, 3, 4, 5)
  ]
  assert ours[2].failed and ours[2].reason == "no response"
  assert "status 500" in ours[2].detail


def test_an_unreachable_endpoint_rejects_no_clip(tmp_path):
  pairs = [caption_client.pair(n) for n in range(6)]
  with captioner.serving() as server:
    caption_client.captioned(server.url, tmp_path, pairs[:5])
  changes = {"max_attempts": 2, "on_timeout": "reject"}
  with pytest.raises(
    stage.Unavailable, match="5 of 6 .* no response for clip clip-5:"
  ):
    caption_client.captioned(server.url, tmp_path, pairs, **changes)


def test_a_rejected_request_fails_its_clip(tmp_path):
  script = captioner.in_turn(captioner.status(413))
  with captioner.serving(script) as server:
    ours = caption_client.captioned(
      server.url,
      tmp_path,
      [caption_client.pair(1), caption_client.pair(2)],
      concurrency=1,
    )
  assert ours[0].failed and ours[0].reason == "request rejected"
  assert "status 413" in ours[0].detail
  assert isinstance(ours[1], clips.Clip)


def test_an_unwritable_cache_stops_requests(tmp_path, monkeypatch):
  def full(path):
    raise OSError(errno.ENOSPC, "no space left to write it", str(path))

  monkeypatch.setattr(files, "atomic_path", full)
  pairs = [caption_client.pair(n) for n in range(8)]
  with (
    captioner.serving() as server,
    pytest.raises(stage.Unavailable, match="cannot be cached: .*no space left"),
  ):
    caption_client.captioned(server.url, tmp_path, pairs, concurrency=2)
  assert len(server.bodies) <= 2


def work_alone(url, folder, count):
  """What the killed process does."""
  pairs = [caption_client.pair(n) for n in range(int(count))]
  caption_client.captioned(url, folder, pairs, concurrency=2)
  print("done")


def test_a_kill_loses_no_cached_answer(tmp_path):
  pairs = [caption_client.pair(n) for n in range(20)]
  killed = threading.Event()

  def script(number, body):
    """The process gets eight answers and waits for the others."""
    if number >= 8:
      killed.wait(300)
    return captioner.OK

  with captioner.serving(script) as server:
    process = subprocess.Popen(
      [sys.executable, "-m", __name__, server.url, str(tmp_path), "20"],
      cwd=pathlib.Path(__file__).parents[3],
    )
    until = time.monotonic() + 300
    while len(list(tmp_path.glob("*/*.json"))) < 6:
      assert time.monotonic() < until and process.poll() is None
      time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    killed.set()
    kept = caption_client.spent(tmp_path)[0]
    assert 6 <= kept <= 8
    before = len(server.bodies)
    ours = caption_client.captioned(server.url, tmp_path, pairs)
    assert len(server.bodies) - before == 20 - kept
  assert ours == caption_client.undisturbed(pairs, tmp_path / "other")
  assert not list(tmp_path.glob("*/.*.part"))


def test_the_clock_can_be_replaced(tmp_path):
  """Long waits cost no time in tests: the stage takes a clock."""
  slept = []

  async def sleep(seconds):
    slept.append(seconds)

  script = captioner.in_turn(captioner.status(500))
  with captioner.serving(script) as server:
    chosen = caption_client.config(
      server.url, tmp_path, backoff_base=60.0, backoff_max=90.0
    )
    clock = endpoint.Clock(sleep=sleep)
    (made,) = captions.load(chosen, clock)([caption_client.pair(1)])
  assert isinstance(made, clips.Clip)
  assert len(slept) == 1 and 30 <= slept[0] <= 60


if __name__ == "__main__":
  work_alone(*sys.argv[1:])
