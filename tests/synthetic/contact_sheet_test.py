"""Contact sheets of clips."""

import json

import numpy as np
import pytest

from ovi_jax.media import mp4
from ovi_jax.synthetic import contact_sheet


def test_a_sheet_shows_frames_prompt_and_sound(tmp_path):
  frames = np.zeros((9, 32, 32, 3), np.uint8)
  frames[4:] = 255
  wave = np.zeros(6000, np.float32)
  wave[3000:] = 0.9
  mp4.write(tmp_path / "a.mp4", [frames], wave)
  (tmp_path / "a.json").write_text(json.dumps({"prompt": "A lamp."}))
  made = np.asarray(contact_sheet.of_folder(tmp_path, moments=3, scale=2), int)
  assert made.shape == (18 + 64 + 40 + 10, 3 * 64, 3)
  text, shown, sound = made[:18], made[18:82], made[84:120]
  assert (text < 128).any()
  assert shown[:, :64].mean() < 20 < 235 < shown[:, 128:].mean()
  dark = (sound < 200).any(-1).sum(0)
  assert dark[:80].max() <= 2 < 20 < dark[110:180].min()


def test_a_gif_plays_frames_with_a_cursor_on_the_waveform(tmp_path):
  frames = np.zeros((9, 32, 32, 3), np.uint8)
  frames[4:] = 255
  mp4.write(tmp_path / "a.mp4", [frames], np.zeros(6000, np.float32))
  (tmp_path / "a.json").write_text(json.dumps({"prompt": "A lamp."}))
  images = [
    np.asarray(each.convert("RGB"), int)
    for each in contact_sheet.animation(tmp_path, scale=2)
  ]
  assert len(images) == 5  # every other frame
  dark, bright = images[0][-104:-40, :64], images[4][-104:-40, :64]
  assert dark.mean() < 20 < 235 < bright.mean()
  cursors = [(made[-5, :, 2] < 100).argmax() for made in images]
  assert cursors == sorted(cursors) and cursors[-1] == 2 * 4 * 64 // 9


def test_missing_files_are_named(tmp_path):
  with pytest.raises(ValueError, match=r"no \*.mp4"):
    contact_sheet.of_folder(tmp_path)
  mp4.write(tmp_path / "a.mp4", [np.zeros((5, 32, 32, 3), np.uint8)], None)
  with pytest.raises(ValueError, match=r"a\.json: .*expected the recipe"):
    contact_sheet.of_folder(tmp_path)
