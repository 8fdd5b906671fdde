"""Rematerialization policies: gradients, what they save, what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn_primitives

from ovi_jax.attention import attention
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import dit
from ovi_jax.models import fusion
from ovi_jax.models import layers
from ovi_jax.models import remat
from ovi_jax.sharding import mesh as meshes
from tests.lib import parity

POLICIES = (
  "full",
  "attention",
  "projections",
  "mlp",
  "dots",
  "attention+dots",
  "attention+projections+mlp",
  "attention+mlp:host",
)
# Heads of 128, for the TPU kernel.
TOWER = dit.DiTConfig(
  channels=8,
  hidden_dim=256,
  num_heads=2,
  num_layers=2,
  mlp_dim=96,
  freq_dim=16,
  text_dim=24,
  max_text_len=16,
)


@functools.cache
def gradient(policy: str, backend: str, on_mesh: bool):
  """Gradient of a loss of the video tower, one example of it padded."""
  random = np.random.default_rng(0)
  config: AV[Any] = AV(video=TOWER)
  model = fusion.FusionDiT(config, backend=backend, remat=policy)
  params = architecture.init("fusion", config, jax.random.key(0))
  params = jax.tree.map(
    lambda x: x + 0.05 * random.standard_normal(x.shape, np.float32), params
  )
  video = random.standard_normal((2, 3, 4, 6, 8), np.float32)
  text = random.standard_normal((2, 5, 24), np.float32)

  @jax.jit
  def run(params):
    def loss(params):
      out: Any = model.apply(
        {"params": params},
        AV(video=video),
        AV(video=jnp.full((2, 1), 500.0)),
        AV(video=text),
        lengths=AV(video=jnp.array([3, 2])),
      )
      return jnp.square(out.video).mean()

    return jax.grad(loss)(params)

  count, axes = (4, {"fsdp": 2, "context": 2}) if on_mesh else (1, {})
  with jax.set_mesh(meshes.make(jax.devices()[:count], **axes)):
    return jax.device_get(run(params))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("policy", "backend"),
  [
    *(pytest.param(p, "xla", marks=pytest.mark.nightly) for p in POLICIES[:-2]),
    *((policy, "xla") for policy in POLICIES[-2:]),
    ("attention+dots", "xla_head"),
    pytest.param("none", "splash", marks=pytest.mark.nightly),
    ("attention+projections+mlp", "splash"),
  ],
)
def test_gradients_equal_those_without_rematerialization(policy, backend):
  found = gradient(policy, backend, True)
  expected = gradient("none", "xla", False)
  for ours, reference in zip(*map(jax.tree.leaves, (found, expected))):
    assert parity.relative_error(ours, reference) < 1e-5


def matmuls(policy: str, backend: str = "") -> int:
  """Matrix products of a gradient: of an MLP, and of an attention."""
  mlp = layers.MLP(16, 8, jnp.sin, layers.XAVIER, jnp.float32)
  x = jax.ShapeDtypeStruct((1, 4, 8), jnp.bfloat16)
  params = jax.eval_shape(mlp.init, jax.random.key(0), x)

  def block(x, params):
    y: Any = mlp.apply(params, x)
    return jnp.sin(y) * x

  def attend(x, _):
    heads = x[..., None, :]
    return attention.attention(heads, heads, heads, backend)[..., 0, :]

  one = jax.checkpoint(
    attend if backend else block, policy=remat.policy(policy)
  )

  def loss(x, params):
    return one(one(x, params), params).sum()

  text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, params))
  return text.count("dot_product_attention_fwd_wrapper" if backend else "= dot")


def test_saved_products_are_not_recomputed():
  """Two MLPs: two products forward, four backward, each."""
  assert matmuls("full") == 2 * (2 + 4 + 2)
  assert matmuls("mlp") == matmuls("mlp:host") == 2 * (2 + 4 + 1)
  assert matmuls("dots") == matmuls("projections+dots") == 2 * (2 + 4)


def test_the_softmax_of_cudnn_is_saved_with_its_output(monkeypatch):
  """Traced without a GPU."""
  monkeypatch.setattr(cudnn_primitives, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(
    cudnn_primitives, "check_compute_capability", lambda _: True
  )
  assert matmuls("full", "cudnn") == 3  # the last one is not needed twice
  assert (
    matmuls("attention", "cudnn") == matmuls("attention:host", "cudnn") == 2
  )


def test_policies_are_resolved_by_chip(monkeypatch):
  monkeypatch.setattr(remat, "CHIP_POLICY", {"TPU v9": "attention+dots"})
  assert remat.resolve("auto", "TPU v9") == "attention+dots"
  assert remat.resolve("auto", "cpu") == "full"
  assert remat.resolve("none", "TPU v9") == "none"


def test_policies_of_chips_are_known():
  for policy in remat.CHIP_POLICY.values():
    assert remat.resolve(policy, "cpu") == policy


@pytest.mark.parametrize(
  "text",
  [
    "half",
    "",
    "attention+",
    "attention+full",
    "none+mlp",
    "mlp+mlp",
    "mlp+mlp:host",
    "dots:host",
    "auto+mlp",
  ],
)
def test_unknown_policies_are_refused(text):
  with pytest.raises(
    ValueError, match="is unknown; choose from auto, none, full, attention, "
  ):
    remat.resolve(text, "cpu")
