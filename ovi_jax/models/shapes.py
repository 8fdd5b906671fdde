"""Shapes of parameters and caches without tracing an initializer.

Tracing every initializer of a release takes seconds. Shapes are therefore
looked up by a digest of their name and config: in `shapes.json` beside this
file (the shipped and the released sizes; a test compares it with the code),
then in the folder `ovi_jax_shapes` of JAX's compilation cache, where the digest
covers the model code and the versions of JAX and Flax too. Shapes are never
read from a folder of weights: a file is checked against the code, not against
itself.

  python -m ovi_jax.models.shapes MANIFEST... rewrites `shapes.json`, for the
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
from flax import traverse_util

from ovi_jax import files
from ovi_jax import untrusted

KNOWN = pathlib.Path(__file__).with_name("shapes.json")
FOLDER = "ovi_jax_shapes"
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# The code that decides shapes.
_SOURCES = (
  "models/**/*.py",
  "attention/*.py",
  "sharding/logical_axes.py",
  "modality.py",
)

# Dtype and shape of each leaf by path, as JSON has them: `["float32", 2, 3]`.
Listed = dict[str, list[Any]]
_DTYPES = ("float32", "bfloat16", "float16")


def lookup(name: str, config: Any, trace: Callable[[], Any]) -> dict[str, Any]:
  """A tree of shapes, nested dicts of `jax.ShapeDtypeStruct`.

  Args:
    name: of the component, or of what else has shapes.
    config: what they depend on, identified by its `repr`.
    trace: gives the tree, called if it is unknown.

  Returns:
    Nested dicts of `jax.ShapeDtypeStruct`.
  """
  key = digest(name, config)
  if (known := _known().get(key)) is not None:
    return _nested(known)
  path = _cached_file(key)
  if path is not None:
    with contextlib.suppress(OSError, ValueError):
      return _nested(untrusted.read_json(path))
  tree = trace()
  if path is not None:
    # The cache is a convenience: a full or read-only disk is no error.
    with contextlib.suppress(OSError), files.atomic_path(path) as temporary:
      temporary.write_text(json.dumps(listed(tree)))
  return tree


def listed(tree: Any) -> Listed:
  """A tree of shapes in the form kept in JSON."""
  leaves: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
  return {p: [str(x.dtype), *x.shape] for p, x in leaves.items()}


def digest(name: str, config: Any) -> str:
  """A hash that identifies the shapes of a name and a config."""
  return hashlib.sha256(f"{name} {config!r}".encode()).hexdigest()[:32]


@functools.cache
def _known() -> Mapping[str, Listed]:
  """The shapes that come with the package, by digest."""
  return json.loads(KNOWN.read_text())


@functools.cache
def _code() -> str:
  """A digest of what decides shapes, besides the config."""
  state = hashlib.sha256(f"{jax.__version__} {flax.__version__}".encode())
  for pattern in _SOURCES:
    for path in sorted(_PACKAGE.glob(pattern)):
      state.update(path.read_bytes())
  return state.hexdigest()[:32]


def _cached_file(key: str) -> pathlib.Path | None:
  """The cache file of shapes; `None` without a compilation cache on disk."""
  config: Any = jax.config  # whose options are no declared attributes
  folder = config.jax_compilation_cache_dir
  if not folder or "://" in folder:
    return None
  return pathlib.Path(folder) / FOLDER / f"{key}-{_code()}.json"


def _nested(content: Any) -> dict[str, Any]:
  """The tree of shapes that JSON lists.

  Raises:
    ValueError: it is something else.
  """
  if not isinstance(content, dict):
    raise ValueError("expected shapes by path")
  leaves = {}
  for path, leaf in content.items():
    if not isinstance(leaf, list) or not leaf or leaf[0] not in _DTYPES:
      raise ValueError(f"expected a dtype and a shape, found {leaf!r:.60}")
    if not all(type(size) is int and size >= 0 for size in leaf[1:]):
      raise ValueError(f"expected sizes, found {leaf!r:.60}")
    leaves[path] = jax.ShapeDtypeStruct(tuple(leaf[1:]), jnp.dtype(leaf[0]))
  return traverse_util.unflatten_dict(leaves, sep="/")


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
      found[digest(component, config)] = listed(traced)
  lines = (f" {json.dumps(k)}: {json.dumps(v)}" for k, v in found.items())
  KNOWN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
  write_known(sys.argv[1:])
