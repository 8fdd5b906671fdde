"""Conversion by the command line of files as other tools write them."""

import json
import os
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest

from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.convert import command
from ovi_jax.convert import convert
from ovi_jax.convert import release as releases
from ovi_jax.convert import staging
from ovi_jax.convert import standin
from ovi_jax.pretrained import weights as stores
from ovi_jax.pretrained import weights_dir
from tests.lib import repacked_weights

SIZES = standin.manifest()["config"]
ARCH = str(pathlib.Path(standin.__file__).parent / "manifest.json")
FUSION = "Ovi/model.safetensors"
VOCODER = "MMAudio/ext_weights/best_netG.pt"
AUDIO_VAE = "MMAudio/ext_weights/v1-16.pth"
TOKENIZER = standin.HERE / "tokenizer.json"


def run(out, arch=ARCH, **flags):
  """Convert as `convert_torch_weights.py` does; flags of files by name."""
  command.run(out=str(out), **{"arch": arch} | flags)


def refused(out, *parts, lines=1, **flags):
  """The error of a conversion, which has so many lines and leaves nothing."""
  with pytest.raises(ValueError) as error:
    run(out, **flags)
  message = str(error.value)
  for part in parts:
    assert part in message, message
  assert len(message.splitlines()) <= lines, message
  assert not out.exists()
  return message


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_files_of_any_name_convert_to_the_same_bytes(tmp_path, weights):
  layouts = {
    "fusion": (FUSION, repacked_weights.diffusers_transformer, "dit", None),
    "umt5": (
      "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth",
      repacked_weights.whole_t5,
      "t5.safetensors",
      None,
    ),
    "video_vae": (
      "Wan2.2-TI2V-5B/Wan2.2_VAE.pth",
      repacked_weights.diffusers_vae,
      "vae, of diffusers.bin",
      "state_dict",
    ),
    "audio_vae": (AUDIO_VAE, repacked_weights.compiled, "a.ckpt", "module"),
    "vocoder": (
      VOCODER,
      repacked_weights.old_weight_norm,
      "v.safetensors",
      None,
    ),
  }
  named = {}
  for component, (file, dialect, name, wrap) in layouts.items():
    tensors = repacked_weights.prefixed("model.")(
      dialect(standin.tensors(file))
    )
    path = repacked_weights.save(tmp_path / name, tensors, wrap)
    named[component] = str(path)
  run(tmp_path / "out", tokenizer=str(TOKENIZER), **named)
  found, expected = contents(tmp_path / "out"), contents(weights)
  assert found.keys() >= {f"{c}.safetensors" for c in layouts}
  for name in found:
    assert found[name] == expected[name], name
  weights_dir.read(tmp_path / "out")


def test_one_named_file_replaces_that_of_the_release(release, tmp_path):
  tensors = standin.tensors(AUDIO_VAE)
  tensors["decoder.learnable_gain"] = tensors["decoder.learnable_gain"] + 1
  path = repacked_weights.save(tmp_path / "better.safetensors", tensors)
  run(
    tmp_path / "out",
    release=str(release),
    audio_vae=str(path),
    components=["audio_vae", "vocoder"],
  )
  read = stores.slices(tmp_path / "out" / "audio_vae.safetensors")
  assert read("decoder/head/gain", None) == np.float32(0.1) + 1
  weights_dir.read(tmp_path / "out", needs=("audio_vae",))


def test_towers_and_shards_are_given_with_commas(tmp_path, weights):
  tensors = repacked_weights.short_modulation(standin.tensors(FUSION))
  paths = []
  for tower in ("video_model.", "audio_model."):
    part = {n.removeprefix(tower): t for n, t in tensors.items() if tower in n}
    paths.append(str(repacked_weights.save(tmp_path / tower, part)))
  run(tmp_path / "out", fusion=",".join(paths))
  name = "fusion.safetensors"
  assert (tmp_path / "out" / name).read_bytes() == (weights / name).read_bytes()
  refused(
    tmp_path / "half",
    "this is the video tower alone; pass the other tower's file too",
    fusion=paths[0],
  )


@pytest.mark.parametrize("tower", ["video", "audio"])
@pytest.mark.parametrize("is_bare", [True, False])
def test_a_tower_of_a_whole_checkpoint_is_named_in_one_line(
  tmp_path, tower, is_bare
):
  arch = tmp_path / "sizes.json"
  sizes = {tower: SIZES["fusion"][tower]}
  arch.write_text(json.dumps({"fusion": sizes}))
  prefix = f"{tower}_model."
  tensors = {
    name.removeprefix(prefix) if is_bare else name: tensor
    for name, tensor in standin.tensors(FUSION).items()
    if name.startswith(prefix)
  }
  path = repacked_weights.save(tmp_path / "tower.pth", tensors)
  refused(
    tmp_path / "out",
    f"this is the {tower} tower of an Ovi checkpoint, with",
    fusion=str(path),
    arch=str(arch),
    variant="",
  )


def test_a_bare_tower_of_other_sizes_is_converted(tmp_path):
  sizes = {"fusion": {"video": SIZES["fusion"]["video"]}}
  arch = tmp_path / "sizes.json"
  arch.write_text(json.dumps(sizes))
  prefix = "video_model."
  tensors = {
    n.removeprefix(prefix): t
    for n, t in repacked_weights.short_modulation(
      standin.tensors(FUSION)
    ).items()
    if n.startswith(prefix) and "_fusion" not in n
  }
  folder = tmp_path / "release" / "Wan2.2-TI2V-5B"
  folder.mkdir(parents=True)
  names = list(tensors)
  for number in (1, 2):
    part = {n: tensors[n] for n in names[number - 1 :: 2]}
    file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
    repacked_weights.save(folder / file, part)
  outs = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
  run(outs[0], arch=str(arch), release=str(tmp_path / "release"))
  run(outs[1], arch=str(arch), fusion=str(folder))
  path = tmp_path / "diffusers.bin"
  named = repacked_weights.diffusers_transformer(tensors)
  repacked_weights.save(
    path, repacked_weights.prefixed("transformer.")(named), "state_dict"
  )
  run(outs[2], arch=str(arch), fusion=str(path))
  found = [contents(out) for out in outs]
  assert found[0] == found[1] == found[2]
  manifest = weights_dir.read(outs[0], needs=("fusion",))
  assert manifest.towers == ("video",)


def test_mismatches_are_one_summary_ten_lines_and_a_count(tmp_path, release):
  tensors = standin.tensors(FUSION)
  extra = {f"odd.{n}\x1b[2J": np.ones(1, "f4") for n in range(465)}
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors | extra)
  message = refused(
    tmp_path / "out",
    "465 tensors do not fit the architecture",
    "and 455 more",
    lines=12,
    fusion=str(path),
  )
  assert len(message.splitlines()) == 12 and "\x1b" not in message


def scaled(tensors, factor):
  """Tensors of a model so many times as wide, without its numbers."""
  return {
    n: np.zeros([s * factor if s == 64 else s for s in t.shape], np.float16)
    for n, t in tensors.items()
  }


@pytest.mark.parametrize(
  ("make", "parts"),
  [
    (
      lambda t: repacked_weights.diffusers_transformer(scaled(t, 80)),
      (
        "in the layout of diffusers",
        "width 5120 with 3 blocks, the 14 B model",
      ),
    ),
    (
      lambda t: repacked_weights.short_modulation(scaled(t, 24)),
      (
        "in the layout of Wan",
        "width 1536",
        "1.3 B",
        "expected width 64 with 3",
      ),
    ),
    (
      lambda t: {
        f"{n.removesuffix('.weight')}.lora_{side}.weight": x
        for n, x in t.items()
        for side in "AB"
        if x.ndim == 2
      },
      ("a LoRA file: it changes a model and is none",),
    ),
    (
      lambda t: repacked_weights.diffusers_vae(
        standin.tensors("Wan2.2-TI2V-5B/Wan2.2_VAE.pth")
      ),
      (
        "the tensors of video_vae, as diffusers names them; pass it with --vid",
      ),
    ),
    (
      lambda t: standin.tensors("Wan2.2-TI2V-5B/Wan2.2_VAE.pth"),
      ("the tensors of video_vae; pass it with --video_vae=FILE",),
    ),
    (
      lambda t: {f"blocks.{n}._flat_param": np.zeros(3, "f4") for n in "ab"},
      ("FSDP's flattened shards; gather the full state dict",),
    ),
    (
      lambda t: {n: x.astype("i1") for n, x in t.items()},
      ("expected floating point", "is int8 (and 236 more)"),
    ),
    (
      lambda t: {f"layers.{n}.qweight": np.zeros(3, "i4") for n in range(9)},
      ("quantized by another tool",),
    ),
    (
      lambda t: {f"layer\x1b.{n}": np.zeros(3, "f4") for n in range(9)},
      (r"another model; its first tensors are layer\x1b.0, layer",),
    ),
    (
      lambda t: {n: x for n, x in t.items() if "_fusion" not in n},
      ("no attention to each other: they are not Ovi's",),
    ),
  ],
)
def test_another_model_is_named_in_one_line(tmp_path, make, parts):
  tensors = make(standin.tensors(FUSION))
  narrow = {n: t for n, t in tensors.items() if t.size < 10**7}
  path = repacked_weights.save(tmp_path / "a.safetensors", narrow)
  refused(tmp_path / "out", *parts, fusion=str(path))


def first_biases_only(tensors):
  """As T5 has position biases."""
  return {
    n: x
    for n, x in tensors.items()
    if "relative_attention_bias" not in n or ".block.0." in n
  }


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (first_biases_only, "the text encoder of T5 1.1; Ovi needs that of UMT5"),
    (
      lambda t: (
        first_biases_only(t) | {"shared.weight": np.zeros((250_112, 48), "f2")}
      ),
      "the text encoder of mT5; Ovi needs that of UMT5-XXL",
    ),
    (
      lambda t: {n.replace("wi_0", "wi"): x for n, x in t.items()},
      "the text encoder of T5 1.0; Ovi needs that of UMT5-XXL",
    ),
    (
      lambda t: {
        n: np.zeros([24 if s == 48 else s for s in x.shape], "f2")
        for n, x in t.items()
      },
      "another text encoder, of width 24 with 2 blocks; expected width 48 with",
    ),
  ],
)
def test_another_text_encoder_is_named_in_one_line(tmp_path, make, message):
  file = "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth"
  tensors = make(repacked_weights.transformers(standin.tensors(file)))
  path = repacked_weights.save(tmp_path / "t5.safetensors", tensors)
  refused(tmp_path / "out", message, umt5=str(path), tokenizer=str(TOKENIZER))


def test_codecs_of_other_spectrograms_are_named_in_one_line(tmp_path):
  for file, component in ((AUDIO_VAE, "audio_vae"), (VOCODER, "vocoder")):
    tensors = {
      n: np.zeros([128 if s == 80 else s for s in x.shape], "f2")
      for n, x in standin.tensors(file).items()
    }
    path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
    refused(
      tmp_path / "out",
      "spectrograms of 128 mel bins (MMAudio's of 44.1 kHz have 128), expected",
      **{component: str(path)},
    )


@pytest.mark.parametrize(
  ("component", "file"),
  [
    ("fusion", FUSION),
    ("umt5", "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth"),
    ("video_vae", "Wan2.2-TI2V-5B/Wan2.2_VAE.pth"),
    ("audio_vae", AUDIO_VAE),
    ("vocoder", VOCODER),
  ],
)
def test_one_shard_of_several_is_named_as_such(tmp_path, component, file):
  tensors = list(standin.tensors(file).items())
  half = len(tensors) // 2
  flags = {"tokenizer": str(TOKENIZER)} if component == "umt5" else {}
  stem = tmp_path / "model"
  for number, part in enumerate((tensors[:half], tensors[half:]), 1):
    path = f"{stem}-{number:05}-of-00002.safetensors"
    repacked_weights.save(pathlib.Path(path), dict(part))
    refused(
      tmp_path / "out",
      f"it is shard {number} of 2 alone; pass all of them, as in"
      f" --{component}='{stem}-*-of-00002.safetensors'",
      **{component: path} | flags,
    )
  path = repacked_weights.save(tmp_path / "a", dict(tensors[:half]))
  with pytest.raises(ValueError, match="one of several shards, a file cut off"):
    run(tmp_path / "out", **{component: str(path)} | flags)
  run(
    tmp_path / "out",
    **{component: f"{stem}-*-of-00002.safetensors"} | flags,
  )


def quantized(tensors, parts):
  """The layers of the blocks in another tool's form; the rest as it is."""
  stored = {}
  for name, tensor in tensors.items():
    if tensor.ndim == 2 and ".blocks." in name and name.endswith(".weight"):
      for part, value in parts.items():
        value = tensor.astype("i1") if value is None else value
        stored[name.removesuffix("weight") + part] = value
    else:
      stored[name] = tensor
  return stored


@pytest.mark.parametrize(
  "parts",
  [
    {"weight._data": None, "weight._scale": np.ones(1, "f4")},
    {"weight": None, "SCB": np.ones(64, "f4")},
    {
      "weight": np.zeros((9, 1), "u1"),
      "weight.absmax": np.ones(9, "f4"),
      "weight.quant_state.bitsandbytes__nf4": np.zeros(9, "u1"),
    },
    {"qweight": np.zeros((8, 8), "i4"), "scales": np.ones(8, "f2")},
  ],
)
def test_layers_quantized_by_other_tools_are_named_in_one_line(tmp_path, parts):
  tensors = quantized(standin.tensors(FUSION), parts)
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  refused(tmp_path / "out", "quantized by another tool", fusion=str(path))


def test_already_converted_weights_are_named(tmp_path, weights):
  message = "weights that are converted already"
  for name in ("fusion", "vocoder"):
    path = str(weights / f"{name}.safetensors")
    refused(tmp_path / "out", message, fusion=path)
  refused(tmp_path / "out", message, release=str(weights))


def test_two_towers_of_one_file_are_selected_by_prefix(tmp_path, weights):
  tensors = repacked_weights.renamed(
    standin.tensors(FUSION), (r"_model\.", ".")
  )
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  refused(tmp_path / "no", "FILE::video,FILE::audio", fusion=str(path))
  run(tmp_path / "out", fusion=f"{path}::video,{path}::audio.")
  name = "fusion.safetensors"
  assert (tmp_path / "out" / name).read_bytes() == (weights / name).read_bytes()


@pytest.mark.parametrize(
  ("narrow", "rest", "dtype"),
  [
    (ml_dtypes.bfloat16, np.float32, np.float32),
    (np.float16, ml_dtypes.bfloat16, np.float32),
    (np.float32, np.float64, np.float64),
  ],
)
def test_blocks_of_mixed_precision_take_the_widest(
  tmp_path, narrow, rest, dtype
):
  tensors = {
    n: t.astype(narrow if ".blocks.0." in n else rest)
    for n, t in standin.tensors(FUSION).items()
  }
  path = repacked_weights.save(tmp_path / "a.pt", tensors)
  run(tmp_path / "out", fusion=str(path))
  stored = tmp_path / "out" / "fusion.safetensors"
  leaf = "blocks/video/feed_forward/in/kernel"
  assert stores.shapes(stored)[leaf].dtype == dtype
  for block in (0, 1):
    tensor = tensors[f"video_model.blocks.{block}.ffn.0.weight"]
    found = stores.slices(stored)(leaf, block)
    np.testing.assert_array_equal(found, tensor.T.astype(dtype))
  leaf = "video/head/kernel"
  assert stores.shapes(stored)[leaf].dtype == rest


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_16_bit_vocoder_and_audio_vae_convert(tmp_path, dtype):
  named = {}
  for component, file in (("vocoder", VOCODER), ("audio_vae", AUDIO_VAE)):
    tensors = {n: t.astype(dtype) for n, t in standin.tensors(file).items()}
    named[component] = str(repacked_weights.save(tmp_path / component, tensors))
  run(tmp_path / "out", **named)
  for component in named:
    found = stores.shapes(tmp_path / "out" / f"{component}.safetensors")
    assert {x.dtype for x in found.values()} == {np.dtype(dtype)}


def test_constants_are_compared_before_anything_is_written(
  tmp_path,
):
  tensors = standin.tensors(VOCODER)
  names = [n for n in tensors if n.endswith(".filter")]
  for name in names[:30]:
    tensors[name] = tensors[name] + np.float32(1e-3)
  path = repacked_weights.save(tmp_path / "v.pt", tensors)
  refused(
    tmp_path / "out",
    "expected 0.00",
    "and 20 more",
    lines=11,
    vocoder=str(path),
  )


def spoiled(tensors, name, value):
  """Tensors of which one number is another."""
  changed = tensors[name].copy()
  changed.reshape(-1)[changed.size // 2] = value
  return tensors | {name: changed}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("existing", [False, True])
def test_a_non_finite_weight_is_refused_and_earlier_files_stay(
  tmp_path, release, weights, value, existing
):
  name = "video_model.blocks.1.ffn.0.weight"
  tensors = spoiled(standin.tensors(FUSION), name, value)
  path = repacked_weights.save(tmp_path / "nan.safetensors", tensors)
  out = tmp_path / "out"
  if existing:
    shutil.copytree(weights, out)
    before = contents(out)
  with pytest.raises(ValueError, match="holds NaN or infinity") as error:
    run(out, release=str(release), fusion=str(path))
  assert str(error.value).startswith(f"fusion: {path}: tensor '{name}'")
  assert str(error.value).count(str(path)) == 1
  assert "\n" not in str(error.value)
  if existing:
    assert contents(out) == before
    weights_dir.read(out)
  else:
    assert not out.exists()


def test_a_failed_fold_leaves_a_valid_directory(tmp_path, release, weights):
  tensors = standin.tensors(VOCODER)
  name = "conv_post.parametrizations.weight.original1"
  tensors[name] = np.zeros_like(tensors[name])
  path = repacked_weights.save(tmp_path / "v.pt", tensors, "generator")
  out = tmp_path / "out"
  shutil.copytree(weights, out)
  before = contents(out)
  with pytest.raises(ValueError, match=f"{name}: weight norm: 1 filters") as e:
    run(out, release=str(release), vocoder=str(path))
  assert str(e.value).startswith(f"vocoder: {path}: ")
  assert str(e.value).count(str(path)) == 1
  assert contents(out) == before
  weights_dir.read(out)


def test_tensors_of_zeros_alone_are_noted(tmp_path, log_lines):
  """A download that reserves its room first ends in zeros if interrupted."""
  tensors = standin.tensors(AUDIO_VAE)
  tensors["encoder.learnable_gain"] = np.full(1, 0.1, np.float32)
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  run(tmp_path / "whole", audio_vae=str(path))
  assert not any("hold zeros" in line for line in log_lines)
  size = path.stat().st_size
  os.truncate(path, size // 2)
  os.truncate(path, size)
  run(tmp_path / "out", audio_vae=str(path))
  (line,) = (line for line in log_lines if "hold zeros" in line)
  assert line.startswith(f"{path}: ")
  assert "alone, such as '" in line and "incomplete" in line


def test_a_non_finite_constant_is_named_with_its_file_once(tmp_path):
  tensors = standin.tensors(VOCODER)
  name = next(n for n in tensors if n.endswith(".filter"))
  path = repacked_weights.save(
    tmp_path / "v.pt", spoiled(tensors, name, np.nan)
  )
  message = refused(tmp_path / "out", vocoder=str(path))
  assert message.startswith(f"vocoder: {path}: tensor '{name}' holds NaN")
  assert message.count(str(path)) == 1


@pytest.mark.parametrize(
  "names", [("a,b", "c"), ("a", "b,c,"), (",a", "b"), ("a::b,", "c,d::e")]
)
def test_file_names_may_hold_commas(tmp_path, weights, names):
  tensors = repacked_weights.short_modulation(standin.tensors(FUSION))
  paths = []
  for tower, name in zip(("video", "audio"), names, strict=True):
    part = {n.replace("_model.", "."): t for n, t in tensors.items()}
    part = {n: t for n, t in part.items() if n.startswith(f"{tower}.")}
    path = repacked_weights.save(
      tmp_path / name, part | {"odd.x": np.ones(1, "f4")}
    )
    paths.append(f"{path}::{tower}")
  run(tmp_path / "out", fusion=",".join(paths))
  name = "fusion.safetensors"
  assert (tmp_path / "out" / name).read_bytes() == (weights / name).read_bytes()


def test_a_shard_pattern_may_be_in_a_folder_with_a_comma(tmp_path, weights):
  folder = tmp_path / "a, b"
  folder.mkdir()
  tensors = standin.tensors(AUDIO_VAE)
  names = list(tensors)
  for number in (1, 2):
    part = {n: tensors[n] for n in names[number - 1 :: 2]}
    repacked_weights.save(folder / f"m-0000{number}-of-00002.safetensors", part)
  run(tmp_path / "out", audio_vae=f"{folder}/m-*.safetensors")
  name = "audio_vae.safetensors"
  assert (tmp_path / "out" / name).read_bytes() == (weights / name).read_bytes()


def test_shard_lists_may_be_longer_than_a_path(tmp_path, weights):
  tensors = standin.tensors(AUDIO_VAE)
  paths = [
    str(
      repacked_weights.save(tmp_path / (f"{n}".rjust(200, "m")), {name: tensor})
    )
    for n, (name, tensor) in enumerate(tensors.items())
  ]
  run(tmp_path / "out", audio_vae=",".join(paths))
  name = "audio_vae.safetensors"
  assert (tmp_path / "out" / name).read_bytes() == (weights / name).read_bytes()


def test_a_directory_is_usable_while_it_is_converted_into(
  tmp_path, release, weights, monkeypatch
):
  out = tmp_path / "out"
  shutil.copytree(weights, out)
  path = repacked_weights.save(
    tmp_path / "v.pt",
    spoiled(standin.tensors(VOCODER), "conv_pre.bias", 0.5),
  )
  move, seen = staging.move, []

  def look(*args, **kwargs):
    seen.append(weights_dir.read(out, needs=("vocoder",)).digests)
    move(*args, **kwargs)

  monkeypatch.setattr(staging, "move", look)
  run(out, vocoder=str(path), components=["vocoder"])
  after = weights_dir.read(out, needs=("vocoder",)).digests
  assert seen == [weights_dir.manifest_of(weights).digests]
  assert after["vocoder"] != seen[0]["vocoder"]
  assert after | {"vocoder": ""} == seen[0] | {"vocoder": ""}
  assert sorted(p.name for p in out.iterdir()) == sorted(contents(weights))


def test_components_of_another_architecture_are_removed(
  tmp_path, release, weights
):
  out = tmp_path / "out"
  shutil.copytree(weights, out)
  before = contents(out)
  sizes = {"fusion": {"video": SIZES["fusion"]["video"]}}
  arch = tmp_path / "sizes.json"
  arch.write_text(json.dumps(sizes))
  tensors = {
    n: t
    for n, t in standin.tensors(FUSION).items()
    if n.startswith("video_model.") and "_fusion" not in n
  }
  path = repacked_weights.save(tmp_path / "video.safetensors", tensors)
  with pytest.raises(ValueError, match="umt5, video_vae.* of other sizes"):
    run(out, arch=str(arch), fusion=str(path))
  assert contents(out) == before


def test_links_that_leave_the_release_are_not_copied(
  tmp_path, release, monkeypatch
):
  copy = tmp_path / "release"
  shutil.copytree(release, copy)
  folder = copy / releases.TOKENIZER
  secret = tmp_path / "secret"
  secret.write_text("a password")
  (folder / "tokenizer_config.json").unlink()
  (folder / "tokenizer_config.json").symlink_to(secret)
  flags = {"release": str(copy), "components": ["umt5"]}
  with monkeypatch.context() as patch:  # it is found before anything is written
    patch.setattr(convert, "_write", lambda *args: pytest.fail("written"))
    refused(tmp_path / "out", f"is a link to {secret}, outside of", **flags)
  elsewhere = tmp_path / "elsewhere"
  folder.rename(elsewhere)
  folder.symlink_to(elsewhere)
  refused(tmp_path / "out", f"is a link to {elsewhere}", **flags)
  folder.unlink()
  elsewhere.rename(folder)
  # Within the release a link is as good as a file; so is the hub's cache.
  (folder / "tokenizer_config.json").unlink()
  (folder / "tokenizer_config.json").symlink_to("special_tokens_map.json")
  run(tmp_path / "out", **flags)
  assert not (tmp_path / "out" / "tokenizer_config.json").is_symlink()
  cache = tmp_path / "models--a--b"
  (cache / "blobs").mkdir(parents=True)
  shutil.copy(TOKENIZER, cache / "blobs" / "abc")
  snapshot = cache / "snapshots" / "0f"
  snapshot.mkdir(parents=True)
  (snapshot / "tokenizer.json").symlink_to("../../blobs/abc")
  (snapshot / "special_tokens_map.json").symlink_to("../../blobs/abc")
  run(tmp_path / "out", tokenizer=str(snapshot), **flags)
  (snapshot / "spiece.model").symlink_to(secret)
  with pytest.raises(ValueError, match=f"is a link to {secret}"):
    run(tmp_path / "out", tokenizer=str(snapshot), **flags)
  assert weights_dir.read(tmp_path / "out", needs=("umt5",))


def test_the_tokenizer_of_another_model_is_refused(tmp_path, monkeypatch):
  file = "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth"
  tensors = standin.tensors(file)
  name = "token_embedding.weight"
  few, out = len(tensors[name]), tmp_path / "out"

  def convert_with(rows, tokenizer):
    tensors[name] = np.resize(tensors[name], (rows, tensors[name].shape[1]))
    path = repacked_weights.save(tmp_path / "t5.safetensors", tensors)
    sizes = SIZES | {"t5": SIZES["t5"] | {"vocab_size": rows}}
    arch = tmp_path / "sizes.json"
    arch.write_text(json.dumps(sizes))
    run(out, arch=str(arch), umt5=str(path), tokenizer=str(tokenizer))

  other = tmp_path / "tokenizer.json"
  content = json.loads(TOKENIZER.read_text())
  for rows, changes, message in (
    (few - 1, {}, f"the id {few - 1}, but the text encoder has {few - 1} rows"),
    (
      few + 513,
      {},
      f"has {few} ids, but the text encoder has {few + 513} rows",
    ),
    (few, {"post_processor": None}, "does not end prompts with </s>"),
  ):
    other.write_text(json.dumps(content | changes))
    with pytest.raises(ValueError, match=message) as error:
      convert_with(rows, other)
    text = str(error.value)
    assert str(other) in text and "\n" not in text and not out.exists()
  other.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 9\n")
  with pytest.raises(ValueError, match="git-lfs pointer .* of google/umt5-xxl"):
    convert_with(few, other)
  assert not out.exists()
  convert_with(few + 512, TOKENIZER)  # the embedding is padded
  monkeypatch.setattr(
    tokenizer_lib.Tokenizer, "count", property(lambda self: 32_100)
  )
  message = "32100 ids, but the text encoder has 33000 rows: it is that of T5;"
  with pytest.raises(ValueError, match=message):
    convert_with(33_000, TOKENIZER)


def test_a_text_encoder_needs_a_tokenizer(tmp_path):
  file = "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth"
  path = tmp_path / "models" / "t5.safetensors"
  path.parent.mkdir()
  repacked_weights.save(path, repacked_weights.comfy_t5(standin.tensors(file)))
  refused(tmp_path / "out", "pass it with --tokenizer=FILE", umt5=str(path))
  refused(
    tmp_path / "out", "no such file", umt5=str(path), tokenizer="none.json"
  )
  refused(
    tmp_path / "out",
    f"tokenizer {path}: expected JSON",
    umt5=str(path),
    tokenizer=str(path),
  )
  refused(
    tmp_path / "out",
    "a tokenizer goes with umt5",
    vocoder=str(path),
    tokenizer=str(TOKENIZER),
  )
  shutil.copy(TOKENIZER, path.parent)
  run(tmp_path / "out", umt5=str(path))
  weights_dir.read(tmp_path / "out", needs=("umt5",))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[" * 100_000, "nested at most 64 deep"),
    ('{"fusion": ' + "9" * 400 + "}", "at most 40 digits, found 400"),
    ("{", "expected JSON"),
    ('{"fusion": NaN}', "finite numbers"),
    ("[]", "must hold sizes by name"),
  ],
)
def test_sizes_of_unknown_origin_are_read_within_limits(
  tmp_path, text, message
):
  arch = tmp_path / "sizes.json"
  arch.write_text(text)
  refused(tmp_path / "out", message, arch=str(arch), fusion="x")


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"fusion": "f", "components": ["vocoder"]}, "files of ['fusion'], which"),
    ({"fusion": "f", "components": ["fusion", "umt5"]}, "--umt5=FILE"),
    ({"fusion": "f", "download": "x", "arch": ""}, "not go with --fusion"),
    ({"fusion": "nowhere.pt"}, "expected the weights nowhere.pt"),
  ],
)
def test_contradictory_file_flags_are_refused(
  tmp_path, monkeypatch, flags, message
):
  monkeypatch.chdir(tmp_path)
  refused(tmp_path / "out", message, **flags)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("https://a.org/a.safetensors", "unknown scheme https:; expected a local"),
    ("gs://bucket/a.safetensors", "expected a local path"),
  ],
)
@pytest.mark.parametrize("flag", ["fusion", "vocoder", "release", "tokenizer"])
def test_urls_are_refused_as_such(tmp_path, url, message, flag):
  for value in (url, f"{url}::ema"):
    refused(tmp_path / "out", f"--{flag}: {url}", message, **{flag: value})
