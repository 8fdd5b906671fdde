"""The command: flags, exit codes and messages."""

import importlib
import subprocess
import sys

import pytest

from tests.lib import child_env
from tests.lib import media_files

main = importlib.import_module("ovi_jax.evaluation.__main__")


def test_systems_have_the_names_that_are_given_or_those_of_their_folders():
  found = main.systems(["new=runs/a", "runs/old/"])
  assert list(found) == ["new", "old"] and str(found["new"]) == "runs/a"
  for given in (["a/x", "b/x"], ["x=a", "x=b"], ["=a"]):
    with pytest.raises(ValueError, match="--clips=NAME=DIR"):
      main.systems(given)


@pytest.mark.parametrize("text", ["a", "a=", "=b"])
def test_pairs_of_flags_have_names_and_values(text):
  with pytest.raises(ValueError, match="--weights: expected NAME=PATH"):
    main._pairs("weights", [text])


def command(folder, *arguments):
  return subprocess.run(
    [sys.executable, "-m", "ovi_jax.evaluation", *arguments],
    cwd=folder,
    env=child_env.environment(PYTHONPATH=child_env.ROOT),
    capture_output=True,
    text=True,
  )


@pytest.mark.slow
def test_the_command_writes_the_report_and_says_what_is_wrong(tmp_path):
  (tmp_path / "a").mkdir()
  frames = media_files.moving(24)
  wave = media_files.tone(1.0)
  media_files.write(tmp_path / "a/x.mp4", frames, media_files.even(24), wave)
  done = command(tmp_path, "run", "--clips=a", "--out=out", "--bootstrap=10")
  assert done.returncode == 0, done.stderr
  assert done.stdout == (tmp_path / "out/report.md").read_text()
  assert "| basic: flicker ↑ |" in done.stdout
  for arguments, message in (
    ((), "expected a command"),
    (("run", "--out=out"), "--clips=DIR is needed"),
    (("run", "--clips=b", "--out=out"), "b: there is no such folder of clips"),
    (("import-features", "--source=a", "--out=f"), "av-benchmark"),
    (("convert-list", "--source=a/x.mp4", "--out=f.csv"), "x.mp4"),
  ):
    failed = command(tmp_path, *arguments)
    assert failed.returncode == 1 and message in failed.stderr, failed.stderr
    assert failed.stderr.count("\n") == 1
