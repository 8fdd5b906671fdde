"""Initial parameters by path: from weights, runs or scratch."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from ovi_jax import storage
from ovi_jax.checkpoint import manager
from ovi_jax.convert import convert
from ovi_jax.convert import fusion as fusion_names
from ovi_jax.convert import mapping
from ovi_jax.convert import release as releases
from ovi_jax.convert import standin
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sharding import mesh as meshes
from ovi_jax.sharding import sharding_rules
from ovi_jax.training import init_from
from tests.lib import standin_models

BOTH = standin_models.fusion_config()
AUDIO = AV(audio=BOTH.audio)
VIDEO, SOUND = init_from.tower("video"), init_from.tower("audio")
NEW = (init_from.FUSION_LAYERS,)
LISTENING = "blocks/audio/cross_attention/fusion_key/kernel"
HEAD = "audio/head/kernel"


def init(config):
  """A function from a key to a model's parameters."""

  def one(key):
    given = [{}, {}, {}]
    for name, tower in config.present().items():
      given[0][name] = jnp.zeros((1, *tower.patch, tower.channels))
      given[1][name] = jnp.zeros((1, 1))
      given[2][name] = jnp.zeros((1, 1, tower.text_dim))
    arguments = [AV(**by_name) for by_name in given]
    return fusion.FusionDiT(config).init(key, *arguments)["params"]

  return one


@functools.cache
def shapes(config=BOTH, dtype=jnp.float32):
  """The model's parameters by path, of one dtype."""
  tree = jax.eval_shape(init(config), jax.random.key(0))
  flat = mapping.flatten(tree)
  return {p: jax.ShapeDtypeStruct(x.shape, dtype) for p, x in flat.items()}


@functools.cache
def standin_params():
  return mapping.flatten(standin_models.fusion_params())


@functools.cache
def placement(config=BOTH, size=8):
  devices = np.array(jax.devices()[:size]).reshape(1, size, 1, 1)
  mesh = jax.sharding.Mesh(devices, meshes.AXES)
  return sharding_rules.param_shardings(
    shapes(config), sharding_rules.FUSION, mesh, all_rows=config is BOTH
  )


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
  """A converted Wan2.2 transformer of the stand-in's size."""
  rows = fusion_names.wan_rows(BOTH.video)
  params = standin_params()

  def read(path, index):
    return params[path] if index is None else params[path][index]

  release = tmp_path_factory.mktemp("release")
  file = release / "Wan2.2-TI2V-5B/diffusion_pytorch_model.safetensors"
  file.parent.mkdir()
  tensors = dict(mapping.to_torch(rows, read))
  tensors = {n: np.ascontiguousarray(x) for n, x in tensors.items()}
  safetensors.numpy.save_file(tensors, file)
  out = tmp_path_factory.mktemp("wan")
  sizes = {"fusion": {"video": standin.manifest()["config"]["fusion"]["video"]}}
  convert.convert(release, out, variant=releases.WAN, sizes=sizes)
  return str(out)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
  """Checkpoints of an audio run: all trained but the head, averaged."""
  path = tmp_path_factory.mktemp("sound")
  flat = {
    p: np.full(s.shape, n, np.float32)
    for n, (p, s) in enumerate(shapes(AUDIO).items())
  }
  frozen = {HEAD: flat.pop(HEAD).astype(jnp.bfloat16)}
  state = {
    "step": 3,
    "trained_params": {p: x + 0.25 for p, x in flat.items()},
    "frozen_params": frozen,
    "ema_params": flat,
  }
  state = jax.tree.map(jnp.asarray, state)
  with manager.Manager(path) as checkpoints:
    for step in (2, 3):
      checkpoints.save(step, state)
  return str(path)


def source(path, take, **fields):
  return init_from.Source(path=str(path), include=take, **fields)


def load(plan, seed=0, config=BOTH, size=8):
  return init_from.load(plan, init(config), seed, placement(config, size))


def problems(*arguments):
  """The lines of the error that a plan gives."""
  with pytest.raises(ValueError, match="initial parameters") as caught:
    init_from.plan(*arguments)
  head, *lines = str(caught.value).split("\n  ")
  return lines or [head.removeprefix("initial parameters: ")]


def test_wan_and_an_audio_run_make_a_fusion_model(wan, sound):
  # Leaving out what is not there is no mistake.
  sources = [source(wan, VIDEO, exclude=NEW), source(sound, SOUND)]
  plan = init_from.plan(shapes(), sources, NEW)
  assert len(plan.scratch) == 2 * 7
  assert plan.lines()[-1] == "14 arrays initialized at random"
  params = load(plan)
  assert list(params) == list(shapes())
  numbers = {p: n for n, p in enumerate(shapes(AUDIO))}
  for path, array in params.items():
    assert array.dtype == jnp.float32
    assert array.sharding == placement()[path]
    if path in plan.scratch:
      continue
    expected = standin_params()[path]
    if path in numbers:
      expected = np.full(expected.shape, numbers[path], np.float32)
    np.testing.assert_array_equal(np.asarray(array), expected, path)


def test_raw_params_are_loaded_on_request(sound):
  taken = source(f"{sound}/2", (".*",), use_ema=False)
  plan = init_from.plan(shapes(AUDIO), [taken])
  params = load(plan, config=AUDIO)
  assert plan.scratch == [] and "/2" in plan.lines()[0]
  for n, (path, array) in enumerate(params.items()):
    assert np.all(np.asarray(array) == n + (0.25 if path != HEAD else 0))


def test_random_values_depend_on_seed_and_path_only():
  inside = "blocks/audio/feed_forward/in/kernel"

  def scratch(*paths, **arguments):
    some = {p: shapes()[p] for p in paths}
    return load(init_from.plan(some, [], (".*",)), **arguments)

  both = scratch(LISTENING, inside)
  assert np.std(both[inside]) > 0.01
  one = scratch(LISTENING, size=1)[LISTENING]
  np.testing.assert_array_equal(one, both[LISTENING])
  other = scratch(LISTENING, seed=1)[LISTENING]
  assert np.all(np.asarray(other) != both[LISTENING])
  alone = scratch(inside, config=AUDIO)[inside]
  np.testing.assert_array_equal(alone, both[inside])


def test_dtypes_follow_the_plan(wan, sound):
  wanted = shapes() | {
    p: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16)
    for p, s in shapes().items()
    if "feed_forward" in p or p in (HEAD, LISTENING)
  }
  sources = [source(wan, VIDEO), source(sound, SOUND)]
  params = load(init_from.plan(wanted, sources, NEW))
  for path, array in params.items():
    assert array.dtype == wanted[path].dtype
  path = "blocks/video/feed_forward/in/kernel"
  expected = standin_params()[path].astype(jnp.bfloat16)
  np.testing.assert_array_equal(np.asarray(params[path]), expected)


def test_one_tower_is_loaded_from_a_full_release(weights):
  taken = source(weights, SOUND, exclude=NEW)
  params = load(init_from.plan(shapes(AUDIO), [taken]), config=AUDIO)
  for path, array in params.items():
    np.testing.assert_array_equal(np.asarray(array), standin_params()[path])


def test_a_full_release_is_loaded(weights):
  params = load(init_from.plan(shapes(), [source(weights, (".*",))]))
  for path, array in params.items():
    np.testing.assert_array_equal(np.asarray(array), standin_params()[path])


def test_parameters_unknown_to_the_model_are_refused(weights):
  lines = problems(shapes(AUDIO), [source(weights, SOUND)])
  assert len(lines) == 7
  assert f"{LISTENING}: {weights} has it, the model has not" in lines


def test_parameters_missing_in_the_source_are_refused(wan):
  lines = problems(shapes(), [source(wan, VIDEO)], SOUND)
  assert len(lines) == 7
  path = LISTENING.replace("audio", "video")
  assert f"{path}: the model has it, {wan} has not" in lines


def test_parameters_without_a_source_are_refused(wan, sound):
  lines = problems(
    shapes(), [source(wan, VIDEO, exclude=("video/head.*",))], NEW
  )
  missing = set(shapes(AUDIO)) | {p for p in shapes() if "video/head" in p}
  assert set(lines) == {
    f"{p}: no source supplies it, and it may not be scratch" for p in missing
  }


def test_all_problems_are_listed_at_once(wan, sound, weights, tmp_path):
  wider = dict(shapes())
  wider[HEAD] = jax.ShapeDtypeStruct((5, 7), jnp.float32)
  sources = [
    source(wan, (*VIDEO, "nothing/.*")),
    source(weights, ("video/head/bias", "audio/.*"), exclude=("none",)),
    source(tmp_path / "absent", ("blocks/audio/.*",)),
  ]
  shape = standin_params()[HEAD].shape
  assert set(problems(wider, sources, (*NEW, "no/such"))) == {
    "scratch 'no/such' matches nothing",
    f"take 'nothing/.*' of {wan} matches nothing",
    f"{HEAD}: {weights} has {shape}, the model (5, 7)",
    f"{tmp_path}/absent: expected converted weights (ovi_jax.json) or training"
    " checkpoints, there is no such directory",
    f"video/head/bias: supplied by {wan} and by {weights}",
  }


def test_towers_of_other_sizes_are_refused(wan, sound):
  longer = {
    p: jax.ShapeDtypeStruct((s.shape[0] + 1, *s.shape[1:]), s.dtype)
    if p.startswith("blocks/")
    else s
    for p, s in shapes(AUDIO).items()
  }
  lines = problems(longer, [source(sound, SOUND)])
  assert len(lines) == len([p for p in longer if p.startswith("blocks/")])
  assert f"{sound}/3 has (3, " in lines[0] and "the model (4, " in lines[0]


def test_invalid_patterns_are_refused():
  with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
    init_from.plan(shapes(), [], ("(",))


def test_damaged_sources_are_refused(wan, sound, tmp_path):
  (tmp_path / "7").mkdir()
  (tmp_path / "ovi_jax.json").write_text(json.dumps({"format": 1}))
  other = tmp_path / "states"
  with manager.Manager(other) as checkpoints:
    checkpoints.save(1, {"params": {"a": 1.0}})
  cut = tmp_path / "cut"
  shutil.copytree(sound, cut)
  (cut / "3" / "state" / "_METADATA").write_text("{}")
  sources = [
    source(tmp_path / "7", SOUND),
    source(tmp_path, ("video/.*",)),
    source(other, ("blocks/video/.*",)),
    source(cut, ("audio/head/.*",)),
  ]
  lines = problems(shapes(), sources)
  assert len(lines) == 4
  assert f"{cut}/3: the checkpoint is damaged (state/_METADATA" in lines[3]
  assert "/7: the checkpoint is damaged" in lines[0]
  assert "ovi_jax.json is damaged" in lines[1]
  assert "expected parameters under ['trained_params', 'frozen" in lines[2]
  assert "found only ['params']" in lines[2]


def test_a_run_in_a_store_that_orbax_lacks_is_refused(monkeypatch):
  monkeypatch.setattr(storage, "locate", epath.Path)
  monkeypatch.setattr(storage, "exists", lambda _: False)
  source = init_from.Source(path="s3://b/run", include=(".*",))
  message = "init_from: no ovi_jax.json in it: s3://b/run: expected a folder"
  with pytest.raises(ValueError, match=message):
    init_from.plan({}, [source])


def test_every_path_has_a_sharding(sound):
  plan = init_from.plan(shapes(AUDIO), [source(sound, SOUND)])
  with pytest.raises(ValueError, match=f"a sharding for each.*{HEAD}"):
    init_from.load(plan, init(AUDIO), 0, {})
  one = jax.sharding.SingleDeviceSharding(jax.devices()[1])
  params = init_from.load(plan, init(AUDIO), 0, one)
  assert params[HEAD].devices() == {jax.devices()[1]}


def test_init_must_match_the_plan():
  plan = init_from.plan(shapes(), [], (".*",))
  plan.shapes[HEAD] = jax.ShapeDtypeStruct((1, 1), jnp.float32)
  with pytest.raises(ValueError, match=f"other shapes .*{HEAD}"):
    load(plan)
