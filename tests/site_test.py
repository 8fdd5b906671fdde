"""The documentation site: reference pages made from code, and its build."""

import importlib
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CODECS = ("codec_video", "codec_audio", "codec_vocoder", "codec_text")


@pytest.fixture(scope="module")
def pages():
  """The Sphinx extension, which is no part of a package."""
  path = ROOT / "docs/_ext/reference_pages.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def paths(config, at=""):
  """Dotted paths of all fields of a config."""
  for name, value in config.items():
    if isinstance(value, dict):
      yield from paths(value, f"{at}{name}.")
    else:
      yield at + name


def config_of(pages, name, *args):
  if name == "train":
    return pages.default_config().training(video=True, audio=True).to_dict()
  return importlib.import_module(f"configs.{name}").get_config(*args).to_dict()


@pytest.mark.parametrize(
  ("name", "args"),
  [
    ("sample", ()),
    ("train", ()),
    *((name, ()) for name in CODECS),
    ("curate", ("",)),
    ("curate", ("audio",)),
  ],
)
def test_reference_lists_every_field_with_default_and_meaning(
  pages, name, args
):
  fields = {f.path: f for f in pages.CONFIGS[name]()}
  wanted = set(paths(config_of(pages, name, *args)))
  assert wanted <= fields.keys()
  assert not [path for path in wanted if not fields[path].meaning]
  text = pages.config_page(name, list(fields.values()))
  assert not [path for path in wanted if f"| `{path}` | `" not in text]


def test_default_of_a_training_field_is_that_of_the_config(pages):
  fields = {f.path: f for f in pages.CONFIGS["train"]()}
  assert fields["optimizer.learning_rate"].default == 1e-4


def test_open_sampling_fields_show_the_published_default(pages):
  fields = {f.path: f for f in pages.CONFIGS["sample"]()}
  assert fields["num_steps"].default == 50
  assert fields["guidance_scale.audio"].default == 3.0


def test_attributes_are_read_from_a_docstring(pages):
  doc = (
    "Sizes.\n\nAttributes:\n  a: one\n    more.\n  b: two.\n\nRaises:\n  c: x"
  )
  assert pages.attributes(doc) == {"a": "one more.", "b": "two."}


def test_comments_are_read_beside_and_above_fields(pages, tmp_path):
  path = tmp_path / "config.py"
  path.write_text(
    "INNER = {'c': 3}  # within\n"
    "def get_config():\n"
    "  config = ConfigDict({'a': 1, 'b': INNER,  # beside\n"
    "  })\n"
    "  # Above,\n"
    "  # on two lines.\n"
    "  config.d = 4\n"
    "  config.e.f = 5\n"
    "  return config\n"
  )
  assert pages.comments(path, "get_config") == {
    "a": "beside",
    "b": "beside",
    "b.c": "within",
    "d": "Above, on two lines.",
  }


def test_flags_of_a_command_are_listed_with_default_and_meaning():
  # In a process of its own: other tests have defined flags of these names.
  code = """
import pathlib
import reference_pages
path = pathlib.Path("convert_torch_weights.py").resolve()
print(reference_pages.command_page("python convert_torch_weights.py", path))
"""
  search = os.pathsep.join([str(ROOT / "docs/_ext"), str(ROOT)])
  page = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"PYTHONPATH": search},
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  assert "| `--release` | `''` | Release directory to read. |" in page
  assert "--helpfull" not in page


def test_scripts_and_modules_that_run_are_commands(pages):
  assert {
    "python sample.py",
    "python train.py",
    "python convert_torch_weights.py",
    "python -m ovi_jax.curation",
    "python -m ovi_jax.data.encode",
    "python -m scripts.small_ovi.recipe",
  } <= pages.commands().keys()
