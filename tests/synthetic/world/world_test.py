"""The synthetic world: determinism, events, captions."""

import collections
import hashlib

import numpy as np
import pytest

from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax.synthetic import world as worlds
from ovi_jax.synthetic.world import balls
from ovi_jax.synthetic.world import faces
from ovi_jax.synthetic.world import lamps
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import sounds

RATE = geometry.SAMPLE_RATE


@pytest.fixture(scope="module")
def clips():
  made = worlds.World(size=32, complete=True)
  return [made.clip(index) for index in range(40)]


def test_clips_are_seeded_by_world_and_number():
  one, two = worlds.World(seed=3, size=32), worlds.World(seed=4, size=32)
  clip = one.clip(5)
  again = worlds.World(seed=3, size=32).clip(5)
  np.testing.assert_array_equal(clip.frames_THWC, again.frames_THWC)
  np.testing.assert_array_equal(clip.wave_A, again.wave_A)
  assert clip.captions == again.captions and clip.scene == again.scene
  assert clip.scene != two.clip(5).scene != one.clip(6).scene


def test_sizes_and_rates_are_those_asked_for():
  clip = worlds.World(complete=True).clip(0)
  assert clip.frames_THWC.shape == (121, 64, 64, 3)
  assert clip.frames_THWC.dtype == np.uint8
  # As many audio latents as Ovi's clips have.
  assert clip.wave_A.shape == (157 * geometry.SAMPLES_PER_AUDIO_LATENT,)
  other = worlds.World(size=96, frames=25, fps=12.0, rate=8000, complete=True)
  clip = other.clip(0)
  assert clip.frames_THWC.shape == (25, 96, 96, 3)
  assert len(clip.wave_A) == int(25 / 12 * 8000) // 512 * 512


def test_a_partial_render_equals_part_of_the_whole():
  world = worlds.World(size=32, complete=True)
  for index in range(6):
    part = world.clip(index, slice(40, 57))
    whole = world.clip(index)
    np.testing.assert_array_equal(part.frames_THWC, whole.frames_THWC[40:57])
    np.testing.assert_array_equal(part.wave_A, whole.wave_A)


def test_every_kind_occurs_and_some_clips_lack_a_modality():
  world = worlds.World(size=16, frames=25)
  made = [world.clip(index) for index in range(300)]
  kinds = collections.Counter(clip.scene.kind for clip in made)
  assert kinds.keys() == set(scene.KINDS) and min(kinds.values()) > 40
  two = sum(len(clip.scene.balls) == 2 for clip in made)
  assert 15 < two < 70
  assert any(clip.wave_A is None for clip in made)
  assert any(clip.frames_THWC is None for clip in made)
  assert all(len(clip.captions) >= 1 for clip in made)
  quiet = [c for c in made if not c.events and c.wave_A is not None]
  assert quiet and not any(np.abs(clip.wave_A).max() for clip in quiet)


def test_held_out_pairs_are_not_in_training():
  seen = worlds.World(size=16, frames=5)
  held_out = worlds.World(size=16, frames=5, pairs="held_out")
  for index in range(60):
    assert not seen.clip(index).scene.pairs & scene.HELD_OUT
    assert held_out.clip(index).scene.pairs & scene.HELD_OUT


def test_every_event_has_a_sound_at_its_time(clips):
  """Loudness jumps within a hundredth of a second of every event."""
  window = RATE // 100
  for clip in clips:
    assert clip.events
    for event in clip.events:
      start = round(event.seconds * RATE)
      after = np.abs(clip.wave_A[start : start + 3 * window]).max()
      before = np.abs(clip.wave_A[max(0, start - window) : start]).max(
        initial=0
      )
      assert after > 0.02
      if event.kind != "impact":  # others ring on
        assert before < 0.05 * after


def test_every_impact_is_at_the_floor(clips):
  seconds_T = np.arange(0, 5.1, 1 / 480)
  found = 0
  for clip in clips:
    for ball in clip.scene.balls:
      height_T = balls.heights(ball, clip.scene.sound, seconds_T, 5.02)
      assert height_T.min() > -0.01 and height_T[0] == ball.height
      low = (height_T[1:-1] < height_T[:-2]) & (height_T[1:-1] <= height_T[2:])
      at = seconds_T[1:-1][low]
      nearest = [np.abs(at - e.seconds).min() for e in clip.events]
      found += sum(n < 1 / 200 for n in nearest)
  assert found == sum(len(c.events) for c in clips if c.scene.balls)


def test_a_lamp_is_bright_and_a_mouth_open_from_the_event_on(clips):
  for clip in clips:
    for event in clip.events:
      around = event.seconds + np.array([-0.03, 0.06])
      if event.kind == "flash":
        before, after = lamps.brightness(clip.events, around)
        assert before < 0.1 and after == 1
      elif event.kind == "mouth":
        open_T, height_T, width_T = faces.mouth(clip.events, around)
        assert open_T[0] == 0 and open_T[1] == 1
        np.testing.assert_allclose(
          (height_T[1], width_T[1]), faces.SHAPES[event.sound], rtol=1e-6
        )


def test_frames_change_at_the_location_of_an_event(clips):
  for clip in clips:
    if len(clip.scene.balls) == 2:
      continue
    event = clip.events[0]
    frame = round(event.seconds * 24)
    frames = clip.frames_THWC.astype(int)
    change_HW = np.abs(frames[frame + 1] - frames[frame - 3]).sum(-1)
    row, column = np.unravel_index(change_HW.argmax(), change_HW.shape)
    far = np.hypot(row / 32 - event.row, column / 32 - event.column)
    # A ball changes along its path; others change in place.
    assert far < (0.5 if event.kind == "impact" else 0.2)


def test_captions_describe_the_scene(clips):
  world = worlds.World(size=16, frames=121, complete=True)
  for index in range(60):
    clip = world.clip(index)
    shown = clip.scene
    plain, tagged = clip.captions[0], clip.captions[-1]
    assert prompts.SOUND_LINE in plain and prompts.SOUND in tagged
    for caption in clip.captions:
      assert not prompts.tag_notes(caption)
      assert all(c in caption for c, _ in shown.pairs)
      assert shown.kind in caption
      if shown.kind == scene.FACE:
        assert f"<S>{' '.join(shown.words)}<E>" in caption
        assert (
          shown.sound in caption or "deep" in caption or "bright" in caption
        )


def test_sounds_differ_by_name_and_grow_with_speed():
  def event(kind, name, **changes):
    fields = {"seconds": 0.0, "row": 0.5, "column": 0.5, "length": 0.3}
    return scene.Event(kind=kind, sound=name, **(fields | changes))

  def centre(sound_A):
    power = np.abs(np.fft.rfft(sound_A, RATE)) ** 2
    return (np.arange(len(power)) * power).sum() / power.sum()

  material = {
    m: centre(sounds.sound(event("impact", m), RATE)) for m in scene.MATERIALS
  }
  assert material["rubber"] < 150 < 250 < material["wood"] < 600
  assert material["metal"] > 1000
  for name, hz in sounds.BEEPS.items():
    beep_A = sounds.sound(event("flash", name), RATE)
    assert abs(np.abs(np.fft.rfft(beep_A, RATE)).argmax() - hz) < 5
  vowels = [
    sounds.sound(event("mouth", v, tone=110.0), RATE) for v in scene.VOWELS
  ]
  spectra = [np.abs(np.fft.rfft(v, RATE))[:3500] for v in vowels]
  spectra = [s.reshape(35, 100).sum(1) for s in spectra]
  alike = np.corrcoef(spectra) - np.eye(3)
  assert alike.max() < 0.8
  soft = sounds.sound(event("impact", "wood", strength=0.3), RATE)
  loud = sounds.sound(event("impact", "wood", strength=0.9), RATE)
  np.testing.assert_allclose(3 * np.abs(soft).max(), np.abs(loud).max())


def test_balls_come_to_rest_in_long_sounds():
  """Bounces do not follow each other ever faster without end."""
  world = worlds.World(what="sounds", pairs="all")
  found = [world.clip(n, slice(0, 1)).scene for n in (18, 39)]
  for shown in found:
    assert shown.kind == scene.BALL
    times = [event.seconds for event in shown.events]
    assert 10 < len(times) < 100 and min(np.diff(times)) > 0.05


@pytest.mark.parametrize(
  "fields",
  [{"what": "films"}, {"pairs": "none"}, {"size": 8}, {"frames": 120}],
)
def test_invalid_worlds_are_refused(fields):
  with pytest.raises(ValueError, match="expected|needs"):
    worlds.World(**fields)


def test_two_balls_may_move_at_once():
  made = worlds.World(seed=3, what="two_balls", size=16)
  clips = [made.clip(number, slice(1)) for number in range(40)]
  assert all(len(clip.scene.balls) == 2 for clip in clips)
  assert not any(clip.scene.pairs & scene.HELD_OUT for clip in clips)
  assert any(clip.frames_THWC is None for clip in clips) or any(
    clip.wave_A is None for clip in clips
  )
  with pytest.raises(
    ValueError, match="one of clips, two_balls, sounds, voices"
  ):
    worlds.World(what="films")


def test_the_world_of_voices_has_speaking_faces_alone():
  world = worlds.World(size=16, what="voices", complete=True)
  found, named = collections.Counter(), 0
  for index in range(60):
    made = world.clip(index, slice(1), sound=False)
    assert made.scene.kind == scene.FACE
    found[made.scene.sound] += 1
    low, high = {"low": (105, 130), "high": (210, 226)}[made.scene.sound]
    assert all(low <= event.tone <= high for event in made.events)
    if made.events and len(made.captions) == 2:
      says = [f"{made.scene.sound} voice" in each for each in made.captions]
      deep = any(w in " ".join(made.captions) for w in ("deep", "bright"))
      assert deep or says.count(True) == 1
      named += 1
  assert found.keys() == set(scene.VOICES) and min(found.values()) > 8
  assert named > 30


def test_other_worlds_are_what_they_were_before_there_was_one_of_voices():
  """The weights in the package were trained on these very clips."""
  digest = hashlib.sha256()
  for what in ("clips", "two_balls", "sounds"):
    world = worlds.World(what=what, seed=3, size=16)
    for index in range(12):
      made = world.clip(index, slice(0, 2))
      digest.update(repr((made.scene, made.captions)).encode())
      if made.frames_THWC is not None:
        digest.update(made.frames_THWC.tobytes())
      if made.wave_A is not None:
        digest.update(np.rint(made.wave_A * 2**12).astype("<i2").tobytes())
  assert digest.hexdigest().startswith("d4b5c9344b6f2aa9")
