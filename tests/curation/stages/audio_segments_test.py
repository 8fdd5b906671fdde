"""Audio windows: complete, in order, cut at pauses."""

import numpy as np
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.stages import audio_segments
from tests.lib import media_files

RATE = media_files.RATE
SHORT = 121 / 24


def run(path, **changes):
  clip = clips.Clip(id="s", path=str(path))
  stage = audio_segments.load(audio_segments.Config(**changes))
  return stage(clip, clip_media.Media(clip, path))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
  """31 s of noise with pauses at 4, 9, 13 and 20 s."""
  random = np.random.default_rng(1)
  wave = random.uniform(-0.3, 0.3, (1, 31 * RATE)).astype(np.float32)
  for time in (4, 9, 13, 20):
    wave[:, round((time - 0.2) * RATE) : round((time + 0.2) * RATE)] = 0
  return media_files.write_sound(tmp_path_factory.mktemp("s") / "s.wav", wave)


def test_long_windows_end_in_pauses(speech):
  windows = run(speech, kinds=("long",))
  ends = [window.start + window.seconds for window in windows]
  assert ends[0] == pytest.approx(9, abs=0.25)
  assert ends[1] == pytest.approx(20, abs=0.25)
  assert ends[-1] == pytest.approx(31, abs=0.02)
  # One behind the other, and nothing is lost.
  starts = [window.start for window in windows]
  assert starts == pytest.approx([0, *ends[:-1]], abs=1e-6)
  assert all(2 <= window.seconds <= 12 for window in windows)


def test_short_windows_are_back_to_back(speech):
  windows = run(speech, kinds=("short",))
  assert [w.start for w in windows] == pytest.approx(
    [SHORT * number for number in range(6)], abs=1e-6
  )
  assert all(window.seconds == SHORT for window in windows)


def test_both_kinds_have_distinct_ids(speech):
  windows = run(speech)
  ids = [window.id for window in windows]
  assert len(set(ids)) == len(ids)
  assert ids[0] == "s-000000000-long" and "s-000000000-short" in ids
  kinds = {window.facts["audio_segments"]["kind"] for window in windows}
  assert kinds == {"long", "short"}
  numbers = [window.facts["audio_segments"]["index"] for window in windows]
  assert numbers == sorted(set(numbers))
  assert run(speech) == windows


def test_volume_is_that_of_the_window(tmp_path):
  wave = np.concatenate(
    [media_files.tone(6, 0.5), media_files.tone(6, 1e-4)], 1
  )
  path = media_files.write_sound(tmp_path / "v.wav", wave)
  windows = run(path, kinds=("short",))
  assert len(windows) == 2
  loud = 20 * np.log10(0.5 / 2**0.5)
  assert windows[0].scores["volume_db"] == pytest.approx(loud, abs=0.05)
  wave[:, 5 * RATE :] = 0
  path = media_files.write_sound(tmp_path / "q.wav", wave)
  window, reject = run(path, kinds=("short",))
  assert isinstance(window, clips.Clip) and window.start == 0.0
  # Nothing vanishes: what is refused is counted, as the window that it is.
  assert (reject.reason, reject.score) == ("too quiet", -120.0)
  assert reject.clip.id == "s-000005042-short"
  assert reject.clip.start == pytest.approx(SHORT, abs=1e-6)


def test_quiet_and_short_files_are_refused(tmp_path):
  path = media_files.write_sound(tmp_path / "z.wav", np.zeros((1, 6 * RATE)))
  found = run(path)
  assert len(found) == 2
  for each in found:
    assert (each.reason, each.score) == ("too quiet", -120.0)
  path = media_files.write_sound(tmp_path / "k.wav", media_files.tone(1.5))
  found = run(path)
  assert found.reason == "too short" and found.score == pytest.approx(1.5)


def test_files_without_sound_are_named(tmp_path):
  path = media_files.write(
    tmp_path / "v.mp4", media_files.numbered(5), media_files.even(5)
  )
  found = run(path)
  assert (found.reason, found.failed) == ("damaged or no media", False)


def test_gaps_become_silence_and_very_long_ones_end_the_file():
  part = np.full(RATE, 0.5, np.float32)
  power_T = audio_segments.power_curve(iter([(0.0, part), (2.0, part)]))
  wanted = np.repeat([0.25, 0.0, 0.25], 50)
  np.testing.assert_allclose(power_T, wanted, atol=1e-12)
  power_T = audio_segments.power_curve(iter([(0.0, part), (1e9, part)]))
  assert len(power_T) == 50


@pytest.mark.parametrize(
  "wrong", [{"kinds": ()}, {"kinds": ("other",)}, {"min_long_seconds": 7.0}]
)
def test_settings_are_checked(wrong):
  with pytest.raises(ValueError, match="audio_segments: expected"):
    audio_segments.Config(**wrong)
