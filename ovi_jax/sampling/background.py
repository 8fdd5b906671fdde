"""One thread that decodes and writes clips while the next are denoised."""

import collections
import types
from collections.abc import Callable
from concurrent import futures
from typing import Any
from typing import TypeVar

T = TypeVar("T")


class Worker:
  """Runs functions in one background thread, in the order of submission.

  Leaving the context waits for all of them. If it is left by an exception,
  Ctrl-C for instance, the running function is completed, so that no file is
  left half written, and those that wait are cancelled.
  """

  def __init__(self, limit: int):
    """Start no thread yet.

    Args:
      limit: functions that are running or waiting, at most; what they hold is
        in memory.
    """
    self._limit = limit
    self._pool = futures.ThreadPoolExecutor(1, "ovi_jax_clips")
    self._pending: collections.deque[futures.Future] = collections.deque()

  def submit(
    self, function: Callable[..., T], *arguments: Any
  ) -> futures.Future[T]:
    """Call a function in the background; waits while `limit` are pending.

    Raises:
      Exception: of a function submitted before.
    """
    while len(self._pending) >= self._limit:
      self._pending.popleft().result()
    future = self._pool.submit(function, *arguments)
    self._pending.append(future)
    return future

  def checked(self, function: Callable[..., T]) -> Callable[..., T]:
    """A function that first raises the exception of one that has failed."""

    def call(*arguments: Any) -> T:
      while self._pending and self._pending[0].done():
        self._pending.popleft().result()
      return function(*arguments)

    return call

  def __enter__(self) -> "Worker":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    try:
      while kind is None and self._pending:
        self._pending.popleft().result()
    finally:
      self._pool.shutdown(cancel_futures=True)
