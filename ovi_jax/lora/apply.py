"""Applies LoRAs to the denoiser's parameters, for sampling.

Low-rank updates of kernels of blocks become factors beside the kernels, which
the model merges block by block (`models.low_rank`). Other updates, of
embeddings, heads, norms and biases, are added to copies of these parameters.
The parameters that were given are not changed, so that LoRAs can be exchanged.

Factors keep the dtype of the file; sums are float32, rounded once.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import files as path_names
from ovi_jax import storage
from ovi_jax.convert import mapping
from ovi_jax.lora import adapter
from ovi_jax.lora import files
from ovi_jax.lora import names
from ovi_jax.modality import AV
from ovi_jax.models import dit
from ovi_jax.models import low_rank
from ovi_jax.models import quantized
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import sharding_rules

MAX_STRENGTH = 100.0
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_STRENGTH = re.compile(rf"({_NUMBER})(?:/({_NUMBER}))?")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
  """A LoRA that was read, and how strongly it is applied.

  Attributes:
    path: of the file.
    strength: factor of the updates of each tower.
    sha256: of the file.
    adapter: the updates.
  """

  path: str
  strength: AV[float]
  sha256: str
  adapter: adapter.Adapter

  def metadata(self) -> dict[str, Any]:
    """What decides its effect, for the JSON beside a clip."""
    return {
      "path": self.path,
      "sha256": self.sha256,
      "strength": self.strength._asdict(),
    }


def parse(
  text: str | os.PathLike[str] | None,
) -> list[tuple[str, AV[float]]]:
  """Files and strengths from a flag.

  Args:
    text: FILE[:STRENGTH] with commas between them; STRENGTH is a number, or
      VIDEO/AUDIO with one for each tower. Without it, 1. `None` is none. Names
      of files that exist may hold commas.

  Raises:
    ValueError: it is no text, a file has no name, or a strength is out of
      range.
  """
  if isinstance(text, os.PathLike):
    text = os.fspath(text)
  if not isinstance(text, str | None):
    raise ValueError(
      "lora: expected text, FILE[:STRENGTH] with commas between them, got"
      f" {type(text).__name__}"
    )
  found = []
  for item in path_names.listed(text or "", _is_named):
    path, _, end = item.rpartition(":")
    strength = AV(1.0, 1.0)
    if match := _STRENGTH.fullmatch(end):
      strength = AV(float(match[1]), float(match[2] or match[1]))
    elif _is_file(path) and not _is_file(item):
      raise ValueError(
        f"LoRA {item!r}: expected a number, or VIDEO/AUDIO with a number for"
        f" each tower, as strength of {path}, got {end!r}"
      )
    else:
      path = item
    if not path:
      raise ValueError(f"LoRA {item!r}: expected FILE or FILE:STRENGTH")
    if not all(abs(s) <= MAX_STRENGTH for s in strength):
      raise ValueError(
        f"LoRA {item!r}: expected a strength from {-MAX_STRENGTH:g} to"
        f" {MAX_STRENGTH:g}"
      )
    found.append((path, strength))
  return found


def _is_named(item: str) -> bool:
  """Whether there is the file of FILE or FILE:STRENGTH."""
  path, _, end = item.rpartition(":")
  return _is_file(item) or (
    _is_file(path) and _STRENGTH.fullmatch(end) is not None
  )


def _is_file(path: str) -> bool:
  return bool(path) and os.path.isfile(path)


def load(
  chosen: str, config: AV[dit.DiTConfig], manifest: weights_dir.Manifest
) -> tuple[Lora, ...]:
  """Read and check LoRA files.

  Args:
    chosen: see `parse`.
    config: the towers.
    manifest: of the weights that they will be applied to.

  Raises:
    ValueError: see `files.read`.
  """
  return tuple(
    read(path, strength, config, manifest) for path, strength in parse(chosen)
  )


def read(
  path: str | os.PathLike[str],
  strength: AV[float],
  config: AV[dit.DiTConfig],
  manifest: weights_dir.Manifest,
) -> Lora:
  """Read and check a LoRA file; logs what a user should know of it."""
  found = files.read(path, config)
  notes = list(found.notes)
  base = found.metadata.get(files.BASE_KEY)
  if base and base != manifest.digests.get("fusion"):
    notes.append(
      f"{path}: the base of this LoRA has another digest than these weights; it"
      " is other weights, or the same in another dtype or format"
    )
  for note in notes:
    _log.info("note: %s", note)
  return Lora(
    path=str(path),
    strength=strength,
    sha256=storage.sha256(storage.locate(path)),
    adapter=found,
  )


def recommended(
  loras: Iterable[tuple[Mapping[str, str], AV[float]]],
) -> dict[str, str]:
  """Sampling settings that LoRAs were trained for, which replace the weights'.

  Args:
    loras: metadata of the files, and strengths; of strength 0, they recommend
      nothing.
  """
  if any(
    metadata.get(files.CONDITIONING_KEY) == files.CLEAN and any(strength)
    for metadata, strength in loras
  ):
    return {"conditioning": files.CLEAN}
  return {}


def recommended_of(chosen: str) -> dict[str, str]:
  """`recommended` of files, see `parse`; reads their headers.

  Raises:
    ValueError: a file is missing or damaged.
  """
  return recommended(
    (files.metadata_of(path), strength) for path, strength in parse(chosen)
  )


def check_dtypes(loras: Sequence[Lora], shapes: Mapping[str, Any]) -> None:
  """Check that LoRAs can be applied to stored parameters.

  Args:
    loras: see `read`.
    shapes: shapes and dtypes of the stored parameters, by path.

  Raises:
    ValueError: a whole kernel would be changed that has 8 bits.
  """
  for lora in loras:
    for slot in lora.adapter.deltas:
      if not getattr(lora.strength, slot.tower):
        continue
      if quantized.is_quantized(shapes[slot.path].dtype):
        raise ValueError(
          f"{lora.path}: an update of the whole of {slot.path} cannot be"
          " applied to 8-bit weights; use the weights converted without"
          " --quantize"
        )


def apply(
  params: Mapping[str, Any],
  loras: Sequence[Lora],
  config: AV[dit.DiTConfig],
  mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
  """Apply LoRAs to the denoiser's parameters.

  Args:
    params: nested parameters on the mesh; unchanged.
    loras: see `check_dtypes`; of strength 0, they change no bit.
    config: the towers.
    mesh: the devices.

  Returns:
    Parameters for the denoiser, which share all unchanged arrays with `params`.
  """
  flat = mapping.flatten(params)
  for path, delta in _changes(loras, config).items():
    leaf = flat[path]
    moved = _add(leaf, _place(delta, leaf.sharding))
    flat[path] = jax.device_put(moved, leaf.sharding)
  added: dict[str, Any] = dict(factors(loras, config))
  placed = sharding_rules.param_shardings(
    flat | added, sharding_rules.FUSION, mesh, all_rows=False
  )
  flat |= {path: _place(x, placed[path]) for path, x in added.items()}
  return mapping.nest(flat)


@jax.jit
def _add(leaf: jax.Array, delta: jax.Array) -> jax.Array:
  """The sum, in the dtype of `leaf`."""
  return (leaf.astype(jnp.float32) + delta).astype(leaf.dtype)


def _place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """Each device gets its own part."""
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )


def factors(
  loras: Sequence[Lora], config: AV[dit.DiTConfig]
) -> dict[str, np.ndarray]:
  """Factors beside kernels of blocks, of all LoRAs together.

  Ranks of several LoRAs follow each other; blocks of a smaller rank, or
  without an update, have zeros.

  Returns:
    Arrays by path, stacked over blocks, see `low_rank`.
  """
  by_kernel: dict[str, list[tuple[float, dict[int, adapter.Pair]]]] = {}
  for lora in loras:
    mine: dict[str, dict[int, adapter.Pair]] = {}
    for slot, pair in lora.adapter.pairs.items():
      if slot.block is not None and getattr(lora.strength, slot.tower):
        mine.setdefault(slot.path, {})[slot.block] = pair
    for path, pairs in mine.items():
      strength = getattr(lora.strength, adapter.Slot(path, 0).tower)
      by_kernel.setdefault(path, []).append((strength, pairs))
  found: dict[str, np.ndarray] = {}
  for path, parts in by_kernel.items():
    found |= _stacked(path, parts, names.shapes(config)[path])
  return found


def _stacked(
  path: str,
  parts: Sequence[tuple[float, Mapping[int, adapter.Pair]]],
  shape: tuple[int, ...],
) -> dict[str, np.ndarray]:
  """Factors of one kernel [G, in, out] of several LoRAs."""
  blocks, inputs, outputs = shape
  ranks = [max(pair.rank for pair in pairs.values()) for _, pairs in parts]
  arrays = [
    x for _, pairs in parts for p in pairs.values() for x in (p.down, p.up)
  ]
  dtypes = {x.dtype for x in arrays}
  dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
  down = np.zeros((blocks, inputs, sum(ranks)), dtype)
  up = np.zeros((blocks, sum(ranks), outputs), dtype)
  scale = np.zeros((blocks, sum(ranks)), np.float32)
  begin = 0
  for (strength, pairs), rank in zip(parts, ranks, strict=True):
    for block, pair in pairs.items():
      own = slice(begin, begin + pair.rank)
      down[block, :, own] = pair.down
      up[block, own] = pair.up
      scale[block, own] = strength * pair.scale
    begin += rank
  return {
    low_rank.beside(path, low_rank.DOWN): down,
    low_rank.beside(path, low_rank.UP): up,
    low_rank.beside(path, low_rank.SCALE): scale,
  }


def _changes(
  loras: Sequence[Lora], config: AV[dit.DiTConfig]
) -> dict[str, np.ndarray]:
  """Updates of whole parameters, and of kernels outside of blocks, float32."""
  found: dict[str, np.ndarray] = {}
  for lora in loras:
    whole = dict(lora.adapter.deltas)
    whole |= {
      slot: pair.delta()
      for slot, pair in lora.adapter.pairs.items()
      if slot.block is None and getattr(lora.strength, slot.tower)
    }
    for slot, delta in whole.items():
      strength = getattr(lora.strength, slot.tower)
      if not strength:
        continue
      shape = names.shapes(config)[slot.path]
      total = found.setdefault(slot.path, np.zeros(shape, np.float32))
      part = total if slot.block is None else total[slot.block]
      part += strength * np.asarray(delta, np.float32).reshape(part.shape)
  return found


def merged(
  array: np.ndarray, slot: adapter.Slot, loras: Sequence[Lora]
) -> np.ndarray:
  """A parameter, or a block of it, with the updates of LoRAs, float32.

  Args:
    array: the parameter.
    slot: which it is.
    loras: to add.

  Returns:
    The sum; numbers that are too large are infinite or NaN.
  """
  total = np.asarray(array, np.float32)
  for lora in loras:
    strength = getattr(lora.strength, slot.tower)
    if not strength:
      continue
    with np.errstate(over="ignore", invalid="ignore"):
      for delta in _deltas_of(lora.adapter, slot):
        total = total + np.float32(strength) * delta.reshape(total.shape)
  return total


def _deltas_of(
  lora: adapter.Adapter, slot: adapter.Slot
) -> Iterable[np.ndarray]:
  if slot in lora.pairs:
    yield lora.pairs[slot].delta()
  if slot in lora.deltas:
    yield np.asarray(lora.deltas[slot], np.float32)
