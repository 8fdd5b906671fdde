"""Logs of a run, and reading them after a kill."""

import contextlib
import io
import json
import struct
import wave

import numpy as np
import PIL.Image
import pytest
from tensorboardX.proto import event_pb2

from ovi_jax import flops
from ovi_jax.training import logs


def test_scalars_are_read_back(tmp_path):
  with logs.Logs(tmp_path / "run") as log:
    log.scalars(1, {"train/loss": np.float32(0.5), "train/mfu": None})
    log.scalars(2, {"train/loss": float("nan")})
  first, second = logs.read(tmp_path / "run")
  assert first["step"] == 1 and first["train/loss"] == 0.5
  assert "train/mfu" not in first and second["train/loss"] == "nan"
  events = list((tmp_path / "run" / logs.EVENTS).iterdir())
  assert len(events) == 1 and events[0].stat().st_size > 60


def test_a_truncated_last_line_is_skipped(tmp_path):
  with logs.Logs(tmp_path) as log:
    log.scalars(1, {"loss": 1.0})
    log.scalars(2, {"loss": 2.0})
  path = tmp_path / logs.FILE
  path.write_text(path.read_text()[:-5])
  with logs.Logs(tmp_path) as log:
    log.scalars(2, {"loss": 3.0})
    log.scalars(2, {"eval": 4.0})
  first, second = logs.read(tmp_path)
  assert first["loss"] == 1.0 and "eval" not in first
  assert (second["loss"], second["eval"]) == (3.0, 4.0)
  whole = [line for line in path.read_text().splitlines() if line[-1] == "}"]
  assert all(json.loads(line) for line in whole)


def test_mfu_is_logged_for_known_devices_only():
  found = flops.mfu(989.4e12, 2.0, "NVIDIA H200", 4)
  assert found == pytest.approx(0.125)
  assert flops.mfu(1e12, 1.0, "cpu", 1) is None


def test_tensorboard_has_frames_and_sound_of_samples(tmp_path):
  frames_THWC = np.zeros((8, 4, 6, 3), np.uint8)
  frames_THWC[3, ..., 1] = 200
  wave_A = np.sin(np.arange(1600) / 5).astype(np.float32) / 2
  with logs.Logs(tmp_path) as written:
    written.clip(7, "samples/0", frames_THWC, wave_A)
  (file,) = (tmp_path / logs.EVENTS).iterdir()
  found = {}
  for record in events(file):
    for value in record.summary.value:
      found[value.WhichOneof("value")] = record.step, value
  step, image = found["image"]
  assert (step, image.tag) == (7, "samples/0")
  with PIL.Image.open(io.BytesIO(image.image.encoded_image_string)) as opened:
    strip_HWC = np.asarray(opened)
  assert strip_HWC.shape == (4, 8 * 6, 3)
  assert (strip_HWC[:, 18:24, 1] == 200).all() and not strip_HWC[:, :18].any()
  step, sound = found["audio"]
  assert step == 7 and sound.audio.content_type == "audio/wav"
  content = io.BytesIO(sound.audio.encoded_audio_string)
  with contextlib.closing(wave.open(content)) as file:
    assert (file.getframerate(), file.getnframes()) == (16_000, 1600)
    heard = np.frombuffer(file.readframes(1600), "<i2") / 2**15
  np.testing.assert_allclose(heard, wave_A, atol=1e-4)


def events(path):
  """The events of a file: length, checksum, content, checksum."""
  content, place = path.read_bytes(), 0
  while place < len(content):
    (size,) = struct.unpack_from("<Q", content, place)
    yield event_pb2.Event.FromString(content[place + 12 : place + 12 + size])
    place += size + 16


def test_a_preview_passes_frames_on_and_keeps_a_few_small_ones():
  frames_THWC = np.arange(121, dtype=np.uint8)[:, None, None, None]
  frames_THWC = np.broadcast_to(frames_THWC, (121, 300, 200, 3))
  preview = logs.Preview(121)
  chunks = [frames_THWC[:1], *np.split(frames_THWC[1:], 30)]
  passed = np.concatenate(list(preview.through(chunks)))
  np.testing.assert_array_equal(passed, frames_THWC)
  kept_THWC = np.stack(preview.kept)
  assert kept_THWC.shape == (8, 100, 67, 3)
  assert kept_THWC[:, 0, 0, 0].tolist() == [0, 15, 30, 45, 60, 75, 90, 105]
