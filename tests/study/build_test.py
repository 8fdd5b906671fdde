"""A study's folder: clips matched, re-encoded alike, without a trace."""

import dataclasses
import fractions
import json

import av
import numpy as np
import pytest

from ovi_jax.media import loudness
from ovi_jax.media import mp4
from ovi_jax.study import build
from ovi_jax.study import bundle
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study import settings
from tests.lib import media_files
from tests.lib import study_clips


def test_media_have_one_loudness_and_rate_and_opaque_names(
  tmp_path,
):
  clip = {"frames": 24}
  out, study = study_clips.make(tmp_path, ["ours", "other"], 2, clip)
  assert manifest.read(out) == study
  names = {path.name for path in (out / "media").iterdir()}
  assert names == study.media_names
  # Web servers send it, and gold items are encoded with their clips.
  assert len({p.stat().st_mtime_ns for p in (out / "media").iterdir()}) == 1
  assert len(study.items) == 2 and study.prompts[1].text == "Prompt 1"
  for name in names:
    with av.open(str(out / "media" / name)) as container:
      assert set(container.metadata) <= {
        "major_brand",
        "minor_version",
        "compatible_brands",
        "encoder",
      }
      assert container.streams.audio[0].rate == build.RATE
  found = study.clips["ours"][0]
  _, fps, wave, rate = mp4.read(out / "media" / found.media)
  assert fps == 24 and rate == build.RATE and wave is not None
  assert loudness.integrated(wave[None], rate) == pytest.approx(-23, abs=0.3)


def test_making_a_study_again_reuses_its_media_and_keeps_its_names(tmp_path):
  out, study = study_clips.make(tmp_path, ["ours", "other"], 2)
  name = study.clips["ours"][0].media
  before = {p.name: p.stat().st_ino for p in (out / "media").iterdir()}
  (out / "media" / name).rename(tmp_path / "kept")  # so is its inode
  again = build.build(settings.read(tmp_path / "study.json"), out)
  after = {p.name: p.stat().st_ino for p in (out / "media").iterdir()}
  assert again == study and before.keys() == after.keys()
  changed = [n for n in before if before[n] != after[n]]
  assert changed == [name]


def test_a_folder_with_votes_is_not_given_to_another_study(tmp_path):
  out, study = study_clips.make(tmp_path, ["ours", "other"], 1)
  path = study_clips.write_file(
    tmp_path, systems={"ours": "ours", "other": "other"}, seed=4
  )
  # A server is running, but nobody has joined.
  store = database.Database(out / manifest.VOTES, study)
  code = store.access_code()
  study = build.build(settings.read(path), out)
  with pytest.raises(database.ReplacedError, match="run make again"):
    store.join()
  assert database.Database(out / manifest.VOTES, study).access_code() != code
  database.Database(out / manifest.VOTES, study).join()
  values = {s: s for s in ["ours", "other"]}
  path = study_clips.write_file(tmp_path, systems=values, seed=5)
  with pytest.raises(ValueError, match="has votes of study"):
    build.build(settings.read(path), out)
  assert manifest.read(out) == study


def test_a_folder_with_a_bundle_is_not_given_to_another_study(tmp_path):
  out, study = study_clips.make(tmp_path, ["ours", "other"], 1, gold_share=0)
  bundle.write_private(out, study, [])
  chosen = settings.read(tmp_path / "study.json")
  assert build.build(chosen, out) == study
  other = dataclasses.replace(chosen, seed=4)
  with pytest.raises(ValueError, match=f"has a bundle of study {study.hash}"):
    build.build(other, out)
  (out / bundle.FILE).write_text("[")
  with pytest.raises(ValueError, match="bundle.json is damaged"):
    build.build(other, out)
  assert manifest.read(out) == study


def test_a_prompt_that_a_system_lacks_is_named_or_skipped(tmp_path, log_lines):
  path = study_clips.write_systems(tmp_path, ["ours", "other"], 3)
  (tmp_path / "other" / "clip_1.mp4").unlink()
  with pytest.raises(ValueError, match="other has no clip of 'clip_1'"):
    build.build(settings.read(path), tmp_path / "out")
  assert not (tmp_path / "out").exists()
  systems = {"ours": "ours", "other": "other"}
  path = study_clips.write_file(
    tmp_path, systems=systems, incomplete_prompts="skip", gold_share=0
  )
  study = build.build(settings.read(path), tmp_path / "out")
  assert [p.name for p in study.prompts] == ["clip_0", "clip_2"]
  assert "1 prompts are skipped" in "".join(log_lines)


def test_clips_of_one_name_and_different_prompts_are_refused(tmp_path):
  path = study_clips.write_systems(tmp_path, ["ours", "other"], 3)
  (tmp_path / "ours" / "clip_0.json").unlink()  # not known: no difference
  beside = tmp_path / "other" / "clip_1.json"
  beside.write_text('{"prompt": "Another prompt"}')
  with pytest.raises(ValueError, match="different prompts") as error:
    build.build(settings.read(path), tmp_path / "out")
  problems = str(error.value).splitlines()[1:]
  assert problems == ["  clip_1: ours 'Prompt 1', other 'Another prompt'"]
  assert not (tmp_path / "out").exists()


def test_clips_are_matched_by_prompt_whatever_their_names(tmp_path):
  for number, system in enumerate(("ours", "other")):
    for prompt in range(2):
      study_clips.write_clip(
        tmp_path / system / f"{(prompt + number) % 2}_{system}.mp4",
        10 * number + prompt,
        prompt=f"Prompt {prompt}",
      )
  path = study_clips.write_file(
    tmp_path,
    systems={"ours": "ours", "other": "other"},
    match="prompt",
    gold_share=0,
  )
  study = build.build(settings.read(path), tmp_path / "out")
  sources = [study.clips[s][0].source[-11:] for s in ("ours", "other")]
  assert sources == ["/0_ours.mp4", "1_other.mp4"]


def test_clips_without_sound_get_silence_and_differences_are_logged(
  tmp_path, log_lines
):
  ours = tmp_path / "ours" / "a.mp4"
  study_clips.write_clip(ours, 1, sound=False, frames=12)
  study_clips.write_clip(
    tmp_path / "b" / "a.mp4", 2, rate=48_000, fps=25, frames=12
  )
  path = study_clips.write_file(tmp_path, systems={"ours": "ours", "b": "b"})
  study = build.build(settings.read(path), tmp_path / "out")
  made = tmp_path / "out" / "media" / study.clips["ours"][0].media
  _, _, wave, rate = mp4.read(made)
  assert rate == build.RATE and wave is not None
  assert wave.size == pytest.approx(24_000, abs=1100)
  assert np.abs(wave).max() < 1e-4
  text = "\n".join(log_lines)
  assert "systems differ in frame rate" in text
  assert "systems differ in sound" in text
  # Gold items of sound need a clip that has one.
  kinds = {(g.kind, g.system) for g in study.gold}
  assert ("audio_shift", "b") in kinds and ("audio_shift", "ours") not in kinds


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "the file is empty"),
    (b"not a film", "expected a file of one of the formats"),
  ],
)
def test_clips_that_cannot_be_read_are_all_named(tmp_path, content, message):
  path = study_clips.write_systems(tmp_path, ["ours", "other"], 2)
  for system in ("ours", "other"):
    (tmp_path / system / "clip_0.mp4").write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    build.build(settings.read(path), tmp_path / "out")
  assert str(error.value).count("clip_0.mp4") == 2
  assert not (tmp_path / "out").exists()


def test_more_than_five_systems_get_a_connected_part_of_the_pairs():
  systems = [f"s{i}" for i in range(8)]
  study = study_clips.without_media(systems, 3)
  assert len(study.items) == 3 * 8
  for prompt in range(3):
    pairs = [i for i in study.items if i.prompt == prompt]
    shown = [s for i in pairs for s in (i.first, i.second)]
    assert {shown.count(s) for s in systems} == {2}


def test_gold_items_are_clearly_worse_in_one_respect_alone():
  frames = np.full((3, 16, 16, 3), 128, np.uint8)
  wave = np.sin(np.arange(build.RATE * 3) / 20).astype(np.float32)
  wave[: build.RATE] = 0
  noisy, same = build.corrupt(settings.VIDEO_NOISE, frames, wave)
  assert noisy.std() > 40 and same is wave
  same, noise = build.corrupt(settings.AUDIO_NOISE, frames, wave)
  assert same is frames and np.std(noise - wave) > 0.5 * np.std(wave)
  same, late = build.corrupt(settings.AUDIO_SHIFT, frames, wave)
  assert same is frames
  assert np.array_equal(late[build.RATE :], wave[: -build.RATE])
  _, other = build.corrupt(settings.AUDIO_SWAP, frames, wave, wave[:100])
  assert other.shape == wave.shape
  # A shift by the whole length would change nothing.
  second = wave[-build.RATE :]
  _, late = build.corrupt(settings.AUDIO_SHIFT, frames, second)
  assert np.array_equal(late, np.roll(second, build.RATE // 2))


def test_gold_items_of_sound_are_made_of_audible_clips_alone(tmp_path):
  tone, quiet = (
    build._source(
      study_clips.write_clip(tmp_path / name, 1, frames=12, gain=gain), ""
    )
    for name, gain in (("tone.mp4", 0.2), ("quiet.mp4", 1e-5))
  )
  assert tone.facts.has_audio and quiet.facts.has_audio
  assert tone.audible and not quiet.audible
  questions = [
    {"id": kind, "text": "?", "gold": kind} for kind in settings.GOLD
  ]
  chosen = settings.from_json(
    {"systems": {"a": "a", "b": "b"}, "questions": questions}
  )
  clips = {
    system: tuple(
      build._clip("ab" * 32, chosen, system, source) for source in sources
    )
    for system, sources in {"a": (tone, quiet), "b": (tone, tone)}.items()
  }
  found = list(build.gold("ab" * 32, chosen, clips))
  for kind in (settings.AUDIO_NOISE, settings.AUDIO_SHIFT):
    places = {(g.system, g.prompt) for g in found if g.kind == kind}
    assert places == {("a", 0), ("b", 0), ("b", 1)}
  # The only audible clip of "a" has no other one to get its sound from.
  swapped = {g.system for g in found if g.kind == settings.AUDIO_SWAP}
  assert swapped == {"b"}


def test_clips_without_square_pixels_are_named_before_any_is_encoded(tmp_path):
  path = study_clips.write_systems(tmp_path, ["ours", "other"], 1)
  for system in ("ours", "other"):
    clip = tmp_path / system / "clip_0.mp4"
    media_files.write(
      clip,
      media_files.numbered(2),
      media_files.even(2),
      aspect=fractions.Fraction(2, 1),
    )
  with pytest.raises(ValueError, match="expected square pixels") as error:
    build.build(settings.read(path), tmp_path / "out")
  assert str(error.value).count("clip_0.mp4") == 2
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "damage",
  [
    lambda v: v.pop("items"),
    lambda v: v.update(version=2),
    lambda v: v.update(key="zz"),
    lambda v: v["clips"].popitem(),
    lambda v: v["items"][0].update(prompt=99),
    lambda v: v["items"][0].update(first="nobody"),
    lambda v: v["clips"]["ours"][0].update(media="../../secret"),
    lambda v: v.update(gold=7),
  ],
)
def test_a_damaged_study_is_refused_in_one_line(tmp_path, damage):
  study = study_clips.without_media(["ours", "other"], 2)
  manifest.write(tmp_path, study)
  assert manifest.read(tmp_path) == study
  values = json.loads((tmp_path / "study.json").read_text())
  damage(values)
  (tmp_path / "study.json").write_text(json.dumps(values))
  with pytest.raises(ValueError, match="expected a study of version 1"):
    manifest.read(tmp_path)


def test_the_hash_depends_on_rules_and_clips_but_not_on_the_key():
  study = study_clips.without_media(["ours", "other"], 2)
  assert study.hash == "".join(c for c in study.hash if c in "0123456789abcdef")
  other_key = dataclasses.replace(study, key="cd" * 32)
  assert other_key.hash == study.hash
  rules = study_clips.without_media(["ours", "other"], 2, raters_per_item=4)
  assert rules.hash != study.hash


def test_sound_is_scaled_to_the_target_and_peaks_stay_in_range():
  time = np.arange(build.RATE) / build.RATE
  quiet = 0.02 * np.sin(2 * np.pi * 500 * time)
  scaled = build.normalize(quiet, -23)
  found = loudness.integrated(scaled[None], build.RATE)
  assert found == pytest.approx(-23, abs=0.01)
  clicks = np.zeros(build.RATE)
  clicks[::4800] = 0.5
  assert np.abs(build.normalize(clicks, -5)).max() < 0.9
  assert not build.normalize(np.zeros(build.RATE), -23).any()
