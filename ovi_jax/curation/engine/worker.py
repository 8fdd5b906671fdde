"""The worker's side of `watch`: a process that does shards as it is told.

It hears numbers of shards and tells what it begins, ends and has done. It ends
when its parent does, even within C code that never returns to Python.
"""

import fcntl
import os
import select
import signal
import sys
from multiprocessing import connection as connections

from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard as shards

READY, RESULT, LOAD_FAILED, FAILED = "ready", "result", "refused", "broken"


def serve(
  connection: connections.Connection,
  lifeline: connections.Connection,
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
) -> None:
  """Do shards until told to stop; the entry point of the process.

  Args:
    connection: to hear numbers of shards, and to answer.
    lifeline: the reading end of a pipe whose other end only the parent has.
    settings: of the run.
    part: the pass.
  """
  _exit_with_parent(lifeline)
  # The terminal's Ctrl-C goes to all; the parent says what becomes of it.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  try:
    functions = shards.load(part)
  except (ValueError, OSError, ImportError) as error:
    connection.send((LOAD_FAILED, str(error)))
    return
  connection.send((READY,))
  while True:
    number = connection.recv()
    try:
      result = shards.process(
        settings, part, functions, number, connection.send
      )
    except (ValueError, OSError) as error:
      connection.send((FAILED, error))
      return
    connection.send((RESULT, result))


def _exit_with_parent(lifeline: connections.Connection) -> None:
  """Have the system end this process when the pipe's other end is closed.

  A thread that waits for it would not do: C code may hold the interpreter.
  """
  signal.signal(signal.SIGIO, signal.SIG_DFL)  # which is to end the process
  file = lifeline.fileno()
  fcntl.fcntl(file, fcntl.F_SETOWN, os.getpid())
  flags = fcntl.fcntl(file, fcntl.F_GETFL)
  fcntl.fcntl(file, fcntl.F_SETFL, flags | fcntl.FASYNC)
  if select.select([file], [], [], 0)[0]:
    sys.exit("the parent ended before its worker had begun")
