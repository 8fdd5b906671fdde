"""What a run writes down, and reads again after a kill."""

import json

import numpy as np
import pytest

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


def test_a_line_that_a_kill_cut_is_left_out(tmp_path):
  with logs.Logs(tmp_path) as log:
    log.scalars(1, {"loss": 1.0})
    log.scalars(2, {"loss": 2.0})
  path = tmp_path / logs.FILE
  path.write_text(path.read_text()[:-5])
  with logs.Logs(tmp_path) as log:
    log.scalars(2, {"loss": 3.0})
    log.scalars(2, {"held_out": 4.0})
  first, second = logs.read(tmp_path)
  assert first["loss"] == 1.0 and "held_out" not in first
  assert (second["loss"], second["held_out"]) == (3.0, 4.0)
  whole = [line for line in path.read_text().splitlines() if line[-1] == "}"]
  assert all(json.loads(line) for line in whole)


def test_utilization_is_told_for_known_devices_alone():
  found = flops.mfu(989.4e12, 2.0, "NVIDIA H200", 4)
  assert found == pytest.approx(0.125)
  assert flops.mfu(1e12, 1.0, "cpu", 1) is None
