"""Shardings of a train state and its batches.

Moments and averages are sharded as their parameters are; batches are split over
the mesh axes that split activations.
"""

from typing import Any

import jax

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
    mesh: where they will live.
    ema_on_host: the average lies in the memory of the devices' hosts.

  Raises:
    ValueError: the partition table does not fit the parameters.
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
    average = jax.tree.map(
      lambda x: x.with_memory_kind(HOST), placed_state.ema_params
    )
    placed_state = placed_state._replace(ema_params=average)
  return placed_state


def ema_to_device(state: step.TrainState) -> Any:
  """All parameters, nested, averaged where there is an average; on devices."""

  def near(x: jax.Array) -> jax.Array:
    if x.sharding.memory_kind != HOST:
      return x
    return jax.device_put(x, x.sharding.with_memory_kind(DEVICE))

  average = jax.tree.map(near, state.ema_params)
  return state._replace(ema_params=average).params(averaged=True)


def check_batch(size: int, parts: int, mesh: jax.sharding.Mesh) -> None:
  """Refuse a batch that its parts or the mesh do not divide.

  Raises:
    ValueError: says which sizes would do.
  """
  devices = 1
  for axis in logical_axes.ACTIVATIONS["B"]:
    devices *= mesh.shape[axis]
  unit = parts * devices
  if size < 1 or size % unit:
    below = max(unit, size - size % unit)
    raise ValueError(
      f"batch_size {size} must be a multiple of {unit}: {parts} microbatches"
      " (grad_accum_steps), each over"
      f" {devices} devices (mesh axes"
      f" {', '.join(logical_axes.ACTIVATIONS['B'])});"
      f" {below} would do"
    )


def batch(host: schema.Batch, mesh: jax.sharding.Mesh) -> schema.Batch:
  """Bring this process' rows of a batch to its devices; `ids` stay behind."""
  sharding = sharding_rules.batch_sharding(mesh)

  placed: dict[int, jax.Array] = {}

  def place(array: Any) -> jax.Array:
    # Towers share their text: it travels once.
    if id(array) not in placed:
      _, parts = distributed.data_shard(mesh)
      whole = (len(array) * parts, *array.shape[1:])
      made = jax.make_array_from_process_local_data(sharding, array, whole)
      placed[id(array)] = made
    return placed[id(array)]

  return jax.tree.map(place, host._replace(ids=None))
