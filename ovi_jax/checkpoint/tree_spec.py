"""Training states as leaves by path, the form in checkpoints.

Paths come from the tree: dict keys, fields of NamedTuples and dataclasses, and
indices, joined by `/` (`trained_params/blocks/video/...`, `opt_state/0/...`). A
nested dict and a flat dict of paths give the same names. Nodes without leaves
(None, empty optimizer states, masked leaves) are not stored.

Random keys are stored as their data, Python numbers as arrays without axes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Dtypes in which Python numbers are stored; their types are restored.
_SCALARS: Mapping[type, np.dtype] = {
  bool: np.dtype(np.bool_),
  int: np.dtype(np.int64),
  float: np.dtype(np.float64),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafSpec:
  """Shape and dtype of a leaf.

  Attributes:
    shape: shape of the leaf, without the words of a random key.
    dtype: name of the dtype; `key<...>` for random keys of an implementation,
      `bool`, `int` or `float` with `python` set for Python numbers.
    python: whether the leaf is a Python number.
  """

  shape: tuple[int, ...]
  dtype: str
  python: bool = False

  def __str__(self) -> str:
    sizes = ", ".join(map(str, self.shape))
    return f"Python {self.dtype}" if self.python else f"{self.dtype}[{sizes}]"


def flatten(tree: Any) -> dict[str, Any]:
  """The leaves of a tree, by path.

  Raises:
    ValueError: the tree is a single leaf, or two leaves have the same path.
  """
  flat: dict[str, Any] = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path = jax.tree_util.keystr(keys, simple=True, separator="/")
    if not all(path.split("/")) or path in flat:
      raise ValueError(
        f"expected a tree with a name for every leaf, got {path!r}"
        f"{' twice' if path in flat else ''}"
      )
    flat[path] = leaf
  return flat


def unflatten(flat: Mapping[str, Any], target: Any) -> Any:
  """Put flattened leaves back into the tree of `target`."""
  return jax.tree.unflatten(
    jax.tree.structure(target), [flat[path] for path in flatten(target)]
  )


def leaf_spec(leaf: Any) -> LeafSpec:
  """The shape and dtype of an array, `ShapeDtypeStruct` or Python number.

  Raises:
    ValueError: the leaf is none of these.
  """
  if type(leaf) in _SCALARS:
    return LeafSpec(shape=(), dtype=type(leaf).__name__, python=True)
  if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
    raise ValueError(f"expected an array or a number, got {type(leaf)}")
  return LeafSpec(shape=tuple(leaf.shape), dtype=str(leaf.dtype))


def to_stored(leaf: Any) -> Any:
  """A leaf in the stored form."""
  if _is_random_key(leaf):
    return jax.random.key_data(leaf)
  if type(leaf) in _SCALARS:
    return np.asarray(leaf, _SCALARS[type(leaf)])
  return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf


def abstract(leaf: Any) -> Any:
  """Describe to Orbax how to read a leaf.

  Args:
    leaf: leaf of the target.

  Returns:
    In the stored form: a `ShapeDtypeStruct` with a sharding for a leaf that is
    a jax array; for other leaves, a numpy array of the same shape and dtype,
    whose values are ignored. Those are read into the memory of each process.
  """
  if type(leaf) in _SCALARS:
    return np.zeros((), _SCALARS[type(leaf)])
  if _is_random_key(leaf):
    data = jax.eval_shape(jax.random.key_data, _bare(leaf))
    return np.zeros(data.shape, data.dtype)
  if isinstance(leaf, np.ndarray | np.generic):
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def from_stored(data: Any, leaf: Any) -> Any:
  """Convert a stored leaf to the target's kind of leaf."""
  if _is_random_key(leaf):
    kinds: list[Any] = []
    jax.eval_shape(lambda k: kinds.append(jax.random.key_impl(k)), _bare(leaf))
    wrap = lambda data: jax.random.wrap_key_data(data, impl=kinds[0])  # noqa: E731
    return jax.jit(wrap, out_shardings=_sharding(leaf))(data)
  if type(leaf) in _SCALARS:
    return type(leaf)(np.asarray(data).item())
  return data


def differences(
  saved: Mapping[str, LeafSpec], target: Mapping[str, LeafSpec]
) -> list[str]:
  """Differences of a target from a saved state, as text, by path."""
  found = []
  for path in sorted(saved.keys() | target.keys()):
    if path not in target:
      found.append(f"{path}: saved as {saved[path]}, the target has none")
    elif path not in saved:
      found.append(f"{path}: the target has {target[path]}, none was saved")
    elif saved[path] != target[path]:
      found.append(f"{path}: saved {saved[path]}, expected {target[path]}")
  return found


def _is_random_key(leaf: Any) -> bool:
  dtype = getattr(leaf, "dtype", None)
  return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _sharding(leaf: Any) -> jax.sharding.Sharding:
  found = getattr(leaf, "sharding", None)
  return found or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _bare(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
