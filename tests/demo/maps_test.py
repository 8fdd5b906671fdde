"""What the small model's towers attend to, on clips whose truth is known."""

import jax
import numpy as np
import pytest

from ovi_jax import demo
from ovi_jax import geometry
from ovi_jax.checkpoint import directory
from ovi_jax.components import encoders
from ovi_jax.data.world import world
from ovi_jax.modality import AV
from ovi_jax.parallel import mesh
from ovi_jax.sampling import noise
from ovi_jax.sampling import pipeline

CLIPS = 12


@pytest.mark.slow
def test_the_sound_looks_at_a_flash_when_and_where_it_is():
  pipe = pipeline.Pipeline(
    weights=demo.WEIGHTS,
    manifest=directory.read(demo.WEIGHTS),
    mesh=mesh.make(jax.devices()[:1]),
    dtype=np.dtype("float32"),
    backend="xla_head",
  )
  denoiser = pipe.denoiser()
  video, audio = encoders.Video.load(pipe), encoders.Audio.load(pipe)
  when, where, diagonal = [], [], []
  for number, clip in enumerate(lamps(CLIPS)):
    (caption, *_), length = clip.captions, pipe.arch.clip
    wave_1A = clip.wave_A[None, : length.samples]
    latents = AV(video.encode(clip.frames_THWC[None]), audio.encode(wave_1A))
    drawn = noise.draw(number, length, pipe.channels)
    maps = denoiser.maps(latents, drawn, pipe.embed([caption])[caption])
    diagonal.append(maps.near_diagonal().video)
    for event in clip.events:
      at_flash, on_lamp = shares(maps.audio_STHW, event)
      when.append(at_flash)
      where.append(on_lamp)
  _, frames, rows, columns = maps.audio_STHW.shape
  assert len(when) > 2 * CLIPS
  # Without preference: three of the latent frames, one of the places.
  assert np.mean(when) > 3 * 3 / frames
  assert np.mean(where) > 1.3 / (rows * columns)
  assert np.mean(diagonal) > 10 * 2 / frames


def lamps(count: int):
  """Clips of lamps that the model has not seen, with flashes."""
  drawn = world.World(seed=7000, complete=True)
  number = 0
  while count:
    clip = drawn.clip(number)
    number += 1
    if clip.events and clip.events[0].kind == "flash":
      count -= 1
      yield clip


def shares(audio_STHW: np.ndarray, event) -> tuple[float, float]:
  """At a flash: of all, near its time; of its latent frame's, on the lamp."""
  steps, frames, rows, columns = audio_STHW.shape
  first = min(steps - 3, int(event.seconds * geometry.AUDIO_LATENT_RATE))
  latent = min(frames - 1, (int(event.seconds * geometry.FPS) + 3) // 4)
  seen_THW = audio_STHW[first : first + 3].mean(0)
  place = int(event.row * rows), int(event.column * columns)
  near = seen_THW[max(0, latent - 1) : latent + 2].sum()
  return near, seen_THW[latent][place] / seen_THW[latent].sum()
