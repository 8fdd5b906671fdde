"""Profiles of compiler flags: the table, the environment; XLA knows them."""

import os
import subprocess
import sys

import pytest

from ovi_jax import flag_profiles
from ovi_jax import hardware
from ovi_jax.aot import topology
from tests.lib import child_env

JOBS = {flag_profiles.TRAIN, flag_profiles.SAMPLE}


def test_every_profile_has_flags_for_every_job():
  jobs: dict = {}
  for row in flag_profiles.table():
    assert row.keys() == set(flag_profiles.FIELDS)
    assert row["device_kind"] in hardware.CHIPS
    assert row["variable"] in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
    assert row["flags"] and all(n.startswith("xla_") for n in row["flags"])
    jobs.setdefault(row["profile"], []).append(row["job"])
  assert set(topology.KNOWN) <= set(jobs)
  assert all(sorted(found) == sorted(JOBS) for found in jobs.values())


def test_xla_knows_the_flags_of_gpus():
  """Without a GPU too: it ends the process at a flag that it does not know."""
  rows = [r for r in flag_profiles.table() if r["variable"] == "XLA_FLAGS"]
  assert {row["device_kind"].split()[0] for row in rows} == {"NVIDIA"}
  flags = {f"--{n}={v}" for row in rows for n, v in row["flags"].items()}

  def run(words):
    given = {"XLA_FLAGS": " ".join(sorted(words)), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
      [sys.executable, "-c", "import jax; jax.devices()"],
      env=child_env.environment() | given,
      capture_output=True,
      text=True,
      check=False,
    )

  done = run(flags)
  assert done.returncode == 0, done.stderr
  assert run(flags | {"--xla_gpu_nonsense=true"}).returncode != 0


def test_flags_are_put_before_those_of_the_environment(monkeypatch):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--mine=1")
  flag_profiles.apply("none", "train")
  assert os.environ["LIBTPU_INIT_ARGS"] == "--mine=1"
  flag_profiles.apply("v5p", "train")
  words = os.environ["LIBTPU_INIT_ARGS"].split()
  flags = flag_profiles.flags_of("v5p", "train")
  assert words == [*(f"--{n}={v}" for n, v in flags.items()), "--mine=1"]
  assert not flag_profiles.flags_of("none", "train")


def test_wrong_profiles_are_refused():
  with pytest.raises(ValueError, match="'v9' is unknown; choose from none, "):
    flag_profiles.apply("v9", "train")
  with pytest.raises(
    ValueError, match="v5p is for TPU v5, got TPU v6 lite; ch"
  ):
    flag_profiles.check_device("v5p", "train", "TPU v6 lite")
  flag_profiles.check_device("v5p", "train", "TPU v5")
  flag_profiles.check_device("none", "train", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(topology.KNOWN))
def test_libtpu_knows_the_flags(kind):
  """It ends the process at a flag that it does not know."""
  name = f"{kind}:{topology.KNOWN[kind].split()[1]}"
  program = f"""
from ovi_jax import flag_profiles
from ovi_jax.aot import topology
for job in ("train", "sample"):
  flag_profiles.apply({kind!r}, job)
(device, *_) = topology.devices({name!r})
flag_profiles.check_device({kind!r}, "train", device.device_kind)
"""
  done = subprocess.run(
    [sys.executable, "-c", program],
    env=child_env.environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
