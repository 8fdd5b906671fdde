"""The stand-in's models and parameters."""

import functools

import jax
import jax.numpy as jnp

from ovi_jax.convert import fusion as fusion_names
from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.modality import AV
from ovi_jax.models import dit
from ovi_jax.models import fusion

FUSION_FILE = "Ovi/model.safetensors"


def fusion_config() -> AV:
  """Sizes of both towers of the stand-in."""
  sizes = standin.manifest()["config"]["fusion"]
  return AV(**{n: dit.DiTConfig.from_release(s) for n, s in sizes.items()})


@functools.cache
def fusion_params() -> dict:
  """Parameters of the stand-in's denoiser, a nested dict of numpy arrays."""
  tensors = standin.tensors(FUSION_FILE)
  rows = fusion_names.rows(fusion_config())
  return mapping.nest(mapping.gather(rows, tensors.__getitem__))


FULL_FUSION = AV(
  video=dit.DiTConfig(),
  audio=dit.DiTConfig(channels=20, patch=(1,), rope_scale=0.19676),
)


def full_fusion_shapes() -> dict:
  """Parameters of the released denoiser, without memory for them."""
  model = fusion.FusionDiT(FULL_FUSION)

  def struct(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  latents = AV(struct(1, 31, 44, 80, 48), struct(1, 157, 20))
  text, t_BT = struct(1, 512, 4096), struct(1, 1)
  return jax.eval_shape(
    model.init, jax.random.key(0), latents, AV(t_BT, t_BT), AV(text, text)
  )["params"]
