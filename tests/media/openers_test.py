"""Media are opened in one package, which limits what is read."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted(
  path
  for pattern in ("*.py", "ovi_jax/**/*.py", "configs/*.py", "benchmarks/*.py")
  for path in ROOT.glob(pattern)
)
# What opens pictures and films, by the files that may.
OPENERS = {
  "av.open": {"ovi_jax/media/container.py", "ovi_jax/media/mp4.py"},
  "Image.open": {"ovi_jax/media/images.py"},
  "cv2.imread": set(),
  "cv2.imdecode": set(),
  "cv2.VideoCapture": set(),
}


def _calls(path: pathlib.Path) -> set[str]:
  """Openers that a file names, called or not."""
  nodes = ast.walk(ast.parse(path.read_text()))
  named = {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute)}
  return named & set(OPENERS)


@pytest.mark.parametrize("name", OPENERS)
def test_media_are_opened_only_where_they_are_checked(name):
  found = {
    path.relative_to(ROOT).as_posix() for path in FILES if name in _calls(path)
  }
  assert found == OPENERS[name]


def test_films_are_written_but_not_read_without_the_guard():
  tree = ast.parse((ROOT / "ovi_jax/media/mp4.py").read_text())
  modes = [
    ast.literal_eval(node.args[1])
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "av.open"
  ]
  assert modes == ["w"]
