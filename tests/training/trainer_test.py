"""Stages from their configs, one after the other, and bad input."""

import dataclasses
import importlib
import shutil

import jax
import numpy as np
import pytest

from ovi_jax import synthetic
from ovi_jax.data import builder
from ovi_jax.data import quality
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.training import logs
from ovi_jax.training import settings
from ovi_jax.training import task as tasks
from ovi_jax.training import trainer

SIZES = schema.Geometry(text_dim=48)
CLIP, SOUND = (2, 4, 4), 6


def record(number: int, video: bool = True) -> schema.Record:
  """Random latents and a prompt, of a clip of five frames."""
  draw = np.random.default_rng(number)
  return schema.Record(
    id=f"clip-{number}",
    source="generated",
    captions=("a clip",),
    latents=AV(
      draw.standard_normal((*CLIP, 48)).astype("f2") if video else None,
      draw.standard_normal(
        (SOUND - (number % 3 if not video else 0), 20)
      ).astype("f2"),
    ),
    text=(draw.standard_normal((3, 48)).astype("f2"),),
  )


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, str]:
  """Clips with sound, and sounds alone."""
  root, paths = tmp_path_factory.mktemp("data"), {}
  for name, video in (("clips", True), ("sounds", False)):
    paths[name] = str(root / name)
    builder.write(
      paths[name],
      {"train": [record(i, video) for i in range(12)]},
      geometry=SIZES,
      null_text=np.full((1, 48), 0.5, np.float32),
    )
  return paths


def config(name: str, source: str, **changes):
  """A stage's mini config, smaller still."""
  values = importlib.import_module(f"configs.{name}").get_config("mini")
  values.data.sources = (source,)
  values.data.video_buckets, values.data.audio_buckets = (CLIP,), (SOUND,)
  values.num_train_steps, values.batch_size, values.log_every = 4, 4, 2
  # Captions and codecs are random.
  values.data.max_unknown_words, values.data.min_codec_psnr = 1.0, 0.0
  values.optimizer.warmup_steps = 2
  values.mesh.fsdp = 1
  for tower in values.model.values():
    if tower is not None:
      tower.update(hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=48)
  with values.unlocked():
    values.update_from_flattened_dict(changes)
  return values


def run(values, path) -> bool:
  return trainer.train(settings.from_config(values), values.to_dict(), path)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda *_: one)


@pytest.fixture(scope="module")
def pretrained(datasets, tmp_path_factory):
  """Runs of the two towers alone."""
  root = tmp_path_factory.mktemp("runs")
  with pytest.MonkeyPatch.context() as patch:
    one = jax.devices()[:1]
    patch.setattr(jax, "devices", lambda *_: one)
    run(config("audio_pretrain", datasets["sounds"]), root / "audio")
    run(config("video_pretrain", datasets["clips"]), root / "video")
  return root


@pytest.mark.slow
def test_stages_follow_each_other(pretrained, datasets, tmp_path):
  tuned = config(
    "audio_finetune",
    datasets["sounds"],
    **{"init_from.audio": str(pretrained / "audio" / "checkpoints")},
  )
  assert run(tuned, tmp_path / "tuned")
  both = config(
    "fusion",
    datasets["clips"],
    **{
      "init_from.audio": str(tmp_path / "tuned" / "checkpoints"),
      "init_from.video": str(pretrained / "video" / "checkpoints"),
    },
  )
  assert run(both, tmp_path / "fusion")
  lines = logs.read(tmp_path / "fusion")
  assert [line["step"] for line in lines] == [2, 4]
  assert all(line["train/loss_video"] > 0.3 for line in lines)
  # A tower alone comes out of it without the layers of fusion.
  again = config(
    "audio_finetune",
    datasets["sounds"],
    **{"init_from.audio": str(tmp_path / "fusion" / "checkpoints")},
  )
  plan = tasks.make(settings.from_config(again)).init_plan()
  assert not plan.scratch and not any("fusion_" in path for path in plan.shapes)
  # The same command again has nothing to do.
  assert run(both, tmp_path / "fusion")
  assert len(logs.read(tmp_path / "fusion")) == 2


def test_a_run_is_continued_but_not_another(pretrained, datasets, tmp_path):
  first = config("audio_pretrain", datasets["sounds"])
  assert run(first, tmp_path)
  longer = config("audio_pretrain", datasets["sounds"], num_train_steps=6)
  assert run(longer, tmp_path)
  assert [line["step"] for line in logs.read(tmp_path)] == [2, 4, 6]
  # It goes on without what it began from.
  begun = {"init_from.audio": str(tmp_path / "gone"), "num_train_steps": 8}
  moved = config("audio_pretrain", datasets["sounds"], **begun)
  assert run(moved, tmp_path)
  other = config("audio_pretrain", datasets["sounds"], seed=1)
  with pytest.raises(ValueError, match="seed"):
    run(other, tmp_path)


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
      "is 'scratch', but trainable='attention' never",
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
    ({"mesh.data": 3, "mesh.fsdp": 1}, "multiply to 1 devices"),
    ({"attention": "flesh"}, "attention 'flesh' is unknown"),
  ],
)
def test_what_cannot_be_is_said_before_the_first_step(
  changes, message, datasets, tmp_path
):
  values = config("audio_pretrain", datasets["sounds"], **changes)
  with pytest.raises(ValueError, match=message):
    run(values, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_towers_of_other_sizes_are_named(pretrained, datasets, tmp_path):
  values = config(
    "fusion",
    datasets["clips"],
    **{
      "init_from.audio": str(pretrained / "audio" / "checkpoints"),
      "init_from.video": str(pretrained / "video" / "checkpoints"),
      "model.video.mlp_dim": 64,
    },
  )
  with pytest.raises(ValueError, match="blocks/video/feed_forward/in/kernel"):
    run(values, tmp_path / "run")


@pytest.mark.slow
def test_a_refused_resume_says_what_would_do_and_leaves_no_file(
  datasets, tmp_path, log_lines
):
  path = tmp_path / "run"
  begun, said = config("audio_pretrain", datasets["sounds"]), log_lines
  begun.num_train_steps, begun.optimizer.warmup_steps = 2, 50
  assert run(begun, path)
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
      run(other, path)
    new = f"start from this one: --workdir=NEW --config.init_from.audio={path}"
    assert new in str(error.value)
    after = {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    assert after == before
  said.clear()
  assert run(begun, path)
  assert sum(line.startswith(shown) for line in said) == 1


def test_data_that_tokenizer_and_codecs_lose_is_refused_before_a_run(
  datasets, tmp_path, log_lines
):
  data = tmp_path / "data"
  shutil.copytree(datasets["sounds"], data)
  covered = quality.Coverage(
    captions=9, words=10, unknown=5, examples=("cat",), merged=4
  )
  found = quality.Quality(coverage=covered, mel_error=3.0)
  found.save(data / quality.FILE)
  begun, said = config("audio_pretrain", str(data)), log_lines
  begun.data.max_unknown_words, begun.num_train_steps = 0.2, 1
  with pytest.raises(ValueError, match="50% of the captions' words are unkn"):
    run(begun, tmp_path / "run")
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


def test_words_are_counted_with_the_tokenizer_of_the_components(
  datasets, tmp_path, log_lines
):
  (tmp_path / "tokenizer.json").write_bytes(
    (synthetic.WEIGHTS / "tokenizer.json").read_bytes()
  )
  begun = config("audio_pretrain", datasets["sounds"], pretrained=str(tmp_path))
  begun.data.max_unknown_words = 0.2
  chosen = settings.Settings.from_config(begun)
  # "a clip"
  with pytest.raises(ValueError, match="50% of the captions' words are unkn"):
    tasks.check_quality(chosen, None)
  assert "does not know 1 of 2 words (50%: clip, …)" in log_lines[0]
