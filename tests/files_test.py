"""Names of files: text of any form and locale, and bytes on the disk."""

import pathlib
import subprocess
import sys
import unicodedata

import pytest

from ovi_jax import files
from tests.lib import child_env

NAME = "B\u00e4r/l\u00e4uft.png"


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_a_file_is_found_in_either_unicode_form(tmp_path, stored, written):
  path = tmp_path / unicodedata.normalize(stored, NAME)
  path.parent.mkdir()
  path.touch()
  assert files.find(tmp_path / unicodedata.normalize(written, NAME)) == path
  assert files.find(tmp_path / "B\u00e4r/lauft.png") is None
  assert files.find(tmp_path / "none.png") is None


def test_the_exact_name_is_preferred(tmp_path):
  for form in ("NFC", "NFD"):
    path = tmp_path / unicodedata.normalize(form, "\u00e4")
    path.touch()
    assert files.find(path) == path


def test_names_are_utf_8_in_any_locale(tmp_path):
  path = tmp_path / NAME
  path.parent.mkdir()
  path.touch()
  code = (
    "import os, pathlib, sys\n"
    "from ovi_jax import files\n"
    "assert sys.getfilesystemencoding() == 'ascii'\n"
    f"found = files.find(pathlib.Path({str(path)!a}))\n"
    "assert found is not None and found.is_file()\n"
    "(stored,) = os.listdir()\n"
    "print(ascii(files.text_of(stored)))\n"
    "print(ascii(files.text_of('B\\u00e4r')))\n"
  )
  environment = child_env.environment(
    LC_ALL="C",
    PYTHONUTF8=0,
    PYTHONCOERCECLOCALE=0,
    PYTHONPATH=child_env.ROOT,
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stderr == ""
  assert done.stdout.split() == [r"'B\xe4r'"] * 2


def test_a_name_that_is_too_long_is_an_error_of_the_system(tmp_path):
  with pytest.raises(OSError, match="too long"):
    files.find(pathlib.Path(tmp_path, "\u00e4" * 300))
