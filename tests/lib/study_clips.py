"""Small studies: folders of tiny clips, and their study file."""

import json
import pathlib
from typing import Any

import numpy as np

from ovi_jax.media import mp4
from ovi_jax.study import build
from ovi_jax.study import manifest
from ovi_jax.study import settings

RATE = 16_000


def write_clip(
  path: pathlib.Path,
  seed: int,
  *,
  frames: int = 6,
  size: int = 32,
  sound: bool = True,
  rate: int = RATE,
  fps: float = 24.0,
  gain: float = 0.2,
  prompt: str = "",
) -> pathlib.Path:
  """Write a clip of one colour with a tone; a JSON beside it has the prompt."""
  random = np.random.default_rng(seed)
  colour = random.integers(40, 220, 3, dtype=np.uint8)
  frames_THWC = np.broadcast_to(colour, (frames, size, size, 3))
  seconds = np.arange(round(frames / fps * rate)) / rate
  wave_A = gain * np.sin(2 * np.pi * random.uniform(200, 800) * seconds)
  mp4.write(
    path,
    [np.ascontiguousarray(frames_THWC)],
    wave_A.astype(np.float32) if sound else None,
    fps,
    rate,
    preset="ultrafast",
  )
  if prompt:
    path.with_suffix(".json").write_text(json.dumps({"prompt": prompt}))
  return path


def write_systems(
  folder: pathlib.Path, systems: list[str], prompts: int, **options: Any
) -> pathlib.Path:
  """Write clips of systems and a study file `study.json`; returns its path."""
  for number, system in enumerate(systems):
    for prompt in range(prompts):
      write_clip(
        folder / system / f"clip_{prompt}.mp4",
        100 * number + prompt,
        prompt=f"Prompt {prompt}",
        **options,
      )
  return write_file(folder, systems={s: s for s in systems})


def write_file(folder: pathlib.Path, **values: Any) -> pathlib.Path:
  """Write a study file; returns its path."""
  path = folder / "study.json"
  path.write_text(json.dumps(values))
  return path


def make(
  folder: pathlib.Path,
  systems: list[str],
  prompts: int,
  clip: dict[str, Any] | None = None,
  **values: Any,
) -> tuple[pathlib.Path, manifest.Study]:
  """Build a study of tiny clips; returns its folder and the study."""
  write_systems(folder, systems, prompts, **(clip or {}))
  path = write_file(folder, systems={s: s for s in systems}, **values)
  out = folder / "made"
  return out, build.build(settings.read(path), out)


def without_media(
  systems: list[str], prompts: int, **values: Any
) -> manifest.Study:
  """A study whose media do not exist, for what needs none."""
  chosen = settings.from_json({"systems": {s: s for s in systems}, **values})
  clips = {
    system: tuple(
      manifest.Clip(
        media=f"{1000 * number + prompt:032x}.mp4",
        source=f"{system}/{prompt}.mp4",
        sha256=f"{system}{prompt}",
        seconds=5.0,
        width=64,
        height=64,
        fps=24.0,
        sound=True,
      )
      for prompt in range(prompts)
    )
    for number, system in enumerate(systems)
  }
  key = "ab" * 32
  return manifest.Study(
    settings=chosen,
    key=key,
    prompts=tuple(
      manifest.Prompt(name=f"clip {i}", text=f"Prompt {i}")
      for i in range(prompts)
    ),
    clips=clips,
    items=tuple(build.items(chosen, prompts)),
    gold=tuple(build.gold(key, chosen, clips)),
  )
