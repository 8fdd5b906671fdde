"""The documents' commands, run as a reader would, with fewer steps."""

import json
import pathlib

import einops
import numpy as np
import pytest

from ovi_jax.media import mp4
from ovi_jax.synthetic.world import world as worlds
from ovi_jax.training import logs
from tests.lib import doc_commands


@pytest.mark.slow
def test_training_from_raw_clips_to_sample_py(tmp_path):
  blocks = doc_commands.FENCED.findall(
    (doc_commands.ROOT / "docs" / "training.md").read_text()
  )
  doc_commands.repository(tmp_path)
  assert len(blocks) == 7
  for kind, text in blocks:
    doc_commands.run(kind, text, tmp_path)
  (clip,) = (tmp_path / "runs" / "samples").glob("*.mp4")
  frames, fps, wave, rate = mp4.read(clip)
  assert frames.shape == (121, 64, 64, 3) and fps == 24
  assert rate == 16_000 and abs(wave.size / rate - 5.02) < 0.1
  lines = logs.read(tmp_path / "runs" / "fusion")
  assert any("eval/loss_video_t0.25-0.50" in line for line in lines)
  made = tmp_path / "runs" / "fusion" / "samples" / "step-00000004"
  assert len(list(made.glob("*.mp4"))) == 2


def test_commands_are_written_without_the_environments_folder():
  for path in (
    doc_commands.ROOT / "README.md",
    *(doc_commands.ROOT / "docs").glob("*.md"),
  ):
    text = path.read_text()
    assert ".venv/bin/python" not in text and ".venv/bin/pip" not in text, path


@pytest.mark.slow
def test_fine_tuning_from_a_folder_of_clips(tmp_path):
  blocks = doc_commands.FENCED.findall(
    (doc_commands.ROOT / "docs" / "fine_tuning.md").read_text()
  )
  doc_commands.repository(tmp_path)
  write_clips(tmp_path, 8)
  assert len(blocks) == 4
  for kind, text in blocks:
    doc_commands.run(kind, text, tmp_path)
  before, after = (
    json.loads(path.read_text())
    for name in ("before", "after")
    for path in (tmp_path / "runs" / name).glob("*.json")
  )
  # The same seed and settings, other weights.
  assert before["config"] == after["config"] and before["seed"] == after["seed"]
  assert after["config"]["guidance_scale"] == {"video": 1.5, "audio": 1.5}
  sums = [made["weights"]["sha256"] for made in (before, after)]
  assert {name for name in sums[0] if sums[0][name] != sums[1][name]} == {
    "fusion"
  }
  lines = logs.read(tmp_path / "runs" / "mine")
  assert any("eval/loss_video" in line for line in lines)
  assert list((tmp_path / "runs" / "mine" / "samples").rglob("*.mp4"))


def write_clips(folder: pathlib.Path, count: int) -> None:
  """Clips at 30 fps, larger than they are read, and their table."""
  world, lines = worlds.World(seed=991, complete=True), ["path,caption,split"]
  (folder / "clips").mkdir()
  for number in range(count):
    made = world.clip(number)
    frames_THWC = einops.repeat(
      made.frames_THWC, "T H W C -> T (H h) (W w) C", h=2, w=2
    )
    # Every fourth frame comes twice: 30 frames a second.
    places = np.arange(len(frames_THWC) * 5 // 4) * 4 // 5
    path = folder / "clips" / f"{number}.mp4"
    mp4.write(path, [frames_THWC[places]], made.wave_A, fps=30)
    split = "test" if number % 4 == 3 else "train"
    lines.append(f'{path.name},"{made.captions[0]}",{split}')
  (folder / "captions.csv").write_text("\n".join(lines) + "\n")
