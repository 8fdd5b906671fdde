"""Shardings of a train state and its batches.

Moments and EMA are sharded like their parameters; batches are sharded over the
mesh axes data and fsdp.
"""

from typing import Any

import jax
import numpy as np

from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.sharding import distributed
from ovi_jax.sharding import logical_axes
from ovi_jax.sharding import sharding_rules
from ovi_jax.training import step

HOST, DEVICE = "pinned_host", "device"  # kinds of memory


def state_shardings(
  state: step.TrainState,
  towers: AV[Any],
  mesh: jax.sharding.Mesh,
  ema_on_host: bool = False,
) -> step.TrainState:
  """The sharding of every array of a state.

  Args:
    state: arrays, or their shapes.
    towers: the model's configuration, `None` for an absent tower; with neither
      tower, the state is a codec's and is replicated.
    mesh: mesh on which the state is placed.
    ema_on_host: whether the EMA is in host memory.

  Raises:
    ValueError: the sharding rules do not fit the parameters.
  """
  placed: dict[str, jax.sharding.NamedSharding] = {}
  if number := len(towers.present()):
    params = state.frozen_params | state.trained_params
    placed = sharding_rules.param_shardings(
      params, sharding_rules.FUSION, mesh, all_rows=number == 2
    )
  whole = sharding_rules.replicated(mesh)

  def of(path: tuple[Any, ...], _: Any) -> jax.sharding.NamedSharding:
    name = getattr(path[-1], "key", None) if path else None
    return placed.get(name, whole) if isinstance(name, str) else whole

  placed_state: Any = jax.tree_util.tree_map_with_path(of, state)
  if ema_on_host:
    ema = jax.tree.map(
      lambda x: x.with_memory_kind(HOST), placed_state.ema_params
    )
    placed_state = placed_state._replace(ema_params=ema)
  return placed_state


def ema_to_device(state: step.TrainState) -> Any:
  """All parameters on devices, nested; the EMA of trained ones, if any."""

  def near(x: jax.Array) -> jax.Array:
    if x.sharding.memory_kind != HOST:
      return x
    return jax.device_put(x, x.sharding.with_memory_kind(DEVICE))

  ema = jax.tree.map(near, state.ema_params)
  return state._replace(ema_params=ema).params(ema=True)


def check_batch(
  batch_size: int, grad_accum_steps: int, mesh: jax.sharding.Mesh
) -> None:
  """Check that the microbatches and the mesh divide a batch.

  Raises:
    ValueError: names a size that they divide.
  """
  devices = 1
  for axis in logical_axes.ACTIVATIONS["B"]:
    devices *= mesh.shape[axis]
  unit = grad_accum_steps * devices
  if batch_size < 1 or batch_size % unit:
    below = max(unit, batch_size - batch_size % unit)
    raise ValueError(
      f"batch_size {batch_size} must be a multiple of {unit}:"
      f" {grad_accum_steps} microbatches"
      " (grad_accum_steps), each over"
      f" {devices} devices (mesh axes"
      f" {', '.join(logical_axes.ACTIVATIONS['B'])});"
      f" use {below}"
    )


def batch(host: schema.Batch, mesh: jax.sharding.Mesh) -> schema.Batch:
  """Place this process's rows of a batch on its devices, without `ids`."""
  placed: dict[int, jax.Array] = {}

  def place(array: Any) -> jax.Array:
    # Towers share their text; it is transferred once.
    if id(array) not in placed:
      placed[id(array)] = _place_rows(array, mesh)
    return placed[id(array)]

  return jax.tree.map(place, host._replace(ids=None))


def id_words(host: schema.Batch, mesh: jax.sharding.Mesh) -> jax.Array:
  """Place the ids of a batch, whose 64 bits devices do not have.

  Returns:
    uint32 [B, 2], the upper and the lower half of each id.
  """
  ids_B = np.asarray(host.ids, np.int64)
  return _place_rows(np.stack([ids_B >> 32, ids_B], -1).astype(np.uint32), mesh)


def _place_rows(array: Any, mesh: jax.sharding.Mesh) -> jax.Array:
  """Place this process's rows of an array on its devices."""
  _, parts = distributed.data_shard(mesh)
  whole = (len(array) * parts, *array.shape[1:])
  sharding = sharding_rules.batch_sharding(mesh)
  return jax.make_array_from_process_local_data(sharding, array, whole)
