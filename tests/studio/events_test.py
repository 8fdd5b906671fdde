"""Events of clips: peaks of motion and onsets of sound."""

import json
import pathlib
from importlib import resources

import numpy as np
import pytest

from ovi_jax.media import wav
from ovi_jax.studio import events
from tests.lib import media_files

EXAMPLES = pathlib.Path(str(resources.files("ovi_jax.studio"))) / (
  "assets/examples"
)
# By the detectors of the synthetic world, seconds.
IMPACTS = [0.66, 1.44, 2.15, 2.72, 3.33, 3.85, 4.25, 4.64, 4.97]
FLASHES = [0.53, 1.37, 2.33]


def share_found(found, expected):
  """How many are found, each within 0.1 s."""
  near = [min(abs(t - at) for t in found) < 0.1 for at in expected]
  return np.mean(near)


@pytest.mark.parametrize(("number", "expected"), [(1, IMPACTS), (4, FLASHES)])
def test_events_of_an_example_are_found(number, expected):
  recipe = json.loads((EXAMPLES / f"{number}.json").read_text())
  assert ("ball" in recipe["prompt"]) == (expected is IMPACTS)
  found = events.find(EXAMPLES / f"{number}.mp4")
  assert share_found(found.audio, expected) == 1.0
  assert len(found.audio) == len(expected)
  assert share_found(found.video, expected) >= 0.75
  assert len(found.video) <= 2 * len(expected)


def test_clips_of_one_modality_have_the_events_of_it(tmp_path):
  beeps_A = np.zeros(32_000, np.float32)
  place_A = np.arange(1600)
  for start in (8000, 24_000):
    beep_A = 0.5 * np.sin(place_A / 5) * np.exp(-place_A / 300)
    beeps_A[start : start + 1600] = beep_A
  wav.write(tmp_path / "a.wav", beeps_A)
  found = events.find(tmp_path / "a.wav")
  assert found.video is None
  np.testing.assert_allclose(found.audio, [0.5, 1.5], atol=0.02)
  frames = np.zeros((24, 32, 32, 3), np.uint8)
  frames[12:] = 200
  media_files.write(tmp_path / "a.mp4", frames, media_files.even(24))
  found = events.find(tmp_path / "a.mp4")
  assert found.audio is None
  np.testing.assert_allclose(found.video, [0.5], atol=1e-6)


def test_of_near_peaks_the_highest_counts():
  motion_T = np.zeros(48)
  motion_T[[6, 9, 30]] = [20, 30, 25]
  assert events.peaks(motion_T, 24) == [9 / 24, 30 / 24]
  assert events.peaks(0.01 * motion_T, 24) == []
  assert events.peaks(np.zeros(0), 24) == []


def test_long_clips_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(events, "MAX_SECONDS", 1.0)
  wav.write(tmp_path / "a.wav", np.zeros(32_000, np.float32))
  with pytest.raises(ValueError, match="at most 1 s, this one has 2"):
    events.find(tmp_path / "a.wav")
