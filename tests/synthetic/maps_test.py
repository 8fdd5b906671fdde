"""Attention of the small model on clips with known events."""

import itertools
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from ovi_jax import geometry
from ovi_jax import synthetic
from ovi_jax.modality import AV
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import noise
from ovi_jax.sharding import mesh
from ovi_jax.synthetic.world import world

CLIPS = 12
# Audio heads that attend to events, as found on other clips.
BALLS, MOUTHS = ((2, 3),), ((5, 2),)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def maps_of():
  """Clip, number, heads -> maps of the shipped weights."""
  pipe = denoisers.SamplingComponents(
    weights=synthetic.WEIGHTS,
    manifest=weights_dir.read(synthetic.WEIGHTS),
    mesh=mesh.make(jax.devices()[:1]),
    dtype=np.dtype("float32"),
    backend="xla_head",
  )
  denoiser = pipe.denoiser()
  video, audio = (
    encoders.VideoEncoder.load(pipe),
    encoders.AudioEncoder.load(pipe),
  )

  def find(clip, number: int, heads: attention_maps.Heads = ()):
    (caption, *_), length = clip.captions, pipe.arch.clip
    wave_1A = clip.wave_A[None, : length.samples]
    latents = AV(video.encode(clip.frames_THWC[None]), audio.encode(wave_1A))
    drawn = noise.sample_noise(number, length, pipe.channels)
    text = encoders.TextEncoder.load(pipe).texts([caption])[caption]
    return denoiser.maps(latents, drawn, text, heads=heads)

  return find


def test_audio_attends_to_a_flash_in_time_and_space(maps_of):
  when, where, diagonal = [], [], []
  for number, clip in enumerate(clips("flash")):
    maps = maps_of(clip, number)
    diagonal.append(maps.near_diagonal().video)
    for event in clip.events:
      near, frame_HW = looks(maps.audio_STHW, event)
      when.append(near)
      where.append(frame_HW[place(event, frame_HW.shape)])
  _, frames, rows, columns = maps.audio_STHW.shape
  assert len(when) > 2 * CLIPS
  # Without preference: three of the latent frames, one of the places.
  assert np.mean(when) > 5 * 3 / frames
  assert np.mean(where) > 1.3 / (rows * columns)
  assert np.mean(diagonal) > 8 * 2 / frames


@pytest.mark.nightly
def test_a_head_attends_to_the_ball_at_its_impact(maps_of):
  when, where, between, sides = [], [], [], {True: [], False: []}
  for number, clip in enumerate(clips("impact")):
    maps = maps_of(clip, number, BALLS)
    for event in clip.events:
      near, frame_HW = looks(maps.audio_STHW, event)
      when.append(near)
      where.append(frame_HW[place(event, frame_HW.shape)])
      sides[event.column < 0.5].append(frame_HW[:, 0].sum())
    between += own_time(maps.audio_STHW, clip.events)
  assert len(when) > 4 * CLIPS
  assert np.mean(where) > 2 / frame_HW.size
  # The head attends to the ball, not to a fixed position.
  assert np.mean(sides[True]) - np.mean(sides[False]) > 0.4
  assert np.mean(when) > 1.8 * np.mean(between)


@pytest.mark.nightly
def test_a_head_attends_to_the_mouth_during_speech(maps_of):
  when, where, silent = [], [], []
  for number, clip in enumerate(clips("mouth")):
    maps = maps_of(clip, number, MOUTHS)
    for event in clip.events:
      near, frame_HW = looks(maps.audio_STHW, event)
      row, _ = place(event, frame_HW.shape)
      when.append(near)
      where.append(frame_HW[row].sum())  # a mouth is in the middle of a row
    first = min(event.seconds for event in clip.events)
    before = int((first - 0.2) * geometry.AUDIO_LATENT_RATE)
    for step in range(max(0, before)):
      seen_HW = maps.audio_STHW[step, latent_of(step)]
      silent.append(seen_HW[row].sum() / seen_HW.sum())
  assert len(when) > 1.5 * CLIPS
  assert np.mean(when) > 2 * 3 / maps.audio_STHW.shape[1]
  assert np.mean(where) > 0.55  # half without preference
  assert np.mean(where) - np.mean(silent) > 0.3


def clips(kind: str) -> Iterator[world.Clip]:
  """Clips that the model has not seen, with events of a kind."""
  drawn = world.World(seed=7200, complete=True)
  found = (drawn.clip(number) for number in itertools.count())
  wanted = (c for c in found if c.events and c.events[0].kind == kind)
  return itertools.islice(wanted, CLIPS)


def looks(audio_STHW: np.ndarray, event) -> tuple[float, np.ndarray]:
  """At an event: share of all near its time; shares of its latent frame."""
  steps, frames, _, _ = audio_STHW.shape
  first = min(steps - 3, int(event.seconds * geometry.AUDIO_LATENT_RATE))
  latent = min(frames - 1, (int(event.seconds * geometry.FPS) + 3) // 4)
  seen_THW = audio_STHW[first : first + 3].mean(0)
  near = seen_THW[max(0, latent - 1) : latent + 2].sum()
  return near, seen_THW[latent] / seen_THW[latent].sum()


def place(event, shape: tuple[int, ...]) -> tuple[int, int]:
  rows, columns = shape
  return int(event.row * rows), int(event.column * columns)


def own_time(audio_STHW: np.ndarray, events) -> list[float]:
  """The same share as `looks` gives, of audio steps away from all events."""
  found = []
  for step in range(len(audio_STHW)):
    seconds = (step + 0.5) / geometry.AUDIO_LATENT_RATE
    if min(abs(seconds - event.seconds) for event in events) > 0.2:
      latent = latent_of(step)
      near = audio_STHW[step, max(0, latent - 1) : latent + 2]
      found.append(float(near.sum()))
  return found


def latent_of(step: int) -> int:
  """The latent frame of an audio step."""
  seconds = (step + 0.5) / geometry.AUDIO_LATENT_RATE
  return (int(seconds * geometry.FPS) + 3) // 4
