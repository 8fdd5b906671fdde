"""The denoiser: parity with the original, skipping, single towers, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.convert import fusion as fusion_names
from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sharding import mesh as meshes
from tests.lib import parity
from tests.lib import standin_models

CASES = {  # golden -> (first frame clean, block left out)
  "t2v": (False, 0),
  "i2v": (True, 0),
  "slg1": (False, 1),
  "slg2_i2v": (True, 2),
}


@pytest.fixture(scope="module")
def inputs(golden):
  """Latents and prompt embeddings of the goldens, four alike in a batch."""
  arrays, text = golden("fusion"), golden("umt5")
  embedding = (text["t5_emb"] * text["t5_mask"][..., None])[:1]
  latents = AV(arrays["vid"].transpose(1, 2, 3, 0)[None], arrays["aud"][None])
  return AV(*(np.repeat(x, 4, 0) for x in latents)), np.repeat(embedding, 4, 0)


def times(t: float, batch: int) -> AV:
  """Times of a batch."""
  return AV(*(np.full((batch, 1), t, np.float32) for _ in AV._fields))


def first_frames(batch: list[bool], frames: int) -> AV:
  """A mask that gives the first frame where `batch` is true."""
  return AV(video=np.outer(batch, np.arange(frames) == 0))


@pytest.fixture(scope="module")
def forward(inputs):
  """All four golden cases in one call of the model, by dtype and time."""
  latents, text = inputs
  config = standin_models.fusion_config()
  keep = np.ones((config.video.num_layers, len(CASES)), bool)
  for element, (_, skipped) in enumerate(CASES.values()):
    keep[skipped, element] = not skipped
  prompt = AV(text, text)

  @functools.partial(jax.jit, static_argnames=("dtype", "cached"))
  def call(params, t_BT, given_BT, dtype, cached):
    # With the limit, 17 tokens at a time: the last 17 are not all there.
    limit = 17 * config.video.mlp_dim if cached else None
    model = fusion.FusionDiT(config, dtype, "xla", limit)
    given = prompt
    if cached:
      given = model.apply(params, latents, prompt, method="step_constants")
    return model.apply(params, latents, t_BT, given, keep, given_BT=given_BT)

  def run(t: float, dtype, cached: bool) -> AV:
    clean = [first for first, _ in CASES.values()]
    t_BT = times(t, len(clean))
    given_BT = first_frames(clean, latents.video.shape[1])
    variables = {"params": standin_models.fusion_params()}
    return call(variables, t_BT, given_BT, jnp.dtype(dtype), cached)

  return run


def assert_all_cases_close(velocity: AV, reference: dict, t: float, kind: str):
  """Compare every element of a batch with its golden at time `t`."""
  for element, case in enumerate(CASES):
    video = reference[f"fwd_{case}_{t}_v"].transpose(1, 2, 3, 0)
    audio = reference[f"fwd_{case}_{t}_a"]
    parity.assert_close(velocity.video[element], video, kind)
    parity.assert_close(velocity.audio[element], audio, kind)


@pytest.mark.parametrize("t", [987.0, 123.4])
@pytest.mark.parametrize("cached", [True, False])
def test_the_forward_pass_equals_the_originals(forward, golden, t, cached):
  velocity = forward(t, jnp.float32, cached)
  assert_all_cases_close(velocity, golden("fusion"), t, "forward")


@pytest.mark.parametrize("t", [987.0, 123.4])
def test_bfloat16_stays_within_tolerance(forward, golden, t):
  velocity = forward(t, jnp.bfloat16, True)
  assert velocity.video.dtype == velocity.audio.dtype == jnp.float32
  assert_all_cases_close(velocity, golden("fusion"), t, "bfloat16")


def time_sensitive_params(seed: int) -> dict:
  """Random weights whose velocity depends strongly on the time embedding.

  The embedding has the released 256 frequencies and a first layer of 8 times
  the usual scale. `goldens/time.npz` holds the outputs of the original's code,
  whose sinusoids are float64, on the same weights.
  """
  entries = standin.manifest()["files"][standin_models.FUSION_FILE]

  def read(name: str) -> np.ndarray:
    entry = entries[name]
    if not name.endswith("time_embedding.0.weight"):
      return standin.values(name, entry, seed)
    wide = entry | {"shape": [entry["shape"][0], 256]}
    return 8 * standin.values(name, wide, seed)

  rows = fusion_names.rows(standin_models.fusion_config())
  return mapping.nest(mapping.gather(rows, read))


def test_the_forward_pass_near_full_noise_equals_the_originals(inputs, golden):
  latents, text = inputs
  config = standin_models.fusion_config()
  wide = (dataclasses.replace(tower, freq_dim=256) for tower in config)
  model = fusion.FusionDiT(AV(*wide))
  latents = AV(*(x[:1] for x in latents))
  reference = golden("time")

  @jax.jit
  def call(params, t):
    t_BT = jnp.full((1, 1), t)
    prompt = AV(text[:1], text[:1])
    return model.apply({"params": params}, latents, AV(t_BT, t_BT), prompt)

  for seed in (1, 2, 3):
    params = time_sensitive_params(seed)
    for t in (987.0, 999.0):
      velocity = call(params, np.float32(t))
      video = reference[f"fwd_{seed}_{t}_v"].transpose(1, 2, 3, 0)
      audio = reference[f"fwd_{seed}_{t}_a"]
      parity.assert_close(velocity.video[0], video, "time_embedding")
      parity.assert_close(velocity.audio[0], audio, "time_embedding")


@pytest.mark.parametrize("name", ["video", "audio"])
def test_a_single_tower_equals_its_part_of_the_model(inputs, golden, name):
  latents, text = inputs
  config = AV(**{name: getattr(standin_models.fusion_config(), name)})
  one = AV(**{name: getattr(latents, name)[:1]})
  t_BT = AV(**{name: np.full((1, 1), 500.0, np.float32)})
  prompt = AV(**{name: text[:1]})
  model = fusion.FusionDiT(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0), one, t_BT, prompt)
  everything = mapping.flatten(standin_models.fusion_params())
  wanted = mapping.flatten(shapes["params"])
  assert wanted.keys() < everything.keys()
  params = mapping.nest({path: everything[path] for path in wanted})
  velocity = jax.jit(model.apply)({"params": params}, one, t_BT, prompt)
  reference = golden("fusion")[f"fwd_{name}_only"]
  if name == "video":
    reference = reference.transpose(1, 2, 3, 0)
  parity.assert_close(getattr(velocity, name)[0], reference, "forward")
  assert velocity.other(name) is None


def test_a_mask_of_another_length_is_refused(inputs):
  latents, text = jax.tree.map(lambda x: x[:1], inputs)
  model = fusion.FusionDiT(standin_models.fusion_config())
  variables = {"params": standin_models.fusion_params()}
  mask = AV(video=np.ones((1, 9), bool))
  with pytest.raises(
    ValueError, match=r"mask .* must be \[B, 4\], got \(1, 9\)"
  ):
    jax.eval_shape(
      functools.partial(model.apply, given_BT=mask),
      *(variables, latents, times(500.0, 1), AV(text, text)),
    )


def test_released_parameter_counts():
  flat = mapping.flatten(standin_models.full_fusion_shapes())

  def count(pattern: str) -> int:
    return sum(x.size for path, x in flat.items() if pattern in path)

  assert count("") == 11_660_753_108
  assert round(count("audio/patch_embedding") / 1e9, 3) == 0.529
  assert round(count("fusion_") / 1e9, 3) == 1.133
  assert round(count("feed_forward") / 1e9, 3) == 5.286
  assert (
    round((count("video/") - count("video/cross_attention/fusion")) / 1e9) == 5
  )


@pytest.mark.slow
def test_initialization_follows_the_paper():
  config = standin_models.fusion_config()
  model = fusion.FusionDiT(config)
  latents = AV(jnp.zeros((1, 1, 2, 2, 48)), jnp.zeros((1, 1, 20)))
  t_BT, text = jnp.zeros((1, 1)), jnp.zeros((1, 1, 48))
  flat = mapping.flatten(
    jax.jit(model.init)(
      jax.random.key(0), latents, AV(t_BT, t_BT), AV(text, text)
    )["params"]
  )
  kernel = "cross_attention/fusion_key/kernel"
  bound = (6 / (64 + 64)) ** 0.5
  video = np.abs(flat[f"blocks/video/{kernel}"]).max()
  audio = np.abs(flat[f"blocks/audio/{kernel}"]).max()
  assert 0.95 < video / (bound / 10) <= 1 and 0.95 < audio / bound <= 1
  assert not np.any(flat["video/head/kernel"])
  assert abs(np.std(flat["audio/text_embedding/in/kernel"]) - 0.02) < 2e-3
  blocks = flat["blocks/video/self_attention/query/kernel"]
  assert not np.allclose(blocks[0], blocks[1])


def test_towers_of_unequal_depth_are_refused():
  config = standin_models.fusion_config()
  deeper = type(config.audio)(channels=20, patch=(1,), num_layers=5)
  model = fusion.FusionDiT(config._replace(audio=deeper))
  with pytest.raises(ValueError, match="equally many blocks"):
    jax.eval_shape(model.init, jax.random.key(0), None, None, None)


def test_prompts_beyond_the_text_length_are_refused(inputs):
  latents, text = inputs
  model = fusion.FusionDiT(standin_models.fusion_config())
  long = np.repeat(text, 2, 1)
  variables = {"params": standin_models.fusion_params()}
  with pytest.raises(ValueError, match="64 text embeddings; .* reads 32"):
    model.apply(variables, latents, AV(long, long), method="step_constants")


@pytest.mark.parametrize(
  ("own", "devices", "dtype"),
  [
    (0, 1, "float32"),
    pytest.param(31, 8, "float32", marks=pytest.mark.slow),
    pytest.param(500, 1, "bfloat16", marks=pytest.mark.slow),
  ],
)
def test_omitting_padding_changes_nothing(inputs, own, devices, dtype):
  """One row that stands for the rest, as `sample.py` does with a release."""
  latents, text = jax.tree.map(lambda x: x[:2], inputs)
  text = np.tile(text, (1, 16, 1))
  config = standin_models.fusion_config()
  towers = config.present().items()
  config = AV(
    **{n: dataclasses.replace(c, max_text_len=512) for n, c in towers}
  )
  model = fusion.FusionDiT(config, jnp.dtype(dtype), "xla_head", 2048)
  variables = {"params": standin_models.fusion_params()}
  t_BT = AV(jnp.full((2, 1), 500.0), jnp.full((2, 1), 500.0))

  @functools.partial(jax.jit, static_argnums=0)
  def call(model, prompt):
    given = AV(prompt, prompt)
    given = model.apply(variables, latents, given, method="step_constants")
    return model.apply(variables, latents, t_BT, given)

  written_out = text * (np.arange(512) < own)[None, :, None]
  padded = call(model.clone(dtype=jnp.float32), written_out)
  mesh = meshes.for_sampling(jax.devices()[:devices], heads=2)
  with jax.set_mesh(mesh):
    short = call(model, text[:, :own])
  limit = 5e-6 if dtype == "float32" else 3e-2
  assert parity.relative_error(short.video, padded.video) < limit
  assert parity.relative_error(short.audio, padded.audio) < limit
