"""The manifest of a directory of weights against its files."""

import json
import os
import shutil

import numpy as np
import pytest

from ovi_jax.convert import standin
from ovi_jax.models import architecture
from ovi_jax.pretrained import weights as stores
from ovi_jax.pretrained import weights_dir


@pytest.fixture
def copy(weights, tmp_path):
  """The converted stand-in; its large files are links, not to be changed."""
  for file in weights.iterdir():
    if file.suffix == ".safetensors":
      os.symlink(file, tmp_path / file.name)
    else:
      shutil.copyfile(file, tmp_path / file.name)
  return tmp_path


def change(copy, **fields):
  path = copy / weights_dir.MANIFEST
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps(manifest | fields))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"sizes": 3}, "sizes: got 3"),
    ({"sizes": {"fusion": 3}}, "fusion: expected towers by name"),
    ({"digests": ["a"]}, "digests: got"),
    ({"digests": {"umt5": 5}}, "digests.umt5: expected text, got 5"),
    ({"variant": 7}, "variant: got 7"),
    ({"format": "1"}, "format: got '1'"),
    ({"format": 2}, "format 2, expected 1"),
    ({"odd": 2}, "odd"),
  ],
)
def test_a_damaged_manifest_is_refused(copy, fields, message):
  change(copy, **fields)
  with pytest.raises(ValueError, match=f"is damaged .*{message}"):
    weights_dir.read(copy)


def test_symlinks_into_a_cache_are_resolved(tmp_path):
  """As huggingface_hub lays them out."""
  cache = tmp_path / "models--a--b"
  source, out = cache / "snapshots/1", tmp_path / "out"
  for folder in (cache / "blobs", source, out):
    folder.mkdir(parents=True)
  for name in (weights_dir.TOKENIZER, "vocoder.safetensors"):
    (cache / "blobs" / name).write_text(name)
    (source / name).symlink_to(f"../../blobs/{name}")
  weights_dir.link(source, out, ["vocoder"])
  for name in (weights_dir.TOKENIZER, "vocoder.safetensors"):
    assert (out / name).read_text() == name
    assert not (out / name).is_symlink()


def test_a_tokenizer_that_is_a_link_to_another_place_is_not_linked(tmp_path):
  source, out = tmp_path / "weights", tmp_path / "out"
  source.mkdir()
  out.mkdir()
  (tmp_path / "secret").write_text("secret")
  (source / "spiece.model").symlink_to(tmp_path / "secret")
  with pytest.raises(ValueError, match="spiece.model is a link to"):
    weights_dir.link(source, out, [])
  assert not list(out.iterdir())


@pytest.mark.parametrize(
  "fields",
  [
    {"x" * 100_000: 1},
    {"digests": {"x" * 100_000: 1}},
    {"sizes": {"fusion": {"x" * 100_000: {}}}},
  ],
)
def test_a_long_name_is_cut_in_the_message(copy, fields):
  change(copy, **fields)
  with pytest.raises(ValueError, match="is damaged") as error:
    weights_dir.read(copy)
  assert len(str(error.value)) < 1500


def test_a_manifest_that_is_not_an_object_is_refused(copy):
  (copy / weights_dir.MANIFEST).write_text("[1]")
  with pytest.raises(ValueError, match="is damaged"):
    weights_dir.read(copy)


def test_parameters_of_other_sizes_are_named(copy):
  sizes = json.loads(json.dumps(standin.manifest()["config"]))
  sizes["audio_vae"]["hidden_dim"] = 32
  change(copy, sizes=sizes)
  with pytest.raises(
    ValueError, match=r"audio_vae.safetensors: \d+ param"
  ) as e:
    weights_dir.read(copy)
  assert "vocoder" not in str(e.value) and "expected (" in str(e.value)
  weights_dir.read(copy, needs=("vocoder",))


def test_contradictory_sizes_are_refused(copy):
  sizes = json.loads(json.dumps(standin.manifest()["config"]))
  sizes["t5"]["dim"] = 64
  sizes["bigvgan"]["mel_bins"] = 100
  change(copy, sizes=sizes)
  with pytest.raises(ValueError, match="convert the release again") as error:
    weights_dir.read(copy, needs=())
  for tower in ("video", "audio"):
    text = f"fusion.{tower} text_dim is 48, but umt5 dim is 64"
    assert text in str(error.value)
  assert "data_dim is 80, but vocoder mel_bins is 100" in str(error.value)
  sizes = json.loads(json.dumps(standin.manifest()["config"]))
  sizes["audio_vae"]["embed_dim"] = 8
  arch = architecture.Architecture.from_release(sizes)
  assert arch.misfits == [
    "fusion.audio in_dim is 20, but audio_vae embed_dim is 8"
  ]
  sizes["audio_vae"]["embed_dim"] = 20
  sizes["fusion"]["video"]["text_len"] = 64
  arch = architecture.Architecture.from_release(sizes)
  assert arch.misfits == [
    "fusion.video text_len is 64, but fusion.audio text_len is 32"
  ]


def test_a_replaced_file_is_detected(copy):
  path = weights_dir.component_file(copy, "audio_vae")
  leaves = stores.shapes(path)
  path.unlink()
  with stores.Writer(path, leaves, {"digest": "another"}) as writer:
    for leaf, spec in leaves.items():
      writer.write(leaf, None, np.zeros(spec.shape, spec.dtype))
  (copy / weights_dir.TOKENIZER).write_text("{}")
  with pytest.raises(
    ValueError, match="audio_vae.safetensors was rep"
  ) as error:
    weights_dir.read(copy)
  assert "tokenizer.json was replaced" in str(error.value)
  weights_dir.read(copy, needs=("fusion",))


def test_a_component_without_sizes_is_refused(copy):
  sizes = dict(standin.manifest()["config"])
  del sizes["bigvgan"]
  change(copy, sizes=sizes)
  with pytest.raises(ValueError, match="no sizes of vocoder"):
    weights_dir.read(copy)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"[" * 10**5, "nested at most 64 deep"),
    (b'{"format": ' + b"9" * 400 + b"}", "at most 40 digits"),
    (b'{"variant": "' + b"a" * (4 << 20) + b'"}', "at most 1048576 bytes"),
    (b'{"variant": "\xff"}', "JSON in UTF-8"),
    (b'{"variant": null, "variant": "720x720_5s"}', "each key once"),
    (b'{"sampling": {"shift": 1e999}}', "finite numbers"),
  ],
  ids=["deep", "digits", "long", "not UTF-8", "twice", "infinite"],
)
def test_a_hostile_manifest_is_refused_in_one_line(copy, content, message):
  (copy / weights_dir.MANIFEST).write_bytes(content)
  with pytest.raises(ValueError, match=f"is damaged .*{message}") as error:
    weights_dir.manifest_of(copy)
  assert len(str(error.value)) < 500


def test_implausible_sizes_in_a_manifest_are_refused(copy):
  sizes = json.loads(json.dumps(standin.manifest()["config"]))
  sizes["video_vae"]["num_res_blocks"] = 10**6
  sizes["latents"]["T"] = 2**20
  change(copy, sizes=sizes)
  with pytest.raises(
    ValueError, match=r"latents.T: .*; video_vae.num_res_blocks: expected at"
  ):
    weights_dir.read(copy)
