"""Jobs of the service in SQLite, so that they survive the process.

  <out>/studio/jobs.sqlite        one row a job
  <out>/studio/given/<id>/<name>  the files that a job was given

A job ends once: a trigger refuses any change of a row that is finished, failed
or cancelled. A job that was running when its process ended is queued again, a
bounded number of times. One process opens a folder at a time.
"""

import contextlib
import dataclasses
import json
import pathlib
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from ovi_jax import storage

STATUSES = QUEUED, RUNNING, FINISHED, FAILED, CANCELLED = (
  "queued",
  "running",
  "finished",
  "failed",
  "cancelled",
)
ENDED = (FINISHED, FAILED, CANCELLED)
MAX_ATTEMPTS = 3
MAX_LISTED = 100
FOLDER = "studio"
_VERSION = 1
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  status TEXT NOT NULL DEFAULT '{QUEUED}' CHECK (status IN {STATUSES}),
  created REAL NOT NULL, started REAL, ended REAL,
  request TEXT NOT NULL, batch_key TEXT NOT NULL, num_steps INTEGER NOT NULL,
  height INTEGER NOT NULL, width INTEGER NOT NULL, seconds REAL NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  error TEXT, claimed TEXT, clip TEXT, owns_clip INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS by_status ON jobs (status, number);
CREATE INDEX IF NOT EXISTS by_clip ON jobs (clip);
CREATE TRIGGER IF NOT EXISTS ended_jobs_stay BEFORE UPDATE ON jobs
WHEN OLD.status IN {ENDED} AND NEW.owns_clip = OLD.owns_clip
BEGIN SELECT RAISE(ABORT, 'the job has ended'); END;
"""


class UnknownJobError(LookupError):
  """There is no job of this id."""


class StorageError(OSError):
  """Jobs or their files cannot be written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipRequest:
  """What a job was asked for, checked.

  Attributes:
    prompt: as the user wrote it.
    settings: fields of `configs/sample.py` that differ from what the weights
      recommend, with the seed.
    given: names of files in the job's folder by what they give, and the other
      fields of `requests.GIVEN`.
    seconds: length of the clip, or of what is generated behind an extended one;
      `None` for that of the weights or of given media.
    generate: "both", or "video" or "audio" alone.
    lora: LoRA files and strengths, see `Pipeline.set_lora`.
  """

  prompt: str
  settings: Mapping[str, Any]
  given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seconds: float | None = None
  generate: str = "both"
  lora: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A clip that was asked for.

  Attributes:
    id: opaque name.
    status: one of `STATUSES`.
    created: seconds since 1970, as all times.
    started: when it was last taken from the queue.
    ended: when it was finished, failed or cancelled.
    request: what was asked for.
    height: pixel rows of the clip.
    width: pixel columns.
    seconds: length of the clip.
    step: number of finished denoising steps.
    num_steps: number of all steps.
    position: place in the queue, 1 for the next; `None` if it is not queued.
    seconds_left: estimated time until it is finished; `None` if unknown.
    error: why it failed, one line; `None` otherwise.
    clip: name of the mp4, or wav, in the output folder; `None` until it is
      finished.
  """

  id: str
  status: str
  created: float
  started: float | None
  ended: float | None
  request: ClipRequest
  height: int
  width: int
  seconds: float
  step: int = 0
  num_steps: int
  position: int | None = None
  seconds_left: float | None = None
  error: str | None
  clip: str | None

  @property
  def has_ended(self) -> bool:
    """Whether it is finished, failed or cancelled."""
    return self.status in ENDED


class JobStore:
  """The jobs of an output folder. Its methods may be called by any thread."""

  def __init__(self, folder: str | pathlib.Path):
    """Open or create the database, and queue interrupted jobs again.

    Args:
      folder: of the clips; a local one.

    Raises:
      ValueError: the folder is in an object store, the database is of another
        program or a newer version, or is damaged.
      OSError: it cannot be written, or another process has it open.
    """
    self.folder = storage.local(folder)
    own = self.folder / FOLDER
    own.mkdir(parents=True, exist_ok=True)
    self._given, path = own / "given", own / "jobs.sqlite"
    self._lock = threading.RLock()
    try:
      self._connection = sqlite3.connect(
        path, timeout=0.1, isolation_level=None, check_same_thread=False
      )
    except sqlite3.Error as error:
      raise OSError(f"{path}: {error}") from error
    try:
      self._open()
    except (sqlite3.Error, OSError, ValueError) as error:
      self._connection.close()
      cause = error.__cause__ if isinstance(error, OSError) else error
      if isinstance(cause, sqlite3.OperationalError):
        hint = "; another process has it open" if "locked" in str(cause) else ""
        raise OSError(f"{path}: {cause}{hint}") from error
      if isinstance(cause, sqlite3.Error):
        raise ValueError(
          f"{path}: expected a database of jobs: {cause}; move it away"
        ) from error
      raise
    self._remove_orphans()

  def _open(self) -> None:
    connection = self._connection
    # The lock is held until the connection is closed or the process ends.
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    with self._transaction():
      version = connection.execute("PRAGMA user_version").fetchone()[0]
      if version not in (0, _VERSION):
        raise ValueError(
          f"{self.folder / FOLDER}: its jobs are of version {version}, expected"
          f" {_VERSION}; use another folder, or a newer ovi_jax"
        )
      for statement in _statements(_SCHEMA):
        connection.execute(statement)
      connection.execute(f"PRAGMA user_version={_VERSION}")
      _interrupt(connection, "1")

  def _remove_orphans(self) -> None:
    """Remove given files of requests that were never accepted, or deleted."""
    with self._lock:
      known = {id for (id,) in self._connection.execute("SELECT id FROM jobs")}
    if self._given.is_dir():
      for path in self._given.iterdir():
        if path.name not in known:
          shutil.rmtree(path, ignore_errors=True)

  def close(self) -> None:
    """Close the database; running jobs are queued when it is opened again."""
    with self._lock:
      self._connection.close()

  @contextlib.contextmanager
  def _transaction(self) -> Iterator[sqlite3.Connection]:
    """All or nothing is written.

    Raises:
      StorageError: it cannot be written, for a full disk for instance.
    """
    with self._lock, _stored():
      self._connection.execute("BEGIN IMMEDIATE")
      try:
        yield self._connection
        self._connection.execute("COMMIT")
      except BaseException:
        with contextlib.suppress(sqlite3.Error):
          self._connection.execute("ROLLBACK")
        raise

  def given_folder(self, id: str) -> pathlib.Path:
    """Where the given files of a job are."""
    return self._given / id

  def add(
    self,
    id: str,
    request: ClipRequest,
    *,
    batch_key: str,
    num_steps: int,
    height: int,
    width: int,
    seconds: float,
  ) -> Job:
    """Queue a job.

    Args:
      id: of `new_id`.
      request: what was asked for.
      batch_key: equal for jobs that can be made in one batch.
      num_steps: denoising steps.
      height: pixel rows of the clip.
      width: pixel columns.
      seconds: length of the clip.
    """
    with self._transaction() as connection:
      connection.execute(
        "INSERT INTO jobs (id, created, request, batch_key, num_steps, height,"
        " width, seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
          id,
          time.time(),
          json.dumps(dataclasses.asdict(request)),
          batch_key,
          num_steps,
          height,
          width,
          seconds,
        ),
      )
    return self.get(id)

  def get(self, id: str) -> Job:
    """A job.

    Raises:
      UnknownJobError: there is none of this id.
    """
    with self._lock:
      row = self._row(id)
      ahead = self._connection.execute(
        "SELECT COUNT(*) FROM jobs WHERE status = ? AND number < ?",
        (QUEUED, row["number"]),
      ).fetchone()[0]
    return _job(row, ahead)

  def _row(self, id: str) -> dict[str, Any]:
    found = self._rows("WHERE id = ?", (id,))
    if not found:
      raise UnknownJobError(id)
    return found[0]

  def _rows(self, where: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
    cursor = self._connection.execute(f"SELECT * FROM jobs {where}", values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor]

  def count(self, *statuses: str) -> int:
    """How many jobs have one of these statuses."""
    marks = ", ".join("?" * len(statuses))
    with self._lock:
      return self._connection.execute(
        f"SELECT COUNT(*) FROM jobs WHERE status IN ({marks})", statuses
      ).fetchone()[0]

  def query(
    self,
    *,
    limit: int = 20,
    after: str | None = None,
    newest_first: bool = True,
    statuses: tuple[str, ...] = STATUSES,
  ) -> list[Job]:
    """Jobs in the order in which they were accepted.

    Args:
      limit: at most as many, up to `MAX_LISTED`.
      after: id of the job after which the list begins.
      newest_first: or else oldest first.
      statuses: of the jobs.

    Raises:
      UnknownJobError: there is no job `after`.
    """
    marks = ", ".join("?" * len(statuses))
    sign, order = ("<", "DESC") if newest_first else (">", "ASC")
    where, values = f"WHERE status IN ({marks})", [*statuses]
    with self._lock:
      if after is not None:
        where += f" AND number {sign} ?"
        values.append(self._row(after)["number"])
      rows = self._rows(
        f"{where} ORDER BY number {order} LIMIT ?",
        (*values, max(0, min(limit, MAX_LISTED))),
      )
      queue = self._connection.execute(
        "SELECT id FROM jobs WHERE status = ? ORDER BY number", (QUEUED,)
      )
      places = {id: place for place, (id,) in enumerate(queue)}
    return [_job(row, places.get(row["id"], 0)) for row in rows]

  def steps_ahead(self, id: str) -> int:
    """Denoising steps of all queued jobs that stand before this one."""
    with self._lock:
      return self._connection.execute(
        "SELECT TOTAL(num_steps) FROM jobs WHERE status = ? AND number <"
        " (SELECT number FROM jobs WHERE id = ?)",
        (QUEUED, id),
      ).fetchone()[0]

  def take(self, batch_size: int = 1) -> list[Job]:
    """Take the next job from the queue, and others that fit into its batch.

    A job that has been interrupted is taken alone, since it may have ended the
    process.

    Args:
      batch_size: most jobs.

    Returns:
      Jobs that are running now; a power of two, so that few programs are
      compiled. Empty if none is queued.
    """
    with self._transaction() as connection:
      rows = self._rows("WHERE status = ? ORDER BY number LIMIT 1", (QUEUED,))
      if rows and not rows[0]["attempts"]:
        rows = self._rows(
          "WHERE status = ? AND batch_key = ? AND attempts = 0"
          " ORDER BY number LIMIT ?",
          (QUEUED, rows[0]["batch_key"], batch_size),
        )
        del rows[1 << (len(rows).bit_length() - 1) :]
      for row in rows:
        row |= {"status": RUNNING, "started": time.time()}
        connection.execute(
          "UPDATE jobs SET status = ?, started = ?, attempts = attempts + 1"
          " WHERE id = ?",
          (row["status"], row["started"], row["id"]),
        )
    return [_job(row, 0) for row in rows]

  def put_back(self, id: str) -> None:
    """Queue a running job again, as if it had not been taken."""
    with self._transaction() as connection:
      connection.execute(
        "UPDATE jobs SET status = ?, started = NULL, attempts = attempts - 1"
        " WHERE id = ? AND status = ?",
        (QUEUED, id, RUNNING),
      )

  def interrupt(self, id: str) -> None:
    """Queue a running job again, or fail it after too many attempts."""
    with self._transaction() as connection:
      _interrupt(connection, "id = ?", id)

  def claim(self, id: str, clip: str) -> None:
    """Record that a running job writes a clip which is not there yet."""
    with self._transaction() as connection:
      connection.execute(
        "UPDATE jobs SET claimed = ? WHERE id = ? AND status = ?",
        (clip, id, RUNNING),
      )

  def has_claimed(self, id: str, clip: str) -> bool:
    """Whether a job, perhaps in a process that ended, writes this clip."""
    with self._lock:
      return bool(self._rows("WHERE id = ? AND claimed = ?", (id, clip)))

  def finish(self, id: str, clip: str, *, owns_clip: bool) -> bool:
    """End a running job with its clip.

    Args:
      id: of the job.
      clip: name of the mp4.
      owns_clip: whether this job wrote it, and deletes it with itself.

    Returns:
      Whether it was running; a cancelled job stays cancelled.
    """
    return self._end(
      id, (RUNNING,), FINISHED, clip=clip, owns_clip=int(owns_clip)
    )

  def fail(self, id: str, reason: str) -> bool:
    """End a running job with an error; returns whether it was running."""
    return self._end(id, (RUNNING,), FAILED, error=reason)

  def is_running(self, id: str) -> bool:
    """Whether a job is there and running."""
    with self._lock:
      return bool(self._rows("WHERE id = ? AND status = ?", (id, RUNNING)))

  def cancel(self, id: str) -> bool:
    """End a queued or running job.

    Returns:
      Whether it was queued or running.

    Raises:
      UnknownJobError: there is none of this id.
    """
    with self._lock:
      self._row(id)
      return self._end(id, (QUEUED, RUNNING), CANCELLED)

  def _end(
    self, id: str, before: tuple[str, ...], status: str, **values: Any
  ) -> bool:
    values = {"status": status, "ended": time.time()} | values
    changes = ", ".join(f"{name} = ?" for name in values)
    marks = ", ".join("?" * len(before))
    with self._transaction() as connection:
      return bool(
        connection.execute(
          f"UPDATE jobs SET {changes} WHERE id = ? AND status IN ({marks})",
          (*values.values(), id, *before),
        ).rowcount
      )

  def made(self, clip: str) -> Job | None:
    """The latest job that ended with a clip; `None` if there is none.

    Earlier ones may be of a clip of this name that was removed by hand.
    """
    with self._lock:
      rows = self._rows("WHERE clip = ? ORDER BY number DESC LIMIT 1", (clip,))
    return _job(rows[0], 0) if rows else None

  def delete(self, id: str) -> str | None:
    """Forget a job that has ended, and its given files.

    Returns:
      The clip's name if the job wrote it and no other job ended with it: its
      files are the caller's to remove.

    Raises:
      UnknownJobError: there is none of this id.
      ValueError: it is queued or running.
    """
    with self._transaction() as connection:
      row = self._row(id)
      if row["status"] not in ENDED:
        raise ValueError(f"the job is {row['status']}; cancel it first")
      connection.execute("DELETE FROM jobs WHERE id = ?", (id,))
      clip = row["clip"] if row["owns_clip"] else None
      if clip is not None:
        # Another job that ended with this clip deletes it instead.
        heir = connection.execute(
          "UPDATE jobs SET owns_clip = 1 WHERE number ="
          " (SELECT MIN(number) FROM jobs WHERE clip = ?)",
          (clip,),
        ).rowcount
        clip = None if heir else clip
    shutil.rmtree(self.given_folder(id), ignore_errors=True)
    return clip


def new_id() -> str:
  """An id that nobody can guess."""
  return f"video_{secrets.token_hex(16)}"


@contextlib.contextmanager
def _stored() -> Iterator[None]:
  """Errors of the database as those of files."""
  try:
    yield
  except sqlite3.Error as error:
    raise StorageError(f"the jobs cannot be stored: {error}") from error


def _interrupt(
  connection: sqlite3.Connection, where: str, *values: Any
) -> None:
  """Queue running jobs again, or fail them after too many attempts."""
  connection.execute(
    "UPDATE jobs SET status = ?, ended = ?, error = ?"
    f" WHERE status = ? AND attempts >= ? AND {where}",
    (
      FAILED,
      time.time(),
      f"interrupted {MAX_ATTEMPTS} times while it was made",
      RUNNING,
      MAX_ATTEMPTS,
      *values,
    ),
  )
  connection.execute(
    f"UPDATE jobs SET status = ?, started = NULL WHERE status = ? AND {where}",
    (QUEUED, RUNNING, *values),
  )


def _statements(script: str) -> Iterator[str]:
  """The statements of a script: `executescript` would end the transaction."""
  statement = ""
  for line in script.strip().splitlines(keepends=True):
    statement += line
    if sqlite3.complete_statement(statement):
      yield statement
      statement = ""


def _job(row: Mapping[str, Any], ahead: int) -> Job:
  """A job from its row and the number of queued ones before it."""
  taken = {
    field.name: row[field.name]
    for field in dataclasses.fields(Job)
    if field.name in row
  }
  taken["request"] = ClipRequest(**json.loads(row["request"]))
  finished = row["status"] == FINISHED
  return Job(
    **taken,
    step=row["num_steps"] if finished else 0,
    position=ahead + 1 if row["status"] == QUEUED else None,
  )
