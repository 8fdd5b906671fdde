"""Codec configs: sizes, and shapes of a step."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.training import param_filter
from ovi_jax.training import settings
from ovi_jax.training import step
from ovi_jax.training import task as tasks
from ovi_jax.training.objectives import masked_text

NAMES = {"audio": "audio_vae", "vocoder": "vocoder", "text": "umt5"}
# Parameters of the components at mini size; full ones have tests of their own.
COUNTS = {"audio": 1_303_042, "vocoder": 271_489, "text": 131_904}


def chosen(name: str, size: str) -> settings.CodecSettings:
  values = importlib.import_module(f"configs.codec_{name}").get_config(size)
  if name == "text":
    values.data.tokenizer = "tokenizer.json"
  return settings.CodecSettings.from_config(values)


@pytest.mark.parametrize("size", ["", "mini"])
@pytest.mark.parametrize("name", NAMES)
def test_configs_have_the_documented_sizes(name, size):
  read = chosen(name, size)
  assert read.component == NAMES[name] in settings.CODECS
  if size == "mini":
    shapes = architecture.parameter_shapes(read.component, read.model)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == COUNTS[name]
  task = read.make_objective("gpu")
  assert task.dtype == "bfloat16" and hash(task) == hash(
    read.make_objective("gpu")
  )


@pytest.mark.parametrize("name", ["audio", "text"])
def test_the_mini_configs_train_a_step(name):
  read = chosen(name, "mini")
  task = tasks.make(read)
  mesh = task.make_mesh(jax.devices()[:1])
  step_config, state = task.step_config, task.target_state(mesh)
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
  length_B, batch = (
    shape((read.batch_size,)),
    schema.Batch(AV(), AV(), AV(), None),
  )
  if read.data.num_audio_samples:
    wave_BA = jax.ShapeDtypeStruct(
      (read.batch_size, read.data.num_audio_samples), jnp.float32
    )
    batch = batch._replace(
      latents=AV(None, wave_BA), lengths=AV(None, length_B)
    )
  else:
    ids_BS = shape((read.batch_size, read.data.max_text_len))
    batch = batch._replace(text=AV(ids_BS, ids_BS))
  after, metrics = jax.eval_shape(
    lambda state, batch: step.train_step(
      step_config, state, batch, np.zeros((1, 1), np.float32)
    ),
    state,
    batch,
  )
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert {x.shape for x in metrics.losses.values()} == {(read.batch_size,)}
  # The component is exported without auxiliary parameters.
  handed = dict(param_filter.nested(state.trained_params))
  handed.pop(masked_text.HEAD, None)
  shapes = architecture.parameter_shapes(read.component, read.model)
  assert jax.tree.map(jnp.shape, handed) == jax.tree.map(jnp.shape, shapes)
