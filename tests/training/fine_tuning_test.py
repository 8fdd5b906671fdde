"""Configs that start from weights: sizes, components, sampling advice."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

from configs import fine_tune
from configs import fusion
from configs import lora
from configs import sample
from configs import small
from ovi_jax import config_files
from ovi_jax import synthetic
from ovi_jax.data import builder
from ovi_jax.data import schema
from ovi_jax.models import architecture
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import opening
from ovi_jax.sampling import settings as sampling_settings
from ovi_jax.training import export
from ovi_jax.training import settings
from ovi_jax.training import task as tasks
from ovi_jax.training import trainer
from tests.lib import small_training

pytestmark = pytest.mark.usefixtures("one_device")


def test_the_small_config_equals_the_shipped_model():
  found = settings.Settings.from_config(small.get_config())
  manifest = weights_dir.manifest_of(synthetic.WEIGHTS)
  assert found.model == manifest.architecture.fusion
  (bucket,), clip = found.data.buckets, manifest.architecture.clip
  assert clip is not None and bucket.audio == clip.audio_latents
  height, width = clip.latent_height, clip.latent_width
  assert bucket.video == (clip.latent_frames, height, width)
  assert found.pretrained == found.init_from.video == str(synthetic.WEIGHTS)
  advised = manifest.sampling
  assert found.eval_samples.num_steps == advised["num_steps"]
  assert found.eval_samples.flow_shift == advised["flow_shift"]
  assert (
    found.eval_samples.guidance_scale._asdict() == advised["guidance_scale"]
  )
  plan = tasks.make(found).init_plan()
  assert not plan.scratch


def test_sizes_and_components_come_from_the_weights(weights):
  found = settings.Settings.from_config(fine_tune.get_config(str(weights)))
  manifest = weights_dir.manifest_of(weights)
  assert found.model == manifest.architecture.fusion
  assert found.pretrained == found.init_from.audio == str(weights)
  assert not tasks.make(found).init_plan().scratch


def test_released_weights_are_fine_tuned_at_their_own_length(tmp_path):
  sizes = architecture.released_sizes()
  manifest = weights_dir.Manifest(
    variant="960x960_10s", sizes=sizes, digests={}, version=""
  )
  manifest.save(tmp_path)
  found = settings.Settings.from_config(fine_tune.get_config(str(tmp_path)))
  (bucket,) = found.data.buckets
  assert bucket.video == (61, 60, 60) and bucket.audio == 314
  assert found.model.video is not None and found.model.video.hidden_dim == 3072


def test_a_variant_without_weights_has_sizes_for_reports():
  found = settings.Settings.from_config(fine_tune.get_config("720x720_5s"))
  (bucket,) = found.data.buckets
  assert bucket.video == (31, 44, 44)
  assert found.model.video is not None and found.model.video.hidden_dim == 3072
  with pytest.raises(
    ValueError, match="init_from.video: the stage starts from"
  ):
    tasks.make(found).check()


@pytest.mark.parametrize("devices", lora.DEVICES)
def test_settings_of_devices_are_valid(devices):
  values = lora.get_config(f"720x720_5s:{devices}")
  found = settings.Settings.from_config(values)
  assert found.is_lora and found.lora.rank == 32
  count = {"v5e-8": 8, "v6e-8": 8, "v5p-8": 4}.get(devices, 1)
  # A clip on each device.
  assert found.microbatch_size == count
  assert found.mesh["fsdp"] in (0, count)


@pytest.mark.parametrize(
  ("devices", "message"),
  [
    ("80gbb", r"'80gbb' are unknown \(did you mean 80gb\?\); choose from 24gb"),
    ("80GB", r"did you mean 80gb\?"),
    ("v5e_8", r"did you mean v5e-8\?"),
  ],
)
@pytest.mark.parametrize("weights", ["720x720_5s", "gs://b/weights", "/none"])
def test_unknown_devices_are_not_taken_for_a_path(weights, devices, message):
  with pytest.raises(ValueError, match=message):
    lora.get_config(f"{weights}:{devices}")
  with pytest.raises(ValueError, match="'tpu' are unknown; choose from 24gb"):
    lora.get_config("720x720_5s:tpu")


def test_a_name_in_an_object_store_may_have_a_colon(monkeypatch):
  names = []

  def load(name):
    names.append(name)
    return config_files.load("fine_tune:720x720_5s")

  monkeypatch.setattr(lora, "config_files", types.SimpleNamespace(load=load))
  lora.get_config("gs://bucket/weights:v2")
  lora.get_config("gs://bucket/weights:v2:80gb")
  assert names == ["fine_tune:gs://bucket/weights:v2"] * 2


def test_weights_with_a_colon_in_their_path_are_no_devices(tmp_path):
  manifest = weights_dir.manifest_of(synthetic.WEIGHTS)
  folder = tmp_path / "a:80"
  folder.mkdir()
  manifest.save(folder)
  assert lora.get_config(str(folder)).batch_size == 8
  assert lora.get_config(f"{folder}:80gb").grad_accum_steps == 8


def test_missing_initial_weights_are_refused():
  with pytest.raises(
    ValueError, match="fine_tune needs the weights to start from"
  ):
    fine_tune.get_config()
  with pytest.raises(ValueError, match="weights: nowhere is no directory"):
    fine_tune.get_config("nowhere")


def test_weights_of_other_sizes_are_named_with_the_config_that_fits(tmp_path):
  values = fusion.get_config("mini")
  for name in ("video", "audio"):
    values.init_from[name] = str(synthetic.WEIGHTS)
  with pytest.raises(ValueError) as error:
    tasks.make(settings.Settings.from_config(values)).init_plan()
  lines = str(error.value).splitlines()
  assert len(lines) == 1
  assert "video.hidden_dim: 192 in the weights, 224 in the config" in lines[0]
  assert f"--config=fine_tune:{synthetic.WEIGHTS}" in lines[0]


@pytest.fixture(scope="module")
def advised(weights, tmp_path_factory):
  """The stand-in with advice."""
  path = tmp_path_factory.mktemp("advised") / "weights"
  shutil.copytree(weights, path)
  advice = {"num_steps": 7, "guidance_scale": {"video": 1.5, "audio": 1.25}}
  manifest = weights_dir.manifest_of(path)
  dataclasses.replace(manifest, sampling=advice).save(path)
  return path


@pytest.fixture(scope="module")
def run(advised, tmp_path_factory):
  """A run's directory: its config; nothing is trained."""
  path = tmp_path_factory.mktemp("run")
  values = fine_tune.get_config(str(advised))
  (path / "config.json").write_text(json.dumps(values.to_dict()))
  return path


def test_export_inherits_advice_through_runs_that_started_from_runs(
  run, advised, tmp_path
):
  expected = weights_dir.manifest_of(advised).sampling
  assert export.inherited_advice(run) == expected
  values = fine_tune.get_config(str(advised))
  values.init_from.video = values.init_from.audio = str(
    run / "checkpoints" / "4"
  )
  (tmp_path / "config.json").write_text(json.dumps(values.to_dict()))
  assert export.inherited_advice(tmp_path) == expected
  values.init_from.video = values.init_from.audio = str(tmp_path)  # of itself
  (tmp_path / "config.json").write_text(json.dumps(values.to_dict()))
  assert export.inherited_advice(tmp_path) == {}


def test_clean_given_latents_are_advised_after_a_later_run_without_them(
  advised, tmp_path
):
  manifest = weights_dir.manifest_of(advised)
  noised = tmp_path / "weights"
  noised.mkdir()
  advice = {"num_steps": 7, "conditioning": "renoise"}
  dataclasses.replace(manifest, sampling=advice).save(noised)
  source = str(noised)
  for name, share in (("first", 0.0), ("second", 0.5), ("third", 0.0)):
    values = fine_tune.get_config(str(advised))
    values.init_from.video = values.init_from.audio = source
    values.objective.conditions.video.whole_prob = share
    (tmp_path / name).mkdir()
    text = json.dumps(values.to_dict())
    (tmp_path / name / "config.json").write_text(text)
    source = str(tmp_path / name)
  assert export.inherited_advice(tmp_path / "first") == advice
  clean = advice | {"conditioning": "clean"}
  assert export.inherited_advice(tmp_path / "second") == clean
  assert export.inherited_advice(tmp_path / "third") == clean
  # References of a run do not change a scale that the weights advise.
  values.objective.conditions.audio.reference_prob = 0.5
  (tmp_path / "third" / "config.json").write_text(json.dumps(values.to_dict()))
  scaled = clean | {"voice_guidance_scale": 1.0}
  assert export.inherited_advice(tmp_path / "third") == scaled
  advice["voice_guidance_scale"] = 2.5
  dataclasses.replace(manifest, sampling=advice).save(noised)
  scaled["voice_guidance_scale"] = 2.5
  assert export.inherited_advice(tmp_path / "third") == scaled
  (tmp_path / "third" / "config.json").write_text(text)
  (noised / weights_dir.MANIFEST).unlink()
  rest = {"num_steps": 9, "conditioning": "renoise"}
  found = export.inherited_advice(tmp_path / "third", rest)
  assert found == {"num_steps": 9, "conditioning": "clean"}


@pytest.mark.slow
def test_exported_weights_are_sampled_as_those_they_started_from(
  advised, tmp_path
):
  values = fine_tune.get_config(str(advised))
  sizes = weights_dir.manifest_of(advised).architecture.fusion
  made = tmp_path / "data"
  builder.write(
    made,
    {"train": [small_training.record(i) for i in range(4)]},
    geometry=schema.Geometry(text_dim=sizes.video.text_dim),
    null_text=np.full((1, 48), 0.5, "f4"),
  )
  values.data.sources = (str(made),)
  values.data.video_buckets, values.data.audio_buckets = (
    (small_training.CLIP,),
    (small_training.SOUND,),
  )
  values.num_train_steps, values.batch_size, values.data.num_workers = 2, 4, 0
  values.optimizer.warmup_steps, values.mesh.fsdp = 1, 1
  assert small_training.run(values, tmp_path / "run")
  out = tmp_path / "out"
  manifest = export.export(tmp_path / "run", out)
  # The stand-in has fewer than 11 blocks.
  assert manifest.sampling == {
    **weights_dir.manifest_of(advised).sampling,
    "slg_layer": 0,
  }
  found = opening.resolve_settings(sample.get_config(), out)
  assert (found.num_steps, found.guidance_scale.audio, found.slg_layer) == (
    7,
    1.25,
    0,
  )
  with pytest.raises(ValueError, match="slg_layer 9 does not exist, the tow"):
    export.export(tmp_path / "run", tmp_path / "b", sampling={"slg_layer": 9})
  assert not (tmp_path / "b").exists()


def test_a_block_that_weights_lack_is_never_skipped(weights):
  manifest = weights_dir.manifest_of(weights)
  assert sampling_settings.recommended_of(manifest)["slg_layer"] == 0
  shipped = weights_dir.manifest_of(synthetic.WEIGHTS)
  assert sampling_settings.recommended_of(shipped)["slg_layer"] == 3
  released = weights_dir.Manifest(
    variant="960x960_5s",
    sizes=architecture.released_sizes(),
    digests={},
    version="",
  )
  assert sampling_settings.recommended_of(released)["slg_layer"] == 11


def test_towers_whose_heads_differ_are_refused_in_one_line():
  values = small.get_config()
  values.model.video.hidden_dim = 96
  with pytest.raises(ValueError, match="config: model: both towers") as error:
    settings.Settings.from_config(values)
  assert str(error.value) == (
    "config: model: both towers need the same hidden_dim / num_heads, got 16"
    " of video and 32 of audio"
  )


def test_a_run_with_more_steps_than_requested_names_its_checkpoint(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(trainer.reader, "steps", lambda _: [30, 20])
  values = small.get_config()
  values.num_train_steps = 25
  found = settings.Settings.from_config(values)
  first = trainer.next_lines(tasks.make(found), tmp_path)[0]
  assert first == (
    f"finished: step 30 is saved in {tmp_path}/checkpoints/30; next:"
  )


def test_other_data_are_refused_with_the_flag_that_sets_them_back(
  tmp_path, monkeypatch
):
  class Other:
    def set_state(self, state):
      raise ValueError("the data are not those: records: [1] in the run")

  describe = types.SimpleNamespace(iterators=[{}], metadata={})
  monkeypatch.setattr(trainer.reader, "steps", lambda _: [3])
  monkeypatch.setattr(trainer.reader, "read_info", lambda _: describe)
  config = {"data": {"sources": ["runs/a", "runs/b"]}}
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError) as error:
    trainer.check_input(Other(), tmp_path, "Or a new run.")
  flag = "--config.data.sources=\"('runs/a', 'runs/b')\""
  assert f"the datasets that it had ({flag}). Or" in str(error.value)
