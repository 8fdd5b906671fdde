"""Detection of kinds, colours and event times."""

import itertools

import numpy as np
import pytest

from ovi_jax.synthetic import world as worlds
from ovi_jax.synthetic.evaluation import impacts
from ovi_jax.synthetic.evaluation import video_detectors
from ovi_jax.synthetic.world import scene

FRAME = 1 / 24


@pytest.mark.slow
def test_event_times_are_within_a_third_of_a_frame(clips, worn):
  for clip, shown in zip(clips, worn[1], strict=True):
    truth = [event.seconds for event in shown.events]
    for moment in clip.seen.events:
      assert min(abs(moment - t) for t in truth) < FRAME / 3
    # Only what happens at the very end may be missed.
    assert sum(t < clip.seconds - 0.05 for t in truth) <= len(clip.seen.events)


@pytest.mark.slow
def test_mouth_shapes_match_the_vowels(clips, worn):
  for clip, shown in zip(clips, worn[1], strict=True):
    if shown.kind == scene.FACE:
      assert clip.seen.shapes == shown.words


def stills():
  """Scenes in which nothing happens, one of each kind."""
  world, found, index = worlds.World(seed=1), {}, 0
  while len(found) < 3:
    shown = world.clip(index, slice(0, 1)).scene
    if not shown.events:
      found[shown.kind] = shown
    index += 1
  return found.values()


@pytest.mark.parametrize("noise", [0, 8])
def test_static_clips_have_no_events(noise):
  random = np.random.default_rng(0)
  for shown in stills():
    frames_THWC = worlds.World().render(shown) + random.normal(
      0, noise, (121, 64, 64, 3)
    )
    seen = video_detectors.look(
      np.clip(frames_THWC, 0, 255).astype(np.uint8), 24
    )
    colours = {ball.colour for ball in shown.balls} or {shown.colour}
    assert (seen.kind, set(seen.colours)) == (shown.kind, colours)
    assert seen.events == () and seen.shapes == ()


def test_detection_is_independent_of_size_and_frame_rate():
  for index in range(3):
    world = worlds.World(seed=2, size=96, frames=61, fps=12.0, complete=True)
    made = world.clip(index)
    assert made.frames_THWC is not None
    seen = video_detectors.look(made.frames_THWC, 12.0)
    assert seen.kind == made.scene.kind
    truth = [e.seconds for e in made.events if e.seconds < 4.9]
    np.testing.assert_allclose(seen.events[: len(truth)], truth, atol=0.03)


def test_colours_are_recognized_relative_to_the_wall():
  wall = np.array([203, 222, 236], np.float32)
  for index, colour in enumerate(scene.COLOURS.values()):
    mixed = 0.3 * np.array(colour, np.float32) + 0.7 * wall
    pixels_THWC = np.broadcast_to(mixed, (1, 4, 5, 3))
    nearest_THW, share_THW = video_detectors.tints(
      pixels_THWC, np.tile(wall, (4, 1))
    )
    assert (nearest_THW == index).all()
    np.testing.assert_allclose(share_THW, 0.3, rtol=1e-4)


def test_an_empty_room_has_no_kind():
  bright = np.full((9, 64, 64, 3), 230, np.uint8)
  for frames_THWC in (bright, bright // 6):
    assert video_detectors.look(frames_THWC, 24) == video_detectors.Seen(
      kind=None
    )


@pytest.mark.parametrize("shape", [(9, 64, 64), (9, 64, 64, 1), (7, 64, 64, 3)])
def test_other_arrays_are_refused(shape):
  with pytest.raises(ValueError, match="expected uint8 frames"):
    video_detectors.look(np.zeros(shape, np.uint8), 24)


def test_impacts_are_located_between_frames():
  """A path of exact parabolas, squashed where they meet."""
  hits = np.array([10.3, 24.75, 33.5])
  ends = np.array([-6.0, *hits, 40.0])
  time = np.arange(40)
  row = np.zeros(40)
  for begin, end in itertools.pairwise(ends):
    flying = (time >= begin) & (time < end)
    arc = 0.8 - 0.004 * (time - begin) * (end - time)
    row = np.where(flying, arc, row)
  near = np.abs(time[:, None] - hits[None]).min(axis=1)
  row += np.where(near < 1.4, 0.05 * (1.4 - near), 0)
  found = impacts.lowest(row)
  np.testing.assert_allclose(impacts.refine(row, found), hits, atol=1e-6)


def test_a_wobbling_ball_has_no_impact():
  random = np.random.default_rng(0)
  assert impacts.lowest(0.6 + 0.004 * random.normal(size=121)) == []
