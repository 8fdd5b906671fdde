"""LoRA: low-rank updates of kernels, as a transformation of parameters.

  kernel + (down * scale) @ up        (Hu et al. 2021, arXiv:2106.09685)

The factors of a kernel `…/kernel` [G, in, out] are leaves beside it, stacked
over blocks: `…/lora_down` [G, in, rank], `…/lora_up` [G, rank, out] and
`…/lora_scale` [G, rank], which is alpha / rank for a trained LoRA. Several
LoRAs of a kernel are one of the sum of their ranks. The denoiser merges the
kernels of a block inside its scan over blocks (`block_params`), so that merged
kernels of one block exist at a time, also in the backward pass.

Numbers: factors and their product are float32; the sum is rounded once, to the
compute dtype.
"""

import math
import re
import zlib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ovi_jax import config as config_lib

KERNEL = "kernel"
DOWN, UP, SCALE = "lora_down", "lora_up", "lora_scale"
FACTORS = (DOWN, UP, SCALE)

_TOWER = r"blocks/(video|audio)"
_LINEARS = r"(query|key|value|out)/kernel"
_ATTENTION = rf"(self|cross)_attention/{_LINEARS}"
_FUSION = r"cross_attention/fusion_(key|value)/kernel"
_MLP = r"feed_forward/(in|out)/kernel"
# Name of a target in `lora.targets` -> patterns of kernels.
PRESETS: Mapping[str, Sequence[str]] = {
  # Self- and cross-attention, without fusion keys and values.
  "attention": (rf"{_TOWER}/{_ATTENTION}",),
  # All attention, with the keys and values of the other tower.
  "fusion": (rf"{_TOWER}/({_ATTENTION}|{_FUSION})",),
  "fusion+mlp": (rf"{_TOWER}/({_ATTENTION}|{_FUSION}|{_MLP})",),
  "video": (rf"blocks/video/({_ATTENTION}|{_FUSION}|{_MLP})",),
  "audio": (rf"blocks/audio/({_ATTENTION}|{_FUSION}|{_MLP})",),
  # The audio tower, and the video tower's fusion keys and values.
  "speech": (
    rf"blocks/audio/({_ATTENTION}|{_FUSION}|{_MLP})",
    rf"blocks/video/{_FUSION}",
  ),
}


def targets(paths: Iterable[str], chosen: str) -> tuple[str, ...]:
  """The kernels that get factors.

  Args:
    paths: parameters of the model.
    chosen: keys of `PRESETS` and regular expressions of whole paths, with
      commas between them.

  Returns:
    Paths of kernels of blocks, sorted.

  Raises:
    ValueError: a name or pattern is unknown or invalid, matches nothing, or
      matches a parameter that is not the kernel of a block.
  """
  paths, found = list(paths), set()
  for item in (part.strip() for part in chosen.split(",")):
    if "/" not in item:
      config_lib.check(config_lib.invalid_choice("lora.targets", item, PRESETS))
    try:
      patterns = [re.compile(p) for p in PRESETS.get(item, (item,))]
    except re.error as error:
      raise ValueError(
        f"lora.targets: {item!r} is not a regular expression: {error}"
      ) from error
    matched = {p for p in paths if any(x.fullmatch(p) for x in patterns)}
    if not matched:
      raise ValueError(f"lora.targets: {item!r} matches no parameter")
    found |= matched
  if others := [p for p in sorted(found) if not is_target(p)]:
    raise ValueError(
      f"lora.targets: {others[0]} is not the kernel of a block; end patterns in"
      " /kernel"
    )
  return tuple(sorted(found))


def is_target(path: str) -> bool:
  """Whether a parameter is a kernel that can have factors."""
  return path.startswith("blocks/") and path.endswith(f"/{KERNEL}")


def is_factor(path: str) -> bool:
  """Whether a parameter is one of the factors of a kernel."""
  return path.rpartition("/")[2] in FACTORS


def beside(path: str, name: str) -> str:
  """The path of a factor of the kernel at `path`."""
  return f"{path.removesuffix(KERNEL)}{name}"


def kernel_of(path: str) -> str:
  """The path of the kernel that a factor is beside."""
  return f"{path.rpartition('/')[0]}/{KERNEL}"


def factor_shapes(
  shapes: Mapping[str, Any], kernels: Iterable[str], rank: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the factors of some kernels, float32, by path."""
  found: dict[str, jax.ShapeDtypeStruct] = {}
  for path in kernels:
    blocks, inputs, outputs = shapes[path].shape
    for name, shape in (
      (DOWN, (blocks, inputs, rank)),
      (UP, (blocks, rank, outputs)),
      (SCALE, (blocks, rank)),
    ):
      found[beside(path, name)] = jax.ShapeDtypeStruct(shape, jnp.float32)
  return found


def init(
  key: jax.Array,
  shapes: Mapping[str, Any],
  kernels: Iterable[str],
  rank: int,
  alpha: float,
) -> dict[str, jax.Array]:
  """Factors that change nothing yet.

  Args:
    key: random key. The factors of a kernel do not depend on the others.
    shapes: anything with the shape of each kernel, by path.
    kernels: paths of kernels.
    rank: of the update.
    alpha: the update is scaled by alpha / rank.

  Returns:
    By path: `down` uniform within 1 / sqrt(in), `up` zero, float32.
  """
  made: dict[str, jax.Array] = {}
  for path, shape in factor_shapes(shapes, kernels, rank).items():
    if path.endswith(DOWN):
      own = jax.random.fold_in(key, zlib.crc32(path.encode()))
      bound = 1 / math.sqrt(shape.shape[1])
      made[path] = jax.random.uniform(own, shape.shape, minval=-1) * bound
    elif path.endswith(UP):
      made[path] = jnp.zeros(shape.shape)
    else:
      made[path] = jnp.full(shape.shape, alpha / max(rank, 1))
  return made


def add_update(
  kernel: jax.Array, down: jax.Array, up: jax.Array, scale: jax.Array
) -> jax.Array:
  """kernel + (down * scale) @ up, [(G,) in, out] float32."""
  # The axis of size 1 makes this a product with a batch axis. Rematerialization
  # "dots" saves those without; it would save the merged kernels.
  down, scale, up = (
    x.astype(jnp.float32)[None] for x in (down, scale[..., None, :], up)
  )
  batch = tuple(range(up.ndim - 2))
  delta = jax.lax.dot_general(
    down * scale,
    up,
    (((up.ndim - 1,), (up.ndim - 2,)), (batch, batch)),
    precision=jax.lax.Precision.HIGHEST,
  )[0]
  return kernel.astype(jnp.float32) + delta


def drop_ranks(
  params: Mapping[str, jax.Array], key: jax.Array, rate: float
) -> dict[str, jax.Array]:
  """Leave out ranks of factors at random, for regularization.

  Args:
    params: parameters by path.
    key: random key.
    rate: probability that a rank of a kernel is left out; the others are scaled
      by 1 / (1 - rate).

  Returns:
    The parameters, with other values of `lora_scale`.
  """
  kept = dict(params)
  for path, scale in params.items():
    if path.endswith(f"/{SCALE}"):
      own = jax.random.fold_in(key, zlib.crc32(path.encode()))
      mask = jax.random.bernoulli(own, 1 - rate, scale.shape)
      kept[path] = jnp.where(mask, scale / (1 - rate), 0.0)
  return kept
