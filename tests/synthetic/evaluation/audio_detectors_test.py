"""Detection of sounds: onset times and kinds."""

import numpy as np
import pytest

from ovi_jax.evaluation import onsets
from ovi_jax.synthetic.evaluation import audio_detectors
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import sounds

RATE = 16_000


def event(seconds: float, kind: str, name: str, **changes) -> scene.Event:
  fields = {"row": 0.5, "column": 0.5, "length": 0.3, "strength": 0.8}
  return scene.Event(
    seconds=seconds, kind=kind, sound=name, **(fields | changes)
  )


def track(*events: scene.Event, hiss: float = 0.0) -> np.ndarray:
  random = np.random.default_rng(0)
  return sounds.track(events, 5 * RATE, RATE) + random.normal(0, hiss, 5 * RATE)


@pytest.mark.slow
def test_events_are_detected_with_their_times(clips, worn):
  for clip, shown in zip(clips, worn[1], strict=True):
    truth = [event.seconds for event in shown.events]
    for each in clip.detected_sounds:
      nearest = int(np.abs(np.array(truth) - each.seconds).argmin())
      assert abs(truth[nearest] - each.seconds) < 0.01
      voice = shown.sound if shown.kind == scene.FACE else None
      name = shown.events[nearest].sound
      assert each.sound == audio_detectors.Sound(shown.kind, name, voice)


@pytest.mark.parametrize("hiss", [0.0, 0.02])
@pytest.mark.parametrize("tones", [(1.0, 1.0), (1.15, 0.92)])
@pytest.mark.parametrize("material", scene.MATERIALS)
def test_a_weaker_knock_is_detected_while_another_rings(material, tones, hiss):
  strengths = (0.8, 0.55)
  begins = [0.5, 0.65, 1.4, 1.55]
  knocks = [
    event(t, "impact", material, tone=tones[i % 2], strength=strengths[i % 2])
    for i, t in enumerate(begins)
  ]
  detected_sounds = audio_detectors.listen(track(*knocks, hiss=hiss), RATE)
  # Two that are as low as rubber beat together.
  near = 0.025 if material == "rubber" else 0.01
  np.testing.assert_allclose(
    [h.seconds for h in detected_sounds], begins, atol=near
  )
  assert {h.sound.name for h in detected_sounds} == {material}


@pytest.mark.parametrize("hz", [105, 117.3, 130, 195, 214.1, 240])
def test_vowels_are_recognized_in_every_voice(hz):
  spoken = [
    event(0.3 + 0.7 * i, "mouth", vowel, tone=hz, length=0.36)
    for i, vowel in enumerate(scene.VOWELS)
  ]
  detected_sounds = audio_detectors.listen(track(*spoken, hiss=0.015), RATE)
  voice = "low" if hz < 160 else "high"
  assert [h.sound for h in detected_sounds] == [
    audio_detectors.Sound(scene.FACE, vowel, voice) for vowel in scene.VOWELS
  ]
  usual = audio_detectors.usual(detected_sounds)
  assert usual == audio_detectors.Sound(scene.FACE, "", voice)


def test_a_given_kind_overrides_the_detected_one():
  beep = track(event(0.5, "flash", "low", length=0.24))
  assert audio_detectors.listen(beep, RATE)[0].sound.kind == scene.LAMP
  assert (
    audio_detectors.listen(beep, RATE, scene.BALL)[0].sound.kind == scene.BALL
  )


def test_silence_and_noise_have_no_onset():
  assert onsets.times(np.zeros(RATE), RATE) == []
  assert onsets.times(track(hiss=0.001), RATE) == []
  assert audio_detectors.listen(None, RATE) == ()
  assert audio_detectors.usual(()) is None


def test_a_sound_cut_off_at_the_end_has_no_onset_there():
  ringing = track(event(4.6, "impact", "metal"))
  assert len(onsets.times(ringing, RATE)) == 1
