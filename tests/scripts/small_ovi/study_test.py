"""The rehearsal of a study with simulated raters."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ovi_jax.media import mp4
from ovi_jax.synthetic.world import world as worlds
from tests.lib import child_env


@pytest.mark.slow
def test_raters_who_follow_the_scores_prefer_clips_in_sync(tmp_path):
  """`late` has the same pictures with the sound half a second later."""
  world = worlds.World(seed=1000, complete=True)
  for index in range(2):
    clip = world.clip(index)
    assert clip.wave_A is not None
    for name, shift in (("right", 0), ("late", 8000)):
      path = tmp_path / name / f"clip_{index}.mp4"
      mp4.write(path, [clip.frames_THWC], np.roll(clip.wave_A, shift))
      prompt = {"prompt": clip.captions[0]}
      path.with_suffix(".json").write_text(json.dumps(prompt))
  done = subprocess.run(
    [
      *(sys.executable, "-m", "scripts.small_ovi.study", "--out=out"),
      *("--clips=right=right,late=late", "--raters_per_item=9"),
    ],
    cwd=tmp_path,
    env=child_env.environment(PYTHONPATH=child_env.ROOT),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
  (pair,) = (
    pair
    for pair in found["results"]["kept"]["questions"]["sync"]["pairs"]
    if {pair["first"], pair["second"]} == {"late", "right"}
  )
  assert pair["first"] == "late" and pair["pwr"]["value"] < 0.5
  left_out = [rater for rater in found["raters"] if rater["reasons"]]
  assert len(left_out) == 1
