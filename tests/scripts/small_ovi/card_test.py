"""The model card states the numbers in the recipe's files."""

import json

import pytest

from ovi_jax.synthetic.evaluation import weights as evaluated
from scripts.small_ovi import card

LOSSES = (evaluated.VIDEO, evaluated.AUDIO)


@pytest.fixture
def root(tmp_path):
  weights = tmp_path / "weights"
  weights.mkdir()
  sizes = {"latents": {"T": 31, "H": 4, "W": 4, "A": 157}}
  (weights / "ovi_jax.json").write_text(
    json.dumps({"sizes": sizes, "digests": {"fusion": "ab" * 32}})
  )
  (weights / "fusion.safetensors").write_bytes(bytes(1_500_000))
  times = {"machines": ["9 cores"], "seconds": {"fusion": 6000, "codecs": 60}}
  (tmp_path / "times.json").write_text(json.dumps(times))
  losses = {name: {"mean": 30.1, "worst": 20, "clips": 64} for name in LOSSES}
  (tmp_path / card.CODECS).write_text(json.dumps(losses))
  for number, name in enumerate(card.SETS):
    score = {"name": "sync F1", "value": 0.9 - number / 8, "low": 0.8}
    scores = [score | {"high": 0.95, "clips": 64}]
    scores.append({"name": "pitch", "value": None, "clips": 0})
    path = tmp_path / f"scores_{name}.json"
    path.write_text(json.dumps({"scores": scores}))
  return tmp_path


def test_the_card_states_results_and_goals(root):
  text = card.text(root, root / "weights", 7)
  row = "| sync F1 | ≥ 85 | 90.0 % (80 to 95) | 77.5 % (80 to 95) |"
  assert row in text and "| pitch | ≥ 85 |  |  |" in text
  assert "| sync F1, sound of another | ≤ 45 |" in text
  assert "fusion 1.5 MB;\n  1.5 MB in all, in bfloat16." in text
  assert "64 by 64 pixels" in text and "dB | 30.10 | 20.00 | 64 |" in text
  assert "| fusion | 100.0 |" in text and "| **total** | **101** |" in text
  assert "Wall-clock minutes on 9 cores.\nThey include" in text
  assert "seed 7. The" in text and "`abababababababab…`" in text
  assert max(len(line) for line in text.splitlines()) < 120


def test_the_card_names_missed_goals(root):
  text = card.text(root, root / "weights", 0)
  assert "Goals not reached" not in text
  assert "All goals are reached on new prompts." in text
  assert "10 points worse: sync F1 (12)." in " ".join(text.split())
  for name in card.SETS:
    path = root / f"scores_{name}.json"
    found = json.loads(path.read_text())
    found["scores"] += [
      {"name": name, "value": value, "low": 0, "high": 1, "clips": 9}
      for name, value in (("colour", 0.94), ("sync F1, sound of another", 0.5))
    ]
    path.write_text(json.dumps(found))
  path = root / card.CODECS
  path.write_text(path.read_text().replace("30.1", "29.9"))
  text = " ".join(card.text(root, root / "weights", 0).split())
  assert (
    "Goals not reached, on new prompts: colour (94.0 %), sync F1, sound of"
    " another (50.0 %), video PSNR (29.90 dB, the goal is 30)."
  ) in text
  assert "All goals" not in text and "Experiments are recorded" in text
  (root / "scores_held_out.json").write_bytes(
    (root / "scores_seen.json").read_bytes()
  )
  text = " ".join(card.text(root, root / "weights", 0).split())
  assert "each score with a goal is at most 10 points worse" in text
