"""Reading weights: files, shards, indices, damage and digests."""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from ovi_jax.convert import reader
from ovi_jax.convert import torch_file
from ovi_jax.pretrained import tensor_file

TENSORS = {
  "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.arange(4, dtype=ml_dtypes.bfloat16),
  "steps": np.asarray(7),
  "none": np.zeros((0, 2), np.float16),
}


def zipped(name):
  """A compressed archive with a file of that name."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr(name, bytes(100))
  return file.getvalue()


@pytest.fixture
def path(tmp_path):
  """A safetensors file of `TENSORS` that the library wrote."""
  path = tmp_path / "model.safetensors"
  safetensors.save_file(TENSORS, path, {"made": "here"})
  return path


def shards(tmp_path, count=2):
  """The tensors over shards, named as on the hub."""
  files = []
  for n in range(count):
    path = tmp_path / f"model-{n + 1:05}-of-{count:05}.safetensors"
    part = dict(list(TENSORS.items())[n::count])
    safetensors.save_file(part, path)
    files.append(path)
  return files


def index(tmp_path, **changes):
  """An index of the shards, with some entries changed."""
  files = [f.name for f in shards(tmp_path)]
  places = {n: files[i % 2] for i, n in enumerate(TENSORS)} | changes
  path = tmp_path / "model.safetensors.index.json"
  path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
  return path


def assert_is_whole(file):
  assert set(file.shapes) == set(TENSORS)
  for name, expected in TENSORS.items():
    found = file.read(name)
    assert file.shapes[name] == found.shape == expected.shape
    assert file.dtypes[name] == found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


def header(path, entries, data=b"", length=None):
  """A safetensors file with any header."""
  raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
  count = len(raw) if length is None else length
  path.write_bytes(struct.pack("<Q", count) + raw + data)
  return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
  return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_safetensors_are_read(path):
  file = reader.open_tensors(path)
  assert_is_whole(file)
  assert file.values == {"made": "here"}


def test_shards_are_given_by_list_pattern_or_index(tmp_path):
  files = shards(tmp_path)
  assert_is_whole(reader.open_tensors(files))
  assert_is_whole(reader.open_tensors(str(tmp_path / "model-*.safetensors")))
  assert_is_whole(reader.open_tensors(index(tmp_path)))


def test_torch_files_are_selected_by_suffix_and_key(tmp_path):
  for suffix in (".pth", ".pt"):
    path = tmp_path / f"model{suffix}"
    torch_file.save(path, TENSORS, wrap="generator")
    assert_is_whole(reader.open_tensors(path, "generator"))
    assert "generator.b" in reader.open_tensors(path).shapes


def test_a_missing_file_is_named_with_those_present(path):
  folder = path.parent
  with pytest.raises(ValueError) as error:
    reader.open_tensors(folder / "vae.pth")
  assert str(error.value) == (
    f"expected the weights vae.pth in {folder}, found only model.safetensors"
    " in it"
  )
  with pytest.raises(ValueError, match="found no such directory"):
    reader.open_tensors(folder / "none" / "vae.pth")
  with pytest.raises(ValueError, match=r"weights \*\.pth in .* found only mod"):
    reader.open_tensors(folder / "*.pth")
  assert_is_whole(reader.open_tensors(folder))
  (folder / "vae.pt").mkdir()
  with pytest.raises(ValueError, match="one file of weights .* found none"):
    reader.open_tensors(folder / "vae.pt")
  with pytest.raises(ValueError, match="empty list"):
    reader.open_tensors([])


def test_a_key_of_safetensors_is_refused(path):
  with pytest.raises(ValueError, match="no key 'generator'"):
    reader.open_tensors(path, "generator")


@pytest.mark.parametrize("name", ["model.pth", "model.onnx", "model", "a.zip"])
def test_the_format_is_detected_by_content(path, name):
  assert_is_whole(reader.open_tensors(path.rename(path.with_name(name))))
  torch = path.with_name("model.safetensors")
  torch_file.save(torch, TENSORS)
  assert_is_whole(reader.open_tensors(torch))


def test_headers_of_any_length_are_safetensors(path):
  # Lengths whose first bytes are another format's: gzip, a pickle, text.
  raw = path.read_bytes()
  (size,) = struct.unpack("<Q", raw[:8])
  for length in (0x8B1F, 0x0280, 0x7B7B, 0x3C3C):
    header = raw[8 : 8 + size].ljust(length)
    path.write_bytes(struct.pack("<Q", length) + header + raw[8 + size :])
    assert_is_whole(reader.open_tensors(path))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (
      b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n"
      b"size 23321506216\n",
      r"a git-lfs pointer to the file of 21\.7 GiB; fetch",
    ),
    (b"<!DOCTYPE html><html>Sign in</html>", "a web page: the address needs"),
    (b"\xef\xbb\xbf\n  <html lang=en>", "a web page"),
    (b"GGUF\x03\0\0\0{\0\0\0\0\0\0\0", "a GGUF file, whose tensors are"),
    (b"\x1f\x8b\x08\0abc", "a gzip archive; unpack it"),
    (b"\x93NUMPY\x01\0v\0", "a NumPy file"),
    (b"m.pth".ljust(257, b"\0") + b"ustar\x0000", "a tar archive; unpack it"),
    (zipped("m.safetensors"), "an archive with 'm.safetensors'; unpack it"),
    (b"\0" * 600, "zeros; the download was cut off"),
    (b"", "an empty file"),
    (b'{"error": "gated"}', "found other JSON"),
    (b"Access denied.", "found text, which begins 'Access denied.'"),
  ],
)
@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.index.json"])
def test_a_file_that_holds_no_weights_is_named(
  tmp_path, content, message, name
):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    reader.open_tensors(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_directory_is_its_index_or_its_shards(tmp_path):
  shards(tmp_path)
  (tmp_path / "config.json").write_text("{}")
  assert_is_whole(reader.open_tensors(tmp_path))
  index(tmp_path)
  assert_is_whole(reader.open_tensors(tmp_path))
  torch_file.save(tmp_path / "pytorch_model.bin", TENSORS)
  (tmp_path / "model.safetensors.index.json").unlink()
  assert_is_whole(reader.open_tensors(tmp_path))  # the safetensors
  safetensors.save_file(TENSORS, tmp_path / "ema.safetensors")
  with pytest.raises(
    ValueError, match=r"found 3 \(ema.safetensors, model-\*-of-00002.safet"
  ):
    reader.open_tensors(tmp_path)


@pytest.mark.parametrize(
  ("name", "other", "message"),
  [
    ("vae", "vae.pth", ""),
    ("model", "pytorch_model.bin", ""),
    ("vae_encoder", "model.pth", r"found 2 \(model.pth, vae_encoder.safe"),
  ],
)
def test_safetensors_come_before_torch_files_of_their_name(
  tmp_path, name, other, message
):
  safetensors.save_file(TENSORS, tmp_path / f"{name}.safetensors")
  (tmp_path / other).write_bytes(b"\x80\2not read")
  if not message:
    assert_is_whole(reader.open_tensors(tmp_path))
  else:
    with pytest.raises(ValueError, match=message):
      reader.open_tensors(tmp_path)


def test_a_directory_of_shards_may_have_brackets_in_its_name(tmp_path):
  folder = tmp_path / "wan[1]"
  folder.mkdir()
  shards(folder)
  assert_is_whole(reader.open_tensors(folder))


def test_hidden_files_of_a_directory_do_not_count(tmp_path):
  for path in shards(tmp_path):
    path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7Mac OS X")
  (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
  assert_is_whole(reader.open_tensors(tmp_path))


def test_shards_keep_the_number_that_a_browser_gave_them(tmp_path):
  for path in shards(tmp_path):
    path.rename(path.with_name(f"{path.stem} (1).safetensors"))
  assert_is_whole(reader.open_tensors(tmp_path))
  (tmp_path / "model-00001-of-00002 (1).safetensors").unlink()
  with pytest.raises(ValueError, match="the 2 shards of one model"):
    reader.open_tensors(tmp_path)


def test_a_header_of_zeros_is_an_incomplete_download(path):
  raw = path.read_bytes()
  path.write_bytes(raw[:100] + bytes(len(raw) - 100))
  with pytest.raises(ValueError, match="zeros, the download is incomplete"):
    reader.open_tensors(path)


def test_a_checkpoint_sharded_over_processes_is_named(tmp_path):
  for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
  with pytest.raises(ValueError, match="dcp_to_torch DIR FILE"):
    reader.open_tensors(tmp_path)


def test_shards_must_be_complete_and_of_one_model(tmp_path):
  files = shards(tmp_path, 3)
  files[1].unlink()
  pattern = tmp_path / "model-*.safetensors"
  with pytest.raises(ValueError, match=r"the 3 shards .* found 2 files"):
    reader.open_tensors(pattern)
  with pytest.raises(ValueError, match=r"'a.weight' is in .* and in"):
    reader.open_tensors([files[0], files[0]])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"b": "model-00001-of-00002.safetensors"}, "1 not so: 'b'"),
    ({"extra": "model-00001-of-00002.safetensors"}, "1 not so: 'extra'"),
    ({"b": "model-00003-of-00002.safetensors"}, "expected the weights model-"),
    ({"b": "../model-00002-of-00002.safetensors"}, "names beside it"),
    ({"b": 3}, "names beside it"),
  ],
)
def test_an_index_that_does_not_match_is_refused(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    reader.open_tensors(index(tmp_path, **changes))


def test_an_invalid_index_is_refused(tmp_path):
  path = tmp_path / "model.safetensors.index.json"
  for content in ("{", "[]", "{}", '{"weight_map": {}}', "[" * 100_000):
    path.write_text(content)
    with pytest.raises(ValueError, match=str(path)):
      reader.open_tensors(path)


@pytest.mark.parametrize(
  ("entries", "data", "message"),
  [
    ({"w": entry()}, b"\0" * 7, "expected .* bytes, as its header says"),
    ({"w": entry()}, b"\0" * 9, "expected .* bytes, as its header says"),
    (
      {"w": entry(offsets=(0, 4))},
      b"\0" * 4,
      r"8 bytes for F32 \[2\], found 4",
    ),
    (
      {"w": entry(), "v": entry(offsets=(4, 12))},
      b"\0" * 12,
      "'v': expected at byte .* found at",
    ),
    ({"w": entry(offsets=(8, 16))}, b"\0" * 16, "'w': expected at byte"),
    ({"w": entry(dtype="F4")}, b"\0" * 8, "'w': expected one of .* 'F4'"),
    ({"w": entry(dtype=[4])}, b"\0" * 8, "'w': expected one of .* 'list'"),
    ({"w": entry(shape=(-2,))}, b"\0" * 8, "sizes that are whole"),
    ({"w": entry(shape=(2.0,))}, b"\0" * 8, "sizes that are whole"),
    ({"w": entry(shape=(True, 2))}, b"\0" * 8, "sizes that are whole"),
    ({"w": entry(shape=(2**50, 2**50))}, b"\0" * 8, "fits in memory"),
    ({"w": entry(shape=(1,) * 40)}, b"\0" * 8, "at most 32 axes"),
    ({"w": entry(shape=2)}, b"\0" * 8, "lists"),
    ({"w": entry(offsets=(0, 2**70))}, b"\0" * 8, "two offsets"),
    ({"w": entry(offsets=(0, 4, 8))}, b"\0" * 8, "two offsets"),
    ({"w": {"shape": (2,)}}, b"\0" * 8, "'w': expected the fields"),
    ({"w": 3}, b"\0" * 8, "'w': expected the fields"),
    ({"__metadata__": {"a": 1}}, b"", "metadata of strings"),
    ({"__metadata__": ["a"]}, b"", "metadata of strings"),
    (b"[]", b"", "maps names to tensors"),
    (b'{"w": 1, "w": 1}', b"", "expected each key once, found 'w' twice"),
    ({"a/" * 300 + "a": entry()}, b"\0" * 8, "names of 1 to 512 characters"),
    ({"\x1b[2J": 3}, b"", r"tensor '\\x1b\[2J': expected the fields"),
    (b"[" * 100_000, b"", "header is not safetensors"),
    (b"\xff", b"", "header is not safetensors"),
  ],
)
def test_damaged_safetensors_are_refused(tmp_path, entries, data, message):
  path = header(tmp_path / "model.safetensors", entries, data)
  with pytest.raises(ValueError, match=message) as error:
    reader.open_tensors(path)
  assert str(path) in str(error.value)


def test_metadata_may_be_null(tmp_path):
  """As the library of the format reads it."""
  entries = {"__metadata__": None, "w": entry()}
  path = header(tmp_path / "model.safetensors", entries, b"\0" * 8)
  found = reader.open_tensors(path)
  assert found.shapes == {"w": (2,)} and found.values == {}


def test_a_header_too_long_is_not_read(tmp_path, monkeypatch):
  path = tmp_path / "model.safetensors"
  for length in (2**31, 3):
    header(path, b"{}", length=length)
    with pytest.raises(ValueError, match=f"at most 2 bytes, found .* {length}"):
      reader.open_tensors(path)
  monkeypatch.setattr(tensor_file, "HEADER_LIMIT", 1)
  with pytest.raises(ValueError, match="at most 1 bytes, found one of 2"):
    reader.open_tensors(header(path, b"{}"))


def test_truncated_safetensors_are_named(path):
  raw = path.read_bytes()
  for size in range(len(raw)):
    path.write_bytes(raw[:size])
    with pytest.raises(ValueError, match=str(path)):
      reader.open_tensors(path)


def test_a_digest_depends_on_content_not_on_order_or_format(path):
  torch_file.save(path.with_suffix(".pth"), TENSORS)
  one = reader.Digest(source=reader.open_tensors(path).read)
  two = reader.Digest(source=reader.open_tensors(path.with_suffix(".pth")).read)
  for name in TENSORS:
    assert one.read(name).tobytes() == TENSORS[name].tobytes()
    assert one.content() != two.content()
  for name in (*reversed(TENSORS), "b"):
    two.read(name)
  assert one.content() == two.content()


@pytest.mark.parametrize(
  "changed",
  [
    {"a": np.ones(4, np.float32), "b": np.zeros(2, np.int8)},
    {"a": np.zeros(4, np.float32), "c": np.zeros(2, np.int8)},
    {"a": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.int8)},
    {"a": np.zeros(4, np.int32), "b": np.zeros(2, np.int8)},
    {"a": np.zeros(4, np.float32)},
    {"a": np.zeros(2, np.int8), "b": np.zeros(4, np.float32)},
  ],
)
def test_a_digest_depends_on_name_dtype_shape_and_bytes(tmp_path, changed):
  tensors = {"a": np.zeros(4, np.float32), "b": np.zeros(2, np.int8)}
  found = []
  for content in (tensors, changed):
    path = tmp_path / "model.safetensors"
    safetensors.save_file(content, path)
    digest = reader.Digest(source=reader.open_tensors(path).read)
    for name in content:
      digest.read(name)
    found.append(digest.content())
  assert found[0] != found[1]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_zeros_of_either_sign_are_counted(dtype):
  """An 8-bit weight with a scale of 0 has both."""
  arrays = {
    "both": np.array([[0, -0.0], [-0.0, 0]]).astype(dtype),
    "small": np.array([[0, -0.0], [-0.0, 1e-3]]).astype(dtype),
  }
  digest = reader.Digest(source=arrays.__getitem__)
  for name, array in arrays.items():
    assert digest.read(name) is array
  assert digest.zeros == ["both"]
