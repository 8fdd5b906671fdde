"""Imports are layered: each package imports only lower ones."""

import ast
import pathlib
import re
from collections.abc import Sequence

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ovi_jax"
BASE = {
  "cli",
  "config",
  "config_files",
  "console",
  "files",
  "flops",
  "geometry",
  "flag_profiles",
  "hardware",
  "interrupts",
  "media",
  "modality",
  "network",
  "prompt",
  "storage",
  "tables",
  "tokenizer",
  "untrusted",
}
# Drawn clips and the shipped weights' path: data about the synthetic world that
# lower packages use, while the rest of `synthetic` is on top.
WORLD = "synthetic/world"
# Package -> packages it may import, besides itself and the base.
ALLOWED = {
  "attention": {"sharding"},
  "models": {"attention", "sharding"},
  "sharding": set(),
  "pretrained": {"models", "sharding"},
  "checkpoint": {"sharding"},
  "convert": {"models", "pretrained"},
  "lora": {"convert", "models", "pretrained", "sharding"},
  "diffusion": set(),
  "sampling": {
    "attention",
    "endpoints",
    "models",
    "diffusion",
    "sharding",
    "pretrained",
    "lora",
    WORLD,
  },
  WORLD: set(),
  "data": {"pretrained", "sharding", WORLD},
  "endpoints": set(),
  "curation": {"pretrained", "convert", "data", "endpoints", WORLD},
  "evaluation": {
    "curation",
    "models",
    "pretrained",
    "convert",
    "sharding",
  },
  "training": {
    "attention",
    "models",
    "diffusion",
    "sharding",
    "checkpoint",
    "evaluation",
    "pretrained",
    "data",
    "sampling",
    "lora",
    WORLD,
  },
  "aot": {
    "attention",
    "lora",
    "models",
    "sharding",
    "pretrained",
    "data",
    "sampling",
    "training",
  },
  "commands": {
    "aot",
    "convert",
    "models",
    "sampling",
    "sharding",
    "training",
    WORLD,
  },
  "synthetic": {
    "data",
    "evaluation",
    "models",
    "pretrained",
    "sampling",
    "sharding",
    WORLD,
  },
  "study": set(),
  "studio": {
    "evaluation",
    "lora",
    "pretrained",
    "sampling",
    "sharding",
    WORLD,
  },
}
# The same within curation; those that are files, by name. All see the contract.
CONTRACT = {"clip", "stage"}
CURATION = {
  "clip": set(),
  "stage": set(),
  "models": set(),
  "media": {"models"},
  "faces": {"models", "media"},
  "sync": {"models", "media", "faces"},
  "captioning": set(),
  "stages": {"models", "media", "faces", "sync", "captioning"},
  "engine": {"media"},
  "report": {"media", "engine"},
  "command": {"engine", "report"},
  "__main__": {"command"},
}
SMALL = ("sample.py", "train.py", "convert_torch_weights.py")


def import_names(path: pathlib.Path) -> list[str]:
  """Dotted names of all that a file imports."""
  names = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      names += [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
  return names


def imported(path: pathlib.Path, within: str = "") -> set[str]:
  """The rooms of ovi_jax, or within one of them, that a file imports."""
  package = ["ovi_jax", within] if within else ["ovi_jax"]
  rooms = set()
  for name in import_names(path):
    parts = name.split(".")
    if parts[: len(package)] == package and len(parts) > len(package):
      inner = parts[len(package) :]
      rooms.add(inner[0] if within else room_of(inner))
  return rooms


def room_of(parts: Sequence[str]) -> str:
  """The row of `ALLOWED` of a module, from its names below ovi_jax."""
  is_world = parts[0] == "synthetic" and (
    len(parts) == 1 or parts[1] in {"world", "WEIGHTS", "__init__"}
  )
  return WORLD if is_world and parts[-1] != "__main__" else parts[0]


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_import_only_lower_layers(path):
  room = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
  if room in BASE:
    return
  assert room in ALLOWED, f"say in layering_test.py what {room} may import"
  strange = imported(path) - ALLOWED[room] - BASE - {room}
  assert not strange, f"{path} imports {strange}"


@pytest.mark.parametrize(
  "path",
  [p for p in FILES if p.is_relative_to(PACKAGE / "curation")],
  ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_parts_of_curation_import_only_lower_layers(path):
  room = path.relative_to(PACKAGE / "curation").parts[0].removesuffix(".py")
  if room == "__init__":
    return
  assert room in CURATION, f"say in layering_test.py what {room} may import"
  strange = imported(path, "curation") - CURATION[room] - CONTRACT - {room}
  assert not strange, f"{path} imports {strange}"


def test_base_modules_import_only_base_modules():
  for path in PACKAGE.glob("[!_]*.py"):  # not the API in __init__
    assert imported(path) <= BASE, path
  for path in (PACKAGE / "media").glob("*.py"):
    assert imported(path) <= BASE, path


def test_torch_and_tensorflow_are_not_imported():
  for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")]:
    roots = {name.split(".")[0] for name in import_names(path)}
    assert not roots & {"torch", "tensorflow"}, path


@pytest.mark.parametrize(
  ("folder", "outside"),
  [
    ("ovi_jax", {"benchmarks", "configs", "scripts", "tests"}),
    ("scripts", {"benchmarks", "configs", "tests"}),
  ],
)
def test_folders_do_not_use_modules_outside_the_wheel(folder, outside):
  """Scripts may use the library and one another. `-m NAME` counts as use."""
  module = re.compile(rf"({'|'.join(outside)})(\.[a-z_]\w*)+(?<!\.py)")
  for path in (ROOT / folder).rglob("*.py"):
    used = {name.split(".")[0] for name in import_names(path)} & outside
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        used |= {node.value} if module.fullmatch(node.value) else set()
    assert not used, f"{path} uses {used}"


def test_only_scripts_start_train_and_sample():
  """Programs of a clone are not there beside an installed library."""
  for path in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Tuple | ast.List) and node.elts:
        first = node.elts[0]
        starts = isinstance(first, ast.Constant) and first.value in SMALL
        assert not starts, f"{path}:{node.lineno}: move it to scripts/"


def test_the_documented_dependencies_are_those_that_are_enforced():
  text = (ROOT / "docs/explanation/architecture.md").read_text()
  table = text.partition("| package | contents |")[2].partition("\n\n")[0]
  rows = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in table.splitlines()
    if line.startswith("| `")
  ]
  base, *packages, clone, scripts = rows
  assert set(base[0].replace("/", "").strip("`").split()) == BASE
  assert base[2] == "base" and clone[2] == scripts[2] == "all"
  assert scripts[0] == "`scripts/`"
  documented = {
    name.strip("`").rstrip("/"): set(allowed.split(", ")) - {"base"}
    for name, _, allowed in packages
  }
  assert documented == ALLOWED


TESTS = ROOT / "tests"


def test_tests_import_helpers_from_tests_lib_only():
  """Also in the programs that a test writes, and by `python -m`."""
  statements = re.compile(
    r"\bfrom (tests(?:\.\w+)* import \w+)|\bimport (tests\S*)"
    r"|-m\W+(tests\.[\w.]+)"
  )
  strange = {}
  for path in sorted(TESTS.rglob("*.py")):
    found = ["".join(names) for names in statements.findall(path.read_text())]
    if wrong := [n for n in found if not n.startswith("tests.lib")]:
      strange[str(path.relative_to(TESTS))] = wrong
  assert not strange, "move what tests share to tests/lib"


def test_tests_lib_holds_no_tests():
  assert not list((TESTS / "lib").rglob("*_test.py"))
  others = {
    path.name
    for path in TESTS.rglob("*.py")
    if not path.is_relative_to(TESTS / "lib")
    and not path.name.endswith("_test.py")
  }
  assert others == {"__init__.py", "conftest.py"}, "move helpers to tests/lib"


def test_scripts_hold_flags_only():
  for name in SMALL:
    assert len((ROOT / name).read_text().splitlines()) <= 60, name
