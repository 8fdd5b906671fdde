"""Type checks of settings: booleans and strings are not numbers."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest

from ovi_jax import config as config_lib
from ovi_jax.modality import AV


@dataclasses.dataclass(frozen=True)
class Settings:
  """One field of each kind."""

  seed: int = 0
  rate: float = 0.1
  append: bool = False
  limit: float | None = None
  mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
  guidance: AV[float] = dataclasses.field(default_factory=lambda: AV(1.0, 1.0))
  size: tuple[int, int, int] = (1, 2, 2)
  sizes: tuple[tuple[int, float], ...] = ()
  sound: bool | int = 0
  name: str = ""


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"seed": True}, "config.seed must be a whole number, got True"),
    ({"seed": 1.5}, "config.seed must be a whole number, got 1.5"),
    ({"seed": "1"}, "config.seed must be a whole number, got '1'"),
    ({"seed": None}, "config.seed must be a whole number, got None"),
    ({"rate": False}, "config.rate must be a number, got False"),
    (
      {"rate": math.nan},
      "must be a number other than NaN or infinity, got nan",
    ),
    ({"limit": math.inf}, "must be a number other than NaN or infinity, got i"),
    ({"append": 1}, "config.append must be True or False, got 1"),
    ({"append": "False"}, "config.append must be True or False, got 'False'"),
    ({"limit": True}, "config.limit must be a number, got True"),
    ({"mesh": {"data": True}}, "config.mesh.data must be a whole number"),
    ({"guidance": AV(1.0, True)}, "config.guidance.audio must be a number"),
    ({"size": (1, True, 2)}, r"config.size\[1\] must be a whole number"),
    ({"sizes": [(1, 1), (1, True)]}, r"config.sizes\[1\]\[1\] must be a num"),
    ({"seed": True, "rate": "x"}, "got True; config.rate must be a number"),
    ({"seed": "\x1b" * 99}, r"got '\\x1b"),
    ({"mesh": {str(i): True for i in range(12)}}, "and 2 more"),
  ],
)
def test_values_of_another_type_are_refused_by_field_name(values, message):
  with pytest.raises(ValueError, match=message):
    config_lib.check_types(Settings, values, "config")


def test_values_of_the_declared_type_pass():
  config_lib.check_types(Settings, vars(Settings()), "config")
  values = {
    "seed": np.int64(3),
    "rate": 1,
    "limit": np.float32(2),
    "mesh": {"data": 0},
    "guidance": AV(4.0, None),
    "size": [1, 2, 2],
    "sound": True,
    "name": True,  # its class checks texts
    "other": True,  # its class refuses it
  }
  config_lib.check_types(Settings, values, "config")
