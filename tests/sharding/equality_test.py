"""A step on eight devices equals one device, for every mesh."""

import functools
from collections.abc import Collection
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import dit
from ovi_jax.models import fusion
from ovi_jax.models import low_rank
from ovi_jax.sampling import denoise
from ovi_jax.sampling import guidance
from ovi_jax.sampling import solvers
from ovi_jax.sharding import mesh as meshes
from ovi_jax.sharding import sharding_rules
from ovi_jax.training import optimizer
from ovi_jax.training import param_filter
from ovi_jax.training import state_sharding
from ovi_jax.training import step
from ovi_jax.training.objectives import flow_matching
from tests.lib import parity
from tests.lib import small_step

# Name -> axes and the scheme of attention between tokens that are split.
MESHES: dict[str, tuple[dict[str, int], str]] = {
  "data": ({"data": 8}, "ulysses"),
  "fsdp": ({"fsdp": 8}, "ulysses"),
  "tensor": ({"tensor": 8}, "ulysses"),
  "context by all-to-all": ({"context": 8}, "ulysses"),
  "context by ring": ({"context": 8}, "ring"),
  "mixed, all-to-all": ({"data": 2, "context": 2, "tensor": 2}, "ulysses"),
  "mixed, ring": ({"fsdp": 2, "context": 4}, "ring"),
}
# Of these each axis is alone; the others have all axes and both schemes.
SINGLE_AXIS = ("data", "tensor", "context by all-to-all", "context by ring")
BATCH = 8
LATENTS = (3, 4, 6, 8), (9, 4)  # 18 tokens: eight devices get 3 each


def config(hidden_dim: int = 64, num_heads: int = 8) -> AV[dit.DiTConfig]:
  shared: dict[str, Any] = {
    "hidden_dim": hidden_dim,
    "num_heads": num_heads,
    "num_layers": 2,
  }
  shared |= {"mlp_dim": 96, "freq_dim": 16}
  shared |= {"text_dim": 24, "max_text_len": 16}
  return AV(
    dit.DiTConfig(channels=8, **shared),
    dit.DiTConfig(channels=4, patch=(1,), rope_scale=0.3, **shared),
  )


def model(
  context_parallelism: str, backend: str = "xla", **sizes: int
) -> fusion.FusionDiT:
  return fusion.FusionDiT(
    config(**sizes), backend=backend, context_parallelism=context_parallelism
  )


def nightly(names: Iterable[str], rarely: Collection[str]) -> list[Any]:
  """Parameters of a test; `rarely` ones are tried by `make test-nightly`."""
  marks = pytest.mark.nightly
  return [
    pytest.param(name, marks=marks) if name in rarely else name
    for name in names
  ]


@functools.cache
def params(**sizes: int) -> dict[str, np.ndarray]:
  """By path; the zeros of the start made numbers, so that all is felt."""
  made = architecture.init("fusion", config(**sizes), jax.random.key(0))
  random = np.random.default_rng(0)
  return {
    path: np.asarray(x) + 0.05 * random.standard_normal(x.shape, np.float32)
    for path, x in param_filter.flat(made).items()
  }


def drawn(random: Any, batch: int) -> AV[np.ndarray]:
  return AV(*(random.standard_normal((batch, *s), np.float32) for s in LATENTS))


def sampled(made: fusion.FusionDiT, weights: Any) -> AV[np.ndarray]:
  """Two guided steps with a clean first frame."""
  random = np.random.default_rng(1)
  noise = jax.tree.map(jnp.asarray, drawn(random, 1))
  text_BSE = random.standard_normal((2, 5, 24), np.float32)

  @jax.jit
  def step_constants(weights):
    given = (
      {"params": param_filter.nested(weights)},
      guidance.duplicate_for_cfg(noise),
    )
    return made.apply(*given, AV(text_BSE, text_BSE), method="step_constants")

  first_BT = np.arange(noise.video.shape[1])[None] == 0
  inputs = denoise.Inputs(
    step_constants(weights),
    jnp.asarray(guidance.slg_mask(2, 1, 1)),
    AV(4.0, 3.0),
    AV(video=denoise.Given(noise.video, first_BT)),
  )
  method = solvers.named("unipc")
  nested = param_filter.nested(weights)
  levels = method.schedule(2, 5.0)
  x = denoise.denoise(made, method, nested, inputs, noise, levels)
  return jax.device_get(x)


def factors() -> dict[str, np.ndarray]:
  """Of a LoRA of all attention, by path; none of them zero."""
  flat, random = params(), np.random.default_rng(3)
  kernels = low_rank.targets(flat, "fusion")
  return {
    path: 0.1 * random.standard_normal(x.shape, np.float32)
    for path, x in low_rank.factor_shapes(flat, kernels, 4).items()
  }


def trained(
  made: fusion.FusionDiT,
  mesh: jax.sharding.Mesh,
  trainable: str = param_filter.ATTENTION,
  **sizes: int,
) -> Any:
  """The loss and the moments after a step of training."""
  task = flow_matching.FlowMatching(made, small_step.OBJECTIVE)
  step_config = step.TrainStepConfig(
    task,
    optimizer.OptimizerConfig(learning_rate=1e-3),
    100,
    lora_dropout=0.5 if trainable == param_filter.LORA else 0.0,
  )
  added = factors() if trainable == param_filter.LORA else {}
  split = param_filter.split(params(**sizes) | added, trainable)
  state = step.init_state(step_config, *split, seed=1)
  placed = state_sharding.state_shardings(state, made.config, mesh)
  random = np.random.default_rng(2)
  lengths = AV(np.full(BATCH, 3, np.int32), np.arange(2, 10, dtype=np.int32))
  lengths.video[1] = lengths.audio[2] = 0
  text = random.standard_normal((BATCH, 5, 24), np.float32)
  batch = schema.Batch(drawn(random, BATCH), lengths, AV(text, text), None)
  null_SE = random.standard_normal((1, 24), np.float32)
  advance = jax.jit(step.train_step, static_argnums=0)
  state = jax.device_put(state, placed)
  batch = state_sharding.batch(batch, mesh)
  state, metrics = advance(step_config, state, batch, null_SE)
  return jax.device_get((metrics.loss, state.opt_state))


@functools.cache
def alone(what: str) -> Any:
  mesh = meshes.make(jax.devices()[:1])
  with jax.set_mesh(mesh):
    if what == "sample":
      return sampled(model("ulysses"), params())
    return trained(model("ulysses"), mesh)


@pytest.mark.slow
@pytest.mark.parametrize("name", nightly(MESHES, SINGLE_AXIS))
def test_a_sampling_step_equals_one_device(name):
  sizes, context_parallelism = MESHES[name]
  mesh = meshes.make(jax.devices(), **sizes)
  placed = sharding_rules.param_shardings(params(), sharding_rules.FUSION, mesh)
  with jax.set_mesh(mesh):
    weights = jax.tree.map(jax.device_put, params(), placed)
    found = sampled(model(context_parallelism), weights)
  for a, b in zip(found, alone("sample")):
    assert parity.relative_error(a, b) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", nightly(MESHES, SINGLE_AXIS))
def test_a_training_step_equals_one_device(name):
  sizes, context_parallelism = MESHES[name]
  mesh = meshes.make(jax.devices(), **sizes)
  with jax.set_mesh(mesh):
    loss, moments = trained(model(context_parallelism), mesh)
  expected, reference = alone("train")
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  pairs = zip(jax.tree.leaves(moments), jax.tree.leaves(reference))
  assert all(parity.relative_error(a, b) < 1e-5 for a, b in pairs if b.any())


@pytest.mark.slow
def test_a_training_step_of_a_lora_equals_one_device():
  mesh = meshes.make(jax.devices(), fsdp=2, context=2, tensor=2)
  found = []
  for place in (meshes.make(jax.devices()[:1]), mesh):
    with jax.set_mesh(place):
      found.append(trained(model("ulysses"), place, param_filter.LORA))
  (expected, reference), (loss, moments) = found
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  pairs = list(zip(jax.tree.leaves(moments), jax.tree.leaves(reference)))
  assert len(pairs) == 2 + 4 * 20
  assert all(parity.relative_error(a, b) < 2e-5 for a, b in pairs if b.any())


# The kernel takes heads of 128 only, two of them here: four devices.
WIDE = {"hidden_dim": 256, "num_heads": 2}
SMALLER: dict[str, tuple[dict[str, int], str]] = {
  "data": ({"data": 4}, "ulysses"),
  "fsdp": ({"fsdp": 4}, "ulysses"),
  "tensor": ({"data": 2, "tensor": 2}, "ulysses"),
  "context by all-to-all": ({"data": 2, "context": 2}, "ulysses"),
  "context by ring": ({"context": 4}, "ring"),
  "mixed, ring": ({"fsdp": 2, "context": 2}, "ring"),
}


@functools.cache
def wide_alone() -> AV[np.ndarray]:
  with jax.set_mesh(meshes.make(jax.devices()[:1])):
    return sampled(model("ulysses", **WIDE), params(**WIDE))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["xla_head", "splash"])
@pytest.mark.parametrize("name", nightly(SMALLER, (*SINGLE_AXIS, "fsdp")))
def test_other_backends_equal_one_device(backend, name):
  sizes, context_parallelism = SMALLER[name]
  mesh = meshes.make(jax.devices()[:4], **sizes)
  placed = sharding_rules.param_shardings(
    params(**WIDE), sharding_rules.FUSION, mesh
  )
  with jax.set_mesh(mesh):
    weights = jax.tree.map(jax.device_put, params(**WIDE), placed)
    found = sampled(model(context_parallelism, backend, **WIDE), weights)
  for a, b in zip(found, wide_alone()):
    assert parity.relative_error(a, b) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
  "backend", nightly(("xla_head", "splash"), ("xla_head",))
)
def test_a_training_step_with_other_backends_equals_one_device(backend):
  sizes = {"hidden_dim": 256, "num_heads": 2}
  mesh = meshes.make(jax.devices()[:4], fsdp=2, context=2)
  found = []
  for chosen, place in (
    ("xla", meshes.make(jax.devices()[:1])),
    (backend, mesh),
  ):
    with jax.set_mesh(place):
      made = model("ulysses", chosen, **sizes)
      found.append(trained(made, place, **sizes))
  (expected, reference), (loss, moments) = found
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  pairs = zip(jax.tree.leaves(moments), jax.tree.leaves(reference))
  # Second moments are squares: twice the relative error of gradients.
  assert all(parity.relative_error(a, b) < 2e-5 for a, b in pairs if b.any())
