"""Seconds by category, over restarts."""

import pytest

from ovi_jax.training import goodput


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
  return now


def line(step, time, train, lost=0.0):
  return {
    "step": step,
    "time": time,
    "goodput/train": train,
    "goodput/lost": lost,
    "goodput/init": 5.0,
  }


def test_what_is_not_measured_is_training(clock):
  timer = goodput.Timer()
  clock[0] += 4
  timer.loop_begins()
  for category, seconds in (("data_wait", 1), ("checkpoint", 2)):
    with timer.measure(category):
      clock[0] += seconds
  clock[0] += 13
  found = timer.scalars()
  assert found["goodput/init"] == 4 and found["goodput/train"] == 13
  assert found["goodput/data_wait"] == 1 and found["goodput/checkpoint"] == 2
  assert found["goodput/fraction"] == 0.65
  assert timer.line().startswith("goodput 65.0% of 20.0 s (seconds: init 4.0")


def test_repeated_steps_count_as_lost(clock):
  timer = goodput.Timer()
  # The last start began at step 10 again; the run resumes from 20.
  lines = [line(10, 9.0, 10.0), line(20, 8.0, 21.0), line(30, 11.0, 33.0, 2.0)]
  timer.resume([*lines, {"step": 31, "time": 12.0}], 20)
  clock[0] += 3
  found = timer.seconds()
  assert found["lost"] == 2 + 12 and found["train"] == 21 + 3
  assert found["init"] == 5


def test_a_host_whose_clock_is_behind_continues_the_newest_totals(clock):
  timer = goodput.Timer()
  timer.resume([line(10, 9e9, 10.0), line(20, 7.0, 21.0)], 20)
  assert timer.seconds()["train"] == 21 and timer.seconds()["lost"] == 0


def test_a_resume_from_the_last_logged_step_loses_nothing(clock):
  timer = goodput.Timer()
  timer.resume([line(10, 9.0, 10.0)], 12)
  assert timer.seconds()["lost"] == 0 and timer.seconds()["train"] == 10
  fresh = goodput.Timer()
  fresh.resume([], 0)
  assert sum(fresh.seconds().values()) == 0
