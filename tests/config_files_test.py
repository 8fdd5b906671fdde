"""Config files by name and by path, and what is wrong with them."""

import ast
import pathlib

import pytest

from ovi_jax import config_files
from ovi_jax import synthetic

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARGUMENTS = dict.fromkeys(("fine_tune", "lora"), f":{synthetic.WEIGHTS}")


def test_shipped_files_are_those_of_the_repositorys_folder():
  assert config_files.directory() == ROOT / "configs"
  names = config_files.names()
  assert {"fusion", "small", "sample", "ablations/audio_rope"} <= set(names)
  assert not any("__init__" in name for name in names)


@pytest.mark.parametrize("name", config_files.names())
def test_every_shipped_file_is_loaded_by_name_and_by_path(name):
  argument = ARGUMENTS.get(name, "")
  by_name = config_files.load(f"{name}{argument}")
  by_path = config_files.load(f"{ROOT}/configs/{name}.py{argument}")
  assert by_name.to_json() == by_path.to_json()


@pytest.mark.parametrize("name", config_files.names())
def test_shipped_files_import_no_package_that_a_wheel_lacks(name):
  tree = ast.parse((ROOT / "configs" / f"{name}.py").read_text("utf-8"))
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      assert node.level == 0 and node.module
      assert node.module.split(".")[0] not in {"configs", "benchmarks", "tests"}


def test_the_argument_reaches_the_config():
  assert config_files.load("fusion").batch_size == 768
  assert config_files.load("fusion:mini").batch_size == 8


def test_an_unknown_name_is_refused_with_the_known_ones():
  with pytest.raises(ValueError) as caught:
    config_files.load("fusoin:mini")
  text = str(caught.value)
  assert text.startswith("config 'fusoin' is unknown (did you mean fusion?)")
  assert text.endswith(", ".join(config_files.names()))


def test_an_absent_path_is_refused_with_the_known_names():
  with pytest.raises(ValueError, match=r"^configs/none\.py: no such .* small"):
    config_files.load("configs/none.py")


@pytest.mark.parametrize(
  ("text", "argument", "message"),
  [
    ("", "", "defines no function get_config"),
    ("get_config = dict", "", "must return a ConfigDict, got dict"),
    ("def get_config(): ...", ":mini", "takes no argument, got :mini"),
    ("def get_config(): open('/none/file')", "", "/none/file"),
    ("def get_config(x): raise ValueError(f'no {x}')", ":a:b", "^no a:b$"),
  ],
)
def test_a_file_that_is_no_config_is_refused(text, argument, message, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(config_files.ConfigFileError, match=message):
    config_files.load(f"{path}{argument}")


def test_a_file_elsewhere_builds_on_the_shipped_defaults(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from ovi_jax import config_files\n"
    "def get_config():\n"
    "  config = config_files.load('fusion:mini')\n"
    "  config.batch_size = 3\n"
    "  return config\n"
  )
  assert config_files.load(str(path)).batch_size == 3
