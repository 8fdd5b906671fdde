"""Shipped weights: size, description and quality."""

import csv
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ovi_jax import synthetic
from ovi_jax.media import images
from ovi_jax.media import mp4
from ovi_jax.pretrained import weights_dir
from ovi_jax.synthetic.evaluation import report
from scripts.small_ovi import card
from tests.lib import child_env

PICTURE = pathlib.Path(__file__).parents[2] / "docs" / "images" / "face.png"
PROMPTS = (
  "A red ball bounces on a wooden floor. Audio: dull wooden knocks.",
  "A blue lamp flashes three times. Audio: three high beeps.",
  "A face in a green hat says <S>ah oh ee<E>. Audio: a deep voice.",
)
WITH_PICTURE = "A face in a green hat says <S>ee ah<E>. Audio: a deep voice."


def test_shipped_weights_are_small_and_described():
  files = [p for p in synthetic.WEIGHTS.rglob("*") if p.is_file()]
  assert sum(p.stat().st_size for p in files) <= 20e6
  digest = weights_dir.read(synthetic.WEIGHTS).digests["fusion"]
  text = (synthetic.WEIGHTS / card.CARD).read_text("utf-8")
  assert all(name in text for name in card.GOALS)
  assert digest[:16] in text, "the card is of other weights"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
  """What `sample.py` makes of three prompts, and of one with a picture.

  Most of its time is 80 steps, not compilation, so XLA optimizes here.
  """
  out = tmp_path_factory.mktemp("clips")
  table = out / "prompts.csv"
  with open(table, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["text_prompt", "image_path"])
    rows.writerows([prompt, ""] for prompt in PROMPTS)
    rows.writerow([WITH_PICTURE, PICTURE])
  command = [sys.executable, "sample.py", f"--prompts={table}", f"--out={out}"]
  environment = child_env.environment(XLA_FLAGS="")
  done = subprocess.run(
    command, cwd=child_env.ROOT, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr
  table.unlink()
  return out


@pytest.mark.slow
def test_generated_clips_show_the_prompted_events(made):
  clips = report.read(made)
  assert len(clips) == 4
  found = {each.name: each for each in report.score(clips)}
  for name in ("kind", "colour", "material", "pitch", "voice"):
    assert found[name].value == 1, name
  assert found["sync F1"].value > 0.6
  assert found["vowels heard"].value > 0.6


@pytest.mark.slow
def test_a_clip_starts_with_its_image(made):
  picture_HWC = images.read_image(PICTURE)[0].astype(float)
  errors = []
  for path in made.glob("A_face*.mp4"):
    frame_HWC = mp4.read(path)[0][0]
    errors.append(np.square(frame_HWC - picture_HWC).mean())
  given, other = sorted(10 * np.log10(255**2 / np.array(errors)))[::-1]
  assert given > 22 > other
