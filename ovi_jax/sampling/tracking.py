"""Progress of sampling, as its callers follow it; they may cancel clips."""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from ovi_jax import console
from ovi_jax.sampling import denoise
from ovi_jax.sampling import planning

# By the number of a batch's first clip and the clips.
Track = Callable[
  [int, Sequence[planning.Job]], AbstractContextManager[denoise.OnStep]
]


def dropping(
  on_step: denoise.OnStep, dropped: set[int], count: int
) -> denoise.OnStep:
  """Collects the cancelled rows of a batch; raises once all of them are."""

  def call(progress: denoise.Progress) -> None:
    try:
      on_step(progress)
    except denoise.CancelledError as error:
      dropped.update(error.rows)
      if len(dropped) == count:
        raise

  return call


@contextlib.contextmanager
def silent(
  number: int, batch: Sequence[planning.Job]
) -> Iterator[denoise.OnStep]:
  """No progress reports."""
  yield lambda _: None


def from_progress(
  progress: bool | Callable[[int, int], Any],
  count: int,
  steps: int,
  windows: int | None = None,
) -> Track:
  """Progress as a caller of the pipeline asks for it.

  Args:
    progress: see `Pipeline.__call__`.
    count: of clips.
    steps: of a window.
    windows: of all clips; `None` for one each.
  """
  if progress is False:
    return silent
  if progress is True:
    return functools.partial(bar, count=count)

  total, done = steps * (windows or count), 0

  @contextlib.contextmanager
  def report(
    number: int, batch: Sequence[planning.Job]
  ) -> Iterator[denoise.OnStep]:
    nonlocal done
    before = done
    yield lambda step: progress(before + step.finished * len(batch), total)
    done += steps * sum(job.num_windows for job in batch)

  return report


@contextlib.contextmanager
def bar(
  number: int,
  batch: Sequence[planning.Job],
  *,
  count: int,
  hidden: bool = False,
) -> Iterator[denoise.OnStep]:
  """A progress bar of a batch's denoising steps.

  Args:
    number: of the batch's first clip, from 1.
    batch: the clips.
    count: of all clips.
    hidden: draw none.
  """
  last = number + len(batch) - 1
  numbers = f"{number}" if last == number else f"{number}-{last}"
  with console.progress(
    total=batch[0].recipe["config"]["num_steps"] * batch[0].num_windows,
    desc=f"[{numbers}/{count}] {batch[0].path.stem}",
    unit="step",
    disable=hidden,
  ) as shown:
    yield lambda _: shown.update()
