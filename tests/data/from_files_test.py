"""Import of a folder of clips: results, refusals, resuming."""

import csv
import hashlib
import os
import pathlib
import re
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from configs import fusion
from ovi_jax import geometry
from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.data import loader
from ovi_jax.data import settings as loader_settings
from ovi_jax.data.from_files import listing
from ovi_jax.data.from_files import run
from ovi_jax.data.from_files import settings as settings_lib
from ovi_jax.data.from_files import work
from ovi_jax.media import decode
from tests.lib import doc_commands
from tests.lib import media_files

RED, BLUE = (200, 30, 30), (30, 30, 200)


def settings(folder: pathlib.Path, **changes) -> settings_lib.Settings:
  """Small clips of 9 frames."""
  given = {
    "clips": folder / "clips",
    "captions": str(folder / "t.csv") if (folder / "t.csv").exists() else "",
    "out": folder / "out",
    "height": 32,
    "width": 64,
    "frames": 9,
    "seconds": 0.5,
    "eval_fraction": 0.0,
  }
  return settings_lib.Settings(**{**given, **changes})


def imported(folder: pathlib.Path, **changes) -> str:
  """Import; returns the report."""
  given = settings(folder, **changes)
  run.run(given)
  return (given.folder / "report.txt").read_text("utf-8").removesuffix("\n")


def records(folder: pathlib.Path, split: str = "train"):
  """The records of a dataset by the name of their file."""
  found = builder.read(folder / "out", split)
  every = [found[n] for n in range(len(found))]
  return {record.source.rpartition(" ")[0]: record for record in every}


def refusals(folder: pathlib.Path) -> dict[str, str]:
  """Reason and advice by file."""
  path = folder / "out.import" / "refused.csv"
  with open(path, newline="", encoding="utf-8") as file:
    rows = list(csv.reader(file))
  assert rows[0] == ["file", "reason", "what to do"]
  assert all(all(row) and len(row) == 3 for row in rows)
  return {row[0]: f"{row[1]}; {row[2]}" for row in rows[1:]}


def table(folder: pathlib.Path, *rows: tuple[str, ...]) -> None:
  with open(folder / "t.csv", "w", newline="", encoding="utf-8-sig") as file:
    csv.writer(file).writerows([("path", "caption", "split"), *rows])


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  (tmp_path / "clips").mkdir()
  return tmp_path


def numbered(path: pathlib.Path, seconds: float, fps: float = 24, **given):
  """A video whose frames encode their number, with a tone."""
  count = round(seconds * fps)
  wave = media_files.tone(seconds) if given.pop("sound", True) else None
  frames = media_files.numbered(count)
  return media_files.write(
    path, frames, media_files.even(count, fps), wave, **given
  )


def numbers(record) -> list[int]:
  return [media_files.number(frame) for frame in clips.frames(record)]


@pytest.mark.parametrize("fps", [25, 30_000 / 1001, 30, 60])
def test_any_frame_rate_is_resampled_to_24_fps_by_timestamps(folder, fps):
  numbered(folder / "clips/a.mp4", 0.6, fps)
  table(folder, ("a.mp4", "Bars.", ""))
  imported(folder)
  (record,) = records(folder).values()
  shown = [int(n / 24 * fps + 0.05) for n in range(9)]
  assert numbers(record) == shown
  assert record.fps == 24 and record.frames == 9
  samples = len(record.audio) // 2
  assert samples == 9 / 24 * geometry.SAMPLE_RATE


def test_variable_frame_rates_keep_their_timing(folder):
  times = [0, 0.05, 0.1, 0.3, 0.31, 0.32, 0.5]
  media_files.write(folder / "clips/a.mp4", media_files.numbered(7), times)
  table(folder, ("a.mp4", "Bars.", ""))
  imported(folder)
  (record,) = records(folder).values()
  assert numbers(record) == [0, 0, 1, 2, 2, 2, 2, 2, 5]


def test_a_long_gap_between_undamaged_frames_is_a_still_picture(folder):
  path = folder / "clips/a.mkv"
  media_files.write(path, media_files.numbered(3), [0, 0.125, 5.0])
  table(folder, ("a.mkv", "Bars.", ""))
  imported(folder, frames=25)
  (record,) = records(folder).values()
  assert numbers(record) == [0, 0, 0, *[1] * 22]


def test_sound_of_any_rate_and_channels_is_16_khz_mono(folder):
  time = np.arange(44_100) / 44_100
  both = 0.4 * np.stack([np.sin(2 * np.pi * 440 * time)] * 2)
  media_files.write_sound(folder / "clips/a.wav", both, 44_100)
  table(folder, ("a.wav", "A tone.", ""))
  report = imported(folder, audio_only=True)
  (record,) = records(folder).values()
  wave_A = clips.wave(record)
  assert record.video is None and wave_A.size == 8000
  expected = 0.4 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)
  assert np.abs(wave_A - expected)[200:-200].max() < 0.02
  assert "--config=audio_finetune " in report


def test_sound_of_six_channels_is_mixed_down(folder):
  path = folder / "clips/a.mkv"
  with av.open(str(path), "w") as container:
    audio = container.add_stream("flac", rate=48_000, layout="5.1")
    wave = np.zeros((1, 6 * 48_000), np.int16)
    wave[0, 2::6] = 8000  # the centre alone
    frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="5.1")
    frame.sample_rate, frame.pts = 48_000, 0
    container.mux(audio.encode(frame))
    container.mux(audio.encode(None))
  table(folder, ("a.mkv", "A level.", ""))
  imported(folder, audio_only=True)
  (record,) = records(folder).values()
  assert clips.wave(record)[2000:6000].mean() > 0.05


def halves(path: pathlib.Path, rows: int, columns: int, **given):
  """A film with a red upper half and a blue lower one."""
  frame = np.empty((rows, columns, 3), np.uint8)
  frame[: rows // 2], frame[rows // 2 :] = RED, BLUE
  return media_files.write(path, [frame] * 12, media_files.even(12), **given)


def test_crop_keeps_the_middle_pad_keeps_all_and_keep_the_aspect(folder):
  halves(folder / "clips/a.mp4", 96, 96)
  table(folder, ("a.mp4", "Halves.", ""))
  found = {}
  for fit in settings_lib.FITS:
    imported(folder, fit=fit, out=folder / fit)
    split = builder.read(folder / fit, "train")
    found[fit] = clips.frames(split[0])[0]
  near = lambda a, b: np.abs(a.astype(int) - b).max() < 12  # noqa: E731
  assert found["crop"].shape == (32, 64, 3)
  assert near(found["crop"][:12, :], RED) and near(found["crop"][-12:], BLUE)
  assert found["pad"].shape == (32, 64, 3)
  assert near(found["pad"][:, :12], 0) and near(found["pad"][:, -12:], 0)
  assert near(found["pad"][:12, 20:44], RED)
  assert found["keep"].shape == (32, 32, 3)


def test_a_phone_clip_is_rotated_before_it_is_cropped(folder):
  path = halves(folder / "clips/a.mov", 64, 96)
  media_files.turn(path, 0, 1, -1, 0)  # a quarter to the right: red is right
  table(folder, ("a.mov", "Portrait.", ""))
  imported(folder)
  (record,) = records(folder).values()
  frame = clips.frames(record)[0].astype(int)
  left, right = frame[:, :24].mean((0, 1)), frame[:, -24:].mean((0, 1))
  assert left[2] > left[0] + 100 and right[0] > right[2] + 100


@pytest.mark.parametrize(
  "short, frames", [("keep", 5), ("pad", 9), ("refuse", None)]
)
def test_short_clips_are_kept_padded_or_refused(folder, short, frames):
  numbered(folder / "clips/a.mp4", 6 / 24)
  numbered(folder / "clips/b.mp4", 0.5)
  table(folder, ("a.mp4", "Bars.", ""), ("b.mp4", "Bars.", ""))
  imported(folder, short_clips=short)
  found = records(folder)
  assert found["b.mp4"].frames == 9
  if frames is None:
    assert "0.25 s, a record has 0.38 s" in refusals(folder)["a.mp4"]
    return
  assert found["a.mp4"].frames == frames
  assert numbers(found["a.mp4"]) == [min(n, 5) for n in range(frames)]


def test_a_clip_that_lacks_a_frame_counts_as_long_enough(folder):
  numbered(folder / "clips/a.mp4", 8 / 24)
  table(folder, ("a.mp4", "Bars.", ""))
  imported(folder, short_clips="refuse")
  (record,) = records(folder).values()
  assert numbers(record) == [0, 1, 2, 3, 4, 5, 6, 7, 7]


@pytest.mark.parametrize(
  "long, starts",
  [("first", [0]), ("center", [10]), ("split", [0, 9, 18])],
)
def test_long_clips_give_the_first_part_the_center_or_windows(
  folder, long, starts
):
  numbered(folder / "clips/a.mp4", 30 / 24)
  table(folder, ("a.mp4", "Bars.", ""))
  imported(folder, long_clips=long)
  found = builder.read(folder / "out", "train")
  assert [numbers(found[n])[0] for n in range(len(found))] == starts
  assert len({found[n].id for n in range(len(found))}) == len(starts)


def test_captions_come_from_the_table_and_from_text_files(folder):
  for number, name in enumerate(("a.mp4", "B.MP4", "c d.mp4")):
    length = 0.4 + number / 24
    numbered(folder / "clips" / name, length, sound=name == "a.mp4")
  table(
    folder,
    (
      "a.mp4",
      'He says, "yes".\n<S>Yes, I do<E> &amp; <AUDCAP>x<ENDAUDCAP>',
      "",
    ),
    ("a.mp4", "Another one.", ""),
    ("a.mp4", "Another one.", ""),
    (".\\b.mp4", "Upper case.", "val"),
  )
  (folder / "clips/c d.txt").write_bytes("\ufeffÉté,\r\nfoo\r\n".encode())
  report = imported(folder)
  found = records(folder)
  assert found["a.mp4"].captions == (
    'He says, "yes". <S>Yes, I do<E> & <AUDCAP>x<ENDAUDCAP>',
    "Another one.",
  )
  assert found["c d.mp4"].captions == ("Été, foo",)
  assert records(folder, "test")["B.MP4"].captions == ("Upper case.",)
  assert "imported 3 clips of 3 files: train (2), test (1)" in report
  assert "captions: 4; several of 1 file" in report
  assert "without audio: 2 clips" in report


def test_every_refusal_is_a_row_that_says_what_to_do(folder):
  good = numbered(folder / "clips/good.mp4", 0.4)
  shutil.copy(good, folder / "clips/copy.mp4")
  shutil.copy(good, folder / "clips/third.mp4")
  (folder / "clips/empty.mp4").touch()
  (folder / "clips/page.mp4").write_text("<html>Not found</html>")
  (folder / "clips/part.mp4").write_bytes(good.read_bytes()[:2000])
  Image.new("RGB", (8, 8)).save(folder / "clips/moving.gif")
  Image.new("RGB", (8, 8)).save(folder / "clips/picture.mp4", "PNG")
  (folder / "clips/picture.txt").write_text("Bars.")
  halves(folder / "clips/long.mp4", 16, 320)
  media_files.write_sound(folder / "clips/sound.wav", media_files.tone(0.5))
  numbered(folder / "clips/blank.mp4", 0.45)
  numbered(folder / "clips/none.mp4", 0.5)
  numbered(folder / "clips/both.mp4", 0.55)
  for sub in ("x", "y"):
    (folder / "clips" / sub).mkdir()
    numbered(folder / "clips" / sub / "twin.mp4", 0.6)
  os.mkfifo(folder / "clips/pipe.mp4")
  (folder / "clips/pipe.txt").write_text("Bars.")
  (folder / "clips/zero.mp4").symlink_to("/dev/zero")
  (folder / "clips/zero.txt").write_text("Bars.")
  numbered(folder / "clips/odd.mp4", 0.7)
  os.mkfifo(folder / "clips/odd.txt")
  (folder / "clips/bad.txt").write_bytes(b"caf\xe9")
  numbered(folder / "clips/bad.mp4", 0.65)
  table(
    folder,
    *((name, "Bars.", "") for name in ("good.mp4", "copy.mp4", "empty.mp4")),
    ("third.mp4", "Bars.", ""),
    *((name, "Bars.", "") for name in ("page.mp4", "part.mp4", "moving.gif")),
    *((name, "Bars.", "") for name in ("long.mp4", "sound.wav", "twin.mp4")),
    ("blank.mp4", "  ", ""),
    ("both.mp4", "Bars.", "train"),
    ("both.mp4", "Others.", "test"),
    ("missing.mp4", "Bars.", ""),
    ("x" * 300, "Bars.", ""),
  )
  report = imported(folder)
  assert list(records(folder)) == ["copy.mp4"]
  reasons = refusals(folder)
  for name, words in {
    "good.mp4": "the same content as another file; remove it, or copy.mp4",
    "empty.mp4": "an empty file; copy it again",
    "page.mp4": "damaged, or no media file (expected a media file, found a web",
    "picture.mp4": "found a PNG picture); copy it again",
    "part.mp4": "damaged, or no media file",
    "moving.gif": "ffmpeg -i IN.gif",
    "long.mp4": "320x16 is too long and narrow; crop it",
    "sound.wav": "no video; import audio only with --audio_only",
    "twin.mp4": "several files are called so; write the folder too in"
    " row 10 (line 11): x/twin.mp4, y/twin.mp4",
    "blank.mp4": "its caption is empty",
    "none.mp4": "no caption; add a row",
    "both.mp4": "rows put it in test and train",
    "missing.mp4": "no such file; add the file, or write its path relative",
    "pipe.mp4": "not a regular file but a named pipe; put the media",
    "zero.mp4": "not a regular file but a device; put the media",
    "odd.mp4": "its caption cannot be read:",
    "bad.mp4": "bad.txt is not UTF-8; save the text file as UTF-8",
  }.items():
    assert words in reasons[name], name
  assert f"refused, {len(reasons)}:" in report and "and 11 more" in report
  assert "refused.csv" in report
  assert re.search(r"most often: .*the same content .* \(2\)", report)
  assert re.search(r"most often: .*no such file \(2\)", report)


def test_a_path_relative_to_the_table_may_differ_in_letter_case(folder):
  (folder / "clips/sub").mkdir()
  numbered(folder / "clips/sub/b.MP4", 0.4)
  table(folder, ("Clips/Sub/B.mp4", "Bars.", ""))
  imported(folder)
  assert list(records(folder)) == ["sub/b.MP4"]


def test_a_link_in_the_folder_is_one_file_however_a_row_names_it(folder):
  (folder / "elsewhere.mp4").touch()
  (folder / "clips/a.mp4").symlink_to(folder / "elsewhere.mp4")
  for name in ("a.mp4", "clips/a.mp4", "clips\\a.mp4", f"{folder}/clips/a.mp4"):
    table(folder, (name, "Bars.", ""))
    found = listing.read(settings(folder))
    assert [file.name for file in found.files] == ["a.mp4"]
    assert not found.refusals


def test_a_file_elsewhere_may_be_stored_under_another_unicode_form(folder):
  (folder / "clips/a.mp4").touch()
  (folder / "Ba\u0308r.mp4").touch()
  table(folder, ("B\u00e4r.mp4", "Bars.", ""))
  (found,) = listing.read(settings(folder)).files
  assert found.path == folder / "Ba\u0308r.mp4"
  assert found.name == str(folder / "B\u00e4r.mp4")


def test_a_caption_with_control_characters_is_refused(folder):
  numbered(folder / "clips/a.mp4", 0.4)
  numbered(folder / "clips/b.mp4", 0.5)
  table(folder, ("a.mp4", "Ba\x01rs.", ""), ("b.mp4", "Bars.", ""))
  imported(folder)
  assert "the character U+0001 at place 3" in refusals(folder)["a.mp4"]


def test_names_in_the_report_are_escaped(folder):
  good = numbered(folder / "clips/\x1b[2J.mp4", 0.4)
  shutil.copy(good, folder / "clips/a.mp4")
  table(folder, *((n, "Bars.", "") for n in ("a.mp4", "\x1b[2J.mp4")))
  report = imported(folder)
  assert r"remove it, or \x1b[2J.mp4" in report
  assert "\x1b" not in report


def test_windows_with_damaged_frames_are_refused(folder):
  path = folder / "clips/a.mp4"
  frames = [media_files.picture(n) for n in range(48)]
  media_files.write(path, frames, media_files.even(48), options={"g": "1"})
  content = bytearray(path.read_bytes())
  # Pictures of one size follow one another; those from 0.8 to 1.2 s are lost.
  with av.open(str(path)) as container:
    packets = [p for p in container.demux(video=0) if p.size]
  for packet in packets[20:30]:
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
  path.write_bytes(content)
  table(folder, ("a.mp4", "Mosaics.", ""))
  imported(folder, long_clips="split")
  assert len(builder.read(folder / "out", "train")) == 3
  (where,) = {name[:9] for name in refusals(folder)}
  assert where == "a.mp4 at "


def test_a_decompression_bomb_is_refused_before_it_is_decoded(
  folder, monkeypatch
):
  numbered(folder / "clips/a.mp4", 0.4)
  table(folder, ("a.mp4", "Bars.", ""))
  monkeypatch.setattr("ovi_jax.data.from_files.windows.MAX_PIXELS", 100)
  with pytest.raises(ValueError, match="64x32 is too large"):
    imported(folder)


def files_of(path: pathlib.Path) -> dict[str, str]:
  return {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in path.iterdir()
  }


def test_an_interrupted_import_is_resumed_to_the_same_bytes(
  folder, monkeypatch
):
  for number in range(4):
    numbered(folder / f"clips/{number}.mp4", 0.4 + number / 24)
  table(folder, *((f"{n}.mp4", f"Bars {n}.", "") for n in range(4)))
  imported(folder, out=folder / "whole")
  made, whole = [], work.make

  def stopped(job):
    if len(made) == 2:
      raise KeyboardInterrupt
    made.append(job.name)
    whole(job)

  with pytest.raises(KeyboardInterrupt):
    work.run(jobs(folder), 0, work=stopped)
  assert not (folder / "out").exists()

  def counted(job):
    made.append(job.name)
    whole(job)

  monkeypatch.setattr(
    work, "run", lambda jobs, n, done, run=work.run: run(jobs, n, done, counted)
  )
  imported(folder)
  assert made == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
  assert files_of(folder / "out") == files_of(folder / "whole")
  assert not (folder / "out.import/clips").exists()


def jobs(folder: pathlib.Path) -> list[work.Job]:
  """The work of an import, as `run` gives it out."""
  chosen = settings(folder)
  results = chosen.folder / "clips"
  results.mkdir(parents=True)
  return [work.job(f, results, chosen) for f in listing.read(chosen).files]


def test_a_second_run_logs_the_same_report_and_refuses_other_settings(
  folder, log_lines
):
  numbered(folder / "clips/a.mp4", 0.4)
  table(folder, ("a.mp4", "Bars.", ""))
  first = imported(folder)
  assert log_lines == [first]
  log_lines.clear()
  imported(folder)
  assert log_lines == [first, f"already imported: {folder / 'out'}"]
  (shard,) = (folder / "out").glob("*array_record-*")
  whole = shard.read_bytes()
  shard.write_bytes(whole[:-1])
  with pytest.raises(ValueError, match=rf"remove {folder / 'out'} and run"):
    imported(folder)
  shard.write_bytes(whole)
  with pytest.raises(ValueError, match=r"other settings \(fit\); use another"):
    imported(folder, fit="pad")
  table(folder, ("a.mp4", "Stripes.", ""))
  with pytest.raises(ValueError, match="of other files or captions"):
    imported(folder)
  (folder / "other").mkdir()
  with pytest.raises(ValueError, match="exists and was not made by this"):
    imported(folder, out=folder / "other")


def test_a_second_run_reads_the_report_in_any_locale(
  folder, log_lines, monkeypatch
):
  numbered(folder / "clips/a.mp4", 0.4)
  (folder / "clips/\u011b.mp4").write_bytes(b"")
  table(folder, ("a.mp4", "Bars.", ""), ("\u011b.mp4", "Bars.", ""))
  first = imported(folder)
  assert "\u011b" in first
  monkeypatch.setattr("io.text_encoding", lambda e, *_: e or "ascii")
  log_lines.clear()
  imported(folder)
  assert first in log_lines


def test_splits_are_by_hash_unless_the_table_sets_them(folder):
  for number in range(6):
    numbered(folder / f"clips/{number}.mp4", 0.4 + number / 24)
  rows = [(f"{n}.mp4", f"Bars {n}.", "") for n in range(6)]
  table(folder, *rows)
  imported(folder, eval_fraction=0.4)
  held_out = set(records(folder, "test"))
  assert 0 < len(held_out) < 6
  # One more file, or another name of one, moves none of the others.
  os.rename(folder / "clips/0.mp4", folder / "clips/zero.mp4")
  numbered(folder / "clips/6.mp4", 0.7)
  table(folder, ("zero.mp4", "x", ""), *rows[1:], ("6.mp4", "x", "train"))
  imported(folder, eval_fraction=0.4, out=folder / "more")
  more = builder.read(folder / "more", "test")
  names = {more[n].source.split(" ")[0] for n in range(len(more))}
  assert {name.replace("zero", "0") for name in names} == held_out


def test_one_file_at_least_is_held_out_if_any_are_wanted(folder):
  for number in range(2):
    numbered(folder / f"clips/{number}.mp4", 0.4 + number / 24)
  table(folder, *((f"{n}.mp4", "Bars.", "") for n in range(2)))
  imported(folder, eval_fraction=1e-6)
  assert len(records(folder, "test")) == 1


def test_filters_are_applied_only_where_they_are_asked_for(folder):
  numbered(folder / "clips/a.mp4", 0.4, sound=False)
  halves(folder / "clips/b.mp4", 16, 32)
  table(folder, ("a.mp4", "Bars.", ""), ("b.mp4", "Halves.", ""))
  imported(folder, out=folder / "all")
  assert len(builder.read(folder / "all", "train")) == 2
  with pytest.raises(ValueError, match="no clip was imported") as raised:
    imported(folder, require_audio=True)
  assert str(raised.value).count("no audio track") >= 2
  imported(folder, max_upscale=1.5)
  assert list(records(folder)) == ["a.mp4"]
  assert "would be enlarged 2.00 times" in refusals(folder)["b.mp4"]


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"height": 50}, "--size: expected multiples of 32 .* use 64x64"),
    ({"frames": 120}, "--frames: expected 1 \\+ 4·k .* use 117"),
    ({"eval_fraction": 1.0}, "--eval_fraction: expected a fraction"),
    ({"captions": "none.csv"}, "--captions: none.csv is not a file"),
    ({"fit": "stretch"}, "--fit: expected one of crop, pad, keep"),
  ],
)
def test_invalid_settings_are_named_with_valid_ones(changes, message, folder):
  with pytest.raises(ValueError, match=message):
    settings(folder, **({"width": 64} | changes))


def test_a_folder_without_clips_or_captions_is_refused_with_advice(folder):
  with pytest.raises(
    ValueError, match="no video files; for audio .* --audio_only"
  ):
    imported(folder)
  numbered(folder / "clips/a.mp4", 0.4)
  with pytest.raises(ValueError, match="1 files and no caption; pass --captio"):
    imported(folder)


def crash(job: work.Job) -> None:
  """A job whose decoder ends the process."""
  if job.name == "1.mp4":
    os._exit(9)
  work.make(job)


@pytest.mark.slow
def test_a_crashing_decoder_refuses_only_its_own_file(folder):
  for number in range(3):
    numbered(folder / f"clips/{number}.mp4", 0.4 + number / 24)
  table(folder, *((f"{n}.mp4", "Bars.", "") for n in range(3)))
  every = jobs(folder)
  work.run(every, 2, work=crash)
  made = [work.Result.read(job.target) for job in every]
  assert [bool(each.windows) for each in made] == [True, False, True]
  assert made[1].refused[0][1] == "its decoder crashed"


@pytest.mark.slow
def test_several_processes_write_the_same_bytes_as_one(folder):
  for number in range(3):
    numbered(folder / f"clips/{number}.mp4", 0.4 + number / 24)
  table(folder, *((f"{n}.mp4", "Bars.", "") for n in range(3)))
  imported(folder, out=folder / "alone")
  imported(folder, num_workers=2)
  assert files_of(folder / "out") == files_of(folder / "alone")


def test_the_contact_sheet_shows_each_clip_with_its_caption(folder):
  halves(folder / "clips/a.mp4", 96, 96)
  table(folder, ("a.mp4", "Hälften 走路. " * 50, ""))
  imported(folder)
  with Image.open(folder / "out.import/contact_sheet.png") as image:
    sheet = np.asarray(image.convert("RGB")).astype(int)
  red = (np.abs(sheet - RED) < 15).all(-1)
  dark = (sheet < 100).all(-1)
  assert red.sum() > 500 and dark.sum() > 200


def test_thousands_of_rows_are_matched_without_reading_files(folder):
  names = [f"{n:05d}.mp4" for n in range(3000)]
  for name in names:
    (folder / "clips" / name).touch()
  table(folder, *((name, f"Caption {name}.", "") for name in names))
  found = listing.read(settings(folder))
  assert len(found.files) == 3000 and not found.refusals
  assert found.files[7].captions == ("Caption 00007.mp4.",)


def test_frames_are_yielded_one_at_a_time_in_window_order(tmp_path):
  path = numbered(tmp_path / "a.mp4", 0.6, 30)
  one = decode.frames(path, 0.1, 9, lambda rows, columns: (rows, columns))
  whole_THWC = decode.video(path, 0.1, 9 / 24)
  assert np.array_equal(np.stack(list(one)), whole_THWC)


def test_an_imported_dataset_is_read_as_any_other(folder, weights):
  for number in range(3):
    numbered(folder / f"clips/{number}.mp4", 0.4 - number / 12)
  table(folder, *((f"{n}.mp4", f"Bars {n}.", "") for n in range(3)))
  imported(folder, seconds=5)
  bucket = loader_settings.Bucket(video=(3, 2, 4), audio=12)
  chosen = loader_settings.LoaderConfig(
    sources=(loader_settings.Source(path=str(folder / "out")),),
    buckets=(bucket,),
    encode_on_the_fly=True,
    tokenizer=str(next(weights.rglob("tokenizer.json"))),
  )
  batch = next(loader.load(chosen, batch=3, seed=0))
  assert batch.latents.video.shape == (3, 9, 32, 64, 3)
  assert sorted(batch.lengths.video.tolist()) == [2, 3, 3]
  assert min(batch.lengths.audio.tolist()) > 5


@pytest.mark.slow
def test_the_guide_and_train_py_go_from_a_folder_to_a_run(tmp_path, weights):
  for name in ("configs", "ovi_jax", "train.py"):
    (tmp_path / name).symlink_to(doc_commands.ROOT / name)
  for name in ("clips", "recordings"):
    (tmp_path / name).mkdir()
  for number in range(4):
    frames = media_files.moving(130 + number, number, rows=90, columns=160)
    path = tmp_path / f"clips/{number}.mp4"
    media_files.write(
      path, frames, media_files.even(len(frames), 25), media_files.tone(5.2)
    )
    media_files.write_sound(
      tmp_path / f"recordings/{number}.wav", media_files.tone(1 + number)
    )
  rows = [(f"clips\\{n}.mp4", f"{n}. Audio: a tone.", "") for n in range(4)]
  table(tmp_path, *rows)
  (tmp_path / "t.csv").rename(tmp_path / "captions.csv")
  table(tmp_path, *((f"{n}.wav", f"A tone {n}.", "") for n in range(4)))
  (tmp_path / "t.csv").rename(tmp_path / "recordings.csv")
  guide = doc_commands.ROOT / "docs/how_to/own_clips.md"
  doc_commands.run_pages([guide], tmp_path)
  report = (tmp_path / "runs/my_clips.import/report.txt").read_text()
  assert "imported 4 clips of 4 files: train (3), test (1)" in report
  assert '--config.data.video_buckets="((31, 4, 4),)"' in report
  assert len(builder.read(tmp_path / "runs/my_recordings", "train")) == 3
  # The stand-in's codecs are random.
  limits = {
    "min_codec_psnr": 0.0,
    "max_codec_mel_error": 1e9,
    "max_unknown_words": 1.0,
  }
  known = fusion.get_config("mini").data
  flags = [f"--config.data.{n}={v}" for n, v in limits.items() if n in known]
  block = (
    "python train.py --config=configs/fusion.py:mini --workdir=runs/tuned"
    " --config.init_from.video=scratch --config.init_from.audio=scratch"
    " --config.trainable=all"
    " --config.data.sources=\"('runs/my_clips',)\""
    " --config.data.encode_on_the_fly=True"
    " --config.data.text_source=captions --config.batch_size=2"
    f" --config.pretrained={weights} {' '.join(flags)}"
  )
  doc_commands.run("bash", block, tmp_path)
  assert (tmp_path / "runs/tuned/metrics.jsonl").exists()


def test_the_flags_of_the_guide_exist():
  root = doc_commands.ROOT
  source = (root / "ovi_jax/data/from_files/__main__.py").read_text()
  defined = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source))
  text = (root / "docs/how_to/own_clips.md").read_text()
  others = {"config", "data", "weights", "workdir"}
  assert set(re.findall(r"--(\w+)", text)) - others <= defined
  assert defined - set(re.findall(r"--(\w+)", text)) <= {"records_per_shard"}
