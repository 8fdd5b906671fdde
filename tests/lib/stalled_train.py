"""train.py whose process 1 sleeps while it waits for its third batch."""

import os
import time

from ovi_jax.commands import train
from ovi_jax.data import loader

_next = loader.Loader.__next__
_count = 0


def _stall(self):
  global _count
  _count += 1
  if _count == 3 and os.environ["JAX_PROCESS_ID"] == "1":
    time.sleep(3600)
  return _next(self)


if __name__ == "__main__":
  loader.Loader.__next__ = _stall
  train.start()
