"""Agreement of processes on code, versions and config."""

import shutil
import signal
import subprocess
import sys

import jax
import pytest

from ovi_jax.sharding import distributed


@pytest.fixture
def agree(monkeypatch):
  """Compare with another process whose values have these changes."""

  def call(config, **theirs):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
      distributed, "gather", lambda mine: [mine, mine | theirs]
    )
    distributed.assert_equal_across_hosts(config)

  return call


def test_code_and_versions(agree):
  agree({"seed": 1})
  with pytest.raises(ValueError, match="process 1 has code 0123, process 0 "):
    agree({"seed": 1}, code="0123")
  for name in ("jax", "jaxlib", "flax"):
    with pytest.raises(ValueError, match=f"process 1 has {name} 0.1, process"):
      agree({"seed": 1}, **{name: "0.1"})


def test_config(agree):
  config = {"seed": 1, "mesh": {"data": 2}}
  with pytest.raises(ValueError, match=r"has mesh\.data 4, process 0 2") as e:
    agree(config, **{"mesh.data": "4", "more": "5"})
  assert "process 1 has more 5, process 0 not set" in str(e.value)


@pytest.mark.parametrize(
  "name",
  ["sharding/mesh.py", "attention/splash_blocks.json", "models/released.json"],
)
def test_code_is_whatever_makes_programs(name, tmp_path, monkeypatch):
  package = tmp_path / "ovi_jax"
  leave = shutil.ignore_patterns("demo", "__pycache__")
  shutil.copytree(distributed._PACKAGE, package, ignore=leave)
  monkeypatch.setattr(distributed, "_PACKAGE", package)
  before = distributed.code_digest()
  assert distributed.code_digest() == before
  (package / "README.md").write_text("words")
  assert distributed.code_digest() == before
  (package / name).write_text("[]")
  assert distributed.code_digest() != before


def test_a_second_ctrl_c_ends_at_once():
  program = """
import os, signal
from ovi_jax.sharding import distributed as processes
with processes.preemption_watcher() as stop:
  assert not stop(0)
  os.kill(os.getpid(), signal.SIGINT)
  assert stop(0)
  print("told", flush=True)
  os.kill(os.getpid(), signal.SIGINT)
  print("not reached", flush=True)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True
  )
  assert done.returncode == -signal.SIGINT, done.stderr
  assert done.stdout == "told\n"
  assert "Ctrl-C again ends at once, without saving" in done.stderr
