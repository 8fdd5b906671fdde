"""The model card says what the files of the recipe say."""

import json

import pytest

from ovi_jax.demo import card


@pytest.fixture
def root(tmp_path):
  weights = tmp_path / "weights"
  weights.mkdir()
  sizes = {"latents": {"T": 31, "H": 4, "W": 4, "A": 157}}
  (weights / "ovi_jax.json").write_text(json.dumps({"sizes": sizes}))
  (weights / "fusion.safetensors").write_bytes(bytes(1_500_000))
  (tmp_path / "times.json").write_text('{"fusion": 6000, "codecs": 60}')
  (tmp_path / "codecs.md").write_text("| PSNR | 30.1 |\n")
  for number, name in enumerate(card.SETS):
    score = {"name": "sync F1", "value": 0.9 - number / 10, "low": 0.8}
    scores = [score | {"high": 0.95, "clips": 64}]
    scores.append({"name": "pitch", "value": None, "clips": 0})
    path = tmp_path / f"scores_{name}.json"
    path.write_text(json.dumps({"scores": scores}))
  return tmp_path


def test_the_card_tells_numbers_and_goals(root):
  text = card.text(root, root / "weights")
  row = "| sync F1 | ≥ 85 | 90.0 % (80 to 95) | 80.0 % (80 to 95) |"
  assert row in text and "| pitch | ≥ 85 |  |  |" in text
  assert "| sync F1, sound of another | ≤ 45 |" in text
  assert "fusion 1.5 MB; 1.5 MB in bfloat16" in text
  assert "64 by 64 pixels" in text and "| PSNR | 30.1 |" in text
  assert "| fusion | 100.0 |" in text and "| **all** | **101** |" in text
  assert max(len(line) for line in text.splitlines()) < 200
