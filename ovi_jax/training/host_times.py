"""Step times of each host, and the slowest one.

The devices of a run wait for each other, so a step takes equally long on all
hosts. What differs is the time that a host needs for its own work: waiting for
its rows of the batch, placing them and dispatching the step. The slowest host
is the one with the largest such time.
"""

import dataclasses
import socket
from collections.abc import Sequence
from typing import Any

from ovi_jax.sharding import distributed

# A host is reported as slow if its own work takes this many times the median's
# and at least this share of the step.
_FACTOR, _SHARE = 2.0, 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostTime:
  """Mean seconds of a step on one host.

  Attributes:
    process: index of the process.
    host: name of the machine.
    step_time: all of the step.
    host_time: the host's own work: data, placing and dispatching.
    data_wait: the part of it that waits for data.
  """

  process: int
  host: str
  step_time: float
  host_time: float
  data_wait: float


def gather(
  step_time: float, host_time: float, data_wait: float
) -> list[HostTime]:
  """The times of all processes; every process must call it."""
  mine = [socket.gethostname(), step_time, host_time, data_wait]
  return [
    HostTime(
      process=number, host=host, step_time=step, host_time=own, data_wait=wait
    )
    for number, (host, step, own, wait) in enumerate(distributed.gather(mine))
  ]


def slowest(times: Sequence[HostTime]) -> HostTime:
  """The host whose own work takes longest."""
  return max(times, key=lambda each: each.host_time)


def scalars(times: Sequence[HostTime]) -> dict[str, float]:
  """Times of each process, and the index of the slowest one."""
  found: dict[str, Any] = {"hosts/slowest": float(slowest(times).process)}
  for each in times:
    for name in ("step_time", "host_time", "data_wait"):
      found[f"hosts/{name}/{each.process}"] = getattr(each, name)
  return found


def warning(times: Sequence[HostTime]) -> str:
  """Names the slowest host if it holds up the others, else empty."""
  worst = slowest(times)
  median = sorted(each.host_time for each in times)[(len(times) - 1) // 2]
  if worst.host_time < max(_FACTOR * median, _SHARE * worst.step_time):
    return ""
  return (
    f"{line(worst)}; the median host needs {median:.3f} s, a step takes"
    f" {worst.step_time:.3f} s"
  )


def line(worst: HostTime) -> str:
  """The slowest host in words."""
  return (
    f"slowest host: process {worst.process} ({worst.host}),"
    f" {worst.host_time:.3f} s of its own work a step, of which"
    f" {worst.data_wait:.3f} s waiting for data"
  )
