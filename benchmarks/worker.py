"""A process that prepares one case and runs it when told, by lines of JSON.

The first line names the case; every later one asks for something. Each answer
is one line on what was standard output when the process began (libraries that
print are sent to standard error). Needs numpy only.

  {"case", "small", "threads", ...}  -> {"ready": versions, "seconds"}
  {"do": "check", "path"}            -> {"seconds"}; outputs go to the .npz
  {"do": "run"}                      -> {"seconds", "cpu_seconds"}
  {"do": "stop"}                     -> {"peak_bytes"}
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np


class Work(NamedTuple):
  """A prepared case.

  Attributes:
    check: computes the outputs to compare, by name; also warms up.
    run: executes the case once, to the end of the computation.
    versions: of the libraries that compute.
  """

  check: Callable[[], Mapping[str, np.ndarray]]
  run: Callable[[], Any]
  versions: Mapping[str, str]


def pin(threads: int) -> None:
  """Bind this process to the first `threads` of its CPUs.

  Raises:
    ValueError: it has fewer.
  """
  if not hasattr(os, "sched_setaffinity"):
    return
  allowed = sorted(os.sched_getaffinity(0))
  if threads > len(allowed):
    raise ValueError(
      f"{threads} threads asked for, {len(allowed)} CPUs are there; pass"
      f" --threads={len(allowed)} or fewer"
    )
  os.sched_setaffinity(0, allowed[:threads])


def serve(prepare: Callable[[Mapping[str, Any]], Work]) -> None:
  """Answer lines of standard input until its end.

  Args:
    prepare: makes the work of the first line.
  """
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)

  def answer(**fields: Any) -> None:
    answers.write(json.dumps(fields) + "\n")

  order = json.loads(sys.stdin.readline())
  pin(order["threads"])
  start = time.perf_counter()
  work = prepare(order)
  seconds = time.perf_counter() - start
  answer(ready=dict(work.versions), seconds=seconds)
  for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "stop":
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
      answer(peak_bytes=peak)
      return
    wall, cpu = time.perf_counter(), time.process_time()
    outputs: Any = work.check() if order["do"] == "check" else work.run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if order["do"] == "check":
      np.savez(order["path"], **outputs)
    answer(seconds=wall, cpu_seconds=cpu)
