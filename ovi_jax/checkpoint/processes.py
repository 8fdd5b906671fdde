"""What the processes of one run do together; with one process, nothing."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather(value: Any) -> list[Any]:
  """A JSON value of every process, in the order of processes."""
  if jax.process_count() == 1:
    return [value]
  raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.asarray(raw.size))
  padded = np.zeros(int(np.max(sizes)), np.uint8)
  padded[: raw.size] = raw
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [
    json.loads(row[: int(size)].tobytes()) for row, size in zip(rows, sizes)
  ]


def meet(name: str) -> None:
  """Wait for the other processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"ovi_jax_checkpoint_{name}")
