"""Eight guided steps, end to end, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sampling import denoise
from ovi_jax.sampling import guidance
from ovi_jax.sampling import solvers
from ovi_jax.sharding import mesh as meshes
from ovi_jax.sharding import sharding_rules
from tests.lib import parity
from tests.lib import standin_models

SCALES = AV(4.0, 3.0)


@pytest.fixture(scope="module")
def run(golden):
  """Run 8 steps as the goldens were made; returns latents without batch."""
  arrays, text = golden("sampling"), golden("umt5")
  text_BSE = text["t5_emb"] * text["t5_mask"][..., None]
  prompts = AV(text_BSE[[0, 1]], text_BSE[[0, 2]])
  noise = AV(
    jnp.asarray(arrays["noise_v"].transpose(1, 2, 3, 0)[None]),
    jnp.asarray(arrays["noise_a"][None]),
  )

  def call(
    name: str,
    given=denoise.NONE_GIVEN,
    params=None,
    scales=SCALES,
    steps: int = 8,
    on_step=lambda _: None,
    references=denoise.NONE_GIVEN,
    voice_scale=None,
  ) -> AV:
    model = fusion.FusionDiT(standin_models.fusion_config())
    params = standin_models.fusion_params() if params is None else params

    passes = 2 + (voice_scale is not None)
    texts = jax.tree.map(
      lambda x: jnp.concatenate([x, x[:1]])[:passes], prompts
    )

    @jax.jit
    def step_constants(params):
      noises = guidance.duplicate_for_cfg(noise, passes)
      given = {"params": params}, noises, texts, references
      return model.apply(*given, method="step_constants")

    inputs = denoise.Inputs(
      step_constants(params),
      guidance.slg_mask(3, 1, 1, passes),
      scales,
      given,
      references,
      voice_scale,
    )
    method = solvers.named(name)
    levels = method.schedule(steps, 5.0)
    x = denoise.denoise(model, method, params, inputs, noise, levels, on_step)
    return AV(*(np.asarray(a[0]) for a in x))

  return call


def reference(golden, name: str) -> AV:
  arrays = golden("sampling")
  video = arrays[f"e2e_{name}_v"].transpose(1, 2, 3, 0)
  return AV(video, arrays[f"e2e_{name}_a"])


@pytest.mark.parametrize("name", sorted(solvers.SOLVERS))
def test_solvers_end_where_the_original_does(run, golden, name):
  for ours, theirs in zip(run(name), reference(golden, name)):
    parity.assert_close(ours, theirs, "end_to_end")


def test_image_to_video_equals_the_original(run, golden):
  theirs = reference(golden, "i2v")
  is_first = np.arange(len(theirs.video)) == 0
  given = denoise.Given(theirs.video[None], is_first[None])
  ours = run("unipc", AV(video=given))
  np.testing.assert_array_equal(ours.video[:1], theirs.video[:1])
  parity.assert_close(ours.video, theirs.video, "end_to_end")
  parity.assert_close(ours.audio, theirs.audio, "end_to_end")


def test_given_latents_come_back_unchanged(run, golden):
  """Clean video, renoised sound; masks are no constants of the program."""
  like = reference(golden, "unipc")
  random = np.random.default_rng(3)
  latents, noise = (
    AV(*(random.standard_normal((1, *x.shape), np.float32) for x in like))
    for _ in range(2)
  )
  denoise.step.clear_cache()
  made = []
  for frames, steps in (([3], [0, 20]), ([0, 2], range(10))):
    masks = AV(
      np.isin(np.arange(4), frames)[None], np.isin(np.arange(21), steps)[None]
    )
    given = AV(
      denoise.Given(latents.video, masks.video),
      denoise.Given(latents.audio, renoised_BT=masks.audio, noise=noise.audio),
    )
    made.append(run("unipc", given, steps=2))
    for x, data, mask in zip(made[-1], latents, masks):
      np.testing.assert_array_equal(x[mask[0]], data[0][mask[0]])
      assert np.abs(x[~mask[0]] - data[0][~mask[0]]).max() > 0.1
  assert denoise.step._cache_size() == 1
  # Frame 1 and step 15 are generated both times, from other conditions.
  assert np.abs(made[0].video[1] - made[1].video[1]).max() > 1e-3
  assert np.abs(made[0].audio[15] - made[1].audio[15]).max() > 1e-3


def test_a_reference_is_one_more_pass_only_if_it_guides(run):
  random = np.random.default_rng(5)
  voice_BRC = random.standard_normal((1, 6, 20), np.float32)
  seen, plain = {}, run("euler", steps=2)
  for clean in (True, False):
    for scale in (None, 1.0, 4.0):
      passes = 2 + (scale is not None)
      shown = AV(audio=denoise.with_passes(voice_BRC, clean, passes))
      made = run("euler", steps=2, references=shown, voice_scale=scale)
      seen[clean, scale] = made
      for ours, without in zip(made, plain):
        assert parity.relative_error(ours, without) > 1e-4
    # A scale of 1 leaves the third pass without effect; another is seen in the
    # sound from the first step on, and in the video from the second.
    for two, three, more in zip(
      *(seen[clean, scale] for scale in (None, 1.0, 4.0))
    ):
      assert parity.relative_error(three, two) < 5e-6
      assert parity.relative_error(more, two) > 1e-5
  assert (
    parity.relative_error(seen[True, None].audio, seen[False, None].audio)
    > 1e-4
  )


def test_the_voice_guides_the_sound_by_its_own_scale():
  velocities = AV(*(np.array([[5.0], [3.0], [4.0]]) for _ in range(2)))
  found = guidance.apply_cfg(velocities, AV(2.0, 3.0), 1.5)
  assert float(found.video[0, 0]) == 3 + 2 * (5 - 3)
  assert float(found.audio[0, 0]) == 3 + 3 * (5 - 3) + 0.5 * (5 - 4)
  mask = guidance.slg_mask(4, 2, 1, passes=3)
  assert mask[1].tolist() == [1, 1, 0, 0, 1, 1] and mask[[0, 2, 3]].all()
  assert guidance.duplicate_for_cfg(np.arange(2), 3).tolist() == [0, 1] * 3


def test_the_pass_without_a_reference_lacks_it_or_has_zeros():
  voice_BRC = np.ones((2, 3, 4), np.float32)
  clean = denoise.with_passes(voice_BRC, True, 3)
  assert clean.length_B.tolist() == [3, 3, 3, 3, 0, 0]
  assert clean.given_BR.shape == (6, 3) and clean.given_BR.all()
  zeros = denoise.with_passes(voice_BRC, False, 3)
  assert zeros.length_B is None and zeros.given_BR is None
  assert zeros.latents_BRC[:4].all() and not zeros.latents_BRC[4:].any()
  two = denoise.with_passes(voice_BRC, True, 2)
  assert two.length_B is None and two.latents_BRC.shape == (4, 3, 4)


@pytest.mark.parametrize("name", sorted(solvers.SOLVERS))
def test_predictions_of_steps_lead_to_the_clip_and_change_nothing(run, name):
  """The last step, to sigma 0, returns the predicted data itself."""
  like = run(name, steps=4)
  mask_BT = np.isin(np.arange(4), [0])[None]
  given = AV(video=denoise.Given(np.full_like(like.video, 0.5)[None], mask_BT))
  plain, seen = run(name, given, steps=4), []

  def on_step(progress):
    assert progress.total == 4
    data = progress.predict()
    data = progress.predict()  # again, with the same result
    seen.append(AV(*(np.asarray(a[0]) for a in data)))

  made = run(name, given, steps=4, on_step=on_step)
  errors = []
  for a, b in zip(made, plain):
    np.testing.assert_array_equal(a, b)
  for data in seen:
    np.testing.assert_array_equal(data.video[0], plain.video[0])
    errors.append(np.abs(data.video - plain.video).max())
  np.testing.assert_allclose(seen[-1].video, plain.video, atol=1e-4)
  np.testing.assert_allclose(seen[-1].audio, plain.audio, atol=1e-4)
  assert errors[0] > 10 * errors[-1] and len(errors) == 4


def test_an_exception_of_the_callback_ends_the_loop(run):
  steps = []

  def on_step(progress):
    steps.append(progress.finished)
    if progress.finished == 2:
      raise denoise.CancelledError([0])

  with pytest.raises(denoise.CancelledError) as raised:
    run("unipc", on_step=on_step)
  assert raised.value.rows == (0,) and steps == [1, 2]


def test_renoised_latents_are_at_the_level_of_the_step():
  latents, noise = np.full((1, 3, 2), 4.0), np.full((1, 3, 2), -2.0)
  mask = np.array([[False, True, False]])
  given = denoise.Given(latents, np.array([[True, False, False]]), mask, noise)
  x = jnp.ones((1, 3, 2))
  for sigma, expected in ((0.0, 4.0), (0.5, 1.0), (1.0, -2.0)):
    made = np.asarray(given.insert(x, sigma))[0, :, 0]
    np.testing.assert_allclose(made, [4.0, expected, 1.0])


@pytest.mark.slow
def test_eight_devices_equal_one(run):
  flat = mapping.flatten(standin_models.fusion_params())
  mesh = meshes.for_sampling(jax.devices(), heads=2)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 2, "tensor": 1}
  placed = sharding_rules.param_shardings(flat, sharding_rules.FUSION, mesh)
  params = mapping.nest(jax.tree.map(jax.device_put, flat, placed))
  kernel = params["blocks"]["video"]["self_attention"]["query"]["kernel"]
  assert len(kernel.sharding.device_set) == 8
  assert kernel.addressable_shards[0].data.shape == (3, 16, 64)
  with jax.set_mesh(mesh):
    eight = run("unipc", params=params)
  for a, b in zip(eight, run("unipc")):
    parity.assert_close(a, b, "devices")


def test_one_compiled_step_serves_any_number_of_steps(run):
  denoise.step.clear_cache()
  run("unipc")
  assert denoise.step._cache_size() == 1
  run("unipc", scales=AV(2.0, 1.0), steps=3)
  assert denoise.step._cache_size() == 1


def test_each_modality_has_its_guidance_scale():
  velocities = AV(jnp.array([[3.0], [1.0]]), jnp.array([[3.0], [1.0]]))
  combined = guidance.apply_cfg(velocities, AV(4.0, 1.0))
  assert float(combined.video[0, 0]) == 9.0
  assert float(combined.audio[0, 0]) == 3.0


@pytest.mark.parametrize(("skip", "left_out"), [(11, 1), (0, 0), (-1, 0)])
def test_blocks_are_skipped_in_the_negative_half_only(skip, left_out):
  keep = guidance.slg_mask(30, 2, skip)
  assert keep[:, :2].all() and (~keep[:, 2:]).sum() == 2 * left_out


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_step_ends_the_run(run, bad):
  params = mapping.flatten(standin_models.fusion_params())
  name = "audio/head/bias"
  params[name] = np.full_like(params[name], bad)
  with pytest.raises(
    denoise.NonFiniteLatentsError,
    match=r"step 1 of 8 \(noise level 1\): the latents of audio are not finite;"
    " .* dtype float32, less guidance .it is video 4, audio 3. or a smaller",
  ):
    run("unipc", params=mapping.nest(params))


def test_finite_checks_work_on_a_mesh():
  mesh = meshes.for_sampling(jax.devices(), heads=2)
  good = np.zeros((2, 8, 4, 4, 2), np.float32)
  bad = good.copy()
  bad[1, 7, 3, 3, 1] = np.nan
  with jax.set_mesh(mesh):
    x = jax.device_put(AV(bad, good), sharding_rules.replicated(mesh))
    found = denoise._are_finite(x)
    assert found.sharding.is_fully_replicated
    assert np.asarray(found).tolist() == [[True, False], [True, True]]
    one_tower = denoise._are_finite(AV(audio=x.audio))
    assert np.asarray(one_tower).tolist() == [[True, True]]
