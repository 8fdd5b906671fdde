"""Checkpoints by time."""

import jax
import pytest

from ovi_jax.training import loop


@pytest.fixture
def now(monkeypatch):
  """The time; a test moves it."""
  time = [100.0]
  monkeypatch.setattr(loop.time, "monotonic", lambda: time[0])
  return time


def test_a_checkpoint_is_due_when_its_minutes_have_passed(now):
  clock = loop.CheckpointClock(2.0)
  for passed, due in ((119, False), (1, True), (5, True)):
    now[0] += passed
    assert clock.due(7) == due
  clock.restart()
  assert not clock.due(8)


def test_without_minutes_none_is_due(now):
  clock = loop.CheckpointClock(0.0)
  now[0] += 1e9
  assert not clock.due(8)


def test_several_processes_agree_on_every_eighth_step(now, monkeypatch):
  """Process 0 decides, whatever the clock of this process says."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  clock = loop.CheckpointClock(2.0)
  asked = []
  monkeypatch.setattr(
    loop.distributed, "broadcast", lambda function: asked.append(1) or True
  )
  assert [clock.due(n) for n in range(1, 17)] == [False] * 7 + [True] + [
    False
  ] * 7 + [True]
  assert len(asked) == 2


@pytest.mark.parametrize(
  "name", ["checkpoint_every_minutes", "preemption_grace_seconds"]
)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_times_must_be_finite_and_not_negative(name, value):
  with pytest.raises(ValueError, match=f"{name} must be 0"):
    loop.Intervals(**{name: value})
