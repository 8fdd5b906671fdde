"""A process that crashes fails one test; all others are still run."""

import subprocess
import sys

import pytest

from tests.lib import child_env

HOOK = """
from tests.lib import file_scheduler

def pytest_xdist_make_scheduler(config, log):
  return file_scheduler.FileScheduler(config, log)
"""
CASES = """
import os
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_case(number):
  if "{name}" == "b" and number == 2:
    os.abort()
"""


@pytest.mark.slow
def test_a_crash_fails_one_test_and_the_run_ends(tmp_path):
  (tmp_path / "conftest.py").write_text(HOOK)
  (tmp_path / "pytest.ini").write_text("[pytest]\n")
  for name, count in {"a": 4, "b": 4, "c": 1, "d": 1}.items():
    text = CASES.format(name=name, count=count)
    (tmp_path / f"test_{name}.py").write_text(text)
  options = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
  done = subprocess.run(
    [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider"],
    cwd=tmp_path,
    env=child_env.environment(PYTHONPATH=child_env.ROOT),
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert "1 failed, 9 passed" in done.stdout
  assert "crashed while running 'test_b.py::test_case[2]'" in done.stdout
