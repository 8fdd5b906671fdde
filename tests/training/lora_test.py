"""Training of a LoRA: what is trained, saved, resumed and refused."""

import functools
import math
import shutil
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.aot import train_step
from ovi_jax.checkpoint import manager
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import workdir as workdirs
from ovi_jax.lora import adapter
from ovi_jax.lora import files
from ovi_jax.lora import names
from ovi_jax.models import low_rank
from ovi_jax.sharding import mesh as meshes
from ovi_jax.training import export
from ovi_jax.training import loop
from ovi_jax.training import param_filter
from ovi_jax.training import settings
from ovi_jax.training import step as steps
from ovi_jax.training import task as tasks
from ovi_jax.training import trainer
from tests.lib import small_training
from tests.lib import train_runs

pytestmark = pytest.mark.usefixtures("one_device")

LORA = {
  "trainable": "lora",
  "lora.targets": "attention",
  "lora.rank": 2,
  "lora.alpha": 4.0,
}
BOTH = {"init_from.video": "base", "init_from.audio": "base"}


@pytest.fixture
def bases(tmp_path):
  """Checkpoints of two audio towers, of random parameters."""
  values = small_training.config("audio_finetune", "data", **ONE_BLOCK)
  shapes = names.shapes(settings.from_config(values).model)
  paths = []
  for seed in (0, 1):
    random = np.random.default_rng(seed)
    flat = {
      path: jnp.asarray(0.2 * random.standard_normal(shape, np.float32))
      for path, shape in shapes.items()
    }
    paths.append(tmp_path / f"base{seed}")
    with manager.Manager(paths[-1]) as checkpoints:
      checkpoints.save(1, {"trained_params": flat})
  return paths


ONE_BLOCK = {
  "model.audio.num_layers": 1,
  "checkpoint_every": 2,
  "optimizer.schedule": "constant",
  "optimizer.warmup_steps": 0,
  "lora.dropout": 0.25,
}


def config(datasets, base, **changes):
  source = {"init_from.audio": str(base)}
  changes = LORA | ONE_BLOCK | source | changes
  return small_training.config("audio_finetune", datasets["sounds"], **changes)


@pytest.mark.slow
def test_a_lora_trains_factors_only_and_resumes_bit_by_bit(
  bases, datasets, tmp_path, log_lines
):
  base, other = bases
  whole = tmp_path / "whole"
  assert small_training.run(config(datasets, base), whole)
  trained = 8 * 2 * (32 + 32)  # projections, rank, rows and columns
  assert any(f"{trained:,} of " in line for line in log_lines)
  first = config(datasets, base, num_train_steps=2)
  assert small_training.run(first, tmp_path / "cut")
  # The base may be moved; it is loaded again from where it is.
  moved = shutil.copytree(base, tmp_path / "moved")
  assert small_training.run(config(datasets, moved), tmp_path / "cut")
  train_runs.assert_same(tmp_path / "cut", whole)

  # Checkpoints have factors, their moments and EMA, and no base.
  arrays, _ = train_runs.contents(whole)
  frozen = {p for p in arrays if p.startswith("frozen_params/")}
  assert all(p.endswith(low_rank.SCALE) for p in frozen)
  assert not any("kernel" in path for path in arrays)
  path = "trained_params/blocks/audio/cross_attention/key/lora_up"
  ema = path.replace("trained", "ema")
  assert arrays[path].shape == (1, 2, 32) and arrays[path].any()
  assert (arrays[ema] != arrays[path]).any()
  scale = "frozen_params/blocks/audio/cross_attention/key/lora_scale"
  assert (arrays[scale] == 2).all()

  # The exported file has the EMA of the newest checkpoint.
  file = tmp_path / "lora.safetensors"
  export.export_lora(whole, file, trigger_words="a hum")
  found = files.read(file, settings.from_config(first).model)
  slot = adapter.Slot("blocks/audio/cross_attention/key/kernel", 0)
  np.testing.assert_array_equal(found.pairs[slot].up, arrays[ema][0])
  assert found.pairs[slot].alpha == 4 and len(found.pairs) == 8
  assert found.metadata["trigger_words"] == "a hum"
  assert found.metadata["ovi_jax.targets"] == "attention"
  assert len(found.metadata[files.BASE_KEY]) == 64
  with pytest.raises(ValueError, match="is the run of a LoRA; export it with"):
    export.export(whole, tmp_path / "weights")

  # Another base, and the run itself as a base, are refused.
  with pytest.raises(ValueError, match="does not match the base model"):
    small_training.run(config(datasets, other), whole)
  with pytest.raises(ValueError, match="checkpoints of a LoRA lack"):
    small_training.run(config(datasets, whole), tmp_path / "new")
  assert reader.steps(whole / "checkpoints") == [4, 2]


@pytest.mark.slow
@pytest.mark.nightly
def test_microbatches_of_a_lora_make_the_same_step(bases, datasets, tmp_path):
  """Dropped ranks do not depend on them."""
  for parts in (1, 2):
    made = config(datasets, bases[0], grad_accum_steps=parts)
    assert small_training.run(made, tmp_path / str(parts))
  train_runs.assert_close(tmp_path / "1", tmp_path / "2", 1e-3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"lora.rank": 0}, "lora.rank must be at least 1"),
    ({"lora.rank": 33}, "lora.rank 33 is larger than 32"),
    ({"lora.alpha": 0.0}, "lora.alpha must be positive"),
    ({"lora.dropout": 1.0}, r"lora.dropout must be in \[0, 1\)"),
    ({"lora.targets": "atention"}, "'atention' is unknown; choose from"),
    ({"lora.targets": "blocks/x/.*"}, "matches no parameter"),
    ({"init_from.video": "scratch"}, "adapts trained weights"),
    ({"init_from.video": "other"}, "got a directory for each tower"),
  ],
)
def test_settings_that_cannot_be_are_refused(changes, message, tmp_path):
  values = small_training.config("fusion", "data", **BOTH | LORA | changes)
  with pytest.raises(ValueError, match=message):
    tasks.make(settings.from_config(values)).check()


def test_a_run_without_a_lora_goes_on_without_its_settings(tmp_path):
  """Also a run from before LoRAs; that of a LoRA keeps its settings."""
  for path, changes in (("all", {}), ("lora", LORA)):
    whole = small_training.config("fusion", "data", **BOTH | changes)
    made = settings.from_config(whole)
    values, fields = whole.to_dict(), made.mutable_fields
    before = {k: x for k, x in values.items() if path == "lora" or k != "lora"}
    assert settings.from_config(type(whole)(before)) == made
    workdirs.check_config(tmp_path / path, before, fields)
    other = values | {"lora": values["lora"] | {"rank": 3}}
    if path == "all":
      workdirs.check_config(tmp_path / path, values, fields)
      workdirs.check_config(tmp_path / path, other, fields)
    else:
      with pytest.raises(ValueError, match="lora.rank: 2 in the run, 3 now"):
        workdirs.check_config(tmp_path / path, other, fields)


def test_the_base_is_that_of_the_checkpoint_that_is_restored(tmp_path):
  """The newest one is damaged, an older one has another base."""
  state = {"trained_params": {"x": jnp.zeros(2)}}
  with manager.Manager(tmp_path / "checkpoints") as checkpoints:
    for step, base in ((1, "a"), (2, "b")):
      checkpoints.save(step, state, {}, {trainer.BASE: base})
    checkpoints.wait()
    found = (tmp_path / "checkpoints/2/state").rglob("*")
    files_of = [p for p in found if p.is_file()]
    max(files_of, key=lambda p: p.stat().st_size).write_bytes(b"damaged")
    context: Any = types.SimpleNamespace(
      manager=checkpoints, checkpointed=lambda tree: tree
    )
    check = functools.partial(trainer.check_base, tmp_path, "hint", "b")
    target: Any = state
    with pytest.raises(ValueError, match="does not match the base model"):
      loop.restore(context, target, check)


def test_only_factors_are_trained_and_their_scale_stays_float32():
  values = small_training.config("fusion", "data", **BOTH | LORA)
  values.frozen_param_dtype = "bfloat16"
  task = tasks.make(settings.from_config(values))
  shapes = task.parameter_shapes()
  kernel = "blocks/audio/self_attention/out/kernel"
  assert shapes[kernel].dtype == np.dtype("bfloat16")
  for name in low_rank.FACTORS:
    assert shapes[low_rank.beside(kernel, name)].dtype == np.float32
  made = jax.eval_shape(task.init_params, jax.random.key(0))
  flat = param_filter.flat(made)
  assert flat.keys() == shapes.keys()
  assert {p: x.shape for p, x in flat.items()} == {
    p: x.shape for p, x in shapes.items()
  }


@pytest.mark.slow
def test_a_step_holds_2_bytes_of_a_frozen_weight_and_16_of_a_factor():
  """By the compiler; the arithmetic of the memory table in the guide."""
  changes = {"init_from.audio": "base"} | ONE_BLOCK | LORA
  values = small_training.config("audio_finetune", "data", **changes)
  values.frozen_param_dtype = "bfloat16"
  made: Any = settings.from_config(values)
  mesh = meshes.make(jax.devices()[:1])
  with jax.set_mesh(mesh):
    task = tasks.make(made)
    state = task.target_state(mesh)
    batch = train_step.batch_of(made, None, made.data.buckets[0].audio, mesh)
    width = made.model.audio.text_dim
    null_SE = jax.ShapeDtypeStruct((1, width), jnp.float32)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    program = steps.jit_train_step(shardings, mesh)
    lowered = program.lower(task.step_config, state, batch, null_SE)
    found = lowered.compile().memory_analysis().argument_size_in_bytes
  base = names.shapes(made.model).values()
  frozen = sum(math.prod(shape) for shape in base)
  factors = 8 * 2 * (32 + 32)  # as in the run above
  given = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
  # Scales of LoRAs, counters, the key of random numbers, and the null prompt.
  others = found - 2 * frozen - 16 * factors - given
  assert frozen > 20_000 and 0 <= others < 600
