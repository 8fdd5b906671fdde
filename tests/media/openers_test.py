"""Media files are opened in one package, which limits what is read."""

import ast
import pathlib

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


def _named(path: pathlib.Path) -> set[str]:
  """Openers that a file names, called or not."""
  text = path.read_text()
  if not any(name in text for name in OPENERS):
    return set()
  nodes = ast.walk(ast.parse(text))
  named = {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute)}
  return named & set(OPENERS)


def test_media_are_opened_only_by_guarded_code():
  found = {name: set() for name in OPENERS}
  for path in FILES:
    for name in _named(path):
      found[name].add(path.relative_to(ROOT).as_posix())
  assert found == OPENERS


def test_mp4_opens_files_for_writing_only():
  tree = ast.parse((ROOT / "ovi_jax/media/mp4.py").read_text())
  modes = [
    ast.literal_eval(node.args[1])
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "av.open"
  ]
  assert modes == ["w"]
