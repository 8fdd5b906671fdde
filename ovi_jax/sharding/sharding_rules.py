"""Sharding rules: a table from parameter paths to logical axes.

Each row has a pattern for the whole path of a leaf, and the letters of its axes
(see `logical_axes`). Every parameter must match exactly one row, and every row
at least one parameter; anything else is an error. The factors of a LoRA and the
scales of 8-bit kernels are sharded as the kernel beside them.
"""

import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ovi_jax.sharding import logical_axes

Rules = Sequence[tuple[str, str]]


def _tower(name: str, replicate_tokens: bool) -> tuple[tuple[str, str], ...]:
  """Rows of a tower; upper-case letters for weights applied to video tokens.

  Blocks are stacked, so their leaves begin with G. Output axes of query, key
  and value are heads (N); input and output widths are D.
  """
  replicated = logical_axes.replicated_tokens

  def own(letters: str) -> str:
    return replicated(letters) if replicate_tokens else letters

  def other(letters: str) -> str:
    return letters if replicate_tokens else replicated(letters)

  block = rf"blocks/{name}/"
  own_keys = block + r"self_attention/(key|value)"
  queries = block + r"(self|cross)_attention/query"
  text_keys = block + r"cross_attention/(key|value)"
  fusion_keys = block + r"cross_attention/fusion_(key|value)"
  feed_forward = block + r"feed_forward"
  ends = rf"{name}/(text|time)_embedding"
  rows = [
    (f"{where}/{leaf}", letters(shape))
    for where, letters in (
      (queries, own),
      (own_keys, own),
      (text_keys, replicated),
      (fusion_keys, other),
    )
    for leaf, shape in (("kernel", "GDN"), ("bias", "GN"))
  ]
  rows += [
    (f"{queries}_norm/scale", own("GN")),
    (block + r"self_attention/key_norm/scale", own("GN")),
    (block + r"cross_attention/key_norm/scale", replicated("GN")),
    (block + r"cross_attention/fusion_key_norm/scale", other("GN")),
    (block + r"cross_attention/fusion_norm/(scale|bias)", "G-"),
    (block + r"(self|cross)_attention/out/kernel", own("GND")),
    (block + r"(self|cross)_attention/out/bias", "G-"),
    (block + r"cross_norm/(scale|bias)", "G-"),
    (f"{feed_forward}/in/kernel", own("GDF")),
    (f"{feed_forward}/in/bias", own("GF")),
    (f"{feed_forward}/out/kernel", own("GFD")),
    (f"{feed_forward}/out/bias", "G-"),
    (block + r"modulation", "G--"),
    # Applied to prompt tokens or timesteps, which are replicated.
    (f"{ends}/in/kernel", replicated("DF")),
    (f"{ends}/in/bias", replicated("F")),
    (f"{ends}/out/kernel", replicated("FD")),
    (f"{ends}/out/bias", "-"),
    (rf"{name}/time_projection/kernel", replicated("FD")),
    (rf"{name}/time_projection/bias", "-"),
    (rf"{name}/head/kernel", own("D-")),
    (rf"{name}/head/bias", "-"),
    (rf"{name}/head_modulation", "--"),
  ]
  return tuple(rows)


FUSION: Rules = (
  *_tower("video", replicate_tokens=False),
  *_tower("audio", replicate_tokens=True),
  (r"video/patch_embedding/kernel", "-D"),
  (r"video/patch_embedding/bias", "-"),
  (r"audio/patch_embedding/in/kernel", logical_axes.replicated_tokens("--D")),
  (r"audio/patch_embedding/in/bias", "-"),
  (
    r"audio/patch_embedding/(gate|up)/kernel",
    logical_axes.replicated_tokens("-DF"),
  ),
  (r"audio/patch_embedding/down/kernel", logical_axes.replicated_tokens("-FD")),
)

# Prompt tokens are replicated.
UMT5: Rules = (
  (r"blocks/attention/(q|k|v)/kernel", logical_axes.replicated_tokens("GDN")),
  (r"blocks/attention/out/kernel", logical_axes.replicated_tokens("GND")),
  (r"blocks/attention/position", "G--"),
  (r"blocks/(attention|feed_forward)_norm/scale", "G-"),
  (
    r"blocks/feed_forward/(gate|up)/kernel",
    logical_axes.replicated_tokens("GDF"),
  ),
  (r"blocks/feed_forward/down/kernel", logical_axes.replicated_tokens("GFD")),
  (r"embedding", "-D"),
  (r"norm/scale", "-"),
)


# Leaves beside a kernel have axes of the kernel, and others (`-`).
_BESIDE_KERNELS: Mapping[str, Callable[[str], str]] = {
  "lora_down": lambda kernel: f"{kernel[:-1]}-",
  "lora_up": lambda kernel: f"{kernel[:-2]}-{kernel[-1]}",
  "lora_scale": lambda kernel: f"{kernel[:-2]}-",
  "kernel_scale": lambda kernel: f"{kernel[:-2]}{kernel[-1]}",
}


def param_shardings(
  shapes: Mapping[str, jax.Array | jax.ShapeDtypeStruct],
  rules: Rules,
  mesh: jax.sharding.Mesh,
  *,
  all_rows: bool = True,
) -> dict[str, jax.sharding.NamedSharding]:
  """Resolve the sharding rules of a model.

  Args:
    shapes: parameters or their shapes, by path.
    rules: a table such as `FUSION`; patterns match whole paths.
    mesh: mesh on which the parameters will be placed.
    all_rows: whether a row that matches no parameter is an error; off for a
      model with one tower.

  Returns:
    The sharding of each parameter, by path.

  Raises:
    ValueError: lists parameters that match no row or several, parameters whose
      number of axes differs from the number of letters, and unused rows.
  """
  result: dict[str, Any] = {}
  problems: list[str] = []
  used: set[str] = set()
  for path, shape in shapes.items():
    parent, _, name = path.rpartition("/")
    derived = _BESIDE_KERNELS.get(name)
    ruled = path if derived is None else f"{parent}/kernel"
    rows = [rule for rule in rules if re.fullmatch(rule[0], ruled)]
    used.update(pattern for pattern, _ in rows)
    if len(rows) != 1:
      problems.append(f"{path} matches {_rules(rows)}")
      continue
    letters = rows[0][1] if derived is None else derived(rows[0][1])
    if len(letters) != len(shape.shape):
      problems.append(
        f"{path} has {len(shape.shape)} axes, its rule has {len(letters)}"
        f" ({letters!r})"
      )
      continue
    sizes = dict(mesh.shape)
    partition = logical_axes.spec(
      letters, shape.shape, sizes, logical_axes.PARAMETERS
    )
    result[path] = jax.sharding.NamedSharding(mesh, partition)
  if all_rows:
    idle = [pattern for pattern, _ in rules if pattern not in used]
    problems += [f"rule {pattern!r} matches no parameter" for pattern in idle]
  if problems:
    raise ValueError(
      "sharding rules do not match the parameters:\n  " + "\n  ".join(problems)
    )
  return result


def _rules(rows: Rules) -> str:
  """The rules that match a parameter, for a message."""
  if not rows:
    return "no rule"
  return f"{len(rows)} rules: {', '.join(repr(pattern) for pattern, _ in rows)}"


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The sharding of an array that is replicated on all devices."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The sharding of a batch: the first axis is sharded."""
  spec = jax.sharding.PartitionSpec(logical_axes.ACTIVATIONS["B"])
  return jax.sharding.NamedSharding(mesh, spec)


def abstract(
  shape: tuple[int, ...],
  place: jax.sharding.NamedSharding,
  dtype: Any = np.float32,
) -> Any:
  """An abstract array for compilation.

  Args:
    shape: shape of the array.
    place: its sharding.
    dtype: dtype of its elements.

  Returns:
    A `jax.ShapeDtypeStruct`.
  """
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place)
