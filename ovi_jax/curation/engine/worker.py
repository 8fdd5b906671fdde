"""The worker process of `worker_pool`.

It receives shard indices and sends start, finish, progress and result messages.
It exits when its parent exits, even inside C code that never returns to Python.
"""

import fcntl
import os
import select
import signal
import sys
from multiprocessing import connection as connections

from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard as shards

READY, RESULT = "ready", "result"
LOAD_FAILED, FAILED = "load_failed", "failed"


def serve(
  connection: connections.Connection,
  lifeline: connections.Connection,
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
) -> None:
  """Process shards until terminated; the entry point of the process.

  Args:
    connection: receives shard indices, sends messages.
    lifeline: read end of a pipe whose write end only the parent holds.
    settings: settings of the run.
    pass_: the pass.
  """
  _exit_with_parent(lifeline)
  # Ctrl-C reaches the whole process group; only the parent handles it.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  try:
    functions = shards.load(pass_)
  except (ValueError, OSError, ImportError) as error:
    connection.send((LOAD_FAILED, str(error)))
    return
  connection.send((READY,))
  while True:
    shard_index = connection.recv()
    try:
      result = shards.process(
        settings, pass_, functions, shard_index, connection.send
      )
    except (ValueError, OSError) as error:
      connection.send((FAILED, error))
      return
    connection.send((RESULT, result))


def _exit_with_parent(lifeline: connections.Connection) -> None:
  """Have the kernel terminate this process when the parent closes the pipe.

  A waiting thread is not enough: C code may hold the GIL.
  """
  signal.signal(signal.SIGIO, signal.SIG_DFL)  # default action: terminate
  file = lifeline.fileno()
  fcntl.fcntl(file, fcntl.F_SETOWN, os.getpid())
  flags = fcntl.fcntl(file, fcntl.F_GETFL)
  fcntl.fcntl(file, fcntl.F_SETFL, flags | fcntl.FASYNC)
  if select.select([file], [], [], 0)[0]:
    sys.exit("the parent exited before its worker started")
