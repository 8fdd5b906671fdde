"""Folders of clips and their distorted versions."""

import json
import wave as wav_files

import av
import numpy as np
import pytest

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import lists
from ovi_jax.media import decode
from ovi_jax.media import mp4
from tests.lib import media_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A clip with stereo sound, a silent one and a wav file."""
  folder = tmp_path_factory.mktemp("clips")
  times, frames = media_files.even(24), media_files.moving(24)
  tone_A = media_files.tone(1.0)[0]
  stereo = np.stack([tone_A, np.zeros_like(tone_A)])
  media_files.write(folder / "both.mp4", frames, times, stereo)
  media_files.write(folder / "silent.mp4", frames, times)
  media_files.write_sound(folder / "spoken.wav", media_files.tone(0.5, 0.1))
  (folder / "both.json").write_text(
    json.dumps(
      {"prompt": "A man says <S>Hello there.<E> <AUDCAP>wind<ENDAUDCAP>"}
    )
  )
  (folder / "notes.txt").write_text("no clip")
  return folder


def named(folder, texts=None):
  table = lists.PromptTable(texts=texts or {})
  return {clip.name: clip for clip in clips.read_folder(folder, table)}


def test_clips_have_names_tracks_and_texts(folder):
  found = named(folder, {"spoken": "Good morning"})
  assert list(found) == ["both", "silent", "spoken"]
  assert [c.has_sound for c in found.values()] == [True, False, True]
  assert [c.has_picture for c in found.values()] == [True, True, False]
  assert found["both"].speech == "Hello there."
  assert found["spoken"].speech == "Good morning"
  assert found["silent"].text == ""


def test_clips_of_sample_py_have_the_name_of_their_prompt_and_seed(tmp_path):
  for stem, seed in (("x_1", 1), ("x_2", 2), ("y", 1)):
    media_files.write_sound(tmp_path / f"{stem}.wav", media_files.tone(0.1))
    recipe = {"prompt": "A lamp. Audio: beeps.", "seed": seed}
    if stem != "y":
      (tmp_path / f"{stem}.json").write_text(json.dumps(recipe))
  path = tmp_path / "prompts.csv"
  rows = ("set1_a", 2), ("set1_b", 1), ("y", 3)
  lines = [f"{n},A lamp. <AUDCAP>beeps.<ENDAUDCAP>,{s}" for n, s in rows]
  path.write_text("\n".join(["name,text_prompt,seed", *lines]))
  found = clips.read_folder(tmp_path, lists.read_prompts(path))
  stems = {clip.name: clip.path.stem for clip in found}
  assert stems == {"set1_a": "x_2", "set1_b": "x_1", "y": "y"}
  assert found[2].text.startswith("A lamp.")


def test_a_prompt_without_speech_asks_for_none(folder):
  text = "A street. <AUDCAP>cars<ENDAUDCAP>"
  assert named(folder, {"silent": text})["silent"].speech == ""


def test_untagged_texts_are_speech_in_tables_without_tags_only(folder):
  plain, tagged = "A dog barks.", "<S>Hello.<E>"
  for texts, spoken in (
    ({"silent": plain, "spoken": "Hello."}, plain),
    ({"silent": plain, "spoken": tagged}, ""),
  ):
    assert named(folder, texts)["silent"].speech == spoken


def test_the_untagged_prompt_of_a_sample_is_no_speech(tmp_path):
  media_files.write_sound(tmp_path / "a.wav", media_files.tone(0.1))
  (tmp_path / "a.json").write_text(json.dumps({"prompt": "A dog barks."}))
  (clip,) = clips.read_folder(tmp_path)
  assert clip.text == "A dog barks." and clip.speech == ""


def test_sound_has_its_channels_and_a_mean(folder):
  media = clips.Media(clips.Source(clip=named(folder)["both"]))
  assert media.wave_CA.shape[0] == 2 and media.rate == media_files.RATE
  left_A, right_A = media.wave_CA
  assert np.abs(right_A).max() < 0.01 < np.abs(left_A).max()
  np.testing.assert_allclose(media.mono(), left_A / 2, atol=0.01)
  assert abs(media.mono(8000).size - media.mono().size / 2) <= 1


def test_a_delayed_sound_begins_with_silence_and_keeps_its_length(folder):
  clip = named(folder)["spoken"]
  own_A = clips.Media(clips.Source(clip=clip)).mono()
  late_A = clips.Media(clips.Source(clip=clip, delay=0.2)).mono()
  count = round(0.2 * media_files.RATE)
  assert not late_A[:count].any() and late_A.shape == own_A.shape
  np.testing.assert_array_equal(late_A[count:], own_A[:-count])


def test_another_sound_has_the_length_of_the_own_one(folder):
  found = named(folder)
  source = clips.Source(clip=found["both"], sound_of=found["spoken"])
  wave_CA = clips.Media(source).wave_CA
  own_CA = clips.Media(clips.Source(clip=found["both"])).wave_CA
  assert wave_CA.shape == (1, own_CA.shape[1])
  assert np.abs(wave_CA).max() == pytest.approx(0.1, abs=0.01)


def test_noise_is_as_loud_as_the_sound_and_always_the_same(folder):
  source = clips.Source(clip=named(folder)["spoken"], noise=True)
  one_A, other_A = (clips.Media(source).mono() for _ in range(2))
  np.testing.assert_array_equal(one_A, other_A)
  assert one_A.std() == pytest.approx(0.1 / np.sqrt(2), rel=0.05)
  picture = clips.Source(clip=named(folder)["silent"], noise=True)
  assert clips.Media(picture).frames_THWC.std() > 70


def test_keys_depend_on_what_is_needed_only(folder):
  found = named(folder)
  own = clips.Source(clip=found["both"])
  late = clips.Source(clip=found["both"], delay=0.5)
  swapped = clips.Source(clip=found["both"], sound_of=found["spoken"])
  assert len({s.key([clips.PICTURE]) for s in (own, late, swapped)}) == 1
  assert len({s.key([clips.SOUND]) for s in (own, late, swapped)}) == 3
  assert own.key([clips.TEXT]) != own.key([])


def test_bad_folders_are_refused_with_all_reasons(folder, tmp_path):
  with pytest.raises(ValueError, match="there is no such folder of clips"):
    clips.read_folder(tmp_path / "absent")
  with pytest.raises(ValueError, match="expected clips .*found none"):
    clips.read_folder(tmp_path)
  (tmp_path / "cut.mp4").write_bytes((folder / "both.mp4").read_bytes()[:300])
  (tmp_path / "page.mp4").write_text("<html>")
  (tmp_path / "empty.wav").touch()
  with pytest.raises(ValueError) as error:
    clips.read_folder(tmp_path)
  message = str(error.value)
  assert all(name in message for name in ("cut.mp4", "page.mp4", "empty.wav"))
  assert "\n" not in message


def test_clips_that_are_too_large_are_refused_before_they_are_decoded(
  folder, monkeypatch
):
  monkeypatch.setitem(
    mp4.check.__kwdefaults__, "max_bytes", 24 * 64 * 96 * 3 - 1
  )
  with pytest.raises(ValueError, match=r"both.mp4: .*24 frames of 64x96"):
    clips.read_folder(folder)


def test_clips_of_other_rates_are_read(tmp_path):
  times, frames = media_files.even(30, 30.0), media_files.moving(30)
  wave = media_files.tone(1.0, rate=44_100)
  media_files.write(tmp_path / "a.mp4", frames, times, wave, rate=44_100)
  (clip,) = clips.read_folder(tmp_path)
  media = clips.Media(clips.Source(clip=clip))
  assert media.fps == pytest.approx(30, rel=1e-3) and media.rate == 44_100
  assert media.mono(16_000).size == pytest.approx(16_000, abs=400)


def test_two_clips_of_one_name_are_refused(folder, tmp_path):
  for name in ("one.mp4", "one.wav"):
    media_files.write_sound(tmp_path / "x.wav", media_files.tone(0.1))
    (tmp_path / "x.wav").rename(tmp_path / name)
  with pytest.raises(ValueError, match="two clips have the name one"):
    clips.read_folder(tmp_path)


def shifted(path, start: float):
  """A copy in mkv whose sound begins so much later than its picture."""
  out = path.with_name(f"{path.stem}_{start}.mkv")
  with av.open(str(path)) as source, av.open(str(out), "w") as target:
    streams = {s: target.add_stream_from_template(s) for s in source.streams}
    for packet in source.demux():
      if packet.size:
        late = 1 + (start if packet.stream.type == "audio" else 0)
        for name in ("pts", "dts"):
          time = getattr(packet, name) + round(late / packet.time_base)
          setattr(packet, name, time)
        packet.stream = streams[packet.stream]
        target.mux(packet)
  return out


@pytest.mark.parametrize("start", [0.25, -0.25])
def test_sound_is_heard_from_the_first_frame_on(start, tmp_path):
  wave = media_files.tone(1.0)
  wave[:, :8000] = 0
  frames = media_files.numbered(24)
  path = media_files.write(
    tmp_path / "a.mp4", frames, media_files.even(24), wave
  )
  shifted(path, start)
  own, late = clips.read_folder(tmp_path)
  assert own.sound_start == pytest.approx(0, abs=2e-3)
  # The copy also has the 1024 samples that the encoder puts first.
  encoder = 1024 / media_files.RATE
  assert late.sound_start == pytest.approx(start - encoder, abs=2e-3)
  begins = [
    int((np.abs(clips.Media(clips.Source(clip=c)).mono()) > 0.1).argmax())
    for c in (own, late)
  ]
  assert begins[1] - begins[0] == pytest.approx(start * 16_000, abs=50)
  # Where the picture begins, on the clock of stages of curation.
  first = decode.window(late.path, max(0.0, -late.sound_start), 0.5)
  assert media_files.number(first.pictures_25[0]) == 0
  assert media_files.number(first.pictures_25[1]) == 1
  replaced = clips.Media(clips.Source(clip=own, sound_of=late)).mono()
  assert int((np.abs(replaced) > 0.1).argmax()) == begins[1]


def test_an_empty_sound_is_none_and_low_rates_are_refused(tmp_path):
  with wav_files.open(str(tmp_path / "empty.wav"), "wb") as file:
    file.setparams((1, 2, 16_000, 0, "NONE", ""))
  (clip,) = clips.read_folder(tmp_path)
  assert not clip.has_sound and not clip.has_picture
  media_files.write_sound(tmp_path / "low.wav", np.zeros((1, 90)), rate=900)
  with pytest.raises(ValueError, match="low.wav: .*1000 samples .*found 900"):
    clips.read_folder(tmp_path)


def test_noise_differs_between_clips_of_one_size(tmp_path):
  for name, level in (("a", 0.1), ("b", 0.2)):
    sound = media_files.tone(0.1, level)
    media_files.write_sound(tmp_path / f"{name}.wav", sound)
  one_A, other_A = (
    clips.Media(clips.Source(clip=clip, noise=True)).mono()
    for clip in clips.read_folder(tmp_path)
  )
  assert abs(np.corrcoef(one_A, other_A)[0, 1]) < 0.2
