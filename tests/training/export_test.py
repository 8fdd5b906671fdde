"""Export of a run to weights for sample.py."""

import json

import jax
import numpy as np
import pytest

from ovi_jax import config_files
from ovi_jax import storage
from ovi_jax.data import settings
from ovi_jax.models import architecture
from ovi_jax.models import dit
from ovi_jax.pretrained import weights as stores
from ovi_jax.pretrained import weights_dir
from ovi_jax.training import export
from tests.lib import doc_commands
from tests.lib import small_training

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def run(datasets, tmp_path_factory):
  """A fusion run of four steps, from random towers."""
  path = tmp_path_factory.mktemp("run")
  values = small_training.config(
    "fusion",
    datasets["clips"],
    **small_training.FROM_SCRATCH,
  )
  assert small_training.run(values, path)
  return path


def test_clips_of_one_tower_have_a_length_for_sampling():
  for bucket, expected in (
    (settings.Bucket(audio=157), {"T": 31, "H": 2, "W": 2, "A": 157}),
    (settings.Bucket(video=(31, 4, 6)), {"T": 31, "H": 4, "W": 6, "A": 157}),
    (
      settings.Bucket(video=(61, 4, 4), audio=314),
      {"T": 61, "H": 4, "W": 4, "A": 314},
    ),
  ):
    assert export._latents(bucket) == expected


@pytest.mark.slow
def test_exported_weights_are_written_beside_the_components(
  run, weights, tmp_path
):
  export.export(run, tmp_path / "out", weights)
  manifest = weights_dir.read(tmp_path / "out")
  assert manifest.variant is None and manifest.towers == ("video", "audio")
  clip = manifest.architecture.clip
  assert (clip.latent_frames, clip.audio_latents) == (2, small_training.SOUND)
  raw = tmp_path / "raw"
  export.export(run, raw, weights, ema=False, dtype=np.dtype("bfloat16"))
  mean, last = (
    stores.load(weights_dir.component_file(p, "fusion"))
    for p in (tmp_path / "out", raw)
  )
  changed = [
    not np.array_equal(np.asarray(a, "bfloat16"), np.asarray(b))
    for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(last), strict=True)
  ]
  assert any(changed)


@pytest.mark.slow
def test_a_run_is_exported_to_a_store(run, weights, bucket, tmp_path):
  """By the command of the guide to pods: all of it is in a store."""
  export.export(run, tmp_path / "out", weights)
  storage.upload_folder(run, f"{bucket}/runs/fusion")
  storage.upload_folder(weights, f"{bucket}/weights/components")
  guide = doc_commands.DOCS / "how_to" / "pods.md"
  commands = [c for _, c in doc_commands.commands(guide)]
  (command,) = [c for c in commands if "ovi_jax.training.export" in c]
  name = bucket.removeprefix("gs://")
  doc_commands.run("bash", f"BUCKET={name}; {command}", doc_commands.ROOT)
  out = f"{bucket}/weights/fusion"
  names = {p.name for p in (tmp_path / "out").iterdir()}
  assert storage.sizes(out).keys() == names
  for name in names:
    content = storage.read_bytes(f"{out}/{name}", 1 << 30)
    assert content == (tmp_path / "out" / name).read_bytes(), name
  with pytest.raises(ValueError, match="holds weights already"):
    export.export(run, out, weights)


def test_sizes_round_trip():
  sizes = architecture.released_sizes()["fusion"]
  for name, tower in sizes.items():
    config = dit.DiTConfig.from_release(tower)
    assert config.to_release().items() >= tower.items(), name
    assert dit.DiTConfig.from_release(config.to_release()) == config


@pytest.mark.slow
def test_invalid_runs_are_refused(run, weights, tmp_path):
  out = tmp_path / "out"
  for workdir, others, message in (
    (run, None, "--pretrained=DIR is needed"),
    (tmp_path, weights, "not the directory of a run"),
    (run, tmp_path, "ovi_jax.json is missing"),
  ):
    with pytest.raises(ValueError, match=message):
      export.export(workdir, out, others)
  with pytest.raises(ValueError, match=r"of the steps \[4\], expected 3"):
    export.export(run, out, weights, step=3)
  assert not out.exists()
  strange = tmp_path / "strange"
  export.export(run, strange, weights)
  with pytest.raises(ValueError, match="holds weights already"):
    export.export(run, strange, weights)
  path = strange / weights_dir.MANIFEST
  values = json.loads(path.read_text())
  values["sizes"]["audio_vae"]["embed_dim"] = 8
  path.write_text(json.dumps(values))
  with pytest.raises(ValueError, match="do not fit"):
    export.export(run, out, strange)


@pytest.mark.parametrize("make", [export.export, export.export_lora])
def test_a_run_cannot_be_in_a_store_that_orbax_lacks(make, tmp_path):
  with pytest.raises(ValueError, match="workdir: s3://b/run: expected a fold"):
    make("s3://b/run", tmp_path / "out.safetensors")
  assert not list(tmp_path.iterdir())


def test_towers_trained_with_given_latents_recommend_clean_ones():
  clean = {"conditioning": "clean"}
  for name, expected in (
    ("v2a", clean),
    ("i2v", {}),
    ("voice", {**clean, "voice_guidance_scale": 1.0}),
  ):
    loaded = config_files.load(f"conditions/{name}:small")
    assert export._conditioning(loaded.to_dict()) == expected
