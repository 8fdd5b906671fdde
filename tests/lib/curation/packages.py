"""Packages that ship weights, and depend on torch.

`make test-curate` installs them without what they depend on.
"""

import importlib.util
import pathlib

import pytest


def folder(module: str, package: str) -> pathlib.Path:
  """The folder of a package; skips the test if it is not installed."""
  # It is found, not imported: it would import torch.
  spec = importlib.util.find_spec(module)
  if spec is None or spec.origin is None:
    pytest.skip(
      f"the weights come with {package}, which depends on torch: pip install"
      f" --no-deps {package}, or make test-curate"
    )
  return pathlib.Path(spec.origin).parent


def need_mtcnn() -> None:
  folder("facenet_pytorch", "facenet-pytorch")
