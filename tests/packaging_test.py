"""The wheel: its files, and its commands and API outside a clone."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

import ovi_jax
from ovi_jax.media import mp4
from tests.lib import child_env

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
SUFFIXES = {
  *(
    ".py",
    ".json",
    ".md",
    ".safetensors",
    ".html",
    ".css",
    ".js",
    ".mp4",
    ".svg",
  )
}
LISTED = """
import json
import setuptools
from distutils import core

project = core.run_setup("setup.py", stop_after="init")
build = project.get_command_obj("build_py")
build.ensure_finalized()
print(json.dumps([build.build_lib, build.get_outputs(include_bytecode=False)]))
"""
PROMPT = "A red ball bounces on a wooden floor. Audio: dull wooden knocks."
EXAMPLE = f"""
import ovi_jax

pipe = ovi_jax.Pipeline.from_pretrained()
clip = pipe("{PROMPT}", seed=7, num_steps=2)
assert clip.video.dtype == "uint8" and clip.video.shape == (121, 64, 64, 3)
assert clip.audio.dtype == "float32" and clip.audio.ndim == 1
assert (clip.fps, clip.sample_rate) == (24, 16000)
clip.save("ball.mp4")
assert "<video" in clip._repr_html_()
"""


def expected_files() -> set[str]:
  """What a wheel must hold besides its metadata."""
  return {
    f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
    for folder, installed in (
      ("ovi_jax", "ovi_jax"),
      ("configs", "ovi_jax/configs"),
    )
    for path in (ROOT / folder).rglob("*")
    if path.suffix in SUFFIXES and path.parent.name != "ablations"
  }


def test_the_wheel_holds_the_package_with_configs_and_weights_only():
  done = subprocess.run(
    [sys.executable, "-c", LISTED],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  folder, outputs = json.loads(done.stdout.splitlines()[-1])
  found = {os.path.relpath(path, folder) for path in outputs}
  assert found == expected_files()
  assert "ovi_jax/configs/small.py" in found
  shipped = {p.parent.relative_to(ROOT) for p in ROOT.glob("configs/**/*.py")}
  for package in shipped - {pathlib.Path("configs/ablations")}:
    assert f"ovi_jax/{package}/__init__.py" in found
  assert "ovi_jax/synthetic/weights/fusion.safetensors" in found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
  """The wheel, built from the source distribution."""
  sources = tmp_path_factory.mktemp("sources")
  for name in SOURCES:
    shutil.copy(ROOT / name, sources)
  for name in ("ovi_jax", "configs"):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, sources / name, ignore=ignore)
  out = tmp_path_factory.mktemp("dist")
  build = "from setuptools import build_meta; import sys; build_meta.{}(*{})"
  run = [sys.executable, "-c", build.format("build_sdist", "sys.argv[1:]"), out]
  subprocess.run(run, cwd=sources, check=True, capture_output=True)
  (archive,) = out.glob("*.tar.gz")
  pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index"]
  pip += ["--no-deps", "--no-build-isolation", f"--wheel-dir={out}", archive]
  subprocess.run(pip, cwd=out, check=True)
  (path,) = out.glob("*.whl")
  return path


class Installed:
  """An environment that holds the wheel, and an empty folder to work in.

  Dependencies are those of the environment of the tests; the clone is not on
  the path.
  """

  def __init__(self, wheel: pathlib.Path, root: pathlib.Path):
    self.folder = root / "empty"
    self.folder.mkdir()
    home = root / "venv"
    venv.create(home)
    self._bin = home / "bin"
    # Before the dependencies are added: pip would find an editable install
    # among them and remove it.
    pip = [sys.executable, "-m", "pip", f"--python={self._bin / 'python'}"]
    pip += ["install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(pip, cwd=root, check=True)
    (site,) = home.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")

  def run(self, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment in the folder."""
    environment = child_env.environment()
    for name in ("PYTHONPATH", "PYTHONHOME"):
      environment.pop(name, None)
    return subprocess.run(
      [str(self._bin / words[0]), *words[1:]],
      cwd=self.folder,
      env=environment,
      capture_output=True,
      text=True,
    )


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installed:
  return Installed(wheel, tmp_path_factory.mktemp("installed"))


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_has_all_files(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
  metadata = f"ovi_jax-{ovi_jax.__version__}.dist-info/"
  assert {n for n in names if not n.startswith(metadata)} == expected_files()
  assert f"{metadata}licenses/LICENSE" in names


@pytest.mark.slow
def test_nothing_but_the_package_is_installed(installed):
  where = installed.run("python", "-c", "import ovi_jax; print(ovi_jax)")
  assert str(installed.folder.parent / "venv") in where.stdout
  for name in ("configs", "benchmarks", "scripts", "tests", "sample", "train"):
    done = installed.run("python", "-c", f"import {name}")
    assert "ModuleNotFoundError" in done.stderr, name


@pytest.mark.slow
def test_the_example_of_the_api_runs_from_the_wheel(installed):
  done = installed.run("python", "-c", EXAMPLE)
  assert done.returncode == 0, done.stderr
  frames, fps, _, rate = mp4.read(installed.folder / "ball.mp4")
  assert (len(frames), fps, rate) == (121, 24, 16_000)


@pytest.mark.slow
def test_ovi_sample_makes_a_clip(installed):
  words = (f"--prompt={PROMPT}", "--out=clips", "--config.num_steps=2")
  done = installed.run("ovi-sample", *words)
  assert done.returncode == 0, done.stderr
  assert len(list((installed.folder / "clips").glob("*.mp4"))) == 1


@pytest.mark.slow
def test_ovi_train_takes_a_shipped_config_by_name(installed):
  words = ["--config=codec_audio:mini", "--workdir=run"]
  words += ["--config.num_train_steps=2", "--config.data.num_workers=1"]
  done = installed.run("ovi-train", *words, "--config.checkpoint_every=2")
  assert done.returncode == 0, done.stderr
  assert (installed.folder / "run" / "metrics.jsonl").is_file()


@pytest.mark.slow
def test_ovi_convert_converts_the_stand_in(installed):
  code = "from ovi_jax.convert import standin; print(standin.__path__[0])"
  folder = pathlib.Path(installed.run("python", "-c", code).stdout.strip())
  module = "ovi_jax.convert.standin.write"
  written = installed.run("python", "-m", module, "release")
  assert written.returncode == 0, written.stderr
  sizes = f"--arch={folder / 'manifest.json'}"
  done = installed.run("ovi-convert", "--release=release", sizes, "--out=new")
  assert done.returncode == 0, done.stderr
  assert (installed.folder / "new" / "ovi_jax.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ovi-sample", "ovi-train", "ovi-convert"])
def test_help_and_errors_name_the_console_script(installed, name):
  help_text = installed.run(name, "--help").stdout
  assert f"  {name} --" in help_text and ".py --" not in help_text
  wrong = {
    "ovi-sample": ("--weights=none", f"--prompt={PROMPT}"),
    "ovi-train": ("--config=fusoin", "--workdir=run"),
    "ovi-convert": ("--release=none",),
  }
  done = installed.run(name, *wrong[name])
  assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
  assert done.stderr.startswith(f"{name}: "), done.stderr
  assert not re.search(r"python \w+\.py", done.stderr), done.stderr
