"""Training of a LoRA: what is trained, saved, resumed and refused."""

import shutil

import jax
import numpy as np
import pytest

from ovi_jax.checkpoint import reader
from ovi_jax.lora import adapter
from ovi_jax.lora import files
from ovi_jax.models import low_rank
from ovi_jax.training import export
from ovi_jax.training import param_filter
from ovi_jax.training import settings
from ovi_jax.training import task as tasks
from tests.lib import small_training
from tests.lib import train_runs

pytestmark = pytest.mark.usefixtures("one_device")

LORA = {
  "trainable": "lora",
  "lora.targets": "attention",
  "lora.rank": 2,
  "lora.alpha": 4.0,
  "lora.dropout": 0.25,
  "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def base(datasets, tmp_path_factory):
  """A run of one step, from random towers."""
  path = tmp_path_factory.mktemp("base") / "run"
  changes = small_training.FROM_SCRATCH | {"num_train_steps": 1}
  with pytest.MonkeyPatch.context() as patch:
    one = jax.devices()[:1]
    patch.setattr(jax, "devices", lambda *_: one)
    values = small_training.config("fusion", datasets["clips"], **changes)
    assert small_training.run(values, path)
  return path


def config(datasets, base, **changes):
  source = {"init_from.video": str(base), "init_from.audio": str(base)}
  return small_training.config(
    "fusion", datasets["clips"], **source | LORA | changes
  )


@pytest.mark.slow
def test_a_lora_trains_factors_only_and_resumes_bit_by_bit(
  base, datasets, tmp_path, log_lines
):
  assert small_training.run(config(datasets, base), tmp_path / "whole")
  trained = 2 * 2 * 8 * 2 * (32 + 32)  # blocks, towers, projections, rank
  assert any(f"{trained:,} of " in line for line in log_lines)
  first = config(datasets, base, num_train_steps=2)
  assert small_training.run(first, tmp_path / "cut")
  # The base may be moved; it is loaded again from where it is.
  moved = shutil.copytree(base, tmp_path / "moved")
  second = config(datasets, moved, grad_accum_steps=1)
  assert small_training.run(second, tmp_path / "cut")
  train_runs.assert_same(tmp_path / "cut", tmp_path / "whole")

  # Checkpoints have factors, their moments and EMA, and no base.
  arrays, _ = train_runs.contents(tmp_path / "whole")
  frozen = {p for p in arrays if p.startswith("frozen_params/")}
  assert all(p.endswith(low_rank.SCALE) for p in frozen)
  assert not any("kernel" in path for path in arrays)
  path = "trained_params/blocks/audio/cross_attention/key/lora_up"
  assert arrays[path].shape == (2, 2, 32) and arrays[path].any()
  assert (arrays[path.replace("trained", "ema")] != arrays[path]).any()
  scale = "frozen_params/blocks/audio/cross_attention/key/lora_scale"
  assert (arrays[scale] == 2).all()

  # The exported file has the EMA of the newest checkpoint.
  file = tmp_path / "lora.safetensors"
  export.export_lora(tmp_path / "whole", file, trigger_words="a hum")
  towers = settings.from_config(first).model
  found = files.read(file, towers)
  slot = adapter.Slot("blocks/audio/cross_attention/key/kernel", 1)
  ema = path.replace("trained", "ema")
  np.testing.assert_array_equal(found.pairs[slot].up, arrays[ema][1])
  assert found.pairs[slot].alpha == 4 and len(found.pairs) == 2 * 16
  assert found.metadata["trigger_words"] == "a hum"
  assert found.metadata["ovi_jax.targets"] == "attention"
  assert len(found.metadata[files.BASE_KEY]) == 64
  for where, out, message in (
    (tmp_path / "whole", tmp_path / "w", "is the run of a LoRA; export it wi"),
    (base, file, "is not the run of a LoRA"),
  ):
    write = export.export if out.name == "w" else export.export_lora
    with pytest.raises(ValueError, match=message):
      write(where, out)

  # Two microbatches and one make the same step, with dropout.
  parts = config(datasets, base, grad_accum_steps=2)
  assert small_training.run(parts, tmp_path / "parts")
  train_runs.assert_close(tmp_path / "parts", tmp_path / "whole", 1e-3)

  # Another base, and the run itself as a base.
  other = tmp_path / "other"
  changes = small_training.FROM_SCRATCH | {"num_train_steps": 1, "seed": 1}
  assert small_training.run(
    small_training.config("fusion", datasets["clips"], **changes), other
  )
  with pytest.raises(ValueError, match="trained on other weights than"):
    small_training.run(config(datasets, other), tmp_path / "whole")
  with pytest.raises(ValueError, match="checkpoints of a LoRA lack"):
    small_training.run(config(datasets, tmp_path / "whole"), tmp_path / "new")
  assert reader.steps(tmp_path / "whole" / "checkpoints") == [4, 2]


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
  both = {"init_from.video": "base", "init_from.audio": "base"}
  values = small_training.config("fusion", "data", **both | LORA | changes)
  with pytest.raises(ValueError, match=message):
    tasks.make(settings.from_config(values)).check()


def test_only_factors_are_trained_and_their_scale_stays_float32():
  both = {"init_from.video": "base", "init_from.audio": "base"}
  values = small_training.config("fusion", "data", **both | LORA)
  values.frozen_param_dtype = "bfloat16"
  task = tasks.make(settings.from_config(values))
  shapes = task.parameter_shapes()
  kernel = "blocks/audio/self_attention/out/kernel"
  assert shapes[kernel].dtype == np.dtype("bfloat16")
  for name in low_rank.FACTORS:
    assert shapes[low_rank.beside(kernel, name)].dtype == np.float32
  made = task.init_params(jax.random.key(0))
  flat = param_filter.flat(made)
  assert flat.keys() == shapes.keys()
  assert {p: x.shape for p, x in flat.items()} == {
    p: x.shape for p, x in shapes.items()
  }
