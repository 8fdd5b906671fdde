"""Conversion of a whole release: round trip and bad input."""

import dataclasses
import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest

from ovi_jax.convert import command
from ovi_jax.convert import convert
from ovi_jax.convert import download
from ovi_jax.convert import reader
from ovi_jax.convert import release as releases
from ovi_jax.convert import standin
from ovi_jax.convert import torch_file
from ovi_jax.models import architecture
from ovi_jax.models import rope
from ovi_jax.pretrained import weights as stores
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import settings as settings_lib

SIZES = standin.manifest()["config"]
FOLDED = ("v1-16.pth", "best_netG.pt")
FLAGS = {
  "release": "",
  "variant": "",
  "arch": "",
  "out": "",
  "components": [],
  "export": False,
  "weights": "",
  "download": "",
}


def test_a_round_trip_restores_every_tensor(weights, release, tmp_path):
  command.run(
    **FLAGS
    | {
      "export": True,
      "weights": str(weights),
      "out": str(tmp_path),
    }
  )
  for file, entries in standin.manifest()["files"].items():
    key = "generator" if file.endswith("best_netG.pt") else None
    before = reader.open_tensors(release / file, key)
    after = reader.open_tensors(tmp_path / file, key)
    assert before.shapes == after.shapes and before.dtypes == after.dtypes
    if not file.endswith(FOLDED):
      for name in entries:
        assert before.read(name).tobytes() == after.read(name).tobytes(), name
  again = tmp_path / "again"
  command.run(
    **FLAGS
    | {
      "release": str(tmp_path),
      "arch": str(pathlib.Path(standin.__file__).parent / "manifest.json"),
      "out": str(again),
    }
  )
  for component in ("audio_vae", "vocoder"):
    folded, refolded = (
      stores.slices(weights_dir.component_file(d, component))
      for d in (weights, again)
    )
    for path in stores.shapes(weights_dir.component_file(weights, component)):
      np.testing.assert_allclose(
        refolded(path, None), folded(path, None), rtol=1e-6, atol=1e-9
      )
  names = {f.name for f in (release / releases.TOKENIZER).iterdir()}
  assert names == {f.name for f in (tmp_path / releases.TOKENIZER).iterdir()}
  assert weights_dir.TOKENIZER in names and len(names) == 3
  for name in names:
    tokenizer = pathlib.Path(releases.TOKENIZER) / name
    assert (tmp_path / tokenizer).read_bytes() == (
      release / tokenizer
    ).read_bytes()


def test_the_manifest_identifies_the_weights(weights, release, tmp_path):
  manifest = weights_dir.read(weights)
  assert manifest.variant is None and manifest.geometry.latent_frames == 4
  assert manifest.geometry.area == 64 * 96
  assert set(manifest.digests) == {*architecture.COMPONENTS, "tokenizer"}
  assert manifest.towers == ("video", "audio")
  tensors = dict(standin.tensors("Wan2.2-TI2V-5B/Wan2.2_VAE.pth"))
  file = release / "Wan2.2-TI2V-5B/Wan2.2_VAE.pth"
  changed = tmp_path / "release" / "Wan2.2-TI2V-5B"
  changed.mkdir(parents=True)
  tensors["conv2.bias"] = tensors["conv2.bias"] + 1
  torch_file.save(changed / file.name, tensors)
  other = convert.convert(
    tmp_path / "release",
    tmp_path / "out",
    variant=None,
    sizes=SIZES,
    components=["video_vae"],
  )
  assert other.digests["video_vae"] != manifest.digests["video_vae"]


def test_components_can_be_converted_one_by_one(release, weights, tmp_path):
  for component in architecture.COMPONENTS:
    manifest = convert.convert(
      release,
      tmp_path,
      variant=None,
      sizes=SIZES,
      components=[component],
    )
  assert manifest.digests == weights_dir.read(weights).digests
  weights_dir.read(tmp_path)


def test_converted_components_are_reused(release, tmp_path, log_lines):
  component, file = "umt5", "models_t5_umt5-xxl-enc-bf16.pth"
  (stored,) = (p for p in release.rglob(file))
  copy = tmp_path / "release" / stored.relative_to(release)
  shutil.copytree(release, tmp_path / "release")
  out = tmp_path / "out"

  def run() -> tuple[int, str]:
    manifest = convert.convert(
      tmp_path / "release",
      out,
      variant=None,
      sizes=SIZES,
      components=[component],
    )
    inode = weights_dir.component_file(out, component).stat().st_ino
    return inode, manifest.digests[component]

  first, again = run(), run()
  assert again == first
  assert "it stays" in log_lines[1] and "it stays" not in log_lines[0]
  # Another number in it: another content, and another file.
  opened = reader.open_tensors(copy)
  tensors = {name: opened.read(name) for name in opened.shapes}
  changed = next(iter(tensors))
  tensors[changed] = tensors[changed] * 2
  torch_file.save(copy, tensors)
  other = run()
  assert other[1] != first[1] and "it stays" not in log_lines[2]
  # A damaged file is written anew.
  weights_dir.component_file(out, component).write_bytes(b"half a file")
  assert run()[1] == other[1] and "it stays" not in log_lines[3]


def broken(tmp_path, release, **changes) -> str:
  """The error of converting a release with some tensors changed."""
  for file, entries in standin.manifest()["files"].items():
    path = tmp_path / "broken" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = standin.tensors(file) if file.endswith(".pth") else None
    if tensors is None:
      path.write_bytes((release / file).read_bytes())
      continue
    for name, change in changes.items():
      name = name.replace("__", ".")
      if name in entries:
        tensors[name] = change(tensors[name])
    torch_file.save(path, {n: t for n, t in tensors.items() if t is not None})
  out = tmp_path / "out"
  with pytest.raises(ValueError) as error:
    convert.convert(tmp_path / "broken", out, variant=None, sizes=SIZES)
  assert not out.exists() or not list(out.iterdir())
  return str(error.value)


def test_mismatches_of_all_components_are_listed_before_writing(
  tmp_path, release
):
  message = broken(
    tmp_path,
    release,
    conv2__weight=lambda t: t[:3],
    encoder__conv_in__weight=lambda t: None,
    token_embedding__weight=lambda t: t.T,
  )
  assert "video_vae: " in message and "conv2.weight(3, 48, 1, 1, 1)" in message
  assert "tensor missing from the file: encoder.conv_in.weight" in message
  assert "token_embedding.weight(48, 138)" in message


def test_integer_weights_are_listed_too(tmp_path, release):
  message = broken(
    tmp_path,
    release,
    conv2__weight=lambda t: t[:3],
    blocks__0__attn__q__weight=lambda t: t.astype(np.int32),
  )
  assert "video_vae: " in message and "conv2.weight(3, 48, 1, 1, 1)" in message
  assert "floating point, blocks.0.attn.q.weight is int32" in message


def test_a_failed_conversion_leaves_a_valid_directory(release, tmp_path):
  kwargs = {"variant": None, "sizes": SIZES}
  part = ["audio_vae"]
  convert.convert(release, tmp_path, components=part, **kwargs)
  with pytest.raises(ValueError, match="v1-16"):
    convert.convert(tmp_path / "none", tmp_path, components=part, **kwargs)
  weights_dir.read(tmp_path, needs=("audio_vae",))
  damaged = weights_dir.component_file(tmp_path, "vocoder")
  damaged.write_bytes(b"x")
  with pytest.raises(ValueError, match="vocoder"):
    convert.convert(release, tmp_path, components=part, **kwargs)
  weights_dir.read(tmp_path, needs=("audio_vae",))


def test_the_bare_video_model_is_its_transformer_alone(release, tmp_path):
  with pytest.raises(ValueError, match="fusion: .*diffusion_pytorch") as error:
    command.run(
      **FLAGS
      | {
        "release": str(release),
        "variant": releases.WAN,
        "out": str(tmp_path / "out"),
      }
    )
  assert not any(f"\n{c}: " in str(error.value) for c in ("umt5", "video_vae"))


def test_more_of_the_bare_video_model_is_converted_on_demand():
  alone = command._sizes(releases.WAN, "", ())
  more = command._sizes(releases.WAN, "", ("fusion", "umt5", "video_vae"))
  assert alone.keys() == {"fusion"} and alone["fusion"].keys() == {"video"}
  assert more.keys() == {"fusion", "t5", "video_vae"}
  assert not architecture.Architecture.from_release(more).misfits


def test_dreamid_omni_has_ovis_names_and_settings_of_its_own(release, tmp_path):
  """Its checkpoint has the tensors of Ovi's, in a folder of its own."""
  sizes = command._sizes(releases.DREAMID, "", ())
  arch = architecture.Architecture.from_release(sizes)
  ovi = architecture.Architecture.from_release(architecture.released_sizes())
  assert not arch.misfits and arch.clip.pixels == (704, 1280)
  shapes = (
    architecture.parameter_shapes("fusion", each.fusion) for each in (arch, ovi)
  )
  assert len({str(each) for each in shapes}) == 1
  tables = (
    releases.source("fusion", name).rows(arch.fusion)
    for name in (releases.DREAMID, "720x720_5s")
  )
  assert next(tables) == next(tables)
  # Rotary frequencies are those of its inference; a voice begins at 760.
  scale = arch.fusion.audio.rope_scale
  assert np.float32(scale) == np.float32(
    np.asarray(31 / 157, ml_dtypes.bfloat16)
  )
  assert rope.reference_start(scale) == 760

  folder = tmp_path / "release" / "DreamID_Omni"
  folder.mkdir(parents=True)
  shutil.copyfile(
    release / "Ovi/model.safetensors", folder / "dreamid_omni.safetensors"
  )
  small = {**SIZES, "latents": sizes["latents"]}
  manifest = convert.convert(
    folder.parent,
    tmp_path / "out",
    variant=releases.DREAMID,
    sizes=small,
    components=["fusion"],
  )
  assert manifest.geometry.latent_frames == 31
  advised = settings_lib.recommended_of(manifest)
  assert advised["voice_guidance_scale"] == 3 and advised["slg_layer"] == 0
  assert advised["guidance_scale"] == {"video": 3.0, "audio": 4.0}
  assert advised["conditioning"] == "renoise" and advised["num_steps"] == 50


def test_a_release_of_another_size_is_refused(release, tmp_path):
  with pytest.raises(ValueError, match="do not fit the architecture") as error:
    command.run(
      **FLAGS
      | {
        "release": str(release),
        "variant": "720x720_5s",
        "out": str(tmp_path / "out"),
      }
    )
  # One line for each component.
  lines = str(error.value).splitlines()
  assert [line.split(":")[0] for line in lines] == [*architecture.COMPONENTS], (
    lines
  )
  assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused_by_name(release, tmp_path):
  file = tmp_path / "out"
  file.write_text("kept")
  for out, named in ((file, "--out"), (file / "a", f"--out={file}/a")):
    message = f"^{named}: expected a folder, {file} is a file$"
    with pytest.raises(ValueError, match=message):
      convert.convert(
        release, out, variant=None, sizes=SIZES, components=["vocoder"]
      )
    with pytest.raises(ValueError, match=message):
      download.download("960x960_5s", out)
  assert file.read_text() == "kept"


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({}, "--out=DIR is needed"),
    ({"out": "o"}, "--release=DIR is needed"),
    ({"out": "o", "release": "r"}, "one of --variant=NAME"),
    ({"out": "o", "release": "r", "variant": "a", "arch": "b"}, "one of"),
    ({"out": "o", "export": True}, "--export needs --weights"),
    (
      {"out": "o", "export": True, "weights": "w", "variant": "720x720_5s"},
      "--export does not go with --variant",
    ),
    (
      {"out": "o", "export": True, "weights": "w", "release": "r"},
      "--export does not go with --release",
    ),
    (
      {"out": "o", "download": "720x720_5s", "export": True},
      "--download does not go with --export",
    ),
    (
      {"out": "o", "release": ".", "weights": "w"},
      "does not go with --weights",
    ),
    (
      {"out": "o", "release": "nowhere", "variant": "720x720_5s"},
      "nowhere is not a directory",
    ),
    (
      {"out": "o", "release": ".", "variant": "320p"},
      "'320p' is unknown; choose from 720x720_5s",
    ),
    ({"out": "o", "release": ".", "arch": "none.json"}, "no such file"),
    (
      {"out": "o", "release": ".", "variant": "960x960_5s"},
      "model_960x960.safetensors",
    ),
  ],
)
def test_contradictory_flags_are_refused(flags, message):
  with pytest.raises(ValueError, match=message):
    command.run(**FLAGS | flags)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s | {"odd": 1}, "unknown: \\['odd'\\]"),
    (lambda s: {"t5": s["t5"]}, "needs 'fusion'"),
    (
      lambda s: s | {"latents": {"T": 4}},
      "latents must name T, H, W, A",
    ),
    (
      lambda s: s | {"t5": s["t5"] | {"layers": 3}},
      "t5: unknown sizes of the text encoder: layers",
    ),
    (
      lambda s: s | {"fusion": {"video": s["fusion"]["video"] | {"depth": 3}}},
      "fusion.video: .*unknown: \\['depth'\\]",
    ),
  ],
)
def test_invalid_architectures_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    architecture.Architecture.from_release(change(dict(SIZES)))


def test_the_manifest_error_names_missing_components(weights, tmp_path):
  with pytest.raises(ValueError, match="is no directory; make it with"):
    weights_dir.read(tmp_path / "nowhere")
  with pytest.raises(
    ValueError, match=r"custom, not 960x960_5s.*model_960x960"
  ):
    weights_dir.read(weights, "960x960_5s")
  with pytest.raises(ValueError, match="'1080p' is unknown"):
    weights_dir.read(weights, "1080p")
  manifest = json.loads((weights / weights_dir.MANIFEST).read_text())
  (tmp_path / weights_dir.MANIFEST).write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match=r"missing .*umt5.safetensors.*vocoder"):
    weights_dir.read(tmp_path)
  (tmp_path / weights_dir.MANIFEST).write_text(json.dumps(manifest)[:-9])
  with pytest.raises(ValueError, match="is damaged"):
    weights_dir.read(tmp_path)


@pytest.mark.parametrize(
  ("part", "key", "value", "expected"),
  [
    ("latents", "H", "4", "a whole number from 1, got '4'"),
    ("latents", "T", True, "a whole number from 1, got True"),
    ("t5", "num_heads", 0, "a whole number from 1, got 0"),
    ("t5", "vocab_size", 138.0, "a whole number from 1, got 138.0"),
    ("bigvgan", "upsample_rates", [4, 0, 2], "each item a whole number from 1"),
    ("bigvgan", "upsample_rates", [], "a list that is not empty"),
    ("bigvgan", "resblock_dilation_sizes", [3], "each item a list"),
    ("bigvgan", "snake_logscale", 1, "true or false, got 1"),
    ("bigvgan", "mel_bins", None, "a whole number from 1, got None"),
    ("video_vae", "temporal_downsample", [0], "each item true or false"),
    ("video_vae", "latent_std", ["1"], "each item a number"),
    ("fusion.video", "dim", "64", "a whole number from 1, got '64'"),
    ("fusion.audio", "eps", "small", "a number, got 'small'"),
    ("fusion.audio", "model_type", 1, "text, got 1"),
  ],
)
def test_all_sizes_of_a_wrong_type_are_named(part, key, value, expected):
  sizes = json.loads(json.dumps(SIZES))
  at = sizes
  for name in part.split("."):
    at = at[name]
  at[key] = value
  sizes["audio_vae"]["embed_dim"] = -1
  with pytest.raises(
    ValueError, match="audio_vae.embed_dim: .*got -1"
  ) as error:
    architecture.Architecture.from_release(sizes)
  assert f"{part}.{key}: expected " in str(error.value)
  assert expected in str(error.value)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"fusion": 3}, "fusion: expected towers by name, got 3"),
    ({"config": 3}, "expected sizes by name, got 3"),
    (SIZES | {"latents": 5}, "latents: expected sizes by name, got 5"),
    ({"fusion": {"video": 2}}, "fusion.video: expected sizes by name, got 2"),
  ],
)
def test_an_arch_file_of_another_format_is_refused(tmp_path, sizes, message):
  file = tmp_path / "sizes.json"
  file.write_text(json.dumps(sizes))
  flags = {"release": str(tmp_path), "out": str(tmp_path / "o")}
  with pytest.raises(ValueError, match=message):
    command.run(**FLAGS | flags | {"arch": str(file)})


def test_sizes_left_to_the_defaults_may_be_given():
  sizes = architecture.released_sizes()
  arch = architecture.Architecture.from_release(sizes)
  for key in ("video_vae", "audio_vae"):
    sizes[key] = json.loads(json.dumps(dataclasses.asdict(arch.config(key))))
  assert architecture.Architecture.from_release(sizes) == arch


def test_released_sizes_are_the_defaults():
  arch = architecture.Architecture.from_release(architecture.released_sizes())
  assert arch.components == architecture.COMPONENTS
  for component in ("umt5", "video_vae", "audio_vae", "vocoder"):
    config = arch.config(component)
    assert config == type(config)()
  assert arch.fusion.audio.rope_scale == 0.19676
  assert arch.fusion.video == type(arch.fusion.video)()
