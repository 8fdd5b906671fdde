"""LoRA files of all formats: round trips, reordered rows, bad input."""

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ovi_jax.convert import fusion
from ovi_jax.convert import mapping
from ovi_jax.lora import adapter
from ovi_jax.lora import files
from ovi_jax.lora import names
from ovi_jax.lora import peft
from ovi_jax.modality import AV
from tests.lib import random_loras

CONFIG = random_loras.CONFIG
# 30 blocks with the names of the release.
DEEP = random_loras.config(num_layers=30)
RELEASED = {
  names.COMFYUI: "diffusion_model.audio_model.blocks.29.cross_attn.k_fusion.",
  names.MUSUBI: "lora_unet_audio_model_blocks_29_cross_attn_k_fusion.",
  names.OWN: "blocks/audio/cross_attention/fusion_key/lora_down/29",
}
BLOCK = "diffusion_model.blocks.0"
Q = f"{BLOCK}.self_attn.q"


def same(ours: adapter.Adapter, theirs: adapter.Adapter) -> None:
  assert ours.pairs.keys() == theirs.pairs.keys()
  assert ours.deltas.keys() == theirs.deltas.keys()
  for slot, pair in ours.pairs.items():
    assert pair.alpha == theirs.pairs[slot].alpha
    for name in ("down", "up"):
      equal(getattr(pair, name), getattr(theirs.pairs[slot], name))
  for slot, delta in ours.deltas.items():
    equal(delta, theirs.deltas[slot])


def equal(ours, theirs):
  assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
  assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
  ("style", "dtype", "config"),
  [
    (names.OWN, np.float32, CONFIG),
    (names.COMFYUI, np.float32, DEEP),
    (names.COMFYUI, ml_dtypes.bfloat16, CONFIG),
    (names.MUSUBI, np.float32, CONFIG),
    pytest.param(names.OWN, np.float32, DEEP, marks=pytest.mark.slow),
    pytest.param(names.MUSUBI, np.float32, DEEP, marks=pytest.mark.slow),
  ],
)
def test_round_trips_of_both_towers_are_exact(style, dtype, config, tmp_path):
  path = tmp_path / "lora.safetensors"
  made = random_loras.make(config, dtype=dtype)
  files.write(path, made, config, style)
  found = files.read(path, config)
  same(found, made)
  assert found.metadata["trigger"] == "a red ball"
  tensors = safetensors.numpy.load_file(path) if dtype == np.float32 else {}
  if config is DEEP:
    assert any(name.startswith(RELEASED[style]) for name in tensors)
  # Written again, the file has the same tensors.
  files.write(tmp_path / "again", found, config, style)
  if tensors:
    again = safetensors.numpy.load_file(tmp_path / "again")
    assert again.keys() == tensors.keys()
    for name, array in tensors.items():
      equal(again[name], array)


@pytest.mark.parametrize("style", names.FORMATS)
@pytest.mark.parametrize("alpha", [True, False])
def test_the_video_half_has_the_names_of_wan(style, alpha, tmp_path):
  path = tmp_path / "lora.safetensors"
  made = random_loras.make(CONFIG, files.is_wan, alpha)
  files.write(path, made, CONFIG, style)
  same(files.read(path, CONFIG), made)
  # A model of the video tower alone reads it, too.
  same(files.read(path, AV(CONFIG.video, None)), made)
  written = safetensors.numpy.load_file(path)
  assert not any("video_model" in name for name in written)
  expected = {
    names.OWN: "blocks/video/self_attention/query/lora_up/1",
    names.COMFYUI: "diffusion_model.blocks.1.self_attn.q.lora_B.weight",
    names.MUSUBI: "lora_unet_blocks_1_self_attn_q.lora_up.weight",
    names.DIFFUSERS: "transformer.blocks.1.attn1.to_q.lora_B.weight",
  }
  assert expected[style] in written


@pytest.mark.parametrize(
  ("prefix", "down", "up"),
  [
    ("diffusion_model.", "lora_down.weight", "lora_up.weight"),
    ("", "lora_A.weight", "lora_B.weight"),
    ("base_model.model.", "lora_A.default.weight", "lora_B.default.weight"),
    ("lora_unet__", "lora_down.weight", "lora_up.weight"),
  ],
)
def test_updates_equal_those_of_a_converted_merged_checkpoint(
  prefix, down, up, tmp_path
):
  """W + alpha / rank · up @ down, converted, for every layer of Wan."""
  rows, random = fusion.wan_rows(CONFIG.video), np.random.default_rng(0)
  flat = {p: x for p, x in random_loras.base().items() if "fusion_" not in p}
  torch = dict(
    mapping.to_torch(rows, lambda p, i: flat[p] if i is None else flat[p][i])
  )
  tensors, merged = {}, dict(torch)
  for name, weight in torch.items():
    layer, _, kind = name.rpartition(".")
    written = prefix + layer
    if prefix.startswith("lora_unet"):
      written = prefix + layer.replace(".", "_")
    if kind == "weight" and weight.ndim > 1:
      a = random.standard_normal((2, *weight.shape[1:]), np.float32)
      b = random.standard_normal((len(weight), 2), np.float32)
      ones = (1,) * (weight.ndim - 2)
      tensors[f"{written}.{down}"] = a
      tensors[f"{written}.{up}"] = b.reshape(*b.shape, *ones)
      tensors[f"{written}.alpha"] = np.full((), 6, "f4")
      merged[name] = weight + 3 * np.tensordot(b, a, 1)
    elif kind in ("weight", "bias"):
      end = {"weight": "diff", "bias": "diff_b"}[kind]
      tensors[f"{written}.{end}"] = weight
      merged[name] = 2 * weight
  safetensors.numpy.save_file(tensors, tmp_path / "lora")
  found = files.read(tmp_path / "lora", CONFIG)
  expected = mapping.gather(rows, merged.__getitem__)
  checked = 0
  for (path, block), pair in found.pairs.items():
    theirs = expected[path] if block is None else expected[path][block]
    ours = flat[path] if block is None else flat[path][block]
    np.testing.assert_allclose(ours + pair.delta(), theirs, atol=1e-5)
    checked += 1
  for (path, block), delta in found.deltas.items():
    theirs = expected[path] if block is None else expected[path][block]
    ours = flat[path] if block is None else flat[path][block]
    np.testing.assert_array_equal(ours + delta, theirs)
  assert checked == 10 * 2 + 7 and len(found.deltas) > 20


def test_alpha_is_in_the_metadata_of_diffusers_files(tmp_path):
  made = random_loras.make(CONFIG, files.is_wan, diffs=False)
  files.write(tmp_path / "lora", made, CONFIG, names.DIFFUSERS)
  header = header_of(tmp_path / "lora")
  config = json.loads(header["__metadata__"][peft.KEY])
  assert set(config["transformer.alpha_pattern"].values()) <= {1, 2, 3, 4}
  assert "blocks.0.attn1.to_q" in config["transformer.target_modules"]
  assert not any(name.endswith("alpha") for name in header)


def header_of(path) -> dict:
  data = path.read_bytes()
  return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def pair(
  name=Q, rank=2, width=16, out=16, dtype: Any = np.float32
) -> dict[str, Any]:
  return {
    f"{name}.lora_A.weight": np.ones((rank, width), dtype),
    f"{name}.lora_B.weight": np.ones((out, rank), dtype),
  }


NAN = np.full((16, 2), np.nan, np.float32)
WIDE = pair(width=5120, out=5120)
OTHER = "diffusion_model.blocks.1.self_attn.v"


@pytest.mark.parametrize(
  ("tensors", "message"),
  [
    ({}, "found no tensors"),
    (WIDE, r"width 5120 \(Wan of 14 B parameters\); the video tower's is 16"),
    (
      WIDE | pair("diffusion_model.blocks.39.self_attn.q", width=5120),
      "width 5120",
    ),
    (pair() | {f"{Q}.lora_B.weight": NAN}, "holds NaN or infinity"),
    ({f"{Q}.lora_A.weight": np.ones((2, 16), "f4")}, "pair .* incomplete"),
    ({f"{Q}.alpha": np.ones((), "f4")}, "pair .* incomplete"),
    (pair(rank=0), "have no elements"),
    (pair(dtype=np.int32), "expected tensors of float32, bfloat16"),
    (pair(out=12), "shapes do not fit the model"),
    (pair() | {f"{Q}.alpha": np.ones(2, "f4")}, "shapes do not fit"),
    (
      pair() | {f"{Q}.alpha": np.full((), np.inf, "f4")},
      "holds NaN or infinity",
    ),
    (
      pair() | {f"{Q}.alpha": np.ones((), "f4")} | pair(OTHER),
      "1 of 2 pairs have no alpha, the first is .*self_attn.v",
    ),
    (pair() | pair("blocks.0.self_attn.q"), "are the same tensor"),
    (pair("diffusion_model.blocks.2.self_attn.q"), "layers that the model"),
    (pair("diffusion_model.blocks.0.attn.q"), "1|2 of 2 tensors are of layers"),
    ({"weight": np.ones(3, "f4")}, "are none of a LoRA, the first is 'weight'"),
    (pair() | {f"{Q}.dora_scale": np.ones(3, "f4")}, "found DoRA"),
    ({f"{Q}.lokr_w1": np.ones(3, "f4")}, "found LoKr"),
    ({f"{Q}.diff": np.ones((16, 3), "f4")}, "shapes do not fit the model"),
    ({f"{Q}.diff": np.ones((), "f4")}, "shapes do not fit the model"),
    (pair() | {f"{Q}.lora_A.weight": np.ones((), "f4")}, "do not fit the mod"),
    (pair() | {f"{Q}.lora_B.weight": np.ones((), "f4")}, "do not fit the mod"),
    (pair() | {f"{Q}.lora_A.weight": np.ones(2, "f4")}, "do not fit the mod"),
    (pair(rank=17), "ranks of at most 16, .*self_attn.q.lora_A.weight' has 17"),
    (pair() | {f"{Q}.alpha": np.array(3e38, "f4")}, "rank. of at most 1e"),
    (pair() | {f"{Q}.alpha": np.array(True)}, "q.alpha' is bool"),
    *(
      (pair(f"{BLOCK}.{layer}", width=width), f"width {width} .Wan of {size}")
      for layer, width, size in (
        ("ffn.0", 5120, "14 B"),
        ("self_attn.v", 5120, "14 B"),
        ("self_attn.k", 1536, "1.3 B"),
        ("cross_attn.q", 1536, "1.3 B"),
      )
    ),
  ],
)
def test_a_bad_file_is_one_line(tensors, message, tmp_path):
  path = tmp_path / "lora.safetensors"
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(ValueError, match=message) as caught:
    files.read(path, CONFIG)
  text = str(caught.value)
  assert str(path) in text and "\n" not in text and len(text) < 500


def test_thousands_of_unknown_names_are_counted_in_one_line(tmp_path):
  path = tmp_path / "lora"
  strange = {f"evil\x1b[2J{n}.lora_A.weight": np.ones(1) for n in range(3000)}
  safetensors.numpy.save_file(strange, path)
  with pytest.raises(ValueError, match="3000 of 3000 tensors") as caught:
    files.read(path, CONFIG)
  assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "found an empty file"),
    (b"\0\0\1", "expected a safetensors file, found only 3 bytes"),
    (struct.pack("<Q", 2**31), "header of at most"),
    (struct.pack("<Q", 9) + b"[" * 9, "header is not safetensors"),
    (
      struct.pack("<Q", 78)
      + b'{"blocks.0.self_attn.q.diff":{"dtype":"F32","shape":[99999999999],'
      b'"data_offsets":[0,4]}}'.ljust(78)[:78],
      "expected",
    ),
  ],
)
def test_a_hostile_header_is_refused(data, message, tmp_path):
  path = tmp_path / "lora"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=message):
    files.read(path, CONFIG)


def test_factors_of_our_format_without_axes_are_refused(tmp_path):
  head = "blocks/video/self_attention/query/lora"
  tensors = {f"{head}_down/0": np.ones((), "f4")}
  tensors[f"{head}_up/0"] = np.ones((), "f4")
  text = {files.FORMAT_KEY: files.FORMAT}
  safetensors.numpy.save_file(tensors, tmp_path / "lora", text)
  with pytest.raises(ValueError, match="shapes do not fit the model"):
    files.read(tmp_path / "lora", CONFIG)


@pytest.mark.parametrize(
  "layer",
  [
    "patch_embedding",
    "audio_model.patch_embedding.0",
    "audio_model.patch_embedding.2.w2",
  ],
)
def test_a_matrix_as_lora_down_of_a_convolution_means_the_same(layer, tmp_path):
  """Its columns are those of the checkpoint's kernel."""
  target = names.table(CONFIG).targets[
    names.table(CONFIG).layer(layer) or "", names.WEIGHT
  ]
  shape = names.shapes(CONFIG)[target.slot.path]
  (weight,) = target.row.op.to_torch(np.zeros(shape, np.float32))
  random = np.random.default_rng(0)
  down = random.standard_normal((2, *weight.shape[1:]), np.float32)
  up = random.standard_normal((len(weight), 2), np.float32)
  expected = target.row.op.to_ours(np.tensordot(up, down, 1))
  for array in (down, down.reshape(2, -1)):
    tensors = {f"{layer}.lora_down.weight": array}
    tensors[f"{layer}.lora_up.weight"] = up
    safetensors.numpy.save_file(tensors, tmp_path / "lora")
    found = files.read(tmp_path / "lora", CONFIG)
    delta = found.pairs[target.slot].delta()
    np.testing.assert_allclose(delta, expected, atol=1e-5)
    # It is written with all axes.
    files.write(tmp_path / "again", found, CONFIG)
    (written,) = (
      x
      for name, x in safetensors.numpy.load_file(tmp_path / "again").items()
      if name.endswith("lora_A.weight")
    )
    np.testing.assert_array_equal(written, down)


def test_a_rank_above_that_of_the_kernel_and_whole_alphas_are_read(tmp_path):
  tensors = pair("diffusion_model.head.head", rank=16)
  tensors["diffusion_model.head.head.alpha"] = np.array(8, np.int64)
  (weight,) = (
    names.table(CONFIG)
    .targets["video_model.head.head", names.WEIGHT]
    .row.op.to_torch(np.zeros(names.shapes(CONFIG)["video/head/kernel"]))
  )
  up = np.ones((len(weight), 16), np.float32)
  tensors["diffusion_model.head.head.lora_B.weight"] = up
  narrow = pair(rank=16)
  narrow[f"{Q}.alpha"] = np.array(3, np.uint8)
  safetensors.numpy.save_file(tensors | narrow, tmp_path / "lora")
  found = files.read(tmp_path / "lora", CONFIG).pairs
  assert {each.alpha for each in found.values()} == {3, 8}


@pytest.mark.parametrize("prefix", ["", "video_model."])
def test_modulation_under_the_name_of_its_parameter_is_read(prefix, tmp_path):
  """ComfyUI adds `.diff` to the name of any parameter."""
  found = []
  array = np.arange(96, dtype=np.float32).reshape(1, 6, 16)
  for end in ("diff_m", "modulation.diff", "modulation.modulation.diff"):
    name = f"diffusion_model.{prefix}blocks.1.{end}"
    safetensors.numpy.save_file({name: array}, tmp_path / "lora")
    found.append(files.read(tmp_path / "lora", CONFIG).deltas)
  (slot,) = found[0]
  assert slot == adapter.Slot("blocks/video/modulation", 1)
  for each in found:
    np.testing.assert_array_equal(each[slot], found[0][slot])
  assert found[0][slot].any()


def test_a_file_of_peft_without_alpha_has_a_note(tmp_path):
  head = "base_model.model.blocks.0.self_attn.q"
  safetensors.numpy.save_file(pair(head), tmp_path / "lora")
  (note,) = files.read(tmp_path / "lora", CONFIG).notes
  assert "adapter_config.json" in note
  alpha = {f"{head}.alpha": np.array(1.0)}  # float64
  safetensors.numpy.save_file(pair(head) | alpha, tmp_path / "lora")
  found = files.read(tmp_path / "lora", CONFIG)
  assert not found.notes and {p.alpha for p in found.pairs.values()} == {1}


def test_another_version_of_our_format_is_refused(tmp_path):
  path = tmp_path / "lora"
  safetensors.numpy.save_file(pair(), path, {files.FORMAT_KEY: "ovi_jax 2"})
  with pytest.raises(ValueError, match="expected the format 'ovi_jax 1', foun"):
    files.read(path, CONFIG)


def test_hostile_metadata_of_peft_is_refused(tmp_path):
  for text in (
    "[1",
    "[]",
    '{"lora_alpha": "x"}',
    '{"alpha_pattern": [1]}',
    '{"alpha_pattern": "to_q"}',
    '{"rank_pattern": ["to_q"]}',
  ):
    safetensors.numpy.save_file(
      pair("transformer.blocks.0.attn1.to_q"),
      tmp_path / "lora",
      {peft.KEY: text},
    )
    with pytest.raises(ValueError, match=f"metadata {peft.KEY} is damag"):
      files.read(tmp_path / "lora", CONFIG)


TO_Q, TO_K = (
  "transformer.blocks.1.attn1.to_q",
  "transformer.blocks.1.attn1.to_k",
)
PEFT = pair(TO_Q) | pair(TO_K, rank=4)


@pytest.mark.parametrize(
  ("alphas", "ranks", "expected"),
  [
    ({}, {}, (6, 6)),
    ({"blocks.1.attn1.to_q": 3}, {"blocks.1.attn1.to_k": 4}, (3, 6)),
    ({"to_q": 3}, {"to_k": 4}, (3, 6)),
    ({"attn1.to_q": 3, "blocks.1.attn1.to_q": 4}, {}, (3, 6)),
    ({"blocks.1.attn1.to_q": 4, "attn1.to_q": 3}, {}, (4, 6)),
    ({"^blocks.1.attn1.to_k": 5}, {"^blocks.1.attn1.to_q": 2}, (6, 5)),
  ],
)
def test_patterns_of_peft_are_ends_of_names(alphas, ranks, expected, tmp_path):
  text = {"lora_alpha": 6, "alpha_pattern": alphas, "rank_pattern": ranks}
  safetensors.numpy.save_file(
    PEFT, tmp_path / "lora", {peft.KEY: json.dumps(text)}
  )
  found = files.read(tmp_path / "lora", CONFIG).pairs
  by_name = {slot.path.split("/")[-2]: p.alpha for slot, p in found.items()}
  assert (by_name["query"], by_name["key"]) == expected


@pytest.mark.parametrize(
  ("patterns", "message"),
  [
    ({"alpha_pattern": {"o_q": 1}}, "alpha_pattern: 'o_q' is no layer"),
    ({"alpha_pattern": {"to_[qk]": 1}}, "'to_.qk.' is no layer of the file"),
    ({"rank_pattern": {"(a+)+$": 1}}, "rank_pattern: .* is no layer"),
    ({"rank_pattern": {"to_q": 3}}, "rank 2, another than in rank_pattern"),
    ({"r": 2}, "attn1.to_k' has rank 4, another than in r of the metadata"),
    ({"r": 2.5}, "r is not a whole number"),
    ({"use_dora": True}, "found use_dora or use_rslora"),
  ],
)
def test_patterns_of_peft_that_fit_no_layer_are_refused(
  patterns, message, tmp_path
):
  text = {peft.KEY: json.dumps({"lora_alpha": 6} | patterns)}
  safetensors.numpy.save_file(PEFT, tmp_path / "lora", text)
  with pytest.raises(ValueError, match=message):
    files.read(tmp_path / "lora", CONFIG)


@pytest.mark.parametrize("style", [names.OWN, names.COMFYUI, names.MUSUBI])
@pytest.mark.parametrize("tower", ["video", "audio"])
def test_of_a_lora_of_both_towers_one_is_used_alone(tmp_path, style, tower):
  made, path = random_loras.make(CONFIG), tmp_path / "a.safetensors"
  files.write(path, made, CONFIG, style)
  alone = AV(**{tower: getattr(CONFIG, tower)})
  found = files.read(path, alone)
  known = set(names.table(alone).names)
  assert found.pairs.keys() == {s for s in made.pairs if s in known}
  assert {slot.tower for slot in found.pairs} == {tower}
  (note,) = found.notes
  other = {"video": "audio", "audio": "video"}[tower]
  assert f"of the {other} tower, or of layers between the towers" in note


def test_a_lora_of_the_other_tower_is_refused_in_one_line(tmp_path):
  path = tmp_path / "a.safetensors"
  safetensors.numpy.save_file(pair(), path)
  message = "are of the video tower.* the audio tower is used alone"
  with pytest.raises(ValueError, match=message) as error:
    files.read(path, AV(None, CONFIG.audio))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "prefix",
  [
    "module.",
    "model.",
    "_orig_mod.",
    "module._orig_mod.",
    "base_model.model.model.",
    "model.diffusion_model.module.",
  ],
)
def test_prefixes_of_wrappers_are_stripped(tmp_path, prefix):
  path = tmp_path / "a.safetensors"
  for layer in ("blocks.0.self_attn.q", "video_model.blocks.0.self_attn.q"):
    safetensors.numpy.save_file(pair(f"{prefix}{layer}"), path)
    ((slot, found),) = files.read(path, CONFIG).pairs.items()
    assert slot.path == "blocks/video/self_attention/query/kernel"
    assert (slot.block, found.rank) == (0, 2)


@pytest.mark.parametrize(
  ("change", "zero"),
  [
    ({}, False),
    ({f"{Q}.lora_B.weight": np.zeros((16, 2), "f4")}, True),
    ({f"{Q}.lora_A.weight": np.zeros((2, 16), "f4")}, True),
    (
      {
        f"{Q}.lora_B.weight": np.zeros((16, 2), "f4"),
        f"{Q}.diff_b": np.ones(16, "f4"),
      },
      False,
    ),
  ],
)
def test_a_lora_of_zeros_alone_is_noted(tmp_path, change, zero):
  path = tmp_path / "a.safetensors"
  safetensors.numpy.save_file(pair() | change, path)
  noted = any("are zero" in note for note in files.read(path, CONFIG).notes)
  assert noted == zero


def test_layers_for_image_embeddings_are_left_out_with_a_note(tmp_path):
  tensors = pair() | pair("diffusion_model.blocks.0.cross_attn.k_img")
  safetensors.numpy.save_file(tensors, tmp_path / "lora")
  found = files.read(tmp_path / "lora", CONFIG)
  assert len(found.pairs) == 1
  assert "2 tensors of layers for image embeddings" in found.notes[0]


def test_formats_that_cannot_be_written_are_named(tmp_path):
  made = random_loras.make()
  with pytest.raises(
    ValueError, match="'peft' is unknown; choose from ovi_jax"
  ):
    files.write(tmp_path / "lora", made, CONFIG, "peft")
  with pytest.raises(ValueError, match="has no name for .* updates"):
    files.write(tmp_path / "lora", made, CONFIG, names.DIFFUSERS)
  assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(ValueError, match="there is no file .*none"):
    files.read(tmp_path / "none", CONFIG)
