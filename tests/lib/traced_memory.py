"""The most memory that Python objects take while a block of code runs."""

import contextlib
import dataclasses
import tracemalloc
from collections.abc import Iterator


@dataclasses.dataclass
class Peak:
  """Bytes allocated at once inside the block; set when the block ends."""

  bytes: int = 0


@contextlib.contextmanager
def peak() -> Iterator[Peak]:
  """Measure a block; tracing goes on until `stop`.

  Not stopped here: in Python 3.11 and 3.12 `tracemalloc.stop` crashes the
  process if a native thread, such as TensorStore's, is entering Python
  (python/cpython#128679). Fuzz tests would stop a thousand times.
  """
  if not tracemalloc.is_tracing():
    tracemalloc.start()
  tracemalloc.reset_peak()
  before, _ = tracemalloc.get_traced_memory()
  found = Peak()
  yield found
  found.bytes = tracemalloc.get_traced_memory()[1] - before


def stop() -> None:
  """Stop tracing, which slows everything, once no other thread is at work."""
  if tracemalloc.is_tracing():
    tracemalloc.stop()
