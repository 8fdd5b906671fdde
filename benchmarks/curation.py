"""Cost of curation stages: CPU seconds per clip.

  python -m benchmarks.curation FILE …

Each stage receives the output of the previous one; decoding is measured
separately. Settings are the defaults, except that small files are accepted.
Times are CPU times, the best of `--repeats`; `probe` and `shots` process whole
files, the other stages windows of 121 frames. `face_tracks` needs MTCNN weights
(pip install --no-deps facenet-pytorch).

`av_sync` is SyncNet at full size with random weights, on one full-frame face,
on the default device; FLOPs are those of the compiled program. `pack` is
measured on a dataset of 64 clips.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ovi_jax.curation import clip as clips
from ovi_jax.curation.faces import tracks
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.models import syncnet
from ovi_jax.curation.models import syncnet_weights
from ovi_jax.curation.stages import av_sync
from ovi_jax.curation.stages import encode
from ovi_jax.curation.stages import face_tracks
from ovi_jax.curation.stages import motion
from ovi_jax.curation.stages import pack
from ovi_jax.curation.stages import probe
from ovi_jax.curation.stages import quality
from ovi_jax.curation.stages import shots
from ovi_jax.curation.stages import vad

FILES = ((probe, probe.Config(min_area=1)), (shots, shots.Config()))
WINDOWS = (
  (motion, motion.Config()),
  (quality, quality.Config()),
  (face_tracks, face_tracks.Config()),
  (vad, vad.Config()),
  (encode, encode.Config(max_upscale=100.0)),
)
NUM_PACKED = 64  # clips


def cpu_seconds(
  function: Callable[..., Any], *arguments: Any
) -> tuple[float, Any]:
  """CPU seconds, and the result."""
  begin = time.process_time()
  result = function(*arguments)
  return time.process_time() - begin, result


def measured(path: str, stages: dict[str, Any]) -> dict[str, float]:
  """CPU seconds of each stage for a file and its first window.

  Stops after a stage that rejects the clip.
  """
  clip, times = clips.Clip(id=path, path=path), {}
  for module, _ in FILES:
    media = clip_media.Media(clip, path)
    times[module.NAME], found = cpu_seconds(stages[module.NAME], clip, media)
    if isinstance(found, clips.Reject):
      return times
    clip = found if isinstance(found, clips.Clip) else found[0]
  media = clip_media.Media(clip, path)
  times["decode"], _ = cpu_seconds(lambda: (media.video_THWC, media.audio_A))
  for module, _ in WINDOWS:
    times[module.NAME], found = cpu_seconds(stages[module.NAME], clip, media)
    if isinstance(found, clips.Reject):
      break
    clip = found
  return times


def save_random_weights(path: pathlib.Path) -> None:
  """Save random weights of full-size SyncNet."""
  config = syncnet.SyncNetConfig()
  shapes = syncnet.shapes(config)
  leaves, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  arrays = [
    abs(0.02 * jax.random.normal(k, x.shape)) for k, x in zip(keys, leaves)
  ]
  syncnet_weights.save(path, config, jax.tree.unflatten(tree, arrays))


def later_passes(path: str, repeats: int) -> dict[str, float]:
  """Wall-clock seconds per clip of `av_sync` and `pack`."""
  clip = clips.Clip(id="clip", path=path, seconds=121 / 24)
  media = clip_media.Media(clip, path)
  full_frame = tracks.full_frame(*media.video_THWC.shape[:3])
  clip = clip.with_facts("probe", has_video=True)
  clip = clip.with_facts(
    "face_tracks", face_count=face_tracks.SINGLE, tracks=[full_frame]
  )
  clip = clip.with_facts("vad", speaking=True)
  encoded = encode.load(encode.Config(max_upscale=100.0))(clip, media)
  assert isinstance(encoded, clips.Clip), encoded
  clip = encoded.with_facts(
    "captions", prompts=["<S>Words<E> <AUDCAP>Words<ENDAUDCAP>"]
  )
  with tempfile.TemporaryDirectory() as folder:
    weights = pathlib.Path(folder) / "syncnet.safetensors"
    save_random_weights(weights)
    test = av_sync.load(av_sync.Config(weights=str(weights)))
    test([(clip, media)])  # compiles
    lips = min(wall_seconds(test, [(clip, media)]) for _ in range(repeats))
    every = [
      (dataclasses.replace(clip, id=f"clip-{number}"), media)
      for number in range(NUM_PACKED)
    ]
    write = pack.load(pack.Config(eval_fraction=0.0))
    packing = min(
      wall_seconds(
        write, iter(every), pathlib.Path(folder) / f"{number}" / "records"
      )
      for number in range(repeats)
    )
  return {"av_sync": lips, "pack": packing / NUM_PACKED}


def wall_seconds(function: Callable[..., Any], *arguments: Any) -> float:
  """Wall-clock seconds."""
  begin = time.monotonic()
  function(*arguments)
  return time.monotonic() - begin


def syncnet_flops() -> float:
  """FLOPs of one batch of chunks, which covers one face of a clip."""
  sizes = (
    av_sync.Config().batch_size,
    av_sync.CHUNK_WINDOWS + syncnet.WINDOW - 1,
  )
  config = syncnet.SyncNetConfig()
  frames = jax.ShapeDtypeStruct(
    (*sizes, syncnet.SIDE, syncnet.SIDE, 3), "uint8"
  )
  windows = jax.ShapeDtypeStruct(
    (sizes[0], av_sync.CHUNK_WINDOWS, syncnet.COEFFICIENTS, syncnet.COLUMNS),
    "float32",
  )
  program = jax.jit(syncnet.SyncNet(config).apply).lower(
    syncnet.shapes(config), frames, windows
  )
  costs: Any = program.compile().cost_analysis()
  return costs["flops"]


def main(words: Sequence[str]) -> None:
  """Print a table: seconds of each stage and clips per second, per file."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.curation")
  parser.add_argument("files", nargs="+")
  parser.add_argument("--repeats", type=int, default=3)
  options = parser.parse_args(words)
  stages = {m.NAME: m.load(config) for m, config in (*FILES, *WINDOWS)}
  names = [m.NAME for m, _ in FILES] + ["decode"] + [m.NAME for m, _ in WINDOWS]
  print("| file |", " | ".join(names), "| total | clips per second |")
  print("|---" * (len(names) + 3) + "|")
  for path in options.files:
    runs = [measured(path, stages) for _ in range(options.repeats)]
    best = [min(run[n] for run in runs) if n in runs[0] else 0 for n in names]
    cells = [f"{value:.3f}" for value in (*best, sum(best))]
    name = pathlib.Path(path).name
    print(f"| {name} |", " | ".join(cells), f"| {1 / sum(best):.2f} |")
  found = later_passes(options.files[0], options.repeats)
  print(f"wall-clock, {jax.devices()[0].device_kind}, {os.cpu_count()} cores:")
  print(f"  av_sync {found['av_sync']:.3f} s per clip with one face;")
  print(f"    {syncnet_flops() / 1e9:.0f} GFLOPs")
  print(f"  pack {found['pack']:.4f} s per clip")


if __name__ == "__main__":
  main(sys.argv[1:])
