"""From noise to latents: one guided step, and the loop over all of them.

Samples, solver state and guidance are float32; the model follows its compute
dtype. The step is one compiled program for every step of a run and for any
number of steps (one for each size of clip, each of few lengths of text, and
each combination of what is given); samples and solver state are donated to it.

Latents in time are given or generated. Given latents take their clean value
before each step and after the last. The model sees them at time 0 (`clean`), or
noised to the level of the step, at the time of the others (`renoised`). A
reference is given to the model in every step and is no part of the samples.
"""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import diffusion
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.models import reference as reference_lib
from ovi_jax.sampling import guidance
from ovi_jax.sampling import solvers
from ovi_jax.sharding import logical_axes

NONE_GIVEN: AV[Any] = AV()


class NonFiniteLatentsError(ValueError):
  """Latents became NaN or infinite; names the step and what to try.

  Attributes:
    rows: of the batch that are not finite.
  """

  def __init__(self, message: str, rows: Sequence[int]):
    super().__init__(message)
    self.rows = rows


class CancelledError(Exception):
  """Raised by the function that is called after a step: clips are not wanted.

  Attributes:
    rows: of the batch. Others are denoised to their end, in a batch of the same
      size, since a smaller one is another program. If none are left, the batch
      ends at once.
  """

  def __init__(self, rows: Sequence[int]):
    super().__init__(f"clips {list(rows)} of a batch are cancelled")
    self.rows = tuple(rows)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
  """A finished step.

  Attributes:
    finished: number of finished steps.
    total: number of all steps.
    predict: computes the clean latents that this step predicts, of the whole
      batch: video_BTHWC and audio_BTC, float32, given ones as they were given.
      To be called before the next step, which overwrites what it reads.
  """

  finished: int
  total: int
  predict: Callable[[], AV[jax.Array]]


# Called after each step; may raise `CancelledError`.
OnStep = Callable[[Progress], Any]


class Given(NamedTuple):
  """Latents of one modality that are given.

  Attributes:
    latents: clean [B, T, ..., C]; anything finite where none is given.
    clean_BT: bool, given and shown at time 0; `None` if there are none.
    renoised_BT: bool, given and noised to the level of each step; `None` if
      there are none.
    noise: standard normal in the shape of `latents`, with which they are
      noised; `None` without `renoised_BT`.
  """

  latents: jax.Array
  clean_BT: jax.Array | None = None
  renoised_BT: jax.Array | None = None
  noise: jax.Array | None = None

  def insert(self, x: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Put the given latents into samples at a noise level.

    Args:
      x: samples [B, T, ..., C] at noise level `sigma`.
      sigma: noise level; 0 inserts all of them clean.
    """
    if self.renoised_BT is not None and self.noise is not None:
      sigma_BT = jnp.full((1, 1), sigma, jnp.float32)
      noised = diffusion.interpolate(self.latents, self.noise, sigma_BT)
      x = jnp.where(_over_cells(self.renoised_BT, x), noised, x)
    if self.clean_BT is not None:
      x = jnp.where(_over_cells(self.clean_BT, x), self.latents, x)
    return x


def _over_cells(mask_BT: jax.Array, x: jax.Array) -> jax.Array:
  """A mask of latents in time, with the number of axes of latents."""
  return mask_BT.reshape(*mask_BT.shape, *(1,) * (x.ndim - 2))


class Inputs(NamedTuple):
  """What a whole run of steps is given, besides the noise.

  Attributes:
    constants: of all passes of the batch, see `guidance`.
    block_mask_GB: blocks of all passes, see `guidance.slg_mask`.
    scales: guidance scale of each modality.
    given: given latents of each modality, or `None`.
    references: of all passes, see `with_passes`.
    voice_scale: guidance scale of the reference; `None` without the pass that
      lacks it.
  """

  constants: fusion.StepConstants
  block_mask_GB: jax.Array
  scales: AV[float]
  given: AV[Given | None] = NONE_GIVEN
  references: AV[reference_lib.Reference | None] = NONE_GIVEN
  voice_scale: jax.Array | float | None = None

  @property
  def passes(self) -> int:
    """Passes of a step: positive, negative, and without the reference."""
    return guidance.PASSES + (self.voice_scale is not None)


def with_passes(
  latents_BRC: jax.Array, clean: bool, passes: int
) -> reference_lib.Reference:
  """A reference as each pass of a step is shown it.

  Args:
    latents_BRC: reference latents of each clip.
    clean: they are shown at time 0, and left out in the pass without them;
      otherwise at the time of the generated latents, with zeros in their place
      in that pass (as DreamID-Omni does).
    passes: of a step, see `guidance.duplicate_for_cfg`; 1 without guidance.
  """
  batch, count = latents_BRC.shape[:2]
  parts = [latents_BRC] * min(passes, guidance.PASSES)
  without = passes > guidance.PASSES
  if without:
    parts.append(latents_BRC if clean else jnp.zeros_like(latents_BRC))
  length_B = None
  if without and clean:
    lengths = [count] * (guidance.PASSES * batch) + [0] * batch
    length_B = jnp.asarray(lengths, jnp.int32)
  return reference_lib.Reference(
    jnp.concatenate(parts),
    jnp.ones((passes * batch, count), bool) if clean else None,
    length_B,
  )


def insert_given(
  x: AV[jax.Array], given: AV[Given | None], sigma: jax.Array | float
) -> AV[jax.Array]:
  """Put given latents into samples at a noise level, see `Given.insert`."""

  def one(name: str, value: jax.Array) -> jax.Array:
    found = getattr(given, name)
    return value if found is None else found.insert(value, sigma)

  return x.map(one)


def clean_masks(given: AV[Any]) -> AV[Any]:
  """Masks_BT of the latents that the model sees at time 0."""
  return given.map(lambda _, found: found.clean_BT)


def times(x: AV[jax.Array], t: jax.Array) -> AV[jax.Array]:
  """Times_BT of each modality, T = 1."""
  return jax.tree.map(lambda a: jnp.full((a.shape[0], 1), t), x)


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
  sigma: jax.Array,
) -> tuple[AV[jax.Array], AV[Any]]:
  """One guided step of every modality.

  Args:
    model: the denoiser.
    method: the solver.
    params: the denoiser's parameters.
    inputs: constants of the prompts, guidance and given latents.
    x: samples at this step's noise level, float32.
    state: the solver's state of each modality.
    t: this step's time for the model, in [0, 1000].
    row: this step's coefficients of the solver.
    sigma: this step's noise level, in [0, 1].

  Returns:
    Samples at the next noise level, and the solver's states.
  """
  x = insert_given(x, inputs.given, sigma)
  repeated = functools.partial(guidance.duplicate_for_cfg, passes=inputs.passes)
  velocities: Any = model.apply(
    {"params": params},
    repeated(x),
    repeated(times(x, t)),
    inputs.constants,
    inputs.block_mask_GB,
    given_BT=repeated(clean_masks(inputs.given)),
    references=inputs.references,
  )
  velocities = guidance.apply_cfg(velocities, inputs.scales, inputs.voice_scale)
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
  on_step: OnStep = lambda _: None,
) -> AV[jax.Array]:
  """Run all steps.

  Args:
    model: the denoiser.
    method: the solver.
    params: the denoiser's parameters.
    inputs: constants of the prompts, guidance and given latents.
    noise: standard normal, video [B, T, H, W, C] and audio [B, T, C]; kept.
    levels: the noise levels to visit.
    on_step: called once each step is done.

  Returns:
    Clean latents of every modality, float32; given ones as they were given.

  Raises:
    CancelledError: by `on_step`, as any other exception.
    NonFiniteLatentsError: after the first step that ends in NaN or infinity.
  """
  x = jax.tree.map(lambda a: jnp.array(a, jnp.float32, copy=True), noise)
  state = x.map(lambda _, a: method.init(a))
  rows = method.coefficients(levels.sigmas)
  for i in range(levels.steps):
    t = np.float32(levels.t[i])
    sigma = np.float32(levels.sigmas[i])
    x, state = step(model, method, params, inputs, x, state, t, rows[i], sigma)
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
    predict = functools.partial(_prediction, method, state, inputs.given)
    on_step(Progress(finished=i + 1, total=levels.steps, predict=predict))
  return insert_given(x, inputs.given, 0.0)


def _prediction(
  method: solvers.Solver, state: AV[Any], given: AV[Given | None]
) -> AV[jax.Array]:
  """The data that the last step predicted, in arrays of its own."""
  data = state.map(lambda _, each: jnp.copy(method.predicted(each)))
  return insert_given(data, given, 0.0)


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
