"""Notebooks of the documentation: they run, and hold no outputs."""

import pathlib
import subprocess
import sys

import nbformat
import pytest

from tests.lib import child_env

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
EXECUTE = """
import sys
import nbclient
import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=900).execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_hold_no_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert not cell.outputs and cell.execution_count is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_show_a_clip(path, tmp_path):
  environment = child_env.environment(PYTHONPATH=ROOT)
  environment.pop("MPLBACKEND", None)  # the kernel chooses its own
  executed = tmp_path / "executed.ipynb"
  done = subprocess.run(
    [sys.executable, "-c", EXECUTE, str(path), str(executed)],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  outputs = [
    output.get("data", {})
    for cell in nbformat.read(executed, as_version=4).cells
    if cell.cell_type == "code"
    for output in cell.outputs
  ]
  assert any("<video" in data.get("text/html", "") for data in outputs)
  assert any("image/png" in data for data in outputs)
