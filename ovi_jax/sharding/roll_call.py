"""Who has come, before JAX's own service starts: that one ends the program.

Process 0 listens at the coordinator's address until each of the others has
told its number, lets all go, and leaves the address to JAX. A process may come
late, or end and come again, until its time is over; then all who came are told
who did not. What is said are lines of JSON.

Anybody who reaches the port may connect: lines and connections are bounded, a
line that does not carry the token of the run (`environment.run_token`) is
ignored, and a number that is taken stays with the process that has it.
"""

import contextlib
import errno
import hmac
import json
import selectors
import socket
import time
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

from ovi_jax import untrusted
from ovi_jax.sharding import cluster_env

TRY_AGAIN = 0.5  # seconds
_TICK = 1.0  # seconds between two words of process 0
_SILENT = 30.0  # seconds without a word, and process 0 is lost
_BUSY = 15.0  # seconds that another may still need to leave the address
_LONGEST = 2**20  # bytes of a line of process 0, which may name all others
_LONGEST_HEARD = 1024  # bytes of a line of another
_DEPTH = 4  # of JSON
_SPARE = 64  # connections beside those of the processes
_NAMED = 16  # processes in a message
_REASONS = 4  # why some were refused, in a message
Guests = dict[int, socket.socket]


def lead(
  bind: tuple[str, int], count: int, seconds: float, more_time: str
) -> None:
  """Wait, as process 0, until all others have come.

  Args:
    bind: host, or nothing for all of this machine's, and port.
    count: of processes.
    seconds: to wait.
    more_time: what a user sets to wait longer.

  Raises:
    ValueError: some did not come (says so if one counts otherwise), or the
      address is taken.
  """
  until = time.monotonic() + seconds
  present: Guests = {}
  refused: set[str] = set()
  heard: dict[socket.socket, bytes] = {}
  with contextlib.ExitStack() as stack:
    stack.callback(lambda: [guest.close() for guest in heard])
    selector = stack.enter_context(selectors.DefaultSelector())
    server = stack.enter_context(_listening(bind, seconds))
    selector.register(server, selectors.EVENT_READ)
    try:
      while missing := [n for n in range(1, count) if n not in present]:
        if time.monotonic() > until:
          raise ValueError(
            f"{named(missing)} of {count} did not come within {seconds:.0f} s;"
            f" start all {count} with the address of process 0 and a number of"
            f" their own, or, for more time, set {more_time}"
            + "".join(f"; {why}" for why in sorted(refused)[:_REASONS])
          )
        _tell(present.values(), missing=missing)
        _hear(selector, server, heard, present, count, refused)
    except ValueError as error:
      _tell(present.values(), refused=str(error))
      raise
    server.close()
    _tell(present.values(), go=True)


def answer(
  address: tuple[str, int],
  index: int,
  count: int,
  seconds: float,
  more_time: str,
) -> None:
  """Tell process 0 that this one came, and wait until it lets all go.

  Args:
    address: host and port of process 0.
    index: of this process.
    count: of processes.
    seconds: to wait for process 0; it decides how long it waits for others.
    more_time: what a user sets to wait longer.

  Raises:
    ValueError: process 0 could not be reached, or refused.
  """
  until = time.monotonic() + seconds
  where = f"{address[0]}:{address[1]}"
  while True:
    with reach(address, until, seconds, more_time) as server:
      for words in _words(server, until, index, count):
        if "refused" in words:
          raise ValueError(untrusted.printable(str(words["refused"]), 1000))
        if "go" in words:
          return
        # It is there: who comes late is waited for by its clock.
        until = time.monotonic() + max(seconds, _SILENT)
    if time.monotonic() + TRY_AGAIN > until:
      raise ValueError(
        f"who listens at {where} is not process 0 of this run, or ended: it"
        f" did not answer within {seconds:.0f} s; start process 0 there, or"
        f" choose another port for all"
      )
    time.sleep(TRY_AGAIN)


def reach(
  address: tuple[str, int], until: float, seconds: float, more_time: str
) -> socket.socket:
  """Connect to somebody who listens, as soon as there is one.

  Args:
    address: host and port.
    until: when to give up, by `time.monotonic`.
    seconds: that are waited in all, for the message.
    more_time: what a user sets to wait longer.

  Raises:
    ValueError: nobody listens.
  """
  while True:
    try:
      left = max(0.1, min(5.0, until - time.monotonic()))
      return socket.create_connection(address, timeout=left)
    except OSError as error:
      if time.monotonic() + TRY_AGAIN > until:
        raise ValueError(
          f"the coordinator at {address[0]}:{address[1]} could not be reached"
          f" within {seconds:.0f} s ({error}); start process 0 there, or give"
          f" its address and, for more time, set {more_time}"
        ) from error
      time.sleep(TRY_AGAIN)


def named(numbers: Collection[int]) -> str:
  """E.g. "processes 1, 2, 5", the first of them if they are many."""
  listed = ", ".join(str(n) for n in list(numbers)[:_NAMED])
  rest = len(numbers) - _NAMED
  more = f" and {rest} more" if rest > 0 else ""
  return f"process{'' if len(numbers) == 1 else 'es'} {listed}{more}"


def _listening(bind: tuple[str, int], seconds: float) -> socket.socket:
  """A socket that listens; one who just ends may still hold the address.

  Raises:
    ValueError: it cannot.
  """
  until = time.monotonic() + min(seconds, _BUSY)
  host, port = bind
  both = host in ("", "::") and socket.has_dualstack_ipv6()
  while True:
    try:
      if both:
        family = socket.AF_INET6
        return socket.create_server(
          ("", port), family=family, dualstack_ipv6=True, backlog=1024
        )
      family = socket.AF_INET6 if ":" in host else socket.AF_INET
      return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
      busy = error.errno == errno.EADDRINUSE
      if both and not busy:
        both = False  # no IPv6 here after all
        continue
      if not busy or time.monotonic() + TRY_AGAIN > until:
        raise ValueError(
          f"process 0 cannot listen at {host or '*'}:{port} ({error}); another"
          " program may do, or another process 0: choose a free port of this"
          " machine for all"
        ) from error
      time.sleep(TRY_AGAIN)


def _hear(
  selector: selectors.BaseSelector,
  server: socket.socket,
  heard: dict[socket.socket, bytes],
  present: Guests,
  count: int,
  refused: set[str],
) -> None:
  """Let in who knocks, and note who tells its number, for one tick."""

  def drop(guest: socket.socket) -> None:
    selector.unregister(guest)
    del heard[guest]
    guest.close()
    for number in [n for n, g in present.items() if g is guest]:
      del present[number]

  tick = time.monotonic() + _TICK
  before = set(present)
  while (left := tick - time.monotonic()) > 0:
    for key, _ in selector.select(left):
      guest: Any = key.fileobj
      if guest is server:
        with contextlib.suppress(OSError):
          guest, _ = server.accept()
          guest.setblocking(False)
          heard[guest] = b""
          selector.register(guest, selectors.EVENT_READ)
        if len(heard) > count + _SPARE:
          # The one that has been silent for longest.
          here = set(present.values())
          drop(next(guest for guest in heard if guest not in here))
        continue
      if guest not in heard:
        continue  # dropped within this round
      said = _said(guest)
      line, end, _ = (heard[guest] + said).partition(b"\n")
      heard[guest] = line
      # No word is the end; what is not of us is shown out.
      stays = said and len(line) <= _LONGEST_HEARD
      if stays and end:
        stays = _enters(line, guest, present, count, refused)
      if not stays:
        drop(guest)
    if set(present) != before and len(present) == count - 1:
      return


def _said(guest: socket.socket) -> bytes:
  try:
    return guest.recv(4096)
  except OSError:
    return b""


def _enters(
  line: bytes,
  guest: socket.socket,
  present: Guests,
  count: int,
  refused: set[str],
) -> bool:
  """Note a process by its number; whether it is one.

  One that counts other processes, or has the number of another, is told so.
  """
  words = _parsed(line)
  number, of = words.get("process"), words.get("of")
  if type(number) is not int or type(of) is not int:
    return False
  if not 0 < number < max(of, count):
    return False
  why = ""
  if of != count:
    why = (
      f"process {number} was told of {of} processes, process 0 of {count};"
      " start all with the same number"
    )
  elif present.get(number) not in (None, guest):
    why = (
      f"another process came that is process {number} too; give each a number"
      " of its own"
    )
  if why:
    if len(refused) < _SPARE:
      refused.add(why)
    _tell([guest], refused=why)
    return False
  present[number] = guest
  return True


def _words(
  server: socket.socket, until: float, index: int, count: int
) -> Iterator[dict[str, Any]]:
  """What process 0 says, until it is gone."""
  with contextlib.suppress(OSError), server.makefile("rb") as lines:
    server.settimeout(max(1.0, min(_SILENT, until - time.monotonic())))
    server.sendall(_line(process=index, of=count))
    while words := _parsed(lines.readline(_LONGEST)):
      yield words
      server.settimeout(_SILENT)


def _tell(guests: Iterable[socket.socket], **words: Any) -> None:
  """Say something to all; who is gone is found when it is listened to."""
  for guest in guests:
    with contextlib.suppress(OSError):
      guest.sendall(_line(**words))


def _line(**words: Any) -> bytes:
  told = {"ovi_jax": cluster_env.run_token()} | words
  return json.dumps(told).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
  """The words of a line; none if it is not of us."""
  try:
    words = untrusted.parse_json(line, max_bytes=_LONGEST, max_depth=_DEPTH)
  except ValueError:
    return {}
  token = words.get("ovi_jax") if isinstance(words, dict) else None
  ours = cluster_env.run_token()
  # As bytes: of text it compares ASCII only.
  if not isinstance(token, str) or not hmac.compare_digest(
    token.encode(errors="replace"), ours.encode()
  ):
    return {}
  return words
