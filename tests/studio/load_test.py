"""Many clients, cancelled jobs, and a server that is killed."""

import contextlib
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures

import httpx
import pytest

from ovi_jax.media import mp4
from ovi_jax.studio import jobs
from tests.lib import child_env

EACH = 4  # clips of a client
DEADLINE = 300  # seconds without any progress


class Server:
  """A server process with trivial models, on one port for all its lives."""

  def __init__(self, folder: pathlib.Path, step_seconds: float):
    with socket.create_server(("127.0.0.1", 0)) as listening:
      self.port = listening.getsockname()[1]
    self._arguments = [str(folder), str(self.port), str(step_seconds)]
    self.start()

  def start(self) -> None:
    self.process = subprocess.Popen(
      [sys.executable, "-m", "tests.lib.studio_server", *self._arguments],
      cwd=child_env.ROOT,
      env=child_env.environment(PYTHONPATH=child_env.ROOT),
    )

  def kill(self) -> None:
    self.process.send_signal(signal.SIGKILL)
    self.process.wait()

  def client(self) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)


@contextlib.contextmanager
def running(folder, step_seconds) -> Iterator[Server]:
  server = Server(folder, step_seconds)
  try:
    yield server
  finally:
    server.kill()


def persistent(call, *arguments, **options):
  """The answer to a request, however often the server dies meanwhile."""
  end = time.monotonic() + DEADLINE
  while True:
    try:
      return call(*arguments, **options)
    except httpx.TransportError:
      assert time.monotonic() < end
      time.sleep(0.2)


def user(server: Server, number: int) -> tuple[list[str], list[str]]:
  """Asks for clips and cancels a third; ids of all, and of the cancelled."""
  accepted, cancelled = [], []
  chosen = random.Random(number)
  with server.client() as client:
    for place in range(number * EACH, (number + 1) * EACH):
      time.sleep(chosen.uniform(0, 0.3))
      values = {"prompt": f"Ball {place}.", "seed": place, "num_steps": 2}
      found = persistent(client.post, "/v1/videos", json=values)
      assert found.status_code == 200, found.text
      accepted.append(found.json()["id"])
      if place % 3 == 0:
        time.sleep(chosen.uniform(0, 0.3))
        at = f"/v1/videos/{accepted[-1]}/cancel"
        status = persistent(client.post, at).json()["status"]
        assert status in ("failed", "completed")
        if status == "failed":
          cancelled.append(accepted[-1])
  return accepted, cancelled


def wait_for(condition) -> None:
  end = time.monotonic() + DEADLINE
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
  "clients", [10, pytest.param(50, marks=pytest.mark.nightly)]
)
def test_each_accepted_job_ends_once_though_the_server_is_killed(
  tmp_path, clients
):
  made = lambda: len(list(tmp_path.glob("*.mp4")))  # noqa: E731
  with (
    running(tmp_path, 0.01) as server,
    futures.ThreadPoolExecutor(clients) as pool,
  ):
    users = [pool.submit(user, server, n) for n in range(clients)]
    for count in (clients // 2, clients):
      wait_for(lambda count=count: made() >= count)
      server.kill()
      server.start()
    accepted, cancelled = [], []
    for each in users:
      ours, dropped = each.result()
      accepted += ours
      cancelled += dropped
    with server.client() as client:

      def is_idle():
        # The latest are made last.
        found = persistent(client.get, "/v1/videos", params={"limit": 100})
        return all(
          video["status"] in ("completed", "failed")
          for video in found.json()["data"]
        )

      wait_for(is_idle)
  with contextlib.closing(jobs.JobStore(tmp_path)) as store:
    found = {id: store.get(id) for id in accepted}
    assert len(found) == clients * EACH
    assert {job.status for job in found.values()} == {"finished", "cancelled"}
    # One that was cancelled is never made, and no other is cancelled.
    ended = {id for id, job in found.items() if job.status == "cancelled"}
    assert ended == set(cancelled) and len(ended) > clients // 2
    clips = [job.clip for job in found.values() if job.clip]
    assert len(set(clips)) == len(clips) == len(found) - len(ended)
    for clip in clips:
      mp4.check(tmp_path / clip)
      assert (tmp_path / clip).with_suffix(".json").exists()
    assert store.count(jobs.QUEUED, jobs.RUNNING) == 0


def resident(process: subprocess.Popen) -> int:
  """Bytes of a process in memory."""
  status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
  line = next(x for x in status.splitlines() if x.startswith("VmRSS:"))
  return int(line.split()[1]) << 10


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(
  not pathlib.Path("/proc/self/status").exists(), reason="/proc"
)
def test_memory_does_not_grow_with_the_number_of_jobs(tmp_path):
  """With the small Ovi: clips with previews, with a picture, and cancelled."""
  with socket.create_server(("127.0.0.1", 0)) as listening:
    port = listening.getsockname()[1]
  picture = (child_env.ROOT / "docs/images/face.png").read_bytes()
  previews, used, statuses = 0, {}, []
  command = [sys.executable, "-m", "ovi_jax.studio", f"--port={port}"]
  with (
    subprocess.Popen(
      [*command, f"--out={tmp_path}"],
      env=child_env.environment(PYTHONPATH=child_env.ROOT),
    ) as process,
    httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
  ):

    def make(number: int) -> int:
      """Make a clip, or cancel it after its preview; how many were seen."""
      fields = {"prompt": f"Ball {number}.", "seconds": "1"}
      fields["num_steps"] = "600" if number % 3 == 0 else "6"
      body = {"json": fields | {"num_steps": int(fields["num_steps"])}}
      if number % 3 == 1:
        body = {"data": fields, "files": {"input_reference": picture}}
      asked = persistent(client.post, "/v1/videos", **body)
      assert asked.status_code == 200, asked.text
      at, seen = f"/v1/videos/{asked.json()['id']}", 0
      while True:
        # Previews are made for whoever asks while the clip waits or is made.
        found = client.get(f"{at}/content", params={"variant": "preview"})
        seen |= found.status_code == 200
        if number % 3 == 0 and seen:
          client.post(f"{at}/cancel")
        status = client.get(at).json()
        if status["status"] in ("completed", "failed"):
          statuses.append((status["error"] or {}).get("code"))
          return seen
        time.sleep(0.02)

    try:
      for number in range(1, 201):
        previews += make(number)
        used[number] = resident(process)
    finally:
      process.terminate()
  wanted = ["cancelled" if n % 3 == 0 else None for n in range(1, 201)]
  assert statuses == wanted
  assert previews > 66  # of the cancelled ones, and of others
  later = {n: size / used[20] for n, size in used.items() if n >= 20}
  assert all(0.95 < share < 1.05 for share in later.values()), later
