"""Voices by reference: tables, references, detection, scores."""

import collections
import itertools
import json

import numpy as np
import pytest

from ovi_jax.media import mp4
from ovi_jax.sampling import requests
from ovi_jax.synthetic.evaluation import prompt_parser
from ovi_jax.synthetic.evaluation import voices
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import world as worlds

RATE = 16_000


def test_each_voice_is_detected_in_true_clips():
  world = worlds.World(seed=5, size=16, what=worlds.VOICES, complete=True)
  random = np.random.default_rng(0)
  right: collections.Counter[str] = collections.Counter()
  count: collections.Counter[str] = collections.Counter()
  for index in range(45):
    made = world.clip(index, slice(1))
    assert made.wave_A is not None
    hiss = random.normal(0, 0.01, len(made.wave_A))
    count[made.scene.sound] += 1
    right[made.scene.sound] += (
      voices.heard(made.wave_A + hiss, RATE) == made.scene.sound
    )
  assert min(count.values()) >= 8
  assert all(right[name] >= 0.97 * count[name] for name in scene.VOICES), right


def test_tables_have_references_of_the_same_or_of_another_voice(tmp_path):
  voices.write(tmp_path, 6, 7)
  tables = {
    name: requests.from_file(tmp_path / f"{name}.csv") for name in voices.SCORES
  }
  truth = dict(itertools.islice(voices.prompts(7), 6))
  for name, found in tables.items():
    assert [r.prompt for r in found] == list(truth) and len(found) == 6
    for request in found:
      assert prompt_parser.facts(request.prompt).sound is None
      assert request.given.voice is not None
      _, voice, _ = request.given.voice.stem.split("_")
      assert (voice == truth[request.prompt]) == (name == voices.OWN)
  # 2 s each, in which the voice is heard.
  (request, *_) = requests.expand(
    tables["shuffled"], 1, 0, height=64, width=64, area=4096
  )
  assert request.voice is not None and request.voice.latents == 62
  for name, wave_A in itertools.islice(voices.references(8), 6):
    assert len(wave_A) == 2 * RATE and voices.heard(wave_A, RATE) == name


def test_a_score_is_of_the_voice_that_the_reference_has(tmp_path):
  sounds = {}
  for name, wave_A in itertools.islice(voices.references(3), 20):
    sounds.setdefault(name, wave_A)
  frames = np.zeros((49, 32, 32, 3), np.uint8)
  for stem, said, asked in (
    ("a", "low", "own_low_000"),
    ("b", "high", "own_low_001"),
    ("c", "high", "shuffled_high_000"),
  ):
    mp4.write(tmp_path / f"{stem}.mp4", [frames], sounds[said])
    given = {"given": {"voice": {"path": f"x/{asked}.wav"}}}
    (tmp_path / f"{stem}.json").write_text(json.dumps(given))
  own, shuffled = voices.score(tmp_path)
  assert (own.name, own.value, own.clips) == ("voice by reference", 0.5, 2)
  assert (shuffled.value, shuffled.clips) == (1.0, 1)
  (tmp_path / "a.json").write_text("{}")
  with pytest.raises(ValueError, match="a.json: expected a clip with a refer"):
    voices.score(tmp_path)
  with pytest.raises(ValueError, match="count must be at least 1"):
    voices.write(tmp_path, 0, 1)
