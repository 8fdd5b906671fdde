"""A training objective alone: loss, gradient, and steps on one batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ovi_jax.data import schema
from ovi_jax.modality import AV

NULL = np.zeros((1, 1), np.float32)


def sounds(waves: np.ndarray) -> schema.Batch:
  """A batch of wave_BA."""
  lengths = np.full(len(waves), waves.shape[1], np.int32)
  latents = AV(None, np.float32(waves))
  return schema.Batch(latents, AV(None, lengths), AV(), None)


def texts(ids: Any) -> schema.Batch:
  """A batch of ids_BS."""
  ids_BS = np.array(ids, np.int32)
  return schema.Batch(AV(), AV(), AV(ids_BS, ids_BS), None)


def tones(samples: int) -> np.ndarray:
  """A tone that begins and another that ends, wave_BA [2, samples]."""
  seconds = np.arange(samples) / 16_000
  low, high = (np.sin(2 * np.pi * hz * seconds) for hz in (330, 1500))
  early = seconds < seconds.mean()
  return 0.4 * np.stack([low * ~early, high * early]).astype(np.float32)


def drawn(task: Any, batch: schema.Batch, seed: int = 0) -> Any:
  keys = jax.random.split(jax.random.key(seed), 2)
  return jax.vmap(task.sample_noise)(keys, batch)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(task: Any, params: Any, batch: schema.Batch, noise: Any):
  """The loss, as a step makes it, and its gradient."""

  def loss(params):
    weights = task.example_weights(batch, noise)
    terms = task.loss_terms(params, batch, noise, NULL)
    assert weights.keys() == terms.keys()
    return sum((weights[name] * terms[name]).sum() for name in terms)

  return jax.value_and_grad(loss)(params)


def learn(task: Any, params: Any, batch: schema.Batch, steps: int, rate: float):
  """Losses of `steps` steps of Adam on a batch of two; the last parameters."""
  optimizer = optax.adam(rate)
  moments, losses = optimizer.init(params), []

  @jax.jit
  def move(params, moments, gradient):
    updates, moments = optimizer.update(gradient, moments)
    return optax.apply_updates(params, updates), moments

  for number in range(steps):
    noise = drawn(task, batch, number)
    loss, gradient = loss_and_gradient(task, params, batch, noise)
    params, moments = move(params, moments, gradient)
    losses.append(float(loss))
  return losses, params


def assert_finite(tree: Any) -> None:
  for leaf in jax.tree.leaves(tree):
    assert jnp.isfinite(leaf).all()
