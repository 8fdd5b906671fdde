"""Raters, assignments and votes in SQLite.

Votes are append-only: triggers refuse changes. Every change is one transaction
that takes the write lock first, so several servers can use one database on one
machine. With synchronous=FULL, an answer that was confirmed survives a crash.

A token is `ID.SECRET`; the database has the SHA-256 of the secret alone.
"""

import contextlib
import dataclasses
import hashlib
import hmac
import pathlib
import secrets
import sqlite3
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ovi_jax.study import assignment
from ovi_jax.study import manifest

LEFT, RIGHT, EQUAL, CANNOT_JUDGE = "left", "right", "equal", "cannot_judge"
CHOICES = (LEFT, RIGHT, EQUAL, CANNOT_JUDGE)
LEASE = 3600.0  # seconds that an item counts as judged while it is not answered
AHEAD = 2  # items that a rater has at once: one is shown, one is preloaded
MAX_RATERS = 100_000
_WAIT = 10.0  # seconds for the lock
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS raters (
  id TEXT PRIMARY KEY, secret TEXT NOT NULL, joined REAL NOT NULL,
  consented REAL, headphones INTEGER, origin TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS assignments (
  id TEXT PRIMARY KEY, rater TEXT NOT NULL REFERENCES raters (id),
  position INTEGER NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL,
  flipped INTEGER NOT NULL, assigned REAL NOT NULL, UNIQUE (rater, position));
CREATE INDEX IF NOT EXISTS by_item ON assignments (kind, number);
CREATE TABLE IF NOT EXISTS answers (
  assignment TEXT PRIMARY KEY REFERENCES assignments (id),
  answered REAL NOT NULL, seconds REAL NOT NULL,
  plays_left INTEGER NOT NULL, plays_right INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS votes (
  assignment TEXT NOT NULL REFERENCES answers (assignment),
  question TEXT NOT NULL, choice TEXT NOT NULL,
  PRIMARY KEY (assignment, question));
"""
_APPEND_ONLY = """
CREATE TRIGGER IF NOT EXISTS {table}_{event} BEFORE {event} ON {table}
BEGIN SELECT RAISE(ABORT, 'votes are append-only'); END;
"""


class ConflictError(ValueError):
  """An answer contradicts one that is stored, or does not fit its item."""


class ReplacedError(ValueError):
  """The database is of another study; `make` may have run meanwhile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
  """An item as a rater sees it.

  Attributes:
    id: opaque name.
    position: within the session, from 0.
    kind: real, gold or repeat.
    number: of the item or gold item.
    flipped: whether its second clip is on the left.
  """

  id: str
  position: int
  kind: str
  number: int
  flipped: bool

  def media(self, study: manifest.Study) -> tuple[str, str]:
    """Media names on the left and on the right."""
    if self.kind == assignment.GOLD:
      item = study.gold[self.number]
      pair = item.clean, item.corrupted
    else:
      pair = study.media(self.number)
    return (pair[1], pair[0]) if self.flipped else pair

  def prompt(self, study: manifest.Study) -> str:
    """The text of its prompt."""
    items: Sequence[Any] = (
      study.gold if self.kind == assignment.GOLD else study.items
    )
    return study.prompts[items[self.number].prompt].text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
  """Where a rater is.

  Attributes:
    consented: whether the rater has agreed to take part.
    answered: number of answered items.
    total: number of items of the session; it may end earlier, when all items
      have enough raters.
    open: items to answer, in order; empty when the session is finished.
  """

  consented: bool
  answered: int
  total: int
  open: tuple[Assignment, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
  """An answer to an item.

  Attributes:
    choices: one of `CHOICES` for each question's id.
    seconds: that the item was shown.
    plays: how often each clip was played, left and right.
  """

  choices: Mapping[str, str]
  seconds: float
  plays: tuple[int, int]


class Database:
  """The votes of a study; each call opens a connection of its own."""

  def __init__(
    self, path: pathlib.Path, study: manifest.Study, replace: bool = False
  ):
    """Open or create the database.

    Args:
      path: of the file; it must not be on a network file system.
      study: that votes are of.
      replace: give a database of another study to this one if it has no raters.
        Every transaction compares the study, so servers of the other one can
        write nothing to it any more.

    Raises:
      ReplacedError: the database is of another study.
      ValueError: the file is no such database.
      OSError: it cannot be written.
    """
    self._path, self._study = path, study
    try:
      with self._connection() as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_SCHEMA)
        for table in ("answers", "votes"):
          for event in ("UPDATE", "DELETE"):
            connection.executescript(
              _APPEND_ONLY.format(table=table, event=event)
            )
      with self._locked() as connection:
        self._meta(connection, "study", study.hash)
        if replace and not self._raters(connection):
          self._replace_study(connection)
        self._check_study(connection)
    except sqlite3.OperationalError as error:
      raise OSError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
      raise ValueError(
        f"{path}: expected a database of votes: {error}"
      ) from error

  def _replace_study(self, connection: sqlite3.Connection) -> None:
    """Give a database without raters to this study, with a new code."""
    changed = connection.execute(
      "UPDATE meta SET value = ? WHERE name = 'study' AND value != ?",
      (self._study.hash, self._study.hash),
    ).rowcount
    if changed:
      connection.execute("DELETE FROM meta WHERE name = 'code'")

  def _check_study(self, connection: sqlite3.Connection) -> None:
    """ReplacedError if the database is of another study."""
    query = "SELECT value FROM meta WHERE name = 'study'"
    found = (connection.execute(query).fetchone() or [None])[0]
    if found != self._study.hash:
      raise ReplacedError(
        f"{self._path} has votes of study {found}, expected"
        f" {self._study.hash}: study file or clips have changed; run make"
        " again, or choose another folder"
      )

  @contextlib.contextmanager
  def _connection(self) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(
      self._path, timeout=_WAIT, isolation_level=None
    )
    try:
      connection.execute("PRAGMA synchronous=FULL")
      connection.execute("PRAGMA foreign_keys=ON")
      yield connection
    finally:
      connection.close()

  @contextlib.contextmanager
  def _transaction(
    self, mode: str = "IMMEDIATE"
  ) -> Iterator[sqlite3.Connection]:
    """A connection with the write lock, of a database of this study.

    All or nothing is written.

    Args:
      mode: "DEFERRED" to read alone.

    Raises:
      ReplacedError: the database is of another study.
    """
    with self._locked(mode) as connection:
      self._check_study(connection)
      yield connection

  @contextlib.contextmanager
  def _locked(self, mode: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """The transaction of a database of any study."""
    with self._connection() as connection:
      connection.execute(f"BEGIN {mode}")
      try:
        yield connection
      except BaseException:
        with contextlib.suppress(sqlite3.Error):
          connection.execute("ROLLBACK")
        raise
      connection.execute("COMMIT")

  def _meta(
    self, connection: sqlite3.Connection, name: str, default: str
  ) -> str:
    """A stored value; the default is stored if there is none."""
    connection.execute(
      "INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, default)
    )
    return connection.execute(
      "SELECT value FROM meta WHERE name = ?", (name,)
    ).fetchone()[0]

  def access_code(self) -> str:
    """The code that new raters need; the same for every server."""
    with self._transaction() as connection:
      return self._meta(connection, "code", secrets.token_urlsafe(12))

  def count(self) -> int:
    """Number of raters."""
    with self._transaction("DEFERRED") as connection:
      return self._raters(connection)

  def _raters(self, connection: sqlite3.Connection) -> int:
    query = "SELECT COUNT(*) FROM raters"
    return connection.execute(query).fetchone()[0]

  def join(self, now: float | None = None) -> str:
    """Add a rater.

    Returns:
      The rater's token.

    Raises:
      ConflictError: there are too many raters.
    """
    rater, secret = secrets.token_hex(8), secrets.token_urlsafe(24)
    with self._transaction() as connection:
      if self._raters(connection) >= MAX_RATERS:
        raise ConflictError("the study has enough raters")
      self._insert_rater(connection, rater, _digest(secret), now)
    return f"{rater}.{secret}"

  def _insert_rater(
    self,
    connection: sqlite3.Connection,
    rater: str,
    digest: str,
    now: float | None,
    origin: str = "",
  ) -> None:
    connection.execute(
      "INSERT INTO raters (id, secret, joined, origin) VALUES (?, ?, ?, ?)",
      (rater, digest, _now(now), origin),
    )

  def authenticate(self, token: str) -> str | None:
    """The rater of a token; None for any other text."""
    rater, _, secret = token.partition(".")
    with self._transaction("DEFERRED") as connection:
      row = connection.execute(
        "SELECT secret FROM raters WHERE id = ?", (rater,)
      ).fetchone()
    # Compared for unknown raters too, in the same time.
    expected = row[0] if row else _digest("")
    same = hmac.compare_digest(_digest(secret), expected)
    return rater if same and row and secret else None

  def start(
    self, rater: str, headphones: int | None, now: float | None = None
  ) -> None:
    """Record consent and the result of the headphone check, once.

    Args:
      rater: that agreed to take part.
      headphones: correct trials; None without a check.
      now: seconds since 1970.
    """
    with self._transaction() as connection:
      connection.execute(
        "UPDATE raters SET consented = ?, headphones = ?"
        " WHERE id = ? AND consented IS NULL",
        (_now(now), headphones, rater),
      )

  def session(self, rater: str, now: float | None = None) -> Session:
    """Where a rater is, with items to answer; assigns them if needed."""
    now = _now(now)
    with self._transaction() as connection:
      consented = connection.execute(
        "SELECT consented IS NOT NULL FROM raters WHERE id = ?", (rater,)
      ).fetchone()[0]
      rows = connection.execute(
        "SELECT id, position, kind, number, flipped,"
        " EXISTS (SELECT 1 FROM answers WHERE assignment = assignments.id)"
        " FROM assignments WHERE rater = ? ORDER BY position",
        (rater,),
      ).fetchall()
      had = [(_assignment(row), bool(row[-1])) for row in rows]
      total = sum(self._study.counts.values())
      while consented and sum(not done for _, done in had) < AHEAD:
        found = self._assign(connection, rater, [a for a, _ in had], now)
        if found is None:
          break
        had.append((found, False))
    return Session(
      consented=bool(consented),
      answered=sum(done for _, done in had),
      total=total,
      open=tuple(a for a, done in had if not done),
    )

  def _assign(
    self,
    connection: sqlite3.Connection,
    rater: str,
    had: Sequence[Assignment],
    now: float,
  ) -> Assignment | None:
    """The next item of a session, stored; None at its end."""
    study, position = self._study, len(had)
    kinds = assignment.plan(study, rater)
    if position >= len(kinds):
      return None
    kind, number, flipped = kinds[position], None, False
    if kind == assignment.GOLD:
      before = sum(a.kind == assignment.GOLD for a in had)
      number = assignment.gold(study, rater)[before]
      flipped = assignment.is_flipped(study, rater, kind, number)
    elif kind == assignment.REPEAT:
      repeated = {a.number for a in had if a.kind == assignment.REPEAT}
      real = {a.number: a for a in had if a.kind == assignment.REAL}
      left = [(a.position, n) for n, a in real.items() if n not in repeated]
      number = assignment.choose_repeat(study, rater, left, position)
      if number is not None:
        flipped = not real[number].flipped
    if number is None:
      kind = assignment.REAL
      counts = self._counts(connection, now)
      judged = {item: count for item, (count, _) in counts.items()}
      seen = {a.number for a in had if a.kind == assignment.REAL}
      number = assignment.choose(study, rater, judged, seen)
      if number is None:
        return None
      balance = counts.get(number, (0, 0))[1]
      flipped = assignment.is_flipped(study, rater, kind, number, balance)
    found = Assignment(
      id=secrets.token_hex(8),
      position=position,
      kind=kind,
      number=number,
      flipped=flipped,
    )
    self._insert_assignment(connection, rater, found, now)
    return found

  def _insert_assignment(
    self,
    connection: sqlite3.Connection,
    rater: str,
    found: Assignment,
    now: float,
  ) -> None:
    connection.execute(
      "INSERT INTO assignments VALUES (?, ?, ?, ?, ?, ?, ?)",
      (
        found.id,
        rater,
        found.position,
        found.kind,
        found.number,
        found.flipped,
        now,
      ),
    )

  def _counts(
    self, connection: sqlite3.Connection, now: float
  ) -> dict[int, tuple[int, int]]:
    """Raters of each item, and flipped ones less the others.

    Unanswered items of raters who left do not count.
    """
    rows = connection.execute(
      "SELECT number, COUNT(*), SUM(2 * flipped - 1) FROM assignments"
      " LEFT JOIN answers ON answers.assignment = assignments.id"
      " WHERE kind = ? AND (answers.assignment IS NOT NULL OR assigned > ?)"
      " GROUP BY number",
      (assignment.REAL, now - LEASE),
    )
    return {number: (count, balance) for number, count, balance in rows}

  def answer(
    self, rater: str, item: str, answer: Answer, now: float | None = None
  ) -> None:
    """Store an answer; the same answer again changes nothing.

    Raises:
      ConflictError: the item is not the rater's, the choices are not those of
        its questions, or another answer to it is stored.
    """
    self._check(answer)
    with self._transaction() as connection:
      known = connection.execute(
        "SELECT 1 FROM assignments WHERE id = ? AND rater = ?", (item, rater)
      ).fetchone()
      if not known:
        raise ConflictError("expected an item of this session")
      stored = dict(
        connection.execute(
          "SELECT question, choice FROM votes WHERE assignment = ?", (item,)
        ).fetchall()
      )
      if stored and stored != dict(answer.choices):
        raise ConflictError("this pair was answered before, in another way")
      if not stored:
        self._insert_answer(connection, item, answer, _now(now))

  def _check(self, answer: Answer) -> None:
    expected = {q.id for q in self._study.settings.questions}
    if answer.choices.keys() != expected:
      raise ConflictError(f"expected answers to {', '.join(sorted(expected))}")
    if not set(answer.choices.values()) <= set(CHOICES):
      raise ConflictError(f"expected choices of {', '.join(CHOICES)}")

  def _insert_answer(
    self,
    connection: sqlite3.Connection,
    item: str,
    answer: Answer,
    now: float,
  ) -> None:
    connection.execute(
      "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
      (item, now, answer.seconds, *answer.plays),
    )
    connection.executemany(
      "INSERT INTO votes VALUES (?, ?, ?)",
      [(item, q, c) for q, c in answer.choices.items()],
    )

  def add_session(
    self,
    origin: str,
    items: Sequence[Assignment],
    answers: Sequence[Answer],
    headphones: int | None,
    now: float | None = None,
  ) -> bool:
    """Store a session that was answered elsewhere, all of it or nothing.

    Args:
      origin: identifies it; a session that is stored already is left out.
      items: that were shown; their ids are replaced.
      answers: to the first of them.
      headphones: correct trials; None without a check.
      now: seconds since 1970.

    Returns:
      Whether it was new.
    """
    for answer in answers:
      self._check(answer)
    now, rater = _now(now), secrets.token_hex(8)
    with self._transaction() as connection:
      query = "SELECT 1 FROM raters WHERE origin = ?"
      if connection.execute(query, (origin,)).fetchone():
        return False
      self._insert_rater(connection, rater, "", now, origin)
      connection.execute(
        "UPDATE raters SET consented = ?, headphones = ? WHERE id = ?",
        (now, headphones, rater),
      )
      for item, answer in zip(items, answers):
        item = dataclasses.replace(item, id=secrets.token_hex(8))
        self._insert_assignment(connection, rater, item, now)
        self._insert_answer(connection, item.id, answer, now)
    return True

  def votes(self) -> list[dict[str, Any]]:
    """All votes, one row each, in the order of sessions."""
    with self._transaction("DEFERRED") as connection:
      connection.row_factory = sqlite3.Row
      rows = connection.execute(
        "SELECT rater, position, kind, number, flipped, question, choice,"
        " answered, seconds, plays_left, plays_right, headphones FROM votes"
        " JOIN answers USING (assignment)"
        " JOIN assignments ON assignments.id = votes.assignment"
        " JOIN raters ON raters.id = assignments.rater"
        " ORDER BY joined, rater, position, votes.rowid"
      )
      return [dict(row) for row in rows]


def _assignment(row: Sequence[Any]) -> Assignment:
  return Assignment(
    id=row[0],
    position=row[1],
    kind=row[2],
    number=row[3],
    flipped=bool(row[4]),
  )


def same(text: str, expected: str) -> bool:
  """Whether two secrets are equal, compared in constant time."""
  return hmac.compare_digest(_digest(text), _digest(expected))


def _digest(secret: str) -> str:
  return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _now(now: float | None) -> float:
  return time.time() if now is None else now
