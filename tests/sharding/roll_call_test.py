"""Processes that come, late or twice, and those that do not."""

import contextlib
import json
import socket
import threading
import time
from concurrent import futures

import pytest

from ovi_jax.sharding import cluster_env
from ovi_jax.sharding import roll_call

LONG = 30.0


@pytest.fixture
def port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@pytest.fixture
def start():
  """Runs something beside the test."""
  with futures.ThreadPoolExecutor(8) as pool:
    yield pool.submit


def lead(port, count, seconds=LONG):
  roll_call.lead(("", port), count, seconds, "TIME")


def answer(port, index, count, seconds=LONG):
  roll_call.answer(("localhost", port), index, count, seconds, "TIME")


def knock(port, index, count):
  """A process that says its number and then nothing."""
  guest = roll_call.reach(("localhost", port), time.monotonic() + LONG, 1, "")
  guest.sendall(roll_call._line(process=index, of=count))
  return guest


def test_all_come_in_any_order(start, port):
  first = start(answer, port, 2, 3)
  time.sleep(0.7)
  others = [start(lead, port, 3), start(answer, port, 1, 3)]
  for each in (first, *others):
    each.result(LONG)
  with socket.create_server(("", port)):  # the address is left to JAX
    pass


def test_one_that_is_late_is_waited_for_longer_than_by_itself(start, port):
  """Process 0 decides: its time begins later than that of process 1."""
  began = time.monotonic()
  patient = start(answer, port, 1, 3, 2.0)
  leading = start(lead, port, 3, LONG)
  time.sleep(3)
  late = start(answer, port, 2, 3)
  for each in (patient, leading, late):
    each.result(LONG)
  assert time.monotonic() - began < 10


def test_who_is_missing_is_named_by_all(start, port):
  leading, waiting = start(lead, port, 4, 2.0), start(answer, port, 2, 4)
  for each in (leading, waiting):
    with pytest.raises(
      ValueError, match=r"processes 1, 3 of 4 did not come within 2 s.*TIME"
    ):
      each.result(10)


def test_many_that_are_missing():
  assert roll_call.named([1]) == "process 1"
  assert roll_call.named(range(1, 60)).endswith(" 15, 16 and 43 more")


def test_one_that_ends_and_comes_again(start, port):
  leading = start(lead, port, 3)
  knock(port, 1, 3).close()
  time.sleep(0.3)
  last = start(answer, port, 2, 3)
  time.sleep(1.5)
  assert not leading.done() and not last.done()  # process 1 is missed
  again = start(answer, port, 1, 3)
  for each in (leading, last, again):
    each.result(LONG)


def test_a_leader_that_ends_and_comes_again(start, port):
  with socket.create_server(("", port)) as ended:
    waiting = start(answer, port, 1, 2)
    guest, _ = ended.accept()
    guest.sendall(roll_call._line(missing=[1]))
    guest.close()
  lead(port, 2)
  waiting.result(LONG)


def test_an_address_that_is_left_soon(start, port):
  busy = socket.create_server(("", port))
  leading = start(lead, port, 2)
  time.sleep(1)
  busy.close()
  answer(port, 1, 2)
  leading.result(LONG)


def test_an_address_that_is_taken(port):
  said = f"cannot listen at .*:{port} .*free"
  with (
    socket.create_server(("", port)),
    pytest.raises(ValueError, match=said),
  ):
    lead(port, 2, 1.0)


def test_strangers_are_shown_out(start, port):
  leading = start(lead, port, 2)
  guests = [knock(port, index, 2) for index in (7, "x", None)]
  silent = roll_call.reach(("localhost", port), time.monotonic() + 9, 9, "")
  web = roll_call.reach(("localhost", port), time.monotonic() + 9, 9, "")
  web.sendall(b"GET / HTTP/1.1\r\n\r\n")
  answer(port, 1, 2)
  leading.result(LONG)
  for guest in (*guests, silent, web):
    guest.close()


def test_one_that_counts_otherwise(start, port):
  leading, other = start(lead, port, 2, 2.0), start(answer, port, 1, 3)
  for each in (leading, other):
    with pytest.raises(
      ValueError, match="process 1 was told of 3 processes, process 0 of 2"
    ):
      each.result(LONG)


def test_one_that_counts_otherwise_does_not_end_the_others(start, port):
  leading = start(lead, port, 2)
  knock(port, 1, 99).close()
  answer(port, 1, 2)
  leading.result(LONG)


def test_two_of_one_number(start, port):
  leading = start(lead, port, 3)
  older = start(answer, port, 1, 3)
  time.sleep(1)
  newer = start(answer, port, 1, 3)
  with pytest.raises(ValueError, match="another process .* process 1 too"):
    newer.result(LONG)
  answer(port, 2, 3)
  for each in (leading, older):
    each.result(LONG)


def test_malformed_lines_are_ignored(start, port):
  leading = start(lead, port, 2)
  senders = []
  for line in (
    b"[" * 200_000,
    b"[" * 900 + b"\n",
    b'{"ovi_jax": ' + b"1" * 900 + b"}\n",
    b"\xff\n",
    b"null\n",
    b"\n",
  ):
    sender = roll_call.reach(("localhost", port), time.monotonic() + 9, 9, "")
    with contextlib.suppress(OSError):  # it may be closed before all is sent
      sender.sendall(line)
    senders.append(sender)
  answer(port, 1, 2)
  leading.result(LONG)
  for sender in senders:
    sender.close()


def test_connections_are_bounded(start, port):
  leading = start(lead, port, 3)
  first = start(answer, port, 1, 3)
  silent = [
    roll_call.reach(("localhost", port), time.monotonic() + 9, 9, "")
    for _ in range(roll_call._SPARE + 20)
  ]
  answer(port, 2, 3)
  for each in (leading, first):
    each.result(LONG)
  closed = 0
  for guest in silent:
    guest.settimeout(LONG)
    with contextlib.suppress(OSError):
      closed += guest.recv(1) == b""
    guest.close()
  assert closed >= 15


def test_connections_without_the_token_are_refused(start, port, monkeypatch):
  lines = {}
  for secret in ("", "wrong", "right"):
    monkeypatch.setenv(cluster_env.TOKEN, secret)
    lines[secret] = roll_call._line(process=1, of=2)
  leading = start(lead, port, 2)
  for secret in ("", "wrong"):
    guest = roll_call.reach(("localhost", port), time.monotonic() + 9, 9, "")
    guest.sendall(lines[secret])
    guest.settimeout(LONG)
    assert guest.recv(1) == b""  # closed, without a word
    guest.close()
  assert not leading.done()
  answer(port, 1, 2)
  leading.result(LONG)
  assert b"right" not in lines["right"]


def test_nobody_listens(port):
  with pytest.raises(ValueError, match="could not be reached within 1 s"):
    answer(port, 1, 2, 1.0)


def test_somebody_else_listens(port):
  def serve(server):
    while True:
      try:
        guest, _ = server.accept()
      except OSError:
        return
      guest.sendall(json.dumps([1]).encode() + b"\n")
      guest.close()

  with socket.create_server(("", port)) as server:
    thread = threading.Thread(target=serve, args=(server,), daemon=True)
    thread.start()
    with pytest.raises(ValueError, match="is not process 0 of this run"):
      answer(port, 1, 2, 2.0)
    server.shutdown(socket.SHUT_RDWR)
  thread.join(LONG)
