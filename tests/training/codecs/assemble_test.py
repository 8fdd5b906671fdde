"""Assembling codec runs into a directory of components."""

import dataclasses
import importlib
import shutil
import types

import jax
import numpy as np
import pytest

from ovi_jax.data import tokenizer as tokenizers
from ovi_jax.models import architecture
from ovi_jax.models import audio_vae
from ovi_jax.models.video_vae import codec
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import mesh as meshes
from ovi_jax.training import param_filter
from ovi_jax.training.codecs import assemble
from ovi_jax.training.codecs import input as inputs
from tests.lib import small_codec

START = inputs.CropPosition(0, 0, 0)


def asked(count=2, frames=3, **changes) -> assemble.Clip:
  config = importlib.import_module("configs.fusion").get_config("mini")
  config.data.video_buckets = ((frames, 4, 4),)
  made = assemble.Clip.from_config(config, "world:1", count)
  return dataclasses.replace(made, **changes)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "video"
  assert small_codec.train(small_codec.config(), path)
  return path


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
  """Components of a video run alone."""
  out = tmp_path_factory.mktemp("components") / "made"
  return out, assemble.assemble({"video": run}, out, asked())


def test_the_directory_holds_ema_weights_and_latent_statistics(run, made):
  out, manifest = made
  assert manifest.architecture.components == ("fusion", "video_vae")
  assert manifest.geometry.latent_frames == 3
  config = manifest.architecture.video_vae
  assert (config.dim, config.z_dim) == (2, 3)
  # The towers follow what encodes for them.
  assert manifest.architecture.fusion.video.channels == 3
  mesh = meshes.make(jax.devices()[:1])
  components = component_loader.Components(
    weights=out, manifest=manifest, mesh=mesh, dtype=np.dtype("float32")
  )
  average = small_codec.arrays(run)
  params = param_filter.flat(components.load("video_vae"))
  assert params
  for path, leaf in params.items():
    np.testing.assert_array_equal(leaf, average[f"ema_params/{path}"])
  # What is encoded by it has mean 0 and deviation 1 in every channel.
  source, wanted = inputs.open_source("world:1", ""), inputs.ClipSpec(frames=9)
  found = [source.crop(n, wanted, START) for n in range(5)]
  frames = np.stack([c.frames_THWC for c in found if c is not None][:2])
  encoder = encoders.VideoEncoder.load(components)
  mean, deviation = assemble.statistics([np.asarray(encoder.encode(frames))])
  strong = deviation > 0.9
  assert strong.any()
  np.testing.assert_allclose(mean[strong], 0, atol=0.05)
  np.testing.assert_allclose(deviation[strong], 1, atol=0.05)
  assert (deviation < 1.01).all()


def test_sounds_are_scaled_and_decoded_as_before():
  config = audio_vae.AudioVAEConfig(hidden_dim=8, channel_multipliers=(1, 1))
  params = architecture.init("audio_vae", config, jax.random.key(0))
  before = assemble.Trained(
    settings=types.SimpleNamespace(model=config),
    sizes={},
    params=param_filter.flat(params),
  )
  after = assemble.scaled(before, asked(audio=16))
  source, wanted = (
    inputs.open_source("world:1", ""),
    inputs.ClipSpec(samples=16 * 512),
  )
  found = [source.crop(n, wanted, START) for n in range(5)]
  wave_BA = np.stack([c.wave_A for c in found if c is not None][:2])
  latents, mels = [], []
  for part in (before, after):
    nested = param_filter.nested(part.params)
    latents.append(encoders.encode_audio(config, nested, wave_BA))
    model = audio_vae.AudioVAE(config)
    mels.append(model.apply({"params": nested}, latents[-1], method="decode"))
  _, deviation = assemble.statistics([np.asarray(latents[1])])
  assert np.sqrt(np.square(deviation).mean()) == pytest.approx(1, abs=1e-4)
  _, raw = assemble.statistics([np.asarray(latents[0])])
  assert abs(np.sqrt(np.square(raw).mean()) - 1) > 0.05
  np.testing.assert_allclose(mels[1], mels[0], atol=1e-2)


def test_statistics_are_per_channel():
  parts = [np.array([[[1.0, 5.0]], [[3.0, 5.0]]]), np.array([[[5.0, 5.0]]])]
  mean, deviation = assemble.statistics(parts)
  np.testing.assert_allclose(mean, [3, 5])
  np.testing.assert_allclose(deviation, [np.sqrt(8 / 3), 0])
  with pytest.raises(ValueError, match="the encoder collapsed"):
    assemble.statistics([np.ones((2, 3))])


def test_a_constant_channel_is_not_amplified(run, monkeypatch):
  video = assemble.opened("video_vae", run)

  def encode(config, params, frames_BTHWC):
    random = np.random.default_rng(len(frames_BTHWC))
    mean = random.standard_normal((1, 3, 32, 32, 3)).astype(np.float32)
    return jax.numpy.asarray(mean * np.array([1e-4, 1, 1], np.float32)), None

  monkeypatch.setattr(codec, "encode_whole", encode)
  found = assemble.measured(video, asked()).sizes["latent_std"]
  np.testing.assert_allclose(found, [0.05 * np.sqrt(2 / 3), 1, 1], atol=0.03)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_decoder_can_be_trained_alone(run, made, tmp_path, log_lines):
  kept, _ = made
  (kept / weights_dir.TOKENIZER).write_text("{}")
  begun = {"init_from": str(kept), "trainable": "decoder", "seed": 4}
  # A directory named by a number is a run's too.
  assert small_codec.train(small_codec.config(**begun), tmp_path / "7")
  out = tmp_path / "out"
  log_lines.clear()
  manifest = assemble.assemble(
    {"video": tmp_path / "7"}, out, asked(), base=kept
  )
  assert not log_lines  # the latents are the same
  before, after = (
    weights_dir.read(path, needs=("video_vae",)) for path in (kept, out)
  )
  assert after == manifest and after.sizes == before.sizes
  assert after.digests["video_vae"] != before.digests["video_vae"]
  assert (out / weights_dir.TOKENIZER).read_text() == "{}"
  stored = [weights_dir.component_file(d, "video_vae") for d in (kept, out)]
  old, new = map(weights.slices, stored)
  average = small_codec.arrays(tmp_path / "7")
  for path in weights.shapes(stored[1]):
    if path.startswith("encoder/"):
      np.testing.assert_array_equal(old(path, None), new(path, None))
    else:
      np.testing.assert_array_equal(
        new(path, None), average[f"ema_params/{path}"]
      )
  further = small_codec.config(init_from=str(tmp_path / "7"), num_train_steps=3)
  assert small_codec.train(further, tmp_path / "8")
  with pytest.raises(ValueError, match="holds weights already"):
    assemble.assemble({"video": tmp_path / "7"}, out, asked(), base=kept)
  learnt = assemble.opened("video_vae", run).params
  moved = {path: value + 1 for path, value in learnt.items()}
  digest = assemble.write(out, "video_vae", moved, np.float32)
  dataclasses.replace(manifest, digests={"video_vae": digest}).save(out)
  with pytest.raises(ValueError, match="did not begin with the weights in"):
    other = tmp_path / "other"
    assemble.assemble({"video": tmp_path / "7"}, other, asked(), base=out)
  assert not (tmp_path / "other").exists()


def test_mismatches_are_reported_before_anything_is_written(
  run, made, tmp_path
):
  out = tmp_path / "out"
  with pytest.raises(ValueError, match="trained 'video_vae', expected 'audio_"):
    assemble.assemble({"audio": run}, out, asked())
  with pytest.raises(ValueError, match="is not the directory of a run"):
    assemble.assemble({"video": tmp_path}, out, asked())
  with pytest.raises(ValueError, match="pass at least one run: video, audio"):
    assemble.assemble({}, out, asked())
  with pytest.raises(ValueError, match="no video tower"):
    assemble.assemble({"video": run}, out, asked(latents=None))
  with pytest.raises(ValueError, match="no clip of world:1 has all of"):
    assemble.assemble({"video": run}, out, asked(frames=99))
  assert not out.exists()
  with pytest.raises(ValueError, match="holds weights already"):
    assemble.assemble({"video": run}, made[0], asked())
  with pytest.raises(ValueError, match="expected a stage's config"):
    assemble.Clip.from_config(small_codec.config(), "world:1", 2)
  assert (made[0] / weights_dir.MANIFEST).is_file()


@pytest.mark.slow
@pytest.mark.nightly
def test_one_component_of_weights_is_replaced(
  run, weights, tmp_path, log_lines
):
  base = tmp_path / "base"
  shutil.copytree(weights, base)
  before = {p.name: p.read_bytes() for p in base.iterdir()}
  out = tmp_path / "out"
  with pytest.raises(
    ValueError, match="do not fit .*base: fusion.video in_dim"
  ):
    assemble.assemble({"video": run}, out, asked(), base=base)
  assert not out.exists()
  tokenizer = tmp_path / "words.json"
  tokenizers.write(tokenizer, ["A red ball. Audio: knocks."])
  text = train_text(tmp_path / "text", tokenizer, base)
  log_lines.clear()
  manifest = assemble.assemble({"text": text}, out, asked(), base=base)
  assert "trained with another umt5; train them on from these" in log_lines[0]
  kept = weights_dir.manifest_of(base)
  assert manifest.sizes["fusion"] == kept.sizes["fusion"]
  changed = {n for n, d in manifest.digests.items() if kept.digests[n] != d}
  assert changed == {"umt5", "tokenizer"}
  assert weights_dir.read(out) == manifest  # all files are there and fit
  assert (out / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
  # Files of the base are linked, not written through.
  assert {p.name: p.read_bytes() for p in base.iterdir()} == before


def train_text(path, tokenizer, base):
  """A run of a text encoder as wide as the base's towers read."""
  values = importlib.import_module("configs.codec_text").get_config("mini")
  values.model.dim = weights_dir.manifest_of(base).architecture.umt5.dim
  values.model.encoder_layers, values.data.tokenizer = 1, str(tokenizer)
  values.num_train_steps, values.batch_size, values.mesh.fsdp = 1, 2, 1
  values.data.max_text_len = 8
  assert small_codec.train(values, path)
  return path
