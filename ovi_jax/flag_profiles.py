"""Compiler flags by kind of chip and job, kept as data (`flag_profiles.json`).

XLA and libtpu read their flags from the environment when they start, so a
profile is applied before the first use of a device. Flags that are already in
the environment follow those of the profile, and override them.
"""

import functools
import importlib.resources
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from ovi_jax import config as config_lib

_log = logging.getLogger(__name__)
NONE = "none"
TRAIN, SAMPLE = "train", "sample"
TABLE = "flag_profiles.json"
FIELDS = ("profile", "device_kind", "job", "variable", "flags")


def names() -> list[str]:
  """Values of `--flags_profile`."""
  return [NONE, *sorted({row["profile"] for row in table()})]


def flags_of(profile: str, job: str) -> Mapping[str, str]:
  """Flags of a profile and a job, by name; none of "none".

  Raises:
    ValueError: the profile is unknown.
  """
  return {} if profile == NONE else _row(profile, job)["flags"]


def apply(profile: str, job: str) -> None:
  """Put the flags of a profile in the environment.

  Args:
    profile: one of `names()`; "none" changes nothing.
    job: "train" or "sample".

  Raises:
    ValueError: the profile is unknown.
  """
  if profile == NONE:
    return
  row = _row(profile, job)
  words = [f"--{name}={value}" for name, value in row["flags"].items()]
  given = os.environ.get(row["variable"], "").split()
  os.environ[row["variable"]] = " ".join([*words, *given])
  _log.info(f"flags profile {profile}: {row['variable']}={' '.join(words)}")


def check_device(profile: str, job: str, device_kind: str) -> None:
  """Check that a profile is for a kind of chip.

  Raises:
    ValueError: it is for another one.
  """
  if profile == NONE:
    return
  expected = _row(profile, job)["device_kind"]
  if device_kind != expected:
    raise ValueError(
      f"flags_profile {profile} is for {expected}, got {device_kind}; choose"
      f" from {', '.join(names())}"
    )


def _row(profile: str, job: str) -> Mapping[str, Any]:
  config_lib.check(
    config_lib.invalid_choice("flags_profile", profile, names()), ""
  )
  return next(
    row for row in table() if (row["profile"], row["job"]) == (profile, job)
  )


@functools.cache
def table() -> list[dict[str, Any]]:
  """The rows: a profile, its chip and job, a variable and its flags."""
  file = importlib.resources.files("ovi_jax") / TABLE
  return json.loads(file.read_text("utf-8"))
