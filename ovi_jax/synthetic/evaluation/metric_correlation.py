"""How much sync metrics of real clips say about sync, on clips of the world.

Clips of the world get sounds that are in sync, late, jittered event by event,
or of another clip, so that the exact sync F1 is known and varies. Metrics that
know nothing of the world are computed from the mp4; Spearman's rank correlation
with the exact F1 shows how informative each is.
"""

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ovi_jax.evaluation import clips as clips_lib
from ovi_jax.evaluation import features
from ovi_jax.evaluation import protocols
from ovi_jax.evaluation.extractors import picture
from ovi_jax.evaluation.extractors import sound
from ovi_jax.media import mp4
from ovi_jax.synthetic.evaluation import report
from ovi_jax.synthetic.evaluation import sync
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import sounds
from ovi_jax.synthetic.world import world as worlds

METRICS = ("AV-Align", "envelope lag", "envelope correlation")
_MAX_DELAY, _MAX_JITTER = 0.6, 0.25  # seconds
_DRAWS = 1000


class Correlation(NamedTuple):
  """Rank correlation of a metric with the exact sync F1, and its interval.

  Attributes:
    metric: its name.
    value: Spearman's rho; positive if better values go with a higher F1.
    low: end of the 95 % interval, bootstrapped over clips.
    high: the other end.
    clips: number of clips that have a value.
  """

  metric: str
  value: float
  low: float
  high: float
  clips: int


def correlate(count: int, seed: int) -> list[Correlation]:
  """Correlate metrics with the exact sync F1.

  Args:
    count: number of clips.
    seed: of the world.

  Raises:
    ValueError: fewer than 3 clips, or OpenCV is missing.
  """
  if count < 3:
    raise ValueError(f"count must be at least 3 clips, got {count}")
  extractors = [picture.picture(), picture.flow(), sound.sound()]
  if missing := [each.missing for each in extractors if each.missing]:
    raise ValueError("; ".join(missing))
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    exact_N = np.array(write(folder, count, seed))
    sources = [clips_lib.Source(clip=c) for c in clips_lib.read_folder(folder)]
    tables = features.extract(extractors, sources, folder / "features")
  basic = {score.name: score for score in protocols.known()["basic"].scores}
  found = []
  for name in METRICS:
    score = basic[name]
    value_N = np.array([score.compute(table, None) for table in tables])
    sign = 1 if score.better == protocols.HIGHER else -1
    found.append(_correlation(name, sign * value_N, exact_N))
  return found


def write(folder: pathlib.Path, count: int, seed: int) -> list[float]:
  """Write clips `00000.mp4` and so on, and return their exact sync F1."""
  world, exact = worlds.World(seed=seed, complete=True), []
  another: Sequence[scene.Event] = world.clip(count).scene.events
  for index in range(count):
    made = world.clip(index)
    frames_THWC, wave_A = made.frames_THWC, made.wave_A
    assert frames_THWC is not None and wave_A is not None  # complete
    seen = made.scene.events
    random = np.random.default_rng((seed, index))
    sound_events = _moved(seen, another, index % 4, random)
    seconds = len(frames_THWC) / world.fps
    sound_events = [
      event for event in sound_events if 0 <= event.seconds < seconds
    ]
    wave_A = sounds.track(sound_events, len(wave_A), world.rate)
    mp4.write(
      folder / f"{index:05}.mp4", [frames_THWC], wave_A, world.fps, world.rate
    )
    track = sync.Track(
      kind=made.scene.kind,
      events=tuple(sorted(event.seconds for event in seen)),
      sounds=tuple(sorted(event.seconds for event in sound_events)),
      seconds=seconds,
    )
    part = report.f1_part(sync.count(track))
    exact.append(part.right / part.of if part and part.of else math.nan)
    another = seen
  return exact


def _moved(
  events: Sequence[scene.Event],
  another: Sequence[scene.Event],
  way: int,
  random: np.random.Generator,
) -> list[scene.Event]:
  """The events that are heard: in sync, late, jittered or of another clip."""
  if way == 3:
    return list(another)
  late = np.zeros(len(events))
  if way == 1:
    late += random.uniform(0, _MAX_DELAY)
  if way == 2:
    # Some events stay in sync.
    jitter = random.uniform(-_MAX_JITTER, _MAX_JITTER, len(events))
    late = np.where(random.random(len(events)) < random.random(), jitter, 0)
  return [
    dataclasses.replace(event, seconds=event.seconds + float(by))
    for event, by in zip(events, late, strict=True)
  ]


def _correlation(
  name: str, value_N: np.ndarray, exact_N: np.ndarray
) -> Correlation:
  there = np.isfinite(value_N) & np.isfinite(exact_N)
  value_N, exact_N = value_N[there], exact_N[there]
  if len(value_N) < 3:
    return Correlation(name, math.nan, math.nan, math.nan, len(value_N))
  rank = [stats.rankdata(each) for each in (value_N, exact_N)]
  random = np.random.default_rng(0)
  drawn = []
  for _ in range(_DRAWS):
    index = random.integers(len(value_N), size=len(value_N))
    pair = [stats.rankdata(each[index]) for each in (value_N, exact_N)]
    if all(np.ptp(each) > 0 for each in pair):
      drawn.append(np.corrcoef(*pair)[0, 1])
  low, high = np.percentile(drawn, (2.5, 97.5)) if drawn else (math.nan,) * 2
  value = float(np.corrcoef(*rank)[0, 1])
  return Correlation(name, value, float(low), float(high), len(value_N))


def markdown(found: Sequence[Correlation]) -> str:
  """The correlations as a table."""
  lines = ["| metric | Spearman's rho | 95 % | clips |", "|---|---|---|---|"]
  lines += [
    f"| {each.metric} | {each.value:.2f} | {each.low:.2f} to {each.high:.2f} |"
    f" {each.clips} |"
    for each in found
  ]
  return "\n".join(lines) + "\n"
