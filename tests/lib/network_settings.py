"""The environment without settings of the network."""

import os

import pytest


def clear(monkeypatch: pytest.MonkeyPatch) -> None:
  """Unset variables of proxies, certificates and the hub."""
  for name in os.environ:
    if name.upper().endswith("_PROXY") or name.startswith(("SSL", "HF_")):
      monkeypatch.delenv(name)
