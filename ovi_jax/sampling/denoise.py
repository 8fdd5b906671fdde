"""From noise to latents: one guided step, and the loop over all of them.

Samples, solver state and guidance are float32; the model follows its compute
dtype. The step is one compiled program for every step of a run and for any
number of steps (one for each size of clip, and each of few lengths of text);
samples and solver state are donated to it.
"""

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sampling import guidance
from ovi_jax.sampling import solvers
from ovi_jax.sharding import logical_axes


class NonFiniteLatentsError(ValueError):
  """Latents became NaN or infinite; names the step and what to try.

  Attributes:
    rows: of the batch that are not finite.
  """

  def __init__(self, message: str, rows: Sequence[int]):
    super().__init__(message)
    self.rows = rows


class Inputs(NamedTuple):
  """What a whole run of steps is given, besides the noise.

  Attributes:
    conditions: of the doubled batch, see `guidance`.
    block_mask_GB: blocks of the doubled batch, see `guidance.slg_mask`.
    scales: guidance scale of each modality.
    first_frame: clean first latent frame [B, 1, H, W, C], or `None`.
  """

  conditions: fusion.Conditions
  block_mask_GB: jax.Array
  scales: AV[float]
  first_frame: jax.Array | None = None


def inpaint_first_frame(x: AV[jax.Array], first: jax.Array | None) -> AV[Any]:
  """Put the clean first frame over the video's first latent frame."""
  if first is None:
    return x
  return x._replace(video=x.video.at[:, :1].set(first))


def frame_times(x: AV[jax.Array], t: jax.Array, clean_first: bool) -> AV[Any]:
  """Times_BT of each modality: t, and 0 for a clean first frame."""
  batch = jax.tree.leaves(x)[0].shape[0]
  times = jax.tree.map(lambda _: jnp.full((batch, 1), t), x)
  if clean_first:
    first_and_others = jnp.full((batch, 2), t).at[:, 0].set(0.0)
    times = times._replace(video=first_and_others)
  return times


def _whole(tree: Any) -> Any:
  """Whole on every device, as noise is: later steps need no new program."""
  return jax.tree.map(lambda a: logical_axes.constrain(a, "-" * a.ndim), tree)


@functools.partial(
  jax.jit, static_argnames=("model", "method"), donate_argnames=("x", "state")
)
def step(
  model: fusion.FusionDiT,
  method: solvers.Solver,
  params: Any,
  inputs: Inputs,
  x: AV[jax.Array],
  state: AV[Any],
  t: jax.Array,
  row: jax.Array,
) -> tuple[AV[jax.Array], AV[Any]]:
  """One guided step of every modality.

  Args:
    model: the denoiser.
    method: the solver.
    params: the denoiser's parameters.
    inputs: conditions and guidance.
    x: samples at this step's noise level, float32.
    state: the solver's state of each modality.
    t: this step's time for the model, in [0, 1000].
    row: this step's coefficients of the solver.

  Returns:
    Samples at the next noise level, and the solver's states.
  """
  x = inpaint_first_frame(x, inputs.first_frame)
  times = frame_times(x, t, inputs.first_frame is not None)
  velocities: Any = model.apply(
    {"params": params},
    guidance.duplicate_for_cfg(x),
    guidance.duplicate_for_cfg(times),
    inputs.conditions,
    inputs.block_mask_GB,
  )
  velocities = guidance.apply_cfg(velocities, inputs.scales)
  following, states = {}, {}
  for name, value in x.present().items():
    states[name], following[name] = method.step(
      row, getattr(state, name), value, getattr(velocities, name)
    )
  return _whole((AV(**following), AV(**states)))


def denoise(
  model: fusion.FusionDiT,
  method: solvers.Solver,
  params: Any,
  inputs: Inputs,
  noise: AV[jax.Array],
  levels: solvers.Schedule,
  on_step: Callable[[int], None] = lambda _: None,
) -> AV[jax.Array]:
  """Run all steps.

  Args:
    model: the denoiser.
    method: the solver.
    params: the denoiser's parameters.
    inputs: conditions and guidance.
    noise: standard normal, video [B, T, H, W, C] and audio [B, T, C]; kept.
    levels: the noise levels to visit.
    on_step: called with the number of finished steps, once each is done.

  Returns:
    Clean latents of every modality, float32.

  Raises:
    NonFiniteLatentsError: after the first step that ends in NaN or infinity.
  """
  x = jax.tree.map(lambda a: jnp.array(a, jnp.float32, copy=True), noise)
  state = x.map(lambda _, a: method.init(a))
  rows = method.coefficients(levels.sigmas)
  for i in range(levels.steps):
    t = np.float32(levels.t[i])
    x, state = step(model, method, params, inputs, x, state, t, rows[i])
    # Few bytes, once the step is done.
    finite_MB = np.asarray(_are_finite(x))
    if not finite_MB.all():
      names = [n for n, row_B in zip(x.present(), finite_MB) if not row_B.all()]
      raise NonFiniteLatentsError(
        f"step {i + 1} of {levels.steps} (noise level {levels.sigmas[i]:.3g}):"
        f" the latents of {' and '.join(names)} are not finite;"
        f" {_causes(inputs.scales)}",
        np.flatnonzero(~finite_MB.all(0)).tolist(),
      )
    on_step(i + 1)
  return inpaint_first_frame(x, inputs.first_frame)


@jax.jit
def _are_finite(x: AV[jax.Array]) -> jax.Array:
  """[modalities, B] bool, the same on every device."""
  found = [
    jnp.isfinite(value).all(tuple(range(1, value.ndim)))
    for value in x.present().values()
  ]
  return logical_axes.constrain(jnp.stack(found), "--")


def _causes(scales: AV[Any]) -> str:
  used = ", ".join(f"{n} {float(s):g}" for n, s in scales.present().items())
  return (
    "if it is so with every prompt, the weights are damaged: convert the"
    " release again; else try dtype float32, less guidance (it is"
    f" {used}) or a smaller shift"
  )
