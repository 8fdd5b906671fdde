"""How far a running job is, and how long it will take."""

import dataclasses
import time

from ovi_jax.sampling import previews


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
  """Seconds that the latest batch took: before its steps, for each, after."""

  before: float
  step: float
  after: float


@dataclasses.dataclass(kw_only=True)
class Live:
  """What is known of a running job besides its row."""

  num_steps: int
  started: float
  step: int = 0
  first_step_at: float = 0.0
  last_step_at: float = 0.0
  preview: previews.Preview | None = None

  def pace(self) -> float | None:
    """Seconds a step, without the first, which may compile the program."""
    if self.step < 2:
      return None
    return (self.last_step_at - self.first_step_at) / (self.step - 1)

  def seconds_left(self, latest: Pace | None) -> float | None:
    """Estimated time until the clip is written; `None` if unknown."""
    step = self.pace() or (latest and latest.step)
    if step is None:
      return None
    left = (self.num_steps - self.step) * step
    if latest is not None:
      left += latest.after
      if not self.step:
        elapsed = time.monotonic() - self.started
        left += max(0.0, latest.before - elapsed)
    return left
