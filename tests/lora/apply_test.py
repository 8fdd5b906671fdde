"""LoRAs applied to weights, merged into them and extracted from them."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

import ovi_jax
from configs import sample
from ovi_jax import synthetic
from ovi_jax.convert import mapping
from ovi_jax.lora import adapter
from ovi_jax.lora import apply
from ovi_jax.lora import extract
from ovi_jax.lora import files
from ovi_jax.lora import merge
from ovi_jax.lora import names
from ovi_jax.modality import AV
from ovi_jax.models import low_rank
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import opening
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sharding import mesh as meshes
from ovi_jax.sharding import sharding_rules
from tests.lib import parity
from tests.lib import random_loras

CONFIG = random_loras.CONFIG
SMALL = weights_dir.manifest_of(synthetic.WEIGHTS).architecture.fusion


def lora(made: adapter.Adapter, video: float = 1.0, audio: float = 1.0):
  return apply.Lora(
    path="x", strength=AV(video, audio), sha256="", adapter=made
  )


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", []),
    ("a.safetensors", [("a.safetensors", (1, 1))]),
    ("a:0.5, b:-1e-1/2", [("a", (0.5, 0.5)), ("b", (-0.1, 2))]),
    ("gs://bucket/a:.25", [("gs://bucket/a", (0.25, 0.25))]),
    ("gs://bucket/a", [("gs://bucket/a", (1, 1))]),
  ],
)
def test_files_and_strengths_are_read_from_a_flag(text, expected):
  assert apply.parse(text) == expected


def test_names_of_files_may_hold_commas(tmp_path):
  for name in ("a, b.safetensors", "c,d", "c"):
    (tmp_path / name).touch()
  text = f"{tmp_path}/a, b.safetensors:0.5, {tmp_path}/c,d,{tmp_path}/c:1/2,e"
  assert apply.parse(text) == [
    (f"{tmp_path}/a, b.safetensors", (0.5, 0.5)),
    (f"{tmp_path}/c,d", (1, 1)),
    (f"{tmp_path}/c", (1, 2)),
    ("e", (1, 1)),
  ]


@pytest.mark.parametrize(
  ("text", "message"),
  [(":0.5", "expected FILE or FILE:STR"), ("a:1e9", "strength from -100 to")],
)
def test_a_flag_that_cannot_be_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    apply.parse(text)


@pytest.mark.parametrize("strength", ["nan", "", "1/", "50%", "1/2/3"])
def test_a_strength_that_cannot_be_read_is_named(strength, tmp_path):
  path = tmp_path / "a.safetensors"
  path.touch()
  with pytest.raises(ValueError, match="expected a number, or VIDEO/AUDIO"):
    apply.parse(f"{path}:{strength}")


def test_two_loras_of_other_strengths_are_added_to_every_layer():
  """On eight devices; what has no update is shared with the base."""
  flat = random_loras.base()
  mesh = meshes.make(jax.devices(), fsdp=2, context=2, tensor=2)
  placed = sharding_rules.param_shardings(flat, sharding_rules.FUSION, mesh)
  base = {p: jax.device_put(x, placed[p]) for p, x in flat.items()}
  many = random_loras.make(wanted=is_tested)
  few = random_loras.make(
    wanted=lambda slot: slot.block == 1 and slot.path.endswith("query/kernel")
  )
  loras = [lora(many, 0.5, 0.0), lora(few, 2.0, -1.0)]
  params = apply.apply(mapping.nest(base), loras, CONFIG, mesh)
  added = {p: np.asarray(x) for p, x in mapping.flatten(params).items()}
  for path in flat:
    found = added[path]
    if (down := low_rank.beside(path, low_rank.DOWN)) in added:
      up, scale = (
        added[low_rank.beside(path, n)] for n in (low_rank.UP, low_rank.SCALE)
      )
      found = found + (added[down] * scale[:, None]) @ up
    expected = np.array(flat[path])
    for block in range(2) if path.startswith("blocks/") else (None,):
      slot = adapter.Slot(path, block)
      view = expected if block is None else expected[block]
      view[...] = apply.merged(view, slot, loras)
    assert parity.relative_error(found, expected) < 1e-6, path
  untouched = "audio/head/kernel"
  added = mapping.flatten(params)
  assert added[untouched] is base[untouched]
  query = "blocks/video/self_attention/query/"
  assert added[f"{query}kernel"] is base[f"{query}kernel"]
  assert added[f"{query}lora_up"].sharding.spec[2] == "tensor"


def is_tested(slot: adapter.Slot) -> bool:
  """Kernels of blocks, and some of other parameters."""
  others = ("cross_norm/bias", "text_embedding/in/kernel")
  return random_loras.is_block_kernel(slot) or slot.path.endswith(others)


def test_a_lora_of_strength_zero_adds_nothing():
  flat = random_loras.base()
  mesh = meshes.make(jax.devices()[:1])
  base = mapping.nest({p: jax.numpy.asarray(x) for p, x in flat.items()})
  params = apply.apply(
    base, [lora(random_loras.make(), 0.0, 0.0)], CONFIG, mesh
  )
  pairs = zip(jax.tree.leaves(params), jax.tree.leaves(base), strict=True)
  assert all(ours is theirs for ours, theirs in pairs)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """A LoRA of the small model's attention, rank 1 to 3."""
  path = tmp_path_factory.mktemp("lora") / "small.safetensors"
  made = random_loras.make(SMALL, low_rank_only, diffs=False)
  small = {
    slot: dataclasses.replace(pair, up=0.05 * pair.up)
    for slot, pair in made.pairs.items()
  }
  text = {files.BASE_KEY: "another"}
  made = dataclasses.replace(made, pairs=small, metadata=text)
  files.write(path, made, SMALL)
  return path


def low_rank_only(slot: adapter.Slot) -> bool:
  return "attention/" in slot.path and random_loras.is_block_kernel(slot)


def test_merged_weights_are_read_and_extraction_returns_the_lora(
  file, tmp_path
):
  out = tmp_path / "merged"
  merge.merge(synthetic.WEIGHTS, f"{file}:0.5", out, np.dtype("float32"))
  manifest = weights_dir.read(out)
  assert manifest.sampling
  base = weights_dir.manifest_of(synthetic.WEIGHTS)
  assert manifest.digests["fusion"] != base.digests["fusion"]
  assert manifest.digests["umt5"] == base.digests["umt5"]
  with pytest.raises(ValueError, match="holds weights already"):
    merge.merge(synthetic.WEIGHTS, str(file), out)

  found, share = extract.extract(synthetic.WEIGHTS, out, 3)
  assert share > 1 - 1e-6 and not found.deltas
  expected = files.read(file, SMALL).pairs
  assert found.pairs.keys() == expected.keys()
  for slot, pair in found.pairs.items():
    wanted = 0.5 * expected[slot].delta()
    assert parity.relative_error(pair.delta(), wanted) < 1e-5
  _, less = extract.extract(synthetic.WEIGHTS, out, 1)
  assert 0.5 < less < 1


def test_a_lora_trained_with_given_latents_recommends_to_show_them_clean(
  file, tmp_path
):
  config = sample.get_config()
  made = files.read(file, SMALL)
  text = {"ovi_jax.conditioning": "clean"}
  clean = tmp_path / "clean.safetensors"
  files.write(clean, dataclasses.replace(made, metadata=text), SMALL)
  # Strength 0 changes nothing.
  for path, mode in (
    (file, "renoise"),
    (clean, "clean"),
    (f"{clean}:0/1", "clean"),
    (f"{clean}:0", "renoise"),
  ):
    found = opening.resolve_settings(config, synthetic.WEIGHTS, str(path))
    assert found.conditioning == mode
  merge.merge(synthetic.WEIGHTS, str(clean), tmp_path / "merged")
  merged = weights_dir.manifest_of(tmp_path / "merged").sampling
  base = weights_dir.manifest_of(synthetic.WEIGHTS).sampling
  assert merged == {**base, "conditioning": "clean"}
  again, _ = extract.extract(synthetic.WEIGHTS, tmp_path / "merged", 1)
  assert apply.recommended([(again.metadata, AV(1.0, 1.0))]) == {
    "conditioning": "clean"
  }
  config.conditioning = "renoise"
  asked = opening.resolve_settings(config, synthetic.WEIGHTS, str(clean))
  assert asked.conditioning == "renoise"
  with pytest.raises(ValueError, match="there is no file .*none"):
    opening.resolve_settings(config, synthetic.WEIGHTS, "none")


def test_sums_that_are_not_finite_leave_no_weights(tmp_path):
  made = random_loras.make(
    SMALL, lambda s: s == adapter.Slot("video/head/kernel", None)
  )
  ((slot, pair),) = made.pairs.items()
  large = dataclasses.replace(pair, up=np.full_like(pair.up, 3e38))
  made = dataclasses.replace(made, pairs={slot: large})
  files.write(tmp_path / "lora", made, SMALL)
  out = tmp_path / "merged"
  with pytest.raises(ValueError, match="video/head/kernel with .* not finite"):
    merge.merge(synthetic.WEIGHTS, f"{tmp_path / 'lora'}:100", out)
  assert not list(out.iterdir())


def test_whole_kernels_of_8_bits_are_refused_before_weights_are_loaded(
  tmp_path, monkeypatch
):
  path = "blocks/video/self_attention/query/kernel"
  shape = names.shapes(SMALL)[path]
  delta = np.ones(shape[1:], np.float32)
  deltas = {adapter.Slot(path, 0): delta}
  made = adapter.Adapter(pairs={}, deltas=deltas)
  files.write(tmp_path / "lora", made, SMALL)
  stored = dict(weights.shapes(synthetic.WEIGHTS / "fusion.safetensors"))
  settings = settings_lib.Settings.from_overrides({})
  opened = opening.open_components(synthetic.WEIGHTS, settings)
  pipe = ovi_jax.Pipeline(opened)
  pipe.set_lora(str(tmp_path / "lora"))
  adapted = pipe.components.loras

  stored[path] = jax.ShapeDtypeStruct(shape, np.int8)
  monkeypatch.setattr(weights, "shapes", lambda _: stored)
  message = f"{tmp_path}/lora: an update of the whole of {path} cannot be"
  with pytest.raises(ValueError, match=message):
    pipe.set_lora(f"{tmp_path / 'lora'}:0.5")
  assert pipe.components.loras is adapted
  pipe.set_lora(f"{tmp_path / 'lora'}:0/1")


def test_a_restricted_pipeline_has_the_loras_of_the_whole(tmp_path):
  whole = ovi_jax.Pipeline.from_pretrained()
  part = whole.restricted("audio")
  path = str(tmp_path / "lora")
  files.write(path, random_loras.make(SMALL, alpha=False, diffs=False), SMALL)

  def applied():
    paths = traverse_util.flatten_dict(part._denoiser().params, sep="/")
    return sum(low_rank.DOWN in path for path in paths)

  def recorded():
    (job,), _ = planning.plan(
      requests.from_prompt("a", seconds=0.5),
      settings_lib.Settings.from_overrides({}),
      part.components,
      tmp_path,
      "",
    )
    return len(job.recipe["loras"])

  assert (applied(), recorded()) == (0, 0)
  whole.set_lora(path)
  assert applied() > 0 and recorded() == 1
  with pytest.raises(ValueError, match="set_lora: expected the pipeline of"):
    part.set_lora("")
  assert applied() > 0 and recorded() == 1
  whole.set_lora("")
  assert (applied(), recorded()) == (0, 0)
  assert part.restricted("audio") is part


def test_extraction_keeps_other_differences_whole(tmp_path):
  made = random_loras.make(
    SMALL, lambda s: s.path.endswith("cross_norm/bias") and s.block == 2
  )
  files.write(tmp_path / "lora", made, SMALL, names.OWN)
  out = tmp_path / "merged"
  merge.merge(
    synthetic.WEIGHTS, str(tmp_path / "lora"), out, np.dtype("float32")
  )
  found, _ = extract.extract(synthetic.WEIGHTS, out, 1)
  assert found.deltas.keys() == made.deltas.keys() and not found.pairs
  with pytest.raises(ValueError, match="have equal DiTs"):
    extract.extract(out, out, 1)
  with pytest.raises(ValueError, match="rank of at least 1"):
    extract.extract(out, out, 0)


def test_the_metadata_of_a_clip_names_its_loras(file, log_lines):
  settings = settings_lib.Settings.from_overrides({})
  opened = opening.open_components(synthetic.WEIGHTS, settings, f"{file}:0.5/0")
  (each,) = opened.loras
  assert each.metadata() == {
    "path": str(file),
    "sha256": weights_dir.digest_of(file),
    "strength": {"video": 0.5, "audio": 0.0},
  }
  assert any("has another digest than these" in line for line in log_lines)
  with pytest.raises(ValueError, match="there is no file"):
    opening.with_loras(opened, "none.safetensors")


@pytest.mark.slow
@pytest.mark.nightly
def test_a_clip_with_a_lora_equals_that_of_merged_weights(file, tmp_path):
  """Exchanging LoRAs keeps the loaded base; without, the clip is as before."""
  few = {"seed": 3, "num_steps": 2, "progress": False}
  prompt = "A red ball bounces. Audio: dull knocks."
  pipe = ovi_jax.Pipeline.from_pretrained()
  before = pipe(prompt, **few)
  base = pipe._loaded["denoiser"]
  pipe.set_lora(f"{file}:0.5")
  ours = pipe(prompt, **few)
  assert pipe._loaded["denoiser"] is base
  assert ours.metadata["loras"][0]["strength"] == {"video": 0.5, "audio": 0.5}
  merge.merge(
    synthetic.WEIGHTS, f"{file}:0.5", tmp_path / "w", np.dtype("float32")
  )
  theirs = ovi_jax.Pipeline.from_pretrained(tmp_path / "w")(prompt, **few)
  for name in AV._fields:
    mine, merged, without = (
      getattr(clip.latents, name) for clip in (ours, theirs, before)
    )
    assert parity.relative_error(mine, merged) < 1e-4
    assert parity.relative_error(mine, without) > 1e-2
  pipe.set_lora(f"{file}:0")
  again = pipe(prompt, **few)
  np.testing.assert_array_equal(again.latents.video, before.latents.video)
  pipe.set_lora()
  assert pipe(prompt, **few).metadata["loras"] == []
