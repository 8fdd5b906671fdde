"""The parity command without the libraries that it compares with."""

import sys

import numpy as np
import pytest

from benchmarks import parity


def test_missing_libraries_are_named_with_the_command_that_installs_them(
  monkeypatch,
):
  for name in parity.NEEDED:
    monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(ValueError) as error:
    parity.compare("")
  message = str(error.value)
  assert "pip install torch diffusers transformers peft" in message
  assert "\n" not in message


def test_only_missing_packages_are_listed(monkeypatch):
  for name in parity.NEEDED:
    monkeypatch.setitem(sys.modules, name, sys)
  monkeypatch.setitem(sys.modules, "diffusers", None)
  with pytest.raises(ValueError, match="not found: pip install diffusers$"):
    parity.libraries()


def test_a_folder_without_mmaudio_is_refused_before_anything_is_imported(
  tmp_path,
):
  with pytest.raises(
    ValueError, match="expected a clone of hkchengrex/MMAudio"
  ):
    parity.compare(str(tmp_path))


def test_requirements_of_mmaudio_are_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "omegaconf", None)
  with pytest.raises(ValueError, match="pip install omegaconf$"):
    parity.module("omegaconf")


def test_errors_are_relative_to_the_largest_value():
  result = parity.Comparison(
    name="a", reference=np.float32([1, -4]), ours=np.float32([1.5, -4.25])
  )
  assert result.absolute == 0.5
  assert result.relative == 0.125


def test_results_are_written_as_a_table_and_as_numbers(tmp_path):
  result = parity.Comparison(
    name="a b", reference=np.float32([2]), ours=np.float32([2.5])
  )
  parity.write(tmp_path / "out", [result], {"torch": "1"})
  table = (tmp_path / "out/parity.md").read_text()
  assert "| a b | 5.0e-01 | 2.5e-01 |" in table
  assert '"max_rel": 0.25' in (tmp_path / "out/parity.json").read_text()
