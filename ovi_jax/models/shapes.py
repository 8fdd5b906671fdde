"""Parameter shapes without tracing an initializer.

Tracing every initializer of a release takes seconds. Shapes are therefore
looked up by a digest of component and config: in `shapes.json` beside this file
(the shipped and the released sizes; a test compares it with the code), then in
the folder `ovi_jax_shapes` of JAX's compilation cache, where the digest covers
the model code and the versions of JAX and Flax too. Shapes are never read from
a folder of weights: a file is checked against the code, not against itself.

  python -m ovi_jax.models.shapes MANIFEST... writes `shapes.json` anew, for the
  released sizes and those of each `ovi_jax.json` named.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from ovi_jax import files
from ovi_jax import untrusted

KNOWN = pathlib.Path(__file__).with_name("shapes.json")
FOLDER = "ovi_jax_shapes"
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# The code that decides shapes.
_SOURCES = ("models/**/*.py", "attention/*.py", "axes.py", "modality.py")

Shapes = dict[str, tuple[int, ...]]


def lookup(component: str, config: Any, trace: Callable[[], Any]) -> Shapes:
  """Shapes of a component's parameters by path, all of them float32.

  Args:
    component: its name.
    config: its sizes.
    trace: gives the parameters as nested shapes, called if they are unknown.
  """
  key = digest(component, config)
  if (known := _known().get(key)) is not None:
    return known
  path = _cached_file(key)
  if path is not None:
    with contextlib.suppress(OSError, ValueError):
      return _parsed(untrusted.read_json(path))
  shapes = flat(trace())
  if path is not None:
    # The cache is a convenience: a full or read-only disk is no error.
    with contextlib.suppress(OSError), files.replacing(path) as temporary:
      temporary.write_text(json.dumps(shapes))
  return shapes


def nested(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Shapes by path as a tree of `jax.ShapeDtypeStruct`."""
  leaves = {
    path: jax.ShapeDtypeStruct(shape, jnp.float32)
    for path, shape in shapes.items()
  }
  return flax.traverse_util.unflatten_dict(leaves, sep="/")


def flat(tree: Any) -> Shapes:
  """Nested shapes by path.

  Raises:
    ValueError: a parameter is not float32.
  """
  leaves: dict[str, Any] = flax.traverse_util.flatten_dict(tree, sep="/")
  if other := [p for p, leaf in leaves.items() if leaf.dtype != jnp.float32]:
    raise ValueError(f"expected float32 parameters, these are not: {other}")
  return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def digest(component: str, config: Any) -> str:
  """What identifies a component of some sizes."""
  return hashlib.sha256(f"{component} {config!r}".encode()).hexdigest()[:32]


@functools.cache
def _known() -> Mapping[str, Shapes]:
  """The shapes that come with the package, by digest."""
  listed = json.loads(KNOWN.read_text())
  return {key: _parsed(shapes) for key, shapes in listed.items()}


@functools.cache
def _code() -> str:
  """A digest of what decides shapes, besides the config."""
  state = hashlib.sha256(f"{jax.__version__} {flax.__version__}".encode())
  for pattern in _SOURCES:
    for path in sorted(_PACKAGE.glob(pattern)):
      state.update(path.read_bytes())
  return state.hexdigest()[:32]


def _cached_file(key: str) -> pathlib.Path | None:
  """Where shapes are kept; `None` without a compilation cache on this disk."""
  folder = jax.config.jax_compilation_cache_dir
  if not folder or "://" in folder:
    return None
  return pathlib.Path(folder) / FOLDER / f"{key}-{_code()}.json"


def _parsed(content: Any) -> Shapes:
  """Shapes by path.

  Raises:
    ValueError: it is something else.
  """
  if not isinstance(content, dict) or not all(
    isinstance(shape, list) and all(type(size) is int for size in shape)
    for shape in content.values()
  ):
    raise ValueError("expected lists of whole numbers by path")
  return {path: tuple(shape) for path, shape in content.items()}


def write_known(manifests: list[str]) -> None:
  """Write `shapes.json` for released sizes and those of weights' manifests."""
  from ovi_jax.models import architecture

  sizes = [architecture.released_sizes()]
  for manifest in manifests:
    sizes.append(untrusted.read_json(manifest)["sizes"])
  found = {}
  for values in sizes:
    arch = architecture.Architecture.from_release(values)
    for component in arch.components:
      config = arch.config(component)
      traced = architecture.traced_shapes(component, config)
      found[digest(component, config)] = flat(traced)
  lines = (f" {json.dumps(k)}: {json.dumps(v)}" for k, v in found.items())
  KNOWN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
  write_known(sys.argv[1:])
