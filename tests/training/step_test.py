"""The training step on the stand-in's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax import diffusion
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sharding import mesh as meshes
from ovi_jax.training import conditions
from ovi_jax.training import param_filter
from ovi_jax.training import step
from ovi_jax.training.objectives import flow_matching
from tests.lib import parity
from tests.lib import small_step
from tests.lib import standin_models

GOLDEN_LOSS = 2.572352  # of the batch below, on the stand-in's weights
ADVANCE = jax.jit(step.train_step, static_argnums=0)


def test_the_loss_equals_its_golden_value():
  """Numbers of this code; the objective's parts have tests of their own."""
  _, metrics = ADVANCE(
    *small_step.step_config(), small_step.batch(), small_step.NULL
  )
  video, audio = (np.asarray(metrics.losses[n]) for n in AV._fields)
  assert video[1] == audio[2] == 0 and (np.delete(video, 1) > 0.3).all()
  expected = 0.85 * video.sum() / 7 + 0.15 * audio.sum() / 7
  np.testing.assert_allclose(metrics.loss, expected, rtol=1e-6)
  np.testing.assert_allclose(metrics.loss, GOLDEN_LOSS, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  "parts", [2, pytest.param(4, marks=pytest.mark.nightly)]
)
def test_gradient_accumulation_equals_one_large_batch(parts):
  whole, metrics = ADVANCE(
    *small_step.step_config(), small_step.batch(), small_step.NULL
  )
  divided, same = ADVANCE(
    *small_step.step_config(parts), small_step.batch(), small_step.NULL
  )
  np.testing.assert_allclose(same.loss, metrics.loss, rtol=1e-6)
  for name, reference in metrics.losses.items():
    np.testing.assert_allclose(same.losses[name], reference, rtol=1e-5)
  np.testing.assert_allclose(same.grad_norm, metrics.grad_norm, rtol=1e-5)
  moments = zip(*(jax.tree.leaves(s.opt_state) for s in (divided, whole)))
  assert all(parity.relative_error(a, b) < 1e-5 for a, b in moments if b.any())


@pytest.mark.slow
def test_eight_devices_equal_one():
  made, state = small_step.step_config()
  alone, metrics = ADVANCE(made, state, small_step.batch(), small_step.NULL)
  mesh = meshes.make(jax.devices()[:8], data=2, fsdp=4)
  rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
  given = small_step.batch()._replace(ids=None)
  with jax.set_mesh(mesh):
    together, same = ADVANCE(
      made, state, jax.device_put(given, rows), small_step.NULL
    )
  np.testing.assert_allclose(same.loss, metrics.loss, rtol=1e-6)
  moments = zip(*(jax.tree.leaves(s.opt_state) for s in (together, alone)))
  assert all(parity.relative_error(a, b) < 1e-5 for a, b in moments if b.any())


def test_only_trained_parameters_change():
  made, before = small_step.step_config()
  state, _ = ADVANCE(made, before, small_step.batch(), small_step.NULL)
  assert int(state.step) == 1
  for path, value in state.frozen_params.items():
    np.testing.assert_array_equal(value, before.frozen_params[path])
  still = [
    path
    for path, value in state.trained_params.items()
    if np.array_equal(value, before.trained_params[path])
  ]
  assert still == []
  path = "blocks/video/cross_attention/fusion_key/kernel"
  after, was = state.trained_params[path], before.trained_params[path]
  np.testing.assert_allclose(
    state.ema_params[path], was + 0.9 * (after - was), atol=1e-7
  )
  params = state.params(ema=True)
  leaf = param_filter.flat(params)[path]
  assert leaf is state.ema_params[path]
  shape = jax.tree.map(jnp.shape, standin_models.fusion_params())
  assert jax.tree.map(jnp.shape, params) == shape


def test_a_non_finite_step_changes_nothing_but_its_number():
  made, before = small_step.step_config()
  batch = small_step.batch()
  batch.latents.audio[5, 0] = np.nan
  state, metrics = ADVANCE(made, before, batch, small_step.NULL)
  assert metrics.is_bad and metrics.skipped == state.skip.skipped == 1
  assert int(state.step) == 1 and int(state.skip.accepted) == 0
  for name in ("trained_params", "frozen_params", "ema_params", "opt_state"):
    pairs = zip(
      jax.tree.leaves(getattr(state, name)),
      jax.tree.leaves(getattr(before, name)),
    )
    assert all(
      np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    ), name


@pytest.mark.slow
def test_noise_differs_by_step_and_repeats_by_seed():
  made, state = small_step.step_config()
  given = jax.tree.map(jnp.asarray, small_step.batch())
  first = step.sample_noise_for(made, state, given)
  again = step.sample_noise_for(made, state, given)
  second = step.sample_noise_for(made, state._replace(step=jnp.int32(1)), given)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert np.abs(first.sigma.video - second.sigma.video).min() > 1e-6
  assert np.abs(first.noise.audio - second.noise.audio).max() > 1
  # Noise of a row is independent of other rows and of the batch size.
  fewer = jax.tree.map(lambda x: x[:3], given)
  part = step.sample_noise_for(made, state, fewer)
  np.testing.assert_array_equal(part.noise.video, first.noise.video[:3])


@pytest.mark.slow
def test_training_lowers_the_loss():
  made, state = small_step.step_config(trainable=param_filter.ALL)
  fixed = step.sample_noise_for(
    made, state, jax.tree.map(jnp.asarray, small_step.batch())
  )

  @jax.jit
  def at_fixed_noise(params):
    return flow_matching.losses(
      made.objective.model, params, small_step.batch(), fixed, small_step.NULL
    )

  before = at_fixed_noise(state.params())
  for _ in range(12):
    state, _ = ADVANCE(made, state, small_step.batch(), small_step.NULL)
  after = at_fixed_noise(state.params())
  assert after.video.sum() < 0.97 * before.video.sum()
  assert after.audio.sum() < 0.97 * before.audio.sum()


@pytest.mark.slow
def test_a_single_tower_is_trained():
  config = AV(None, small_step.CONFIG.audio)
  model = fusion.FusionDiT(config)
  params = param_filter.flat(standin_models.fusion_params())
  params = {n: x for n, x in params.items() if "video" not in n}
  params = {n: x for n, x in params.items() if "fusion_" not in n}
  asked = flow_matching.ObjectiveConfig(loss_weights=AV(0.0, 1.0))
  flow = flow_matching.FlowMatching(model, asked)
  made = step.TrainStepConfig(flow, small_step.SETTINGS, 100)
  state = step.init_state(
    made, *param_filter.split(params, param_filter.ALL), seed=1
  )
  given = small_step.batch()
  given = given._replace(
    latents=given.latents._replace(video=None),
    lengths=given.lengths._replace(video=None),
    text=given.text._replace(video=None),
  )
  state, metrics = ADVANCE(made, state, given, small_step.NULL)
  assert set(metrics.losses) == {"audio"} and float(metrics.loss) > 0.3


def test_cfg_dropout_and_first_frames_are_sampled():
  """The model sees the empty prompt, and a first frame without noise."""
  seen = {}

  class Spy:
    def apply(self, variables, x, t_BT, text, lengths, given_BT, references):
      seen.update(x=x, t=t_BT, text=text, given=given_BT)
      seen.update(references=references)
      return jax.tree.map(jnp.zeros_like, x)

  given = small_step.batch()
  size = len(given.ids)
  drawn = flow_matching.NoiseSample(
    sigma=AV(jnp.full(size, 0.25), jnp.full(size, 0.5)),
    noise=jax.tree.map(jnp.ones_like, given.latents),
    dropped=AV(jnp.arange(size) == 3, jnp.arange(size) == 4),
    given=AV(video=jnp.arange(2 * size).reshape(size, 2) == 10),
  )
  losses = flow_matching.losses(Spy(), {}, given, drawn, small_step.NULL)
  np.testing.assert_array_equal(seen["text"].video[3, 0], small_step.NULL[0])
  assert not seen["text"].video[3, 1:].any()
  np.testing.assert_array_equal(seen["text"].audio[3], given.text.audio[3])
  np.testing.assert_array_equal(seen["text"].audio[4, 0], small_step.NULL[0])
  np.testing.assert_array_equal(seen["t"].video[5], [250])
  np.testing.assert_array_equal(seen["given"].video[5], [True, False])
  assert seen["given"].video.sum() == 1 and seen["given"].audio is None
  assert seen["references"] == AV()
  np.testing.assert_array_equal(seen["t"].audio[5], [500])
  np.testing.assert_array_equal(
    seen["x"].video[5, 0], given.latents.video[5, 0]
  )
  target = 1 - given.latents.video[5, 1:]
  np.testing.assert_allclose(
    losses.video[5], np.square(target).mean(), rtol=1e-5
  )
  length = given.lengths.audio[0]
  target = 1 - given.latents.audio[0, :length]
  np.testing.assert_allclose(
    losses.audio[0], np.square(target).mean(), rtol=1e-5
  )


def test_a_reference_is_clean_and_its_span_has_no_loss():
  """Latents 2 to 4 of the first example; none of the others."""
  seen = {}

  class Spy:
    def apply(self, variables, x, *args, references, **others):
      seen.update(found=references.audio)
      return jax.tree.map(lambda a: a * variables["params"]["scale"], x)

  given = small_step.batch()
  size = len(given.ids)
  drawn = flow_matching.NoiseSample(
    sigma=AV(*[jnp.full(size, 0.5)] * 2),
    noise=jax.tree.map(jnp.ones_like, given.latents),
    dropped=AV(*[jnp.zeros(size, bool)] * 2),
    given=AV(),
    reference=conditions.Reference(
      jnp.tile(jnp.arange(2, 6)[None], (size, 1)),
      jnp.zeros(size, jnp.int32).at[0].set(3),
    ),
  )

  def loss(noise):
    changed = drawn._replace(noise=noise)
    found = flow_matching.losses(
      Spy(), {"scale": 4.0}, given, changed, small_step.NULL
    )
    return found.audio[0]

  gradient = jax.grad(loss)(drawn.noise)
  found = seen["found"]
  assert found.given_BR.all() and found.length_B.tolist() == [3] + [0] * 7
  primal = jax.device_get(jax.lax.stop_gradient(found.latents_BRC))
  np.testing.assert_array_equal(primal[0], given.latents.audio[0, 2:6])
  # Gradients flow through generated latents outside of the span and of two
  # latents on each side of it alone.
  counts = np.abs(gradient.audio[0]).sum(-1) > 0
  length = int(given.lengths.audio[0])
  expected = [n < length and not 0 <= n < 7 for n in range(len(counts))]
  assert counts.tolist() == expected


@pytest.mark.parametrize("shared", [1.0, 0.0])
def test_sampled_noise_covers_the_requested_range(shared):
  asked = flow_matching.ObjectiveConfig(
    timesteps=diffusion.TimestepSampler(shared_prob=shared),
    cfg_dropout=AV(0.1, 0.4),
    conditions=conditions.ConditionsConfig(
      video=conditions.ConditionProbs(first_frame_prob=0.25)
    ),
  )
  keys = jax.random.split(jax.random.key(0), 4000)
  latents = AV(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
  lengths = AV(jnp.int32(1), jnp.int32(1))
  drawn = jax.vmap(
    lambda key: flow_matching.sample_noise(asked, key, latents, lengths)
  )(keys)
  shares = [drawn.dropped.video.mean(), drawn.dropped.audio.mean()]
  shares.append(drawn.given.video.mean())
  np.testing.assert_allclose(shares, [0.1, 0.4, 0.25], atol=0.03)
  assert (drawn.sigma.video == drawn.sigma.audio).all() == shared
  noise = np.corrcoef(drawn.noise.video.ravel(), drawn.noise.audio.ravel())
  assert abs(noise[0, 1]) < 0.06


def test_invalid_objectives_are_refused():
  with pytest.raises(
    ValueError, match="cfg_dropout.audio must be a probability"
  ):
    flow_matching.ObjectiveConfig(cfg_dropout=AV(0.0, 1.5))
  with pytest.raises(ValueError, match="loss_weights must not be negative"):
    flow_matching.ObjectiveConfig(loss_weights=AV(-1.0, 0.5))
