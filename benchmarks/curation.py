"""What the stages of media cost: seconds of processor time a clip.

  python -m benchmarks.curation FILE …

Each stage gets what the one before let through, and decoding is counted apart.
Bounds are the stages' own but for the size, so that small files are measured
too. Times are of the processor, the best of `--repeats`; `probe` and `shots`
work on whole files, the others on windows of 121 frames. `people` needs MTCNN's
weights (pip install --no-deps facenet-pytorch).
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ovi_jax.curation import clip as clips
from ovi_jax.curation.media import reading
from ovi_jax.curation.stages import cut
from ovi_jax.curation.stages import look
from ovi_jax.curation.stages import motion
from ovi_jax.curation.stages import people
from ovi_jax.curation.stages import probe
from ovi_jax.curation.stages import shots
from ovi_jax.curation.stages import speech

FILES = ((probe, probe.Config(least_area=1)), (shots, shots.Config()))
WINDOWS = (
  (motion, motion.Config()),
  (look, look.Config()),
  (people, people.Config()),
  (speech, speech.Config()),
  (cut, cut.Config(largest_enlargement=100.0)),
)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
  """Seconds of processor time, and the result."""
  begin = time.process_time()
  result = function(*arguments)
  return time.process_time() - begin, result


def measured(path: str, stages: dict[str, Any]) -> dict[str, float]:
  """Seconds of each stage for a file and its first window.

  A stage that refuses is the last one.
  """
  clip, times = clips.Clip(id=path, path=path), {}
  for module, _ in FILES:
    media = reading.Media(clip, path)
    times[module.NAME], found = timed(stages[module.NAME], clip, media)
    if isinstance(found, clips.Reject):
      return times
    clip = found if isinstance(found, clips.Clip) else found[0]
  media = reading.Media(clip, path)
  times["decode"], _ = timed(lambda: (media.video_THWC, media.audio_A))
  for module, _ in WINDOWS:
    times[module.NAME], found = timed(stages[module.NAME], clip, media)
    if isinstance(found, clips.Reject):
      break
    clip = found
  return times


def main(words: Sequence[str]) -> None:
  """Print a table: seconds of each stage, clips a second, of each file."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.curation")
  parser.add_argument("files", nargs="+")
  parser.add_argument("--repeats", type=int, default=3)
  options = parser.parse_args(words)
  stages = {m.NAME: m.load(config) for m, config in (*FILES, *WINDOWS)}
  names = [m.NAME for m, _ in FILES] + ["decode"] + [m.NAME for m, _ in WINDOWS]
  print("| file |", " | ".join(names), "| all | clips a second |")
  print("|---" * (len(names) + 3) + "|")
  for path in options.files:
    runs = [measured(path, stages) for _ in range(options.repeats)]
    best = [min(run[n] for run in runs) if n in runs[0] else 0 for n in names]
    cells = [f"{value:.3f}" for value in (*best, sum(best))]
    name = pathlib.Path(path).name
    print(f"| {name} |", " | ".join(cells), f"| {1 / sum(best):.2f} |")


if __name__ == "__main__":
  main(sys.argv[1:])
