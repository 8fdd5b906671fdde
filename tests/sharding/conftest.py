"""Environments of launchers, without the variables of this machine."""

import os

import pytest

_LAUNCHERS = (
  "JAX_COORDINATOR",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
  "JAX_LOCAL_DEVICE_IDS",
  "JOB_COMPLETION_INDEX",
  "KUBERNETES_",
  "MEGASCALE_",
  "OMPI_",
  "OVI_JAX_",
  "PMI_",
  "RANK",
  "SLURM_",
  "TPU_",
  "WORLD_SIZE",
)


@pytest.fixture
def set_environment(monkeypatch):
  """Replaces all variables of launchers by the given ones."""

  def replace(variables):
    for name in list(os.environ):
      if name.startswith(_LAUNCHERS):
        monkeypatch.delenv(name)
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return replace
