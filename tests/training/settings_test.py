"""Training settings from configs, also from older runs."""

import math
import pathlib
import re

import pytest

from configs import audio_pretrain
from configs import codec_video
from configs import fusion
from ovi_jax.training import settings
from tests.lib import config_values

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_problems_name_their_fields():
  config = fusion.get_config("mini")
  del config.batch_size
  with pytest.raises(
    ValueError, match=r"config\.batch_size is missing; the fields"
  ):
    settings.Settings.from_config(config)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *(
      ("num_train_steps", True),
      ("seed", True),
      ("optimizer.learning_rate", True),
    ),
    *(("model.video.num_layers", True), ("objective.loss_weights.video", True)),
    *(("eval_samples.guidance_scale.audio", True), ("log_every", True)),
    *(
      ("max_to_keep", True),
      ("mesh.data", True),
      ("data.encode_on_the_fly", "False"),
    ),
    *(("data.num_workers", "8"), ("eval.batch_size", True)),
  ],
)
def test_booleans_and_strings_are_not_numbers(field, value):
  config = config_values.plain_config(fusion.get_config("mini"), field, value)
  with pytest.raises(ValueError, match=f"config.{field} ") as error:
    settings.Settings.from_config(config)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("data.video_buckets", (31, 4, 4), r"such as \(\(31, 4, 4\),\), got \(31"),
    ("data.video_buckets", 31, r"such as \(\(31, 4, 4\),\), got \(31,\)"),
    ("data.audio_buckets", ((157,),), r"such as \(157,\), got \(\(157,\),\)"),
    ("seed", -1, r"seed: expected 0 to 2\^32 - 1, got -1"),
    ("model.video.num_heads", 0, "at least 1, got num_heads 0"),
    (
      "optimizer.learning_rate",
      math.nan,
      "other than NaN or infinity, got nan",
    ),
    ("data.sources", (), r"data.sources is empty: .*sources=.\('DIR',\)"),
  ],
)
def test_values_that_cannot_be_trained_with_are_refused(field, value, message):
  config = config_values.plain_config(fusion.get_config("mini"), field, value)
  with pytest.raises(ValueError, match=message):
    settings.Settings.from_config(config)


def test_sizes_of_buckets_and_codecs_are_numbers():
  config = fusion.get_config("mini")
  config.data.audio_buckets = (True,)
  with pytest.raises(
    ValueError, match="config.data.buckets.audio must be a whole"
  ):
    settings.Settings.from_config(config)
  config = codec_video.get_config("mini")
  with config.ignore_type():
    config.model.z_dim = True
  with pytest.raises(ValueError, match="config.model.z_dim must be a whole"):
    settings.from_config(config)


def test_empty_buckets_name_the_flags_that_set_them():
  config = config_values.plain_config(
    audio_pretrain.get_config("mini"), "data.audio_buckets", ()
  )
  with pytest.raises(ValueError, match="data.audio_buckets is empty") as error:
    settings.from_config(config)
  assert '--config.data.audio_buckets="(157,)"' in str(error.value)
  assert "video_buckets" not in str(error.value)


def test_a_config_with_a_component_is_that_of_a_codec():
  stage = settings.from_config(fusion.get_config("mini"))
  assert isinstance(stage, settings.Settings) and stage.model.video is not None
  codec = settings.from_config(codec_video.get_config("mini"))
  assert isinstance(codec, settings.CodecSettings)
  assert codec.component == "video_vae" and codec.objective


def test_fields_that_may_change_on_resume_exist():
  values = fusion.get_config()
  for name in settings.MUTABLE_FIELDS:
    found = values
    for part in name.split("."):
      assert part in found, name
      found = found[part]


def test_the_guide_lists_the_fields_that_may_change_on_resume():
  text = (ROOT / "docs" / "how_to" / "train.md").read_text("utf-8")
  section = text.split("### Fields that may change\n")[1].split("\n## ")[0]
  rows = [line for line in section.splitlines() if line.startswith("| ")]
  listed = re.findall(r"`([\w.]+)`", "\n".join(rows))
  assert sorted(listed) == sorted(settings.MUTABLE_FIELDS)


@pytest.mark.parametrize("make", [fusion.get_config, codec_video.get_config])
def test_the_stored_config_has_the_ids_of_a_file(make, tmp_path):
  file, config = tmp_path / "bad.txt", make("mini")
  assert settings.stored_config(config) == config.to_dict()
  file.write_text("0:29\n0:3\n")
  config.data.exclude_records = str(file)
  stored = settings.stored_config(config)
  assert stored["data"]["exclude_records"] == "0:3,0:29"
  assert config.data.exclude_records == str(file)


@pytest.mark.parametrize("make", [fusion.get_config, codec_video.get_config])
def test_a_missing_section_is_named(make):
  whole = make("mini").to_dict()
  sections = [name for name, value in whole.items() if isinstance(value, dict)]
  sections = [name for name in sections if name != "lora"]  # has defaults
  sections += [
    f"{name}.{inner}"
    for name in ("objective", "eval_samples")
    for inner, value in whole.get(name, {}).items()
    if isinstance(value, dict)
  ]
  assert len(sections) > 3
  for name in sections:
    config = make("mini")
    *outer, last = name.split(".")
    del (config[outer[0]] if outer else config)[last]
    with pytest.raises(ValueError, match=rf"config\.{name} is missing"):
      settings.from_config(config)


@pytest.mark.parametrize(
  ("trainable", "tower"),
  [("attention", "video"), ("video/.*,blocks/.*", "audio"), ("all", None)],
)
def test_a_random_tower_whose_last_layer_is_frozen_is_named(trainable, tower):
  config = fusion.get_config("mini")
  config.data.sources = ("DIR",)
  config.init_from.video = config.init_from.audio = settings.SCRATCH
  config.trainable = trainable
  found = settings.Settings.from_config(config)
  if tower is None:
    found.check_sources()
    return
  with pytest.raises(ValueError, match=f"init_from.{tower} is 'scratch'"):
    found.check_sources()
