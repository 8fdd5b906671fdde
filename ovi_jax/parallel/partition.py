"""Which axes of which parameter are split: a table over parameter paths.

Each row is a pattern for the end of a path and the letters of that leaf's
axes (see `axes`). Every parameter is matched by exactly one row and every row
by at least one parameter, or the table is wrong and says so.
"""

import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax

from ovi_jax import axes

Rules = Sequence[tuple[str, str]]

# Blocks are stacked, so their leaves lead with G. Output axes of query, key
# and value are heads (N); a width that is contracted or produced is D.
_BLOCK = r"blocks/(video|audio)/"
_ATTENTION = _BLOCK + r"(self|cross)_attention/"
FUSION: Rules = (
  (_ATTENTION + r"(fusion_)?(query|key|value)/kernel", "GDN"),
  (_ATTENTION + r"(fusion_)?(query|key|value)/bias", "GN"),
  (_ATTENTION + r"(fusion_)?(query|key)_norm/scale", "GN"),
  (_ATTENTION + r"fusion_norm/(scale|bias)", "G-"),
  (_ATTENTION + r"out/kernel", "GND"),
  (_ATTENTION + r"out/bias", "G-"),
  (_BLOCK + r"cross_norm/(scale|bias)", "G-"),
  (_BLOCK + r"feed_forward/in/kernel", "GDF"),
  (_BLOCK + r"feed_forward/in/bias", "GF"),
  (_BLOCK + r"feed_forward/out/kernel", "GFD"),
  (_BLOCK + r"feed_forward/out/bias", "G-"),
  (_BLOCK + r"modulation", "G--"),
  (r"(video|audio)/(text|time)_embedding/(in|out)/kernel", "-D"),
  (r"(video|audio)/(text|time)_embedding/(in|out)/bias", "-"),
  (r"(video|audio)/time_projection/kernel", "D-"),
  (r"(video|audio)/time_projection/bias", "-"),
  (r"(video|audio)/head/kernel", "D-"),
  (r"(video|audio)/head/bias", "-"),
  (r"(video|audio)/head_modulation", "--"),
  (r"video/patch_embedding/kernel", "-D"),
  (r"video/patch_embedding/bias", "-"),
  (r"audio/patch_embedding/in/kernel", "--D"),
  (r"audio/patch_embedding/in/bias", "-"),
  (r"audio/patch_embedding/(gate|up)/kernel", "-DF"),
  (r"audio/patch_embedding/down/kernel", "-FD"),
)

UMT5: Rules = (
  (r"blocks/attention/(q|k|v)/kernel", "GDN"),
  (r"blocks/attention/out/kernel", "GND"),
  (r"blocks/attention/position", "G--"),
  (r"blocks/(attention|feed_forward)_norm/scale", "G-"),
  (r"blocks/feed_forward/(gate|up)/kernel", "GDF"),
  (r"blocks/feed_forward/down/kernel", "GFD"),
  (r"embedding", "-D"),
  (r"norm/scale", "-"),
)


def shardings(
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  rules: Rules,
  mesh: jax.sharding.Mesh,
  *,
  all_rows: bool = True,
) -> dict[str, jax.sharding.NamedSharding]:
  """The sharding of every parameter.

  Args:
    shapes: parameters by path.
    rules: a table such as `FUSION`; patterns match whole paths.
    mesh: where the parameters will live.
    all_rows: whether a row without a parameter is an error. A model with one
      tower has no use for the rows of the other.

  Raises:
    ValueError: lists the parameters matched by none or several rows, leaves
      with another number of axes than letters, and rows that match nothing.
  """
  result: dict[str, Any] = {}
  problems: list[str] = []
  used: set[str] = set()
  for path, shape in shapes.items():
    rows = [rule for rule in rules if re.fullmatch(rule[0], path)]
    used.update(pattern for pattern, _ in rows)
    if len(rows) != 1:
      problems.append(f"{path} is matched by {len(rows)} rows: {rows}")
      continue
    letters = rows[0][1]
    if len(letters) != len(shape.shape):
      problems.append(f"{path}{shape.shape} has other axes than {letters!r}")
      continue
    sizes = dict(mesh.shape)
    partition = axes.spec(letters, shape.shape, sizes, axes.PARAMETERS)
    result[path] = jax.sharding.NamedSharding(mesh, partition)
  if all_rows:
    idle = [pattern for pattern, _ in rules if pattern not in used]
    problems += [f"row {pattern!r} matches no parameter" for pattern in idle]
  if problems:
    raise ValueError(
      "partition table does not fit:\n  " + "\n  ".join(problems)
    )
  return result


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """A whole copy on every device: the small models around the denoiser."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def rows(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """A batch's arrays: examples are split, nothing else."""
  spec = jax.sharding.PartitionSpec(axes.ACTIVATIONS["B"])
  return jax.sharding.NamedSharding(mesh, spec)
