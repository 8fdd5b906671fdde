"""One background thread: order, limit, errors, and how it ends."""

import threading
import time

import pytest

from ovi_jax.sampling import background


def test_functions_run_in_order_in_one_other_thread():
  calls = []

  def call(number):
    calls.append(number)
    return threading.get_ident()

  with background.Worker(2) as worker:
    made = [worker.submit(call, number) for number in range(5)]
  assert calls == [0, 1, 2, 3, 4]
  threads = {future.result() for future in made}
  assert len(threads) == 1 and threading.get_ident() not in threads


def test_no_more_than_the_limit_are_pending():
  with background.Worker(2) as worker:
    made = []
    for _ in range(6):
      made.append(worker.submit(time.sleep, 0.01))
      assert sum(not future.done() for future in made) <= 2


def fail():
  raise OSError(28, "no space left")


def test_an_error_ends_the_next_checked_call():
  with pytest.raises(OSError, match="no space"), background.Worker(2) as worker:
    assert worker.checked(max)(1, 2) == 2
    assert worker.submit(fail).exception() is not None
    worker.checked(pytest.fail)("it was called")


def test_an_error_ends_the_next_submission_and_the_context():
  with pytest.raises(OSError, match="no space"), background.Worker(1) as worker:
    worker.submit(fail)
    worker.submit(pytest.fail, "it was called")
  with pytest.raises(OSError, match="no space"), background.Worker(9) as worker:
    worker.submit(fail)


def test_an_exception_completes_what_runs_and_cancels_what_waits():
  started, ended = threading.Event(), threading.Event()
  waiting = []

  def run():
    started.set()
    latest = time.monotonic() + 60
    while not (waiting and waiting[0].cancelled()):
      assert time.monotonic() < latest
      time.sleep(0.001)
    ended.set()

  with pytest.raises(KeyboardInterrupt), background.Worker(9) as worker:
    worker.submit(run)
    waiting.append(worker.submit(fail))
    assert started.wait(60)
    raise KeyboardInterrupt
  assert ended.is_set()
