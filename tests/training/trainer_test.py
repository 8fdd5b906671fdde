"""Training stages from their configs, and bad input."""

import dataclasses
import json
import shutil

import pytest

from ovi_jax import synthetic
from ovi_jax.checkpoint import reader
from ovi_jax.data import quality
from ovi_jax.training import logs
from ovi_jax.training import loop
from ovi_jax.training import settings
from ovi_jax.training import task as tasks
from ovi_jax.training import trainer
from tests.lib import small_training

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def pretrained(one_device, datasets, tmp_path_factory):
  """Runs of the two towers alone."""
  root = tmp_path_factory.mktemp("runs")
  small_training.run(
    small_training.config("audio_pretrain", datasets["sounds"]), root / "audio"
  )
  small_training.run(
    small_training.config("video_pretrain", datasets["clips"]), root / "video"
  )
  return root


@pytest.mark.slow
def test_stages_follow_each_other(pretrained, datasets, tmp_path):
  tuned = small_training.config(
    "audio_finetune",
    datasets["sounds"],
    **{"init_from.audio": str(pretrained / "audio" / "checkpoints")},
  )
  assert small_training.run(tuned, tmp_path / "tuned")
  both = small_training.config(
    "fusion",
    datasets["clips"],
    **{
      "init_from.audio": str(tmp_path / "tuned" / "checkpoints"),
      "init_from.video": str(pretrained / "video" / "checkpoints"),
    },
  )
  assert small_training.run(both, tmp_path / "fusion")
  lines = logs.read(tmp_path / "fusion")
  assert [line["step"] for line in lines] == [2, 4]
  assert all(line["train/loss_video"] > 0.3 for line in lines)
  # A single tower is loaded from it without the fusion layers.
  again = small_training.config(
    "audio_finetune",
    datasets["sounds"],
    **{"init_from.audio": str(tmp_path / "fusion" / "checkpoints")},
  )
  plan = tasks.make(settings.from_config(again)).init_plan()
  assert not plan.scratch and not any("fusion_" in path for path in plan.shapes)
  # The same command again has nothing to do.
  assert small_training.run(both, tmp_path / "fusion")
  assert len(logs.read(tmp_path / "fusion")) == 2


def killed(*_):
  raise KeyError("killed")


@pytest.mark.slow
def test_a_run_resumes_only_with_its_own_config(
  pretrained, datasets, tmp_path, log_lines, monkeypatch
):
  first = small_training.config("audio_pretrain", datasets["sounds"])
  assert small_training.run(first, tmp_path)
  longer = small_training.config(
    "audio_pretrain", datasets["sounds"], num_train_steps=6
  )
  assert small_training.run(longer, tmp_path)
  assert [line["step"] for line in logs.read(tmp_path)] == [2, 4, 6]
  # Resuming does not need the initial weights.
  begun = {"init_from.audio": str(tmp_path / "gone"), "num_train_steps": 8}
  moved = small_training.config("audio_pretrain", datasets["sounds"], **begun)
  assert small_training.run(moved, tmp_path)
  other = small_training.config("audio_pretrain", datasets["sounds"], seed=1)
  with pytest.raises(ValueError, match="seed"):
    small_training.run(other, tmp_path)
  # Changes from step 7 on, after going back to step 6.
  trainer.rollback(tmp_path, 6)
  assert reader.steps(tmp_path / "checkpoints") == [6]
  assert (tmp_path / "checkpoints" / "8.rolled_back").is_dir()
  values = {
    "num_train_steps": 10,
    "optimizer.learning_rate": 1e-4,
    "optimizer.schedule": "constant",
    "grad_accum_steps": 2,
    "optimizer.ema_on_host": False,
    "skip_bad_steps": 3,
    "data.exclude_records": "0:1",
    "data.mixture_weights": (2.0,),
  }
  changed = small_training.config(
    "audio_pretrain", datasets["sounds"], **begun | values
  )
  # A run that ends while it compiles has changed nothing.
  before = (tmp_path / "config_changes.json").read_bytes()
  with monkeypatch.context() as patch, pytest.raises(KeyError, match="killed"):
    patch.setattr(loop, "_log_compilation", killed)
    small_training.run(changed, tmp_path)
  assert (tmp_path / "config_changes.json").read_bytes() == before
  log_lines.clear()
  assert small_training.run(changed, tmp_path)
  assert "continuing from the checkpoint of step 6" in log_lines
  assert ("config: grad_accum_steps: 1 before, 2 from step 7 on") in log_lines
  lines = logs.read(tmp_path)
  assert lines[-1]["step"] == 10
  assert lines[-1]["train/learning_rate"] == pytest.approx(1e-4)
  assert lines[-1]["goodput/lost"] > 0 and lines[-1]["goodput/train"] > 0
  assert any(line.startswith("goodput ") for line in log_lines)
  changes = json.loads((tmp_path / "config_changes.json").read_text())
  assert [entry["step"] for entry in changes] == [4, 6, 6, 6]
  assert changes[2] == {"step": 6, "rolled_back": ["8.rolled_back"]}
  assert changes[3]["changes"]["optimizer.learning_rate"] == [3e-3, 1e-4]
  assert changes[3]["changes"]["data.exclude_records"] == ["", "0:1"]


def test_a_rollback_to_a_missing_checkpoint_is_refused(tmp_path):
  with pytest.raises(ValueError, match="is not the directory of a run"):
    trainer.rollback(tmp_path, 3)
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "checkpoints" / "20").mkdir(parents=True)
  with pytest.raises(ValueError, match="no checkpoint of step 3; it has 20"):
    trainer.rollback(tmp_path, 3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"optimizer.nesterov": 0.9}, "config.optimizer.nesterov is unknown; the"),
    ({"walks": 1}, "config.walks is unknown"),
    (
      {"init_from.audio": ""},
      "init_from.audio: the stage starts from this tower",
    ),
    (
      {"batch_size": 3, "grad_accum_steps": 2},
      "batch_size 3 must be a multiple of 2",
    ),
    (
      {"trainable": "attention"},
      "is 'scratch', but trainable='attention' freezes",
    ),
    ({"remat": "half"}, "remat 'half' is unknown"),
    (
      {"trainable": "heads"},
      "trainable 'heads' is unknown; choose from all, atten",
    ),
    (
      {"trainable": "decoder"},
      "trainable 'decoder' is unknown; choose from all, at",
    ),
    ({"dtype": "float8"}, "dtype 'float8' is unknown"),
    ({"model.audio.channels": 8}, "audio_channels: expected 8, got 20"),
    ({"model.audio.text_dim": 64}, "text_dim: expected 64, got 48"),
    ({"data.sources": ("nowhere",)}, "nowhere"),
    ({"init_from.audio": "nowhere"}, "nowhere"),
    ({"sdc_check_every": 5}, "sdc_check_every needs TPUs"),
    ({"skip_loss_spikes": 5.0}, "skip_loss_spikes 5.0 needs skip_bad_steps"),
    ({"step_timeout_seconds": -1.0}, "step_timeout_seconds must be at least 0"),
    ({"data.exclude_records": "0:99"}, "there is no record 0:99"),
    ({"data.max_damaged_records": -1}, "max_damaged_records must not be nega"),
    ({"mesh.data": 3, "mesh.fsdp": 1}, "multiply to 1 devices"),
    ({"attention": "flesh"}, "attention 'flesh' is unknown"),
  ],
)
def test_invalid_configs_are_refused_before_the_first_step(
  changes, message, datasets, tmp_path
):
  values = small_training.config(
    "audio_pretrain", datasets["sounds"], **changes
  )
  with pytest.raises(ValueError, match=message):
    small_training.run(values, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_towers_of_other_sizes_are_named(pretrained, datasets, tmp_path):
  values = small_training.config(
    "fusion",
    datasets["clips"],
    **{
      "init_from.audio": str(pretrained / "audio" / "checkpoints"),
      "init_from.video": str(pretrained / "video" / "checkpoints"),
      "model.video.mlp_dim": 64,
    },
  )
  with pytest.raises(ValueError, match="blocks/video/feed_forward/in/kernel"):
    small_training.run(values, tmp_path / "run")


@pytest.mark.slow
def test_a_refused_resume_gives_advice_and_changes_no_file(
  datasets, tmp_path, log_lines
):
  path = tmp_path / "run"
  begun, said = (
    small_training.config("audio_pretrain", datasets["sounds"]),
    log_lines,
  )
  begun.num_train_steps, begun.optimizer.warmup_steps = 2, 50
  assert small_training.run(begun, path)
  shown = f"logs: tensorboard --logdir={path}/tensorboard"
  assert sum(line.startswith(shown) for line in said) == 1
  assert any("warmup_steps 50 is not less than the 2" in line for line in said)
  assert said[-2:] == [
    f"finished: step 2 is saved in {path}/checkpoints/2; next:",
    f"  a run with --config.init_from.audio={path}",
  ]
  before = {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
  begun.num_train_steps = 4
  added = begun.copy_and_resolve_references()
  added.data.sources = (datasets["sounds"], datasets["clips"])
  seed = begun.copy_and_resolve_references()
  seed.seed = 1
  for other, message in (
    (added, r"records: \[12\] in the run, \[12, 12\] now"),
    (seed, r"seed: 0 in the run, 1 now \(--config.seed=0 sets it back\)"),
  ):
    with pytest.raises(ValueError, match=message) as error:
      small_training.run(other, path)
    new = f"start from this one: --workdir=NEW --config.init_from.audio={path}"
    assert new in str(error.value)
    after = {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    assert after == before
  said.clear()
  assert small_training.run(begun, path)
  assert sum(line.startswith(shown) for line in said) == 1


def test_data_beyond_the_quality_limits_are_refused(
  datasets, tmp_path, log_lines
):
  data = tmp_path / "data"
  shutil.copytree(datasets["sounds"], data)
  covered = quality.Coverage(
    captions=9, words=10, unknown=5, examples=("cat",), merged=4
  )
  found = quality.Quality(coverage=covered, mel_error=3.0)
  found.save(data / quality.FILE)
  begun, said = small_training.config("audio_pretrain", str(data)), log_lines
  begun.data.max_unknown_words, begun.num_train_steps = 0.2, 1
  with pytest.raises(ValueError, match="50% of the captions' words are unkn"):
    small_training.run(begun, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  assert said[0] == (
    f"{data}: captions: the tokenizer does not know 5 of 10 words (50%: cat,"
    " …); 4 of 9 captions become the same text as another"
  )
  assert "3.0 dB mean log-mel error" in said[1]
  # Encoding it was forced: it was accepted once.
  chosen = settings.Settings.from_config(begun)
  dataclasses.replace(found, accepted=True).save(data / quality.FILE)
  tasks.check_quality(chosen, None)
  assert len(said) == 4


def test_unknown_words_are_counted_with_the_pretrained_tokenizer(
  datasets, tmp_path, log_lines
):
  (tmp_path / "tokenizer.json").write_bytes(
    (synthetic.WEIGHTS / "tokenizer.json").read_bytes()
  )
  begun = small_training.config(
    "audio_pretrain", datasets["sounds"], pretrained=str(tmp_path)
  )
  begun.data.max_unknown_words = 0.2
  chosen = settings.Settings.from_config(begun)
  # "a clip"
  with pytest.raises(ValueError, match="50% of the captions' words are unkn"):
    tasks.check_quality(chosen, None)
  assert "does not know 1 of 2 words (50%: clip, …)" in log_lines[0]
