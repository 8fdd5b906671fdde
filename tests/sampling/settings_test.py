"""Precedence of defaults, recommended and user settings."""

import pathlib

import pytest

from ovi_jax.modality import AV
from ovi_jax.sampling import settings
from tests.lib import config_values

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPEN = {"num_steps": None, "slg_layer": None}


def settled(advised=None, **changes) -> settings.Settings:
  config = config_values.sample_config(**OPEN | changes)
  return settings.Settings.from_config(config, advised)


def test_defaults_equal_the_originals():
  found = settled()
  assert (found.height, found.width) == (704, 1280)
  assert found.guidance_scale == AV(4.0, 3.0)
  assert list(found.negative_prompt) == config_values.PROMPTS[1:]
  assert (found.solver, found.flow_shift, found.seed) == ("unipc", 5.0, 103)
  assert (found.num_steps, found.slg_layer) == (50, 11)


def test_user_settings_override_recommended_ones():
  advised = {
    "num_steps": 20,
    "flow_shift": 3,
    "guidance_scale": {"video": 2.0, "audio": 1.5},
  }
  found = settled(advised, num_steps=7)
  assert (found.num_steps, found.flow_shift) == (7, 3.0)
  assert found.guidance_scale == AV(2.0, 1.5) and found.solver == "unipc"
  config = config_values.sample_config(**OPEN)
  config.guidance_scale.audio = 9.0
  found = settings.Settings.from_config(config, advised)
  assert found.guidance_scale == AV(2.0, 9.0)


@pytest.mark.parametrize(
  ("advised", "message"),
  [
    ({"seed": 3}, "field 'seed' is unknown; weights may advise num_steps"),
    ({"num_steps": "7"}, "sampling.num_steps: expected a int, got '7'"),
    ({"guidance_scale": 3.0}, "expected values of video, audio, got 3.0"),
    (
      {"guidance_scale": {"video": 3.0, "audio": None}},
      "guidance_scale.audio: expected a",
    ),
    ({"solver": "heun"}, "solver 'heun' is unknown"),
  ],
)
def test_invalid_recommended_settings_are_refused(advised, message):
  with pytest.raises(ValueError, match=message):
    settled(advised)


@pytest.mark.parametrize(
  "advised",
  [
    {"x" * 100_000: 1},
    {"num_steps": "x" * 100_000},
    {"negative_prompt": "x" * 100_000},
  ],
)
def test_long_values_are_cut_in_the_message(advised):
  with pytest.raises(ValueError, match="sampling") as error:
    settings.recommended(advised)
  assert len(str(error.value)) < 400


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *(
      ("seed", True),
      ("num_steps", True),
      ("flow_shift", True),
      ("shard_clips_over_hosts", 1),
    ),
    *(("guidance_scale.audio", True), ("mesh.data", True), ("seed", "3")),
  ],
)
def test_booleans_and_strings_are_not_numbers(field, value):
  config = config_values.plain_config(
    config_values.sample_config(), field, value
  )
  with pytest.raises(
    ValueError, match=f"config.{field} must be .*got {value!r}"
  ):
    settings.Settings.from_config(config)
