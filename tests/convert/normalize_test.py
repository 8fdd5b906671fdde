"""Every dialect, wrapper, prefix and format gives the plain tensors."""

import dataclasses
import json
import pathlib
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from ovi_jax.convert import normalize
from ovi_jax.convert import reader
from ovi_jax.convert import release as releases
from ovi_jax.convert import standin
from ovi_jax.models import architecture
from ovi_jax.pretrained import tensor_file
from tests.lib import pickle_bytes
from tests.lib import repacked_weights

SIZES = standin.manifest()["config"]
ARCH = architecture.Architecture.from_release(SIZES)
FILES = {
  "fusion": "Ovi/model.safetensors",
  **{c: s.file for c, s in releases.SOURCES.items()},
}
DIALECTS = {
  "umt5": (
    repacked_weights.unchanged,
    repacked_weights.transformers,
    repacked_weights.transformers_stack,
    repacked_weights.comfy_t5,
    repacked_weights.whole_t5,
  ),
  "fusion": (
    repacked_weights.unchanged,
    repacked_weights.diffusers_transformer,
    repacked_weights.short_modulation,
  ),
  "video_vae": (repacked_weights.unchanged, repacked_weights.diffusers_vae),
  "audio_vae": (repacked_weights.unchanged,),
  "vocoder": (repacked_weights.unchanged, repacked_weights.old_weight_norm),
}
PREFIXES = (
  "module.",
  "model.",
  "_orig_mod.",
  "diffusion_model.",
  "model.diffusion_model.",
  "module._orig_mod.model.",
  "somebody.s.own.",
  "a.b.c.d.e.f.g.h.i.j.k.",
)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
BF16 = np.dtype(ml_dtypes.bfloat16)


def normalized(component, *paths, keys=(), variant="720x720_5s"):
  source = releases.source(component, variant)
  return normalize.normalize(
    [reader.open_tensors(p) for p in paths],
    source.rows(ARCH.config(component)),
    source.dialects,
    source.towers,
    keys,
  )


def assert_is_plain(component, found, tensors=None):
  """`found` reads as the stand-in's own file does, in the same rows."""
  source = releases.source(component, "720x720_5s")
  tensors = standin.tensors(FILES[component]) if tensors is None else tensors
  assert repr(found.rows) == repr(tuple(source.rows(ARCH.config(component))))
  assert found.shapes.keys() == tensors.keys()
  for name, expected in tensors.items():
    array = found.read(name)
    assert array.dtype == expected.dtype and array.shape == expected.shape
    assert array.tobytes() == expected.tobytes(), name


def pairs(values):
  """Every component with every value; by default, each of both once."""
  smallest = "umt5"
  return [
    pytest.param(
      component,
      value,
      marks=()
      if component == smallest or value == values[0]
      else pytest.mark.slow,
    )
    for component in DIALECTS
    for value in values
  ]


@pytest.mark.parametrize(
  ("component", "dialect"),
  [(c, d) for c, dialects in DIALECTS.items() for d in dialects],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "no_extension"])
def test_every_dialect_and_format_is_normalized_to_the_plain_file(
  tmp_path, component, dialect, name
):
  tensors = dialect(standin.tensors(FILES[component]))
  path = repacked_weights.save(tmp_path / name, tensors)
  assert_is_plain(component, normalized(component, path))


@pytest.mark.parametrize(("component", "prefix"), pairs(PREFIXES))
def test_every_prefix_is_stripped(tmp_path, component, prefix):
  dialect = DIALECTS[component][-1]
  tensors = dialect(standin.tensors(FILES[component]))
  path = tmp_path / "a.safetensors"
  repacked_weights.save(path, repacked_weights.prefixed(prefix)(tensors))
  assert_is_plain(component, normalized(component, path))


@pytest.mark.parametrize(
  ("component", "wrap"),
  pairs(("state_dict", "module", "model", "ema", "generator", "net_g")),
)
def test_every_wrapper_is_removed(tmp_path, component, wrap):
  path = tmp_path / "a.pt"
  repacked_weights.save(path, standin.tensors(FILES[component]), wrap)
  assert_is_plain(component, normalized(component, path))


def test_a_deepspeed_file_is_read(tmp_path):
  # Its tensors are under `module`, beside settings, shapes and a set of names.
  plain = standin.tensors(FILES["audio_vae"])
  pickled = {}
  for key, (name, tensor) in enumerate(plain.items()):
    sizes = [int(n) for n in tensor.shape]
    strides = [s // tensor.itemsize for s in tensor.strides]
    pickled[f"module.{name}"] = pickle_bytes.tensor(
      pickle_bytes.storage(tensor.size, key=str(key)),
      shape=tuple(sizes),
      strides=tuple(strides),
    )
  value = pickle_bytes.mapping(
    module=pickle_bytes.mapping(**pickled),
    sparse_tensor_module_names=(
      b"c__builtin__\nset\n](" + pickle_bytes.text("embedding") + b"e\x85R"
    ),
    param_shapes=b"]("
    + pickle_bytes.mapping(a=pickle_bytes.plain((1, 2)))
    + b"e",
    ds_config=pickle_bytes.mapping(
      zero_optimization=pickle_bytes.mapping(stage=2)
    ),
    optimizer=b"N",
    global_steps=7,
  )
  storages = [t.tobytes() for t in plain.values()]
  path = pickle_bytes.zipped(
    tmp_path / "mp_rank_00_model_states.pt", value, storages
  )
  assert_is_plain("audio_vae", normalized("audio_vae", path))


@pytest.mark.parametrize("component", DIALECTS)
def test_names_of_compiled_or_sharded_modules_are_normalized(
  tmp_path, component
):
  tensors = repacked_weights.compiled(standin.tensors(FILES[component]))
  path = repacked_weights.save(tmp_path / "a.pt", tensors, "app")
  assert_is_plain(component, normalized(component, path))


@pytest.mark.parametrize("component", DIALECTS)
@pytest.mark.parametrize(
  "wrap",
  [
    repacked_weights.peft,
    repacked_weights.half_prefixed,
    repacked_weights.parallel_towers,
  ],
)
def test_partly_wrapped_modules_are_normalized(tmp_path, component, wrap):
  tensors = wrap(standin.tensors(FILES[component]))
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  assert_is_plain(component, normalized(component, path))


def test_a_partly_prefixed_set_can_be_selected(tmp_path):
  plain = standin.tensors(FILES["audio_vae"])
  tensors = plain | repacked_weights.prefixed("ema.")(
    repacked_weights.half_prefixed(plain)
  )
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  assert_is_plain("audio_vae", normalized("audio_vae", path, keys=["ema"]))


@pytest.mark.parametrize(
  "adapter",
  [
    "base_model.model.blocks.0.attn.q.lora_A.default.weight",
    "blocks.0.attn.q.lora_B.weight",
    "blocks.0.attn.q.lora_down.weight",
    "blocks.0.attn.q.lora.up.weight",
    "blocks.0.attn.q.lora_magnitude_vector",
    "lora_unet_blocks_0_attn_q.lora_up.weight",
    "blocks.0.attn.q.hada_w1_a",
    "blocks.0.attn.q.lokr_w1",
    "blocks.0.attn.q.diff_b",
    "norm.modules_to_save.default.weight",
  ],
)
def test_adapters_beside_the_weights_are_named_in_one_line(tmp_path, adapter):
  prefix = "base_model.model." if adapter.startswith("base_model") else ""
  tensors = repacked_weights.prefixed(prefix)(standin.tensors(FILES["umt5"]))
  tensors[adapter] = np.ones(3, "f4")
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  with pytest.raises(ValueError, match="1 tensor of adapters") as error:
    normalized("umt5", path)
  assert adapter in str(error.value) and "merge" in str(error.value)
  assert "\n" not in str(error.value)


def test_equal_names_under_many_prefixes_are_another_model(tmp_path):
  # Each name fits the table under every second of its prefixes.
  names = ["norm." * 40 + f"n{n}.norm.weight" for n in range(3000)]
  spans = dict.fromkeys(
    names,
    tensor_file.Span(path=tmp_path, dtype=BF16, shape=(1,), start=0),
  )
  file = tensor_file.TensorFile(source="x", spans=spans)
  rows = releases.SOURCES["umt5"].rows(ARCH.umt5)
  with pytest.raises(normalize.OtherModelError):
    normalize.normalize([file], rows, releases.SOURCES["umt5"].dialects)


def test_a_checkpoint_of_everything_gives_each_component(tmp_path):
  # As ComfyUI's single files hold transformer, text encoder and VAE.
  places = {
    "fusion": "model.diffusion_model.",
    "umt5": "text_encoders.umt5xxl.transformer.",
    "video_vae": "vae.",
  }
  tensors = {}
  for component, prefix in places.items():
    plain = standin.tensors(FILES[component])
    tensors |= repacked_weights.prefixed(prefix)(DIALECTS[component][1](plain))
  path = repacked_weights.save(tmp_path / "all.safetensors", tensors)
  for component in places:
    found = normalized(component, path)
    assert_is_plain(component, found)
    assert re.search("not used: [0-9]+ tensors? outside", found.notes[0])


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_two_single_tower_files_are_combined(tmp_path, prefix):
  paths = []
  for tower in ("video_model.", "audio_model."):
    tensors = standin.tensors(FILES["fusion"])
    tensors = {
      prefix + n.removeprefix(tower): t
      for n, t in repacked_weights.short_modulation(tensors).items()
      if n.startswith(tower)
    }
    paths.append(
      repacked_weights.save(tmp_path / f"{tower}safetensors", tensors)
    )
  assert_is_plain("fusion", normalized("fusion", *paths))
  assert_is_plain("fusion", normalized("fusion", *reversed(paths)))
  with pytest.raises(ValueError, match="is in .* and in"):
    normalized("fusion", paths[0], paths[0])


def test_two_matching_sets_require_a_choice(tmp_path):
  plain = standin.tensors(FILES["audio_vae"])
  other = {n: t + 1 for n, t in plain.items()}
  tensors = repacked_weights.prefixed("model.")(
    other
  ) | repacked_weights.prefixed("ema.")(plain)
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  with pytest.raises(ValueError, match=r"2 sets .* under ema, model; .*::ema"):
    normalized("audio_vae", path)
  found = normalized("audio_vae", path, keys=["ema"])
  assert_is_plain("audio_vae", found)
  with pytest.raises(ValueError, match="tensors below 'averages', found none"):
    normalized("audio_vae", path, keys=["averages"])


@pytest.mark.parametrize("key", ["model_ema", "ema_model", "average"])
def test_averages_that_are_not_used_are_noted(tmp_path, key):
  """They may lack constants, or have other names."""
  plain = standin.tensors(FILES["audio_vae"])
  part = dict(list(plain.items())[3:])
  tensors = repacked_weights.prefixed("model.")(
    plain
  ) | repacked_weights.prefixed(f"{key}.")(part)
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  found = normalized("audio_vae", path)
  (note,) = found.notes
  assert note == (
    f"{path}: not used: {len(part)} tensors outside 'model.' ({key}); these may"
    f" be averaged weights (EMA), which FILE::{key} selects"
  )
  assert normalized("audio_vae", path, keys=["model"]).notes[0].endswith(")")


def test_one_set_under_two_names_requires_no_choice(tmp_path):
  plain = standin.tensors(FILES["audio_vae"])
  named = repacked_weights.prefixed("model.")(plain)
  path = repacked_weights.save(tmp_path / "a.safetensors", named)
  file = reader.open_tensors(path)
  again = {n.replace("model.", "ema."): s for n, s in file.spans.items()}
  both = dataclasses.replace(file, spans={**file.spans, **again})
  source = releases.source("audio_vae", "720x720_5s")
  rows = source.rows(ARCH.config("audio_vae"))
  found = normalize.normalize([both], rows, source.dialects, source.towers)
  assert_is_plain("audio_vae", found)


def test_two_copies_of_a_tensor_must_be_equal(tmp_path):
  tensors = repacked_weights.whole_t5(standin.tensors(FILES["umt5"]))
  embedding = tensors["shared.weight"] + 1
  tensors["encoder.embed_tokens.weight"] = embedding
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors)
  with pytest.raises(ValueError, match="two copies of it differ"):
    normalized("umt5", path).read("token_embedding.weight")
  tensors["encoder.embed_tokens.weight"] = embedding[:, :1]
  path = repacked_weights.save(tmp_path / "b.safetensors", tensors)
  with pytest.raises(ValueError, match="two copies of it differ"):
    normalized("umt5", path).read("token_embedding.weight")


def test_a_vocoder_without_weight_norm_or_filters_is_read(tmp_path):
  plain = standin.tensors(FILES["vocoder"])
  folded = {}
  for name, tensor in plain.items():
    if name.endswith("original0"):
      direction = plain[f"{name[:-1]}1"].astype(np.float64)
      axes = tuple(range(1, direction.ndim))
      norms = np.sqrt((direction**2).sum(axes, keepdims=True))
      weight = (direction * (tensor / norms)).astype(np.float32)
      folded[name.replace("parametrizations.weight.original0", "weight")] = (
        weight
      )
    elif "original1" not in name and not name.endswith("filter"):
      folded[name] = tensor
  path = repacked_weights.save(tmp_path / "a.safetensors", folded)
  found = normalized("vocoder", path)
  assert found.shapes.keys() == folded.keys()
  before = {
    row.ours: row.op.to_ours(*(plain[n] for n in row.names(None)))
    for row in releases.SOURCES["vocoder"].rows(ARCH.vocoder)
    if row.ours is not None
  }
  after = {
    row.ours: row.op.to_ours(*(found.read(n) for n in row.names(None)))
    for row in found.rows
  }
  assert before.keys() == after.keys()
  for path, array in before.items():
    np.testing.assert_array_max_ulp(array, after[path], 1)


def fp8_linears(style, per_row=False, tensors=None):
  """The fusion file with its linear layers as scaled 8-bit floats.

  Returns:
    The file's tensors, and what they stand for, in bfloat16.
  """
  stored, wide = {}, {}
  for name, tensor in standin.tensors(FILES["fusion"]).items():
    if tensor.ndim != 2 or ".blocks." not in name:
      stored[name] = wide[name] = tensor.astype(BF16)
      continue
    axes = (1,) if per_row else None
    scale = np.abs(tensor).max(axes, keepdims=per_row) / np.float32(448)
    scale = np.asarray(scale, np.float32)
    codes = (tensor / scale).astype(FP8)
    layer = name.removesuffix(".weight")
    stored[name] = codes
    wide[name] = (codes.astype(np.float32) * scale).astype(BF16)
    if style == "scale_weight":
      stored[f"{layer}.scale_weight"] = scale.reshape(-1) if per_row else scale
      stored[f"{layer}.scale_input"] = np.ones((), np.float32)
      stored["scaled_fp8"] = np.zeros(0, FP8)
    else:
      stored[f"{layer}.weight_scale"] = scale
      form = json.dumps({"format": "float8_e4m3fn"}).encode()
      stored[f"{layer}.comfy_quant"] = np.frombuffer(form, np.uint8)
  return stored, wide


@pytest.mark.parametrize("style", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_scaled_fp8_is_multiplied_by_its_scales(
  tmp_path, style, per_row, prefix
):
  stored, wide = fp8_linears(style, per_row)
  path = tmp_path / "a.safetensors"
  repacked_weights.save(path, repacked_weights.prefixed(prefix)(stored))
  found = normalized("fusion", path)
  assert_is_plain("fusion", found, wide)
  assert any("scales applied" in note for note in found.notes)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_scalar_scale_may_have_any_number_of_axes(tmp_path, shape):
  stored, wide = fp8_linears("scale_weight")
  stored = {
    n: t.reshape(shape) if n.endswith("scale_weight") else t
    for n, t in stored.items()
  }
  path = repacked_weights.save(tmp_path / "a.safetensors", stored)
  assert_is_plain("fusion", normalized("fusion", path), wide)


def test_the_product_is_rounded_once_to_the_dtype_of_the_row(monkeypatch):
  monkeypatch.setattr(normalize, "_PIECE", 50)  # a row at a time
  codes = np.arange(256, dtype=np.uint8).view(FP8).reshape(2, 128)[:, :126]
  array, scale = np.ascontiguousarray(codes), np.float32([[1e-3], [7.7]])
  for dtype in (BF16, np.dtype(np.float16), np.dtype(np.float32)):
    exact = array.astype(np.float64) * scale
    expected = exact.astype(np.float32).astype(dtype)
    found = normalize._widened(array, scale, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(
      found.astype(np.float64), expected.astype(np.float64)
    )


def test_scalars_of_any_shape_are_widened():
  for shape in ((), (1,), (3,), (0, 4), (2, 3, 4)):
    array = np.ones(shape, FP8)
    found = normalize._widened(array, np.full((), 3, "f4"), BF16)
    np.testing.assert_array_equal(found.astype("f4"), np.full(shape, 3, "f4"))


def test_unscaled_fp8_is_read_with_a_note(tmp_path):
  plain = standin.tensors(FILES["fusion"])
  stored = {
    n: t.astype(FP8 if n.endswith("weight") and t.ndim == 2 else BF16)
    for n, t in plain.items()
  }
  # One block's layer was left wide.
  name = "video_model.blocks.1.ffn.0.weight"
  stored[name] = plain[name].astype(BF16)
  path = repacked_weights.save(tmp_path / "a.safetensors", stored)
  found = normalized("fusion", path)
  assert_is_plain(
    "fusion", found, {n: t.astype(BF16) for n, t in stored.items()}
  )
  assert any("unscaled fp8" in note for note in found.notes)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"weight_scale_2": np.ones((), "f4")}, "1 unknown key: .*weight_scale_2"),
    ({"weight_scale": np.ones(3, "f4")}, r"float32 \(3,\) for float8_e4m3fn"),
    ({"weight_scale": np.ones((), "i4")}, "is int32"),
    ({"scale_weight": np.ones((), "f4")}, "expected one scale"),
    ({"weight": np.ones((64, 64), "f4")}, "q.weight' is float32 with a scale"),
    (
      {"weight": np.ones((64, 64), "i1")},
      r"q.weight' is int8 with a scale \('weight_scale'\); scales are read",
    ),
    (
      {"comfy_quant": np.frombuffer(b'{"format": "nvfp4"}', np.uint8)},
      "quantized as 'nvfp4', expected float8",
    ),
    (
      {"comfy_quant": np.frombuffer(b"[" * 9000, np.uint8)},
      "expected JSON nested",
    ),
  ],
)
def test_fp8_of_another_kind_is_named_in_one_line(tmp_path, change, message):
  stored, _ = fp8_linears("weight_scale")
  layer = "video_model.blocks.0.self_attn.q"
  stored |= {f"{layer}.{name}": array for name, array in change.items()}
  path = repacked_weights.save(tmp_path / "a.safetensors", stored)
  with pytest.raises(ValueError, match=message) as error:
    normalized("fusion", path)
  assert "\n" not in str(error.value)


def test_formats_in_the_header_are_read(tmp_path):
  stored, wide = fp8_linears("scale_weight")
  path = tmp_path / "a.safetensors"
  for form in ("float8_e4m3fn", "int8_tensorwise"):
    text = json.dumps({"layers": {"blocks.0": {"format": form}}})
    safetensors.save_file(stored, path, {"_quantization_metadata": text})
    if form == "float8_e4m3fn":
      assert_is_plain("fusion", normalized("fusion", path), wide)
    else:
      with pytest.raises(ValueError, match="as 'int8_tensorwise'"):
        normalized("fusion", path)


@pytest.mark.parametrize("text", ["null", '{"layers": {}}'])
def test_a_header_without_formats_is_no_quantization(tmp_path, text):
  plain = standin.tensors(FILES["umt5"])
  path = tmp_path / "a.safetensors"
  safetensors.save_file(plain, path, {"_quantization_metadata": text})
  assert_is_plain("umt5", normalized("umt5", path))


def test_missing_scales_are_refused(tmp_path):
  stored, _ = fp8_linears("scale_weight")
  del stored["video_model.blocks.0.self_attn.q.scale_weight"]
  path = repacked_weights.save(tmp_path / "a.safetensors", stored)
  with pytest.raises(ValueError, match="no scale for 1 weight, such as"):
    normalized("fusion", path)


def test_fp8_biases_beside_scaled_weights_have_no_scale(tmp_path):
  stored, wide = fp8_linears("scale_weight")
  name = "video_model.blocks.0.self_attn.q.bias"
  stored[name] = stored[name].astype(FP8)
  wide[name] = stored[name].astype(BF16)
  path = repacked_weights.save(tmp_path / "a.safetensors", stored)
  found = normalized("fusion", path)
  assert_is_plain("fusion", found, wide)
  assert any(n.startswith("unscaled fp8: 1 tensor, ") for n in found.notes)


def test_tensors_of_no_elements_are_ignored_by_name(tmp_path):
  tensors = standin.tensors(FILES["video_vae"])
  empty = {"marker": np.zeros(0, np.float32), "scaled_fp8": np.zeros(0, FP8)}
  path = repacked_weights.save(tmp_path / "a.safetensors", tensors | empty)
  found = normalized("video_vae", path)
  assert_is_plain("video_vae", found)
  assert [n for n in found.notes if "'marker' has no elements" in n]


@pytest.mark.parametrize(
  "dtype",
  [np.float16, np.float32, np.float64, BF16, FP8, ml_dtypes.float8_e5m2],
)
def test_non_finite_values_are_found_anywhere(dtype):
  array = np.zeros((3, 5), dtype)
  array[0] = np.array([1, -1, 2, 0.5, -0.0], dtype)
  assert normalize.is_finite(array)
  largest = ml_dtypes.finfo(dtype).max
  array[1, 2], array[2, 0] = largest, -largest
  assert normalize.is_finite(array)
  values = [np.nan, -np.nan]
  values += [] if dtype == FP8 else [np.inf, -np.inf]  # it has none
  for value in values:
    for at in (0, 7, 14):
      changed = array.copy()
      changed.reshape(-1)[at] = value
      assert not normalize.is_finite(changed), (value, at)


def test_integers_and_empty_arrays_are_finite():
  assert normalize.is_finite(np.zeros((0, 3), np.float32))
  assert normalize.is_finite(np.full(3, 2**31 - 1, np.int32))


def test_every_name_of_the_full_release_is_known_in_every_dialect():
  goldens = pathlib.Path(__file__).resolve().parents[1] / "goldens"
  full = json.loads((goldens / "full_manifest.json").read_text())
  arch = architecture.Architecture.from_release(architecture.released_sizes())
  (wan,) = [file for file in full if "diffusion_pytorch_model" in file]
  places = {FILES[c]: (c, None) for c in ("umt5", "video_vae")}
  places[FILES["fusion"]] = ("fusion", "720x720_5s")
  places[wan] = ("fusion", releases.WAN)
  for file, (component, variant) in places.items():
    source = releases.source(component, variant)
    rows = source.rows(arch.config(component))
    for dialect in DIALECTS[component][:2]:
      names = dialect(dict.fromkeys(full[file]))
      spans = dict.fromkeys(
        names,
        tensor_file.Span(
          path=pathlib.Path("x"), dtype=BF16, shape=(1,), start=0
        ),
      )
      whole = tensor_file.TensorFile(source="x", spans=spans)
      found = normalize.normalize([whole], rows, source.dialects, source.towers)
      assert found.shapes.keys() == full[file].keys()
