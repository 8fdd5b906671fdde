"""Long clips: windows, their seams, prompts, files that are extended."""

import itertools
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import ovi_jax
from ovi_jax import geometry
from ovi_jax import synthetic
from ovi_jax.media import mp4
from ovi_jax.modality import AV
from ovi_jax.sampling import conditions
from ovi_jax.sampling import generate
from ovi_jax.sampling import noise
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import windows
from tests.lib import child_env
from tests.lib import media_files

FIVE = geometry.variant("720x720_5s").clip(64, 64)
TEN = geometry.variant("960x960_10s").clip(64, 64)
SMALL = geometry.Clip(
  latent_frames=5, latent_height=2, latent_width=2, audio_latents=22
)
FEW = {"num_steps": 1, "progress": False}


@pytest.mark.parametrize(
  ("clip", "seconds", "overlap", "starts"),
  [
    # 7 latent frames in common: 24 new ones are 4 s and 125 audio latents.
    (FIVE, 9, 7, [(0, 0), (24, 125)]),
    (FIVE, 20, 7, [(0, 0), (24, 125), (48, 250), (72, 375), (90, 469)]),
    (FIVE, 5.2, 7, [(0, 0), (1, 5)]),
    (FIVE, 20, 1, [(0, 0), (30, 156), (60, 312), (90, 469)]),
    (TEN, 20, 7, [(0, 0), (54, 281), (60, 312)]),
  ],
)
def test_windows_cover_a_clip_and_the_last_ends_with_it(
  clip, seconds, overlap, starts
):
  count = conditions.nearest_latent_frames(seconds)
  found = windows.plan(count, clip, overlap)
  assert [(w.start, w.audio_start) for w in found] == starts
  assert found[-1].start + clip.latent_frames == count
  for one, other in itertools.pairwise(found):
    assert other.given == one.start + clip.latent_frames - other.start
    assert other.given >= overlap
    end = one.audio_start + clip.audio_latents
    # All sound that is there is given, and no sound is left out.
    assert other.audio_given == end - other.audio_start >= 0
    video_T, audio_T = windows.masks(other, clip)
    assert video_T.sum() == other.given and audio_T.sum() == other.audio_given
  audio = found[-1].audio_start + clip.audio_latents
  assert abs(audio / 31.25 - windows.seconds_of(count)) < 0.04


def test_a_window_needs_more_than_the_overlap():
  with pytest.raises(ValueError, match="less than the 31 latent frames"):
    windows.plan(32, FIVE, 31)
  assert len(windows.plan(31, FIVE, 31)) == 1
  with pytest.raises(ValueError, match="less than the 31 latent frames"):
    windows.plan(31, FIVE, 31, given=31)


def test_a_prompt_is_split_at_bars():
  assert windows.split_prompt("a") == ("a",)
  assert windows.split_prompt("a | b|c ") == ("a", "b", "c")
  assert windows.joined_prompt(("a", "b")) == "a | b"
  assert windows.joined_prompt("a|b") == "a|b"
  with pytest.raises(ValueError, match="between two '|' is empty"):
    windows.split_prompt("a||b")
  with pytest.raises(ValueError, match="cannot have a '|'"):
    windows.joined_prompt(("a", "b|c"))


def test_every_window_has_noise_of_its_own():
  first, again, second = (
    noise.sample_noise(7, SMALL, AV(1, 1), window) for window in (0, 0, 1)
  )
  plain = noise.sample_noise(7, SMALL, AV(1, 1))
  for ours, theirs in ((first, plain), (first, again)):
    np.testing.assert_array_equal(ours.video, theirs.video)
    np.testing.assert_array_equal(ours.audio, theirs.audio)
  assert (first.video != second.video).any()
  assert (first.audio != second.audio).any()


def sound(waves: list[tuple[np.ndarray, int]]) -> list[np.ndarray]:
  """Parts that a joiner gives for waves and the places where they begin."""
  joiner = windows.SoundJoiner()
  following = [start for _, start in waves[1:]] + [None]
  return [
    joiner.add(wave, start, after)
    for (wave, start), after in zip(waves, following)
  ]


def test_waves_are_faded_only_where_they_differ():
  random = np.random.default_rng(0)
  whole = random.uniform(-1, 1, 30_000).astype(np.float32)
  cuts = [(0, 12_000), (7000, 19_000), (18_000, 30_000)]
  parts = sound([(whole[a:b], a) for a, b in cuts])
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  # The middle of the overlap, at most 0.1 s around it.
  ones, twos = np.ones(12_000, np.float32), np.full(12_000, 2, np.float32)
  joined = np.concatenate(sound([(ones, 0), (twos, 7000)]))
  assert len(joined) == 19_000
  first, last = 9500 - 800, 9500 + 800
  assert (joined[:first] == 1).all() and (joined[last:] == 2).all()
  assert 0 < np.diff(joined).max() < 1e-3
  # Without an overlap, one follows the other; a gap is silence.
  for start, length in ((12_000, 24_000), (12_100, 24_100)):
    joined = np.concatenate(sound([(ones, 0), (twos, start)]))
    assert len(joined) == length and (joined[start:] == 2).all()


def test_the_sound_of_an_extended_file_is_kept_up_to_the_overlap():
  ones, twos = np.ones(16_000, np.float32), np.full(8000, 2, np.float32)
  joiner = windows.SoundJoiner()
  before = joiner.begin(ones, 12_000, 4000)
  joined = np.concatenate([before, joiner.add(twos, 12_000, None)])
  assert len(joined) == 20_000 and (joined[14_800:] == 2).all()
  assert (joined[:13_200] == 1).all() and np.diff(joined).max() < 1e-3
  # Sound that is not given is heard where the file ends.
  joiner = windows.SoundJoiner()
  before = joiner.begin(np.zeros(16_000, np.float32), 12_000, 0)
  joined = np.concatenate([before, joiner.add(twos, 12_000, None)])
  assert len(joined) == 20_000 and not joined[: 16_000 - 1600].any()
  assert (joined[16_000:] == 2).all()


def long_clip(
  count: int,
  overlap: int,
  log: list[Any],
  before: windows.Before | None = None,
  given: int = 0,
) -> windows.LongClip:
  """Latents count up through the clip; frames and sound show their latents."""

  def denoise(number, mask, given):
    start = planned[number].start
    log.append(("denoise", number))
    made = AV(
      np.full((5, 2, 2, 1), 100.0 * number, np.float32)
      + (start + np.arange(5))[:, None, None, None],
      np.full((22, 1), number / 10, np.float32),
    )
    if given is None:
      return made
    log.append(("first", given.video[0, 0, 0, 0]))
    return AV(
      np.where(mask.video[:, None, None, None], given.video, made.video),
      np.where(mask.audio[:, None], given.audio, made.audio),
    )

  def decode(latents):
    for index, latent_HWC in enumerate(latents):
      count = 4 if index else 1
      log.append(("frames", index))
      yield np.full((count, 32, 32, 3), latent_HWC[0, 0, 0], np.uint8)

  planned = windows.plan(count, SMALL, overlap, given)
  steps = windows.Steps(
    denoise=denoise,
    encode_frame=lambda frame_HWC: np.full(
      (2, 2, 1), -float(frame_HWC[0, 0, 0])
    ),
    decode_video=decode,
    decode_audio=lambda latents_TC: np.repeat(latents_TC[:, 0], 512),
  )
  return windows.LongClip(planned, SMALL, steps, before)


def test_a_window_is_denoised_when_the_one_before_has_been_shown():
  log: list[Any] = []
  clip = long_clip(9, 2, log)
  frames = clip.frames(keep_latents=True)
  shown = [next(frames) for _ in range(5)]
  assert [kind for kind, _ in log] == ["denoise", *["frames"] * 5]
  assert len(clip.take_sound()) % 512 and not len(clip.take_sound())
  shown += list(frames)
  # The first latent is encoded of the frame that the decoder gave.
  assert ("first", np.float32(-3)) in log
  values = [int(chunk[0, 0, 0, 0]) for chunk in shown]
  # Generated ones follow what was there; nothing is shown twice.
  assert values == [0, 1, 2, 3, 4, 105, 106, 107, 208]
  assert sum(map(len, shown)) == 33
  latents = clip.joined_latents()
  assert latents.video[:, 0, 0, 0].tolist() == values
  assert len(latents.audio) == 21 + 22


def test_sound_comes_with_the_frames_and_none_is_lost(tmp_path):
  """Written as it comes, whole: as the same clip at once."""
  first, second = long_clip(9, 2, []), long_clip(9, 2, [])
  mp4.write(tmp_path / "a.mp4", first.frames(), first.take_sound, threads=1)
  frames, parts = [], []
  for chunk in second.frames():
    frames.append(chunk)
    parts.append(second.take_sound())
  wave = np.concatenate(parts)
  assert len(wave) == (21 + 22) * 512
  frames_at_once = [np.concatenate(frames)]
  mp4.write(tmp_path / "b.mp4", frames_at_once, np.clip(wave, -1, 1), threads=1)
  one, other = (mp4.read(tmp_path / name) for name in ("a.mp4", "b.mp4"))
  np.testing.assert_array_equal(one[0], other[0])
  assert one[2] is not None and other[2] is not None
  assert one[2].size == other[2].size


@pytest.mark.parametrize("given", [0, 2560])
def test_an_extended_file_is_shown_before_what_is_generated(given):
  """5 frames of 13 are given, with their sound or without."""
  wave = np.full(round(13 / 24 * 16_000), 0.5, np.float32)
  before = windows.Before(
    frames=lambda: iter(np.full((13, 32, 32, 3), 200, np.uint8)),
    count=13,
    wave=wave,
    overlap=5,
    sound_given=given,
  )
  clip = long_clip(6, 2, [], before, 2)
  frames = np.concatenate(list(clip.frames()))[:, 0, 0, 0]
  assert len(frames) == 13 + 4 * (6 - 2)
  assert (frames[:8] == 200).all() and frames[13:].max() < 110
  # In the overlap, decoded ones replace the file's.
  assert (np.diff(frames[7:13].astype(int)) < 0).all()
  sound = clip.take_sound()
  start = round(8 / 24 * 16_000)
  kept = start + given // 4 if given else len(wave) - 1600
  assert (sound[:kept] == 0.5).all() and (sound[len(wave) :] < 0.5).all()
  last = windows.plan(6, SMALL, 2, 2)[-1].audio_start
  assert len(sound) == start + (last + 22) * 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  """25 frames of 64x96 at 24 fps, with a second of sound and without."""
  folder = tmp_path_factory.mktemp("media")
  frames, times = media_files.moving(25), media_files.even(25)
  media_files.write(folder / "clip.mp4", frames, times, media_files.tone(1.1))
  media_files.write(folder / "silent.mp4", frames, times)
  media_files.write_sound(folder / "tone.wav", media_files.tone(1.1))
  return folder


@pytest.mark.parametrize(
  ("prompt", "asked", "message"),
  [
    ("a", {"seconds": 0.1}, "seconds must be at least 0.17, got 0.1"),
    ("a", {"seconds": float("nan")}, "seconds must be at least 0.17, got nan"),
    ("a", {"seconds": "5"}, "seconds must be a number of seconds .*got '5'"),
    ("a", {"seconds": 2000}, "seconds must be at most 683"),
    ("a|b", {"seconds": 3}, "2 prompts between '|' for a clip of 1 window;"),
    ("a|b", {"seconds": 20}, "2 prompts between '|' for a clip of 5 windows"),
    ("a||b", {"seconds": 20}, "between two '|' is empty"),
    ("a", {"video": "clip.mp4", "extend": "clip.mp4"}, "extend and video"),
    ("a", {"extend": "clip.mp4", "keep": "0-1"}, "extend and keep cannot be"),
    ("a", {"extend": "tone.wav"}, r"extend .*tone\.wav: "),
    (
      "a",
      {"extend": "none.mp4"},
      r"the file to extend is missing: .*none\.mp4",
    ),
    (
      "a",
      {"audio": "tone.wav", "seconds": 1, "window_seconds": 0.5},
      "audio cannot be used with a clip of several .* at most 0.54 sec",
    ),
    (
      "a",
      {"seconds": 20, "window_overlap": 40},
      "window_overlap must be less than the 31 latent frames of a window",
    ),
    (
      "a",
      {"extend": "clip.mp4", "window_seconds": 1},
      "window_overlap must be less than the 7 latent frames of a window",
    ),
    (["a", ("b", "c")], {}, "2 prompts for the windows .*add seconds, or ext"),
    ("a", {"seconds": 20, "noise": "none.npz"}, "noise cannot be used with"),
  ],
)
def test_what_cannot_be_is_refused_in_one_line_before_weights_are_loaded(
  pipe, folder, prompt, asked, message
):
  files = ("video", "audio", "extend")
  asked = {n: folder / v if n in files else v for n, v in asked.items()}
  with pytest.raises(ValueError, match=message) as error:
    pipe(prompt, **asked)
  assert not pipe._loaded
  assert str(error.value).count("\n") <= 1  # a heading, and the row


@pytest.fixture(scope="module")
def pipe() -> ovi_jax.Pipeline:
  return ovi_jax.Pipeline.from_pretrained()


def test_lengths_have_names_of_their_own_and_that_of_the_weights_has_none(
  tmp_path,
):
  path = tmp_path / "list.csv"
  path.write_text("text_prompt,seconds\na,\na,5\na,3\na,20\n")
  size = {"height": 64, "width": 64, "area": 4096, "latent_frames": 31}
  rows = requests.from_file(path)
  assert [row.seconds for row in rows] == [None, 5, 3, 20]
  found = [requests.expand([row], 1, 0, **size)[0].stem for row in rows]
  assert found[0] == found[1] and len(set(found)) == 3
  path.write_text("text_prompt,seconds\na,x\n")
  with pytest.raises(
    ValueError, match="seconds: expected a number of seconds, got 'x'"
  ):
    requests.from_file(path)
  with pytest.raises(
    ValueError, match="--seconds needs --prompt; .* column sec"
  ):
    requests.from_flags("", str(path), "", "auto", seconds=3.0)


@pytest.mark.slow
def test_clips_of_any_length_are_generated_and_joined(folder, tmp_path):
  """By the API and by `sample.py`'s run; windows of half a second."""
  pipe = ovi_jax.Pipeline.from_pretrained()
  short = pipe("a", seconds=0.5, **FEW)
  assert short.video.shape == (13, 64, 64, 3)
  assert len(short.audio) == 16 * 512
  assert short.metadata["latent_frames"] == 4
  # The first window is the clip of its length; later ones follow it.
  half = {"window_seconds": 0.5, "window_overlap": 2}
  steps: list[tuple[int, int]] = []
  few = FEW | {"progress": lambda *at: steps.append(at)}
  long = pipe(["a", ("a", "b", "c")], seconds=1, **few, **half)[1]
  assert steps == [(n, 6) for n in range(1, 7)]
  assert long.video.shape == (25, 64, 64, 3)
  np.testing.assert_array_equal(long.latents.video[:4], short.latents.video)
  np.testing.assert_array_equal(long.video[:13], short.video)
  assert abs(len(long.audio) / 16_000 - 25 / 24) < 0.04
  assert long.metadata["windows"] == {
    "count": 3,
    "latent_frames": 4,
    "overlap": 2,
    "conditioning": "renoise",
  }
  recommended = settings_lib.recommended_of(pipe.components.manifest)
  settings = settings_lib.Settings.from_overrides(
    {"num_steps": 1, **half}, recommended
  )
  (path,) = generate.run(
    requests=requests.from_prompt("a | b | c", seconds=1),
    settings=settings,
    weights=synthetic.WEIGHTS,
    out=tmp_path,
    save_latents=True,
  )
  saved = np.load(path.with_suffix(".npz"))
  np.testing.assert_array_equal(saved["video_THWC"], long.latents.video)
  np.testing.assert_array_equal(saved["audio_TC"], long.latents.audio)
  assert len(mp4.read(path)[0]) == 25
  recipe = json.loads(path.with_suffix(".json").read_text())
  assert recipe["text"] == "a | b | c"
  with pytest.raises(ValueError, match="attention_maps cannot be used with"):
    generate.run(
      requests=requests.from_prompt("a", seconds=1),
      settings=settings,
      weights=synthetic.WEIGHTS,
      out=tmp_path,
      maps=True,
    )

  made = pipe(
    "a",
    extend=folder / "clip.mp4",
    seconds=0.5,
    conditioning="clean",
    **FEW,
    **half,
  )
  assert made.video.shape == (25 + 12, 64, 64, 3)
  given = mp4.read(folder / "clip.mp4")[0][:20]
  centre = given[:, :, 16:80].astype(int)
  assert np.abs(made.video[:20].astype(int) - centre).mean() < 8
  # The file's sound is kept up to the overlap.
  assert abs(len(made.audio) / 16_000 - 37 / 24) < 0.04
  assert np.abs(made.audio[:14_000]).max() > 0.2
  assert made.metadata["given"]["extend"]["sha256"]
  assert made.metadata["windows"]["count"] == 2


_PEAK = """
import resource, sys
from ovi_jax import synthetic
from ovi_jax.sampling import generate, requests
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.pretrained import weights_dir
manifest = weights_dir.manifest_of(synthetic.WEIGHTS)
settings = settings_lib.Settings.from_overrides(
  {"num_steps": 1}, settings_lib.recommended_of(manifest)
)
generate.run(
  requests=requests.from_prompt("a", seconds=float(sys.argv[1])),
  settings=settings, weights=synthetic.WEIGHTS, out=sys.argv[2],
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_peak_memory_does_not_grow_with_the_length(tmp_path):
  """Of a minute and of ten seconds, each in a process of its own."""
  peaks = []
  for seconds in (10, 60):
    command = [sys.executable, "-c", _PEAK, str(seconds), str(tmp_path)]
    done = subprocess.run(
      command,
      env=child_env.environment(),
      capture_output=True,
      text=True,
      check=True,
    )
    peaks.append(int(done.stdout.split()[-1]))
  assert peaks[1] <= 1.05 * peaks[0], peaks
