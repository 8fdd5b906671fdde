"""Run `sample.py` until its first step is done, and tell where time went.

  python -m benchmarks.first_step STARTED [flags of sample.py]

STARTED is the clock (CLOCK_MONOTONIC, seconds) when the process was started.
The last line of standard output is JSON: seconds of each phase.
"""

import json
import sys
import time
from typing import Any

STARTED = float(sys.argv[1])

import jax  # noqa: E402
from absl import flags  # noqa: E402
from jax import monitoring  # noqa: E402

from ovi_jax.commands import sample  # noqa: E402
from ovi_jax.sampling import denoise  # noqa: E402
from ovi_jax.sampling import denoiser  # noqa: E402

IMPORTED = time.monotonic()
PHASES = {
  "/jax/core/compile/jaxpr_trace_duration": "trace",
  "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
  "/jax/core/compile/backend_compile_duration": "compile",
}


class FirstStep(Exception):
  """The first step is done."""


def main() -> None:
  """Run, and print the phases."""
  spent = {"load": 0.0, "trace": 0.0, "compile": 0.0}

  def listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event in PHASES:
      spent[PHASES[event]] += duration_secs

  monitoring.register_event_duration_secs_listener(listen)
  load = denoiser.SamplingComponents.load

  def timed_load(*arguments, **options):
    start = time.monotonic()
    loaded = jax.block_until_ready(load(*arguments, **options))
    spent["load"] += time.monotonic() - start
    return loaded

  def stop(_):
    raise FirstStep

  denoiser.SamplingComponents.load = timed_load
  run: Any = denoise.denoise
  denoise.denoise = lambda *arguments: run(*arguments[:-1], stop)
  sample.define_flags()
  flags.FLAGS(["sample.py", *sys.argv[2:]])
  try:
    sample.main()
  except FirstStep:
    total = time.monotonic() - STARTED
  imports = IMPORTED - STARTED
  rest = total - imports - sum(spent.values())
  phases = {"total": total, "import": imports, **spent, "rest": rest}
  print(json.dumps(phases))


if __name__ == "__main__":
  main()
