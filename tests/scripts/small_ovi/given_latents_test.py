"""The stage with given latents: commands, tables, seams."""

from typing import Any

import numpy as np
import pytest

from ovi_jax import config_files
from ovi_jax import geometry
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as sampling
from ovi_jax.sampling import windows
from ovi_jax.training import settings
from scripts.small_ovi import given_latents
from scripts.small_ovi import given_scores
from scripts.small_ovi import runner


def test_every_step_has_a_valid_command(tmp_path):
  todo = list(given_latents.steps(tmp_path, 3, tmp_path / "out"))
  names = [step.name for step in runner.until(todo, "export")]
  assert names[-2:] == [given_latents.STAGE, "export"]
  assert [step.name for step in todo if step.name.startswith("scores_")] == [
    f"scores_{name}"
    for name in ("prompts", "v2a", "a2v", "ends", "long", "own", "shuffled")
  ]
  (words,) = (s.words for s in todo if s.words[0] == "train.py")
  config = config_files.load("conditions/all:small")
  assert words[1] == "--config=configs/conditions/all.py:small"
  for word in words[3:]:
    field, _, text = word.removeprefix("--config.").partition("=")
    config.update_from_flattened_dict({field: eval(text)})
  found: Any = settings.from_config(config)
  conditions = found.objective.conditions
  assert conditions.audio.reference_prob == 0.4 and found.seed == 3
  assert conditions.reference_latents == (31, 62)
  assert [source.weight for source in found.data.sources] == [0.45, 0.15, 0.4]
  advised = sampling.recommended(given_latents.SAMPLING)
  assert advised["voice_guidance_scale"] == 2.0


def test_true_clips_are_given_by_tables(tmp_path):
  given_scores.draw(tmp_path, 2, 5)
  found = {
    name: requests.from_file(tmp_path / f"{name}.csv")
    for name in given_latents.TABLES
  }
  assert [len(rows) for rows in found.values()] == [2, 2, 2, 2]
  files = {name: set(rows[0].given.files) for name, rows in found.items()}
  assert files == {
    "v2a": {"video"},
    "a2v": {"audio"},
    "ends": {"last_image"},
    "long": set(),
  }
  assert found["ends"][1].image is not None and found["long"][0].seconds == 20
  size = {"height": 64, "width": 64, "area": 4096}
  (silent, _) = requests.expand(found["v2a"], 1, 0, **size)
  assert "no sound track" not in " ".join(silent.notes) and silent.size == (
    64,
    64,
  )


def test_seams_are_where_windows_begin_something_new():
  told = {
    "latent_frames": 121,
    "windows": {"latent_frames": 31, "overlap": 7},
  }
  assert given_scores.seams(told) == [121, 217, 313, 409]
  frames_THWC = np.zeros((50, 4, 4, 3), np.uint8)
  frames_THWC[20:] = 90
  frames_THWC[::2] += 1
  jumps = given_scores.picture_jumps(frames_THWC)
  assert jumps.shape == (49,) and jumps[19] > 80
  jumped = given_scores.smooth(jumps, [20, 30])
  assert jumped is not None and tuple(jumped) == (1, 2)
  click_A = np.zeros(1000)
  click_A[500] = 1
  clicked = given_scores.smooth(click_A, [505, 100], around=10)
  assert clicked is not None and tuple(clicked) == (1, 2)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_click_in_a_crossfade_is_found(rate):
  frames, overlap = 31, 7
  told = {
    "latent_frames": 121,
    "windows": {"latent_frames": frames, "overlap": overlap},
  }
  latents, samples = 157, geometry.SAMPLES_PER_AUDIO_LATENT
  clip = geometry.Clip(
    latent_frames=frames,
    latent_height=2,
    latent_width=2,
    audio_latents=latents,
  )
  planned = windows.plan(121, clip, overlap)
  starts = [window.audio_start * samples for window in planned]
  joiner, parts = windows.SoundJoiner(), []
  for number, (start, following) in enumerate(zip(starts, [*starts[1:], None])):
    wave_A = np.zeros(latents * samples, np.float32)
    if number == 2:  # in the middle of what it shares with the one before
      wave_A[planned[2].audio_given * samples // 2] = 1.0
    parts.append(joiner.add(wave_A, start, following))
  wave_A = np.concatenate(parts)
  assert wave_A.max() == pytest.approx(0.5, abs=0.01)
  jumps_A = np.abs(np.diff(np.repeat(wave_A, rate // 16_000)))
  at = given_scores.sound_seams(told, rate)
  found = given_scores.smooth(jumps_A, at, rate // 10)
  assert found is not None and tuple(found) == (3, 4)
