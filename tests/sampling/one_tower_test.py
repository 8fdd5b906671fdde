"""One tower alone: sound, or video, from weights of both or of one."""

import dataclasses
import json
import pathlib
import shutil
import wave

import numpy as np
import pytest

import ovi_jax
from ovi_jax import geometry
from ovi_jax import synthetic
from ovi_jax.media import mp4
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import generate
from ovi_jax.sampling import noise
from ovi_jax.sampling import opening
from ovi_jax.sampling import outputs
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as settings_lib
from tests.lib import media_files

pytestmark = pytest.mark.usefixtures("one_device")

FEW = {"num_steps": 1, "progress": False}


def settings() -> settings_lib.Settings:
  manifest = weights_dir.manifest_of(synthetic.WEIGHTS)
  return settings_lib.Settings.from_overrides(
    {"num_steps": 1}, settings_lib.recommended_of(manifest)
  )


def test_noise_of_one_tower_is_that_of_the_pair():
  clip = geometry.Clip(
    latent_frames=2, latent_height=2, latent_width=2, audio_latents=7
  )
  both = noise.sample_noise(3, clip, AV(4, 5))
  for name in AV._fields:
    alone = noise.sample_noise(3, clip, AV(**{name: getattr(AV(4, 5), name)}))
    assert alone.present().keys() == {name}
    np.testing.assert_array_equal(getattr(alone, name), getattr(both, name))


@pytest.mark.parametrize("name", AV._fields)
def test_only_what_one_tower_needs_is_read(name, tmp_path):
  """Components of the other modality may be missing."""
  folder = tmp_path / "weights"
  shutil.copytree(synthetic.WEIGHTS, folder)
  others = {"video": ("audio_vae", "vocoder"), "audio": ("video_vae",)}[name]
  for component in others:
    weights_dir.component_file(folder, component).unlink()
  found = opening.open_components(folder, settings(), "", name)
  assert found.generates == name and found.channels.present().keys() == {name}
  # Of the towers' file too, without the layers between the towers.
  file = weights_dir.component_file(folder, "fusion")
  paths = found._fusion_paths()
  wanted = architecture.parameter_shapes("fusion", found.arch.fusion)
  assert paths is not None
  loaded = weights.load(file, prefix=paths)
  shapes = weights.shapes(file)
  assert len(paths) < len(shapes) / 2
  assert loaded.keys() == wanted.keys() == {name, "blocks"}
  with pytest.raises(ValueError, match="missing"):
    opening.open_components(folder, settings())


def test_weights_of_one_tower_say_what_they_make(tmp_path):
  manifest = weights_dir.manifest_of(synthetic.WEIGHTS)
  sizes = dict(manifest.sizes)
  sizes["fusion"] = {"audio": sizes["fusion"]["audio"]}
  del sizes["latents"]
  dataclasses.replace(manifest, sizes=sizes).save(tmp_path)
  for asked, message in (
    ("both", "only the tower audio; .* needs both; generate=audio makes audio"),
    ("video", "only the tower audio; there is none of video"),
    ("sound", "generate 'sound' is unknown"),
  ):
    with pytest.raises(ValueError, match=message) as error:
      opening.open_components(tmp_path, settings(), "", asked)
    assert "\n" not in str(error.value)
  # Without a length in the manifest, that of Wan's clips.
  found = opening.components_of(
    tmp_path,
    weights_dir.manifest_of(tmp_path),
    settings(),
    ovi_jax.Pipeline.from_pretrained().components.mesh.devices.ravel(),
    "cpu",
  )
  assert found.geometry.latent_frames == 31


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("media")
  frames, times = media_files.moving(25), media_files.even(25)
  media_files.write(folder / "clip.mp4", frames, times, media_files.tone(1.1))
  media_files.write_sound(folder / "tone.wav", media_files.tone(1.1))
  return folder


@pytest.mark.parametrize(
  ("generated", "asked", "message"),
  [
    ("audio", {"video": "clip.mp4"}, "video and generate=audio cannot be"),
    ("audio", {"extend": "clip.mp4"}, "extend and generate=audio cannot be"),
    ("video", {"audio": "tone.wav"}, "audio and generate=video cannot be"),
    (
      "video",
      {"video": "clip.mp4", "keep_audio_until": 1.0},
      "keep_audio_until and generate=video",
    ),
    ("audio", {"audio": "tone.wav"}, "nothing is left to generate"),
    ("video", {"video": "clip.mp4"}, "nothing is left to generate"),
    ("audio", {"seconds": 20}, "generate=audio cannot be used with a clip of"),
  ],
)
def test_what_cannot_be_combined_is_refused(folder, generated, asked, message):
  pipe = ovi_jax.Pipeline.from_pretrained(generate=generated)
  files = ("video", "audio", "extend")
  asked = {n: folder / v if n in files else v for n, v in asked.items()}
  with pytest.raises(ValueError, match=message):
    pipe("a", **asked)
  assert not pipe._loaded


@pytest.mark.slow
def test_sound_and_video_are_generated_alone(tmp_path):
  short = {"seconds": 0.5} | FEW
  pipe = ovi_jax.Pipeline.from_pretrained(generate="audio")
  heard = pipe("a", **short)
  assert heard.video is None and len(heard.audio) == 16 * 512
  assert "0.51 s of sound" in repr(heard)
  assert heard._repr_html_().startswith("<audio controls")
  assert pipe._loaded.keys() == {"text", "denoiser", "decoder"}
  assert pipe._loaded["decoder"].video is None
  with pytest.raises(ValueError, match=r"ends in \.wav"):
    heard.save(tmp_path / "a.mp4")
  # Of loaded weights of both towers.
  whole = ovi_jax.Pipeline.from_pretrained()
  part = whole.restricted("audio")
  again = part("a", **short)
  # Programs of both towers' decoders may round otherwise.
  np.testing.assert_allclose(again.audio, heard.audio, atol=1e-6)
  assert again.metadata == heard.metadata and part._loaded is whole._loaded
  assert whole.restricted("both") is whole
  with pytest.raises(ValueError, match="opened for audio alone, got video"):
    pipe.restricted("video")
  path = heard.save(tmp_path / "a.wav")
  with wave.open(str(path)) as file:
    assert file.getparams()[:4] == (1, 2, 16_000, 16 * 512)
    pcm = np.frombuffer(file.readframes(16 * 512), "<i2") / 32_768
  np.testing.assert_allclose(pcm, heard.audio, atol=2e-5)

  pipe = ovi_jax.Pipeline.from_pretrained(generate="video")
  seen = pipe("a", **short)
  assert seen.audio is None and seen.video.shape == (13, 64, 64, 3)
  frames, _, sound, _ = mp4.read(seen.save(tmp_path / "a.mp4"))
  assert len(frames) == 13 and sound is None

  stems = set()
  for name, clip in (("audio", heard), ("video", seen)):
    (path,) = generate.run(
      requests=requests.from_prompt("a", seconds=0.5),
      settings=settings(),
      weights=synthetic.WEIGHTS,
      out=tmp_path / "out",
      save_latents=True,
      generate=name,
    )
    assert path.suffix == planning.ENDINGS[name]
    saved = np.load(outputs.latents_of(path))
    assert len(saved.files) == 1
    ours = getattr(clip.latents, name)
    np.testing.assert_array_equal(saved[saved.files[0]], ours)
    recipe = json.loads(path.with_suffix(".json").read_text())
    assert recipe["generate"] == name
    stems.add(path.stem)
    before = path.stat().st_mtime_ns
    generate.run(
      requests=requests.from_prompt("a", seconds=0.5),
      settings=settings(),
      weights=synthetic.WEIGHTS,
      out=tmp_path / "out",
      generate=name,
    )
    assert path.stat().st_mtime_ns == before
  assert len(stems) == 2
  with pytest.raises(ValueError, match="attention_maps needs both towers"):
    generate.run(
      requests=requests.from_prompt("a"),
      settings=settings(),
      weights=synthetic.WEIGHTS,
      out=tmp_path,
      maps=True,
      generate="audio",
    )
