"""The commands: prompts out, clips in, a table and JSON out."""

import collections
import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ovi_jax.media import mp4
from ovi_jax.sampling import requests
from ovi_jax.synthetic.evaluation import audio_detectors
from ovi_jax.synthetic.evaluation import prompt_parser
from ovi_jax.synthetic.evaluation import prompts
from ovi_jax.synthetic.evaluation import report
from ovi_jax.synthetic.evaluation import weights
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import world

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, "-m", "ovi_jax.synthetic.evaluation", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def values(clips):
  return {score.name: score for score in report.score(clips)}


@pytest.mark.slow
def test_a_folder_becomes_a_table_and_json(folder, tmp_path):
  out, table = tmp_path / "report.json", tmp_path / "report.md"
  done = command(f"--clips={folder}", f"--out={out}", f"--markdown={table}")
  assert done.returncode == 0, done.stderr
  assert done.stdout == table.read_text()
  assert "| kind | 100.0 % | " in done.stdout
  made = json.loads(out.read_text())
  assert len(made["clips"]) == len(list(folder.glob("*.mp4")))
  named = {score["name"]: score for score in made["scores"]}
  assert named["sync F1"]["value"] > 0.97 and named["kind"]["clips"] == 12
  assert made["clips"][0]["prompt"]


@pytest.mark.slow
def test_wrong_clips_score_zero(clips):
  """Every clip gets another's prompt, of another kind and colour."""
  kinds = [clip.facts.kind for clip in clips]
  wrong = []
  for clip in clips:
    other = clips[
      kinds.index(
        {"ball": "lamp", "lamp": "face", "face": "ball"}[str(clip.facts.kind)]
      )
    ]
    colours = tuple(c for c in scene.COLOURS if c not in clip.facts.colours)
    asked = dataclasses.replace(other.facts, colours=colours[:1])
    wrong.append(dataclasses.replace(clip, facts=asked))
  found = values(wrong)
  for name in ("kind", "colour", "material", "pitch", "voice"):
    assert found[name].value == 0 and found[name].clips, name


def test_each_error_lowers_its_own_scores(clips):
  right = values(clips)
  deaf = values(
    [dataclasses.replace(clip, detected_sounds=()) for clip in clips]
  )
  assert deaf["sync F1"].value == 0 and deaf["vowels heard"].value == 0
  assert deaf["events that are heard"].value == 0
  assert deaf["something happens"].value == 0
  assert right["something happens"].value == 1
  assert deaf["kind"].value == right["kind"].value == 1
  late = values(
    [
      dataclasses.replace(
        clip,
        detected_sounds=tuple(
          dataclasses.replace(h, seconds=h.seconds + 0.02)
          for h in clip.detected_sounds
        ),
      )
      for clip in clips
    ]
  )
  shift = late["sound later than picture"].value
  assert shift - right["sound later than picture"].value == pytest.approx(
    20, abs=0.5
  )
  assert late["sync F1"].value == right["sync F1"].value


def test_an_extra_sound_costs_as_much_as_a_wrong_one(clips):
  clip = next(clip for clip in clips if clip.facts.kind == "face")
  knock = audio_detectors.DetectedSound(
    seconds=4.8, sound=audio_detectors.Sound("ball", "wood")
  )
  more = dataclasses.replace(
    clip, detected_sounds=(*clip.detected_sounds, knock)
  )
  count = len(clip.facts.vowels)
  assert values([more])["vowels heard"].value == count / (count + 1)
  assert values([more])["number of sounds heard"].value == 0
  assert values([more])["voice"].value == 1


def test_a_low_voice_is_not_a_low_beep(clips):
  clip = next(clip for clip in clips if clip.facts.kind == "face")
  asked = prompt_parser.facts("A red lamp flashes two times. Audio: low beeps.")
  vowel = audio_detectors.DetectedSound(
    seconds=1.0, sound=audio_detectors.Sound("face", "ah", "low")
  )
  deceived = dataclasses.replace(
    clip, facts=asked, detected_sounds=(vowel, vowel)
  )
  assert values([deceived])["pitch"].value == 0


def test_requested_silence_is_scored_as_correct():
  clip = report.Clip(
    name="quiet",
    prompt="",
    facts=prompt_parser.facts("A blue lamp stays dark. Audio: silence."),
    seen=report.video_detectors.Seen(kind="lamp", colours=("blue",)),
    detected_sounds=(),
    seconds=5.0,
  )
  found = values([clip])
  assert found["number of sounds heard"].value == 1
  assert found["number of events seen"].value == 1
  assert found["something happens"].clips == 0
  assert math.isnan(found["sync F1"].value)
  assert "sync" not in report.markdown(list(found.values()))


def test_clips_without_recipes_or_of_another_world_are_named(tmp_path):
  with pytest.raises(ValueError, match="has no \\*.mp4"):
    report.read(tmp_path)
  for name in ("one", "two", "zero"):
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    mp4.write(tmp_path / f"{name}.mp4", [frames], None)
  (tmp_path / "two.json").write_text('{"prompt": "Surf."}')
  (tmp_path / "zero.json").write_text("{}")
  wanted = r"one\.json.*'Surf\.' is no prompt.*zero\.json has no prompt"
  with pytest.raises(ValueError, match=wanted):
    report.read(tmp_path)


def test_files_that_are_no_clips_of_the_world_are_named(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="there is no such folder of clips"):
    report.read(tmp_path / "none")
  monkeypatch.setattr(report, "_MAX_BYTES", 1_000_000)
  sizes = {
    "short": (5, 32, 32, 3),
    "wide": (9, 32, 64, 3),
    "large": (30, 128, 128, 3),
  }
  for name, size in sizes.items():
    mp4.write(tmp_path / f"{name}.mp4", [np.zeros(size, np.uint8)], None)
  (tmp_path / "empty.mp4").write_bytes(b"")
  (tmp_path / "other").mkdir()
  mp4.write(
    tmp_path / "other" / "a.mkv", [np.zeros((9, 32, 32, 3), np.uint8)], None
  )
  (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other/a.mkv\n")
  for name in (*sizes, "empty", "list"):
    text = json.dumps({"prompt": "A red ball bounces on a wooden floor."})
    (tmp_path / f"{name}.json").write_text(text)
  with pytest.raises(ValueError) as raised:
    report.read(tmp_path)
  message = str(raised.value)
  assert (
    "empty.mp4: expected a video file" in message and "Errno" not in message
  )
  assert "list.mp4: expected a video file" in message and "formats" in message
  assert "large.mp4: expected a video file" in message
  assert "its 30 frames of 128x128 have 1 MB" in message
  assert (
    "short.mp4: expected square pictures of at least 8 pixels, got 5 of 32"
    in message
  )
  assert (
    "wide.mp4: expected square pictures of at least 8 pixels, got 9 of 32x64"
    in message
  )


@pytest.mark.slow
def test_prompts_are_accepted_by_sample_py(tmp_path):
  path = tmp_path / "prompts.csv"
  done = command("prompts", f"--out={path}", "--count=20", "--pairs=held_out")
  assert done.returncode == 0, done.stderr
  asked = [request.prompt for request in requests.from_file(path)]
  assert len(asked) == len(set(asked)) == 20
  for prompt in asked:
    found = prompt_parser.facts(prompt)
    pairs = {(colour, found.sound) for colour in found.colours}
    assert found.count != 0 and pairs & scene.HELD_OUT
  assert {"Audio:" in prompt for prompt in asked} == {True, False}
  seeds = [request.seed for request in requests.from_file(path)]
  assert seeds == list(range(1000, 1020))


@pytest.mark.slow
def test_training_prompts_are_excluded():
  trained = [prompts.Trained.parse("1:150")]
  made = world.World(seed=1, size=16)
  known = {c for n in range(150) for c in made.clip(n, slice(1)).captions}
  plain = prompts.draw(40, 7, "all")
  drawn = prompts.draw(40, 7, "all", trained)
  assert known & set(plain) and not known & set(drawn)
  kinds = [
    [prompt_parser.facts(p).kind for p in found] for found in (plain, drawn)
  ]
  assert collections.Counter(kinds[0]) == collections.Counter(kinds[1])
  pairs = prompts.Trained.parse("2:9:two_balls")
  captions = pairs.world.clip(8).captions
  assert len(prompt_parser.facts(captions[0]).colours) == 2
  more = prompts.draw(40, 7, "all", [*trained, pairs])
  assert not known & set(more) and not set(captions) & set(more)
  for wrong in ("1", "a:3", "1:-3", "1:3:clips:4", ""):
    with pytest.raises(ValueError, match="expected SEED:CLIPS"):
      prompts.Trained.parse(wrong)
  with pytest.raises(ValueError, match="what: expected one of clips, two_ball"):
    prompts.Trained.parse("1:3:films")


def test_invalid_flags_are_refused(tmp_path):
  with pytest.raises(ValueError, match="at least 1 prompt"):
    prompts.draw(0, 1, "seen")
  with pytest.raises(ValueError, match="seed: expected 0 or more, got -1"):
    prompts.draw(3, -1, "seen")
  with pytest.raises(ValueError, match="at least 1 clip, got 0"):
    weights.losses(tmp_path, 0, 1)
  with pytest.raises(ValueError, match=r"ends in \.csv"):
    prompts.write(tmp_path / "prompts.txt", ["A ball."], 0)
