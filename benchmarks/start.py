"""Seconds from a cold process to the end of the first denoising step.

`sample.py` runs on the dummy release, with JAX's compilation cache empty
(`cold`) and filled by the run before (`warm`). Phases: `import`; `load` of
weights; `trace`, Python to XLA's input; `compile`, or reading the cache;
`rest`, all else: prompts, noise, the computation itself.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROMPT = "Waves roll in. Audio: wind and surf."


def measure(repeats: int) -> dict[str, dict[str, float]]:
  """Median seconds of each phase, `cold` and `warm`."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    release, weights = str(folder / "release"), str(folder / "weights")
    manifest = "ovi_jax/convert/standin/manifest.json"
    _python("-m", "ovi_jax.convert.standin.write", release)
    _python(
      "convert_torch_weights.py",
      f"--release={release}",
      f"--arch={manifest}",
      f"--out={weights}",
    )
    runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for i in range(repeats):
      cache = folder / f"cache{i}"
      for state in runs.values():
        state.append(_first_step(weights, folder / "out", cache))
  return {
    state: {p: statistics.median(r[p] for r in rows) for p in rows[0]}
    for state, rows in runs.items()
  }


def _first_step(
  weights: str, out: pathlib.Path, cache: pathlib.Path
) -> dict[str, float]:
  """Seconds of the phases of one start."""
  environment = {
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    # As `cli.setup_jax` sets it for a cache of its own.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
  }
  printed = _python(
    "-m",
    "benchmarks.first_step",
    str(time.monotonic()),
    f"--weights={weights}",
    f"--out={out}",
    f"--prompt={PROMPT}",
    "--config.slg_layer=1",
    **environment,
  )
  return json.loads(printed.splitlines()[-1])


def _python(*arguments: str, **environment: str) -> str:
  """Standard output of Python; RuntimeError with its errors if it fails."""
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(f"{arguments} failed:\n{done.stderr[-2000:]}")
  return done.stdout
