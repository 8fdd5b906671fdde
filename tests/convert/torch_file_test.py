"""Torch files: what is read, what is refused, what is written.

That torch itself reads what `save` writes was tried with torch 2.13.
"""

import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ovi_jax.convert import torch_file
from ovi_jax.convert import torch_pickle
from tests.lib import pickle_bytes


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.pth"


def arrays():
  """One array of each dtype, of no axis, without elements and transposed."""
  made = {
    name: (np.arange(6) % 2).reshape(2, 3).astype(dtype)
    for name, dtype in torch_pickle.DTYPES.items()
  }
  made["scalar"] = np.float32(3.5)
  made["empty"] = np.zeros((0, 4), np.float16)
  made["turned"] = np.arange(12, dtype=ml_dtypes.bfloat16).reshape(3, 4).T
  return made


def test_saved_files_are_read_back_byte_for_byte(path):
  torch_file.save(path, arrays())
  file = torch_file.open_torch(path)
  assert list(file.shapes) == list(arrays())
  for name, expected in arrays().items():
    found = file.read(name)
    assert file.shapes[name] == found.shape == expected.shape, name
    assert file.dtypes[name] == found.dtype == expected.dtype, name
    assert found.tobytes() == expected.tobytes(), name


def test_storages_are_aligned_and_bytes_depend_on_the_tensors_only(tmp_path):
  torch_file.save(tmp_path / "one.pt", arrays())
  torch_file.save(tmp_path / "two.pt", iter(arrays().items()))
  assert (tmp_path / "one.pt").read_bytes() == (
    tmp_path / "two.pt"
  ).read_bytes()
  spans = torch_file.open_torch(tmp_path / "one.pt").spans.values()
  assert {span.start % 64 for span in spans} == {0}
  with zipfile.ZipFile(tmp_path / "one.pt") as archive:
    assert archive.testzip() is None


def test_save_pickles_a_tensor_as_torch_does(path):
  torch_file.save(
    path, {"w": pickle_bytes.FLOATS.reshape(2, 3)}, wrap="generator"
  )
  with zipfile.ZipFile(path) as archive:
    pickled = archive.read("archive/data.pkl")
  inner = pickle_bytes.tensor(shape=(2, 3), strides=(3, 1))
  for value in range(7):  # torch writes small numbers in another way
    inner = inner.replace(
      pickle_bytes.plain(value), b"J" + struct.pack("<i", value)
    )
  assert (
    pickled
    == b"\x80\x02"
    + pickle_bytes.mapping(generator=pickle_bytes.mapping(w=inner))
    + b"."
  )


def test_a_failed_save_leaves_nothing(path):
  def failing():
    yield "a", pickle_bytes.FLOATS
    raise KeyError("the disk was pulled")

  with pytest.raises(KeyError, match="pulled"):
    torch_file.save(path, failing())
  with pytest.raises(ValueError, match=r"'a'.*no dtype <U1"):
    torch_file.save(path, {"a": np.asarray(["x"])})
  with pytest.raises(ValueError, match="'a' occurs twice"):
    torch_file.save(
      path, [("a", pickle_bytes.FLOATS), ("a", pickle_bytes.FLOATS)]
    )
  assert not list(path.parent.iterdir())


@pytest.mark.parametrize("write", [pickle_bytes.zipped, pickle_bytes.legacy])
def test_views_of_a_shared_storage_are_read(path, write):
  value = pickle_bytes.mapping(
    turned=pickle_bytes.tensor(shape=(3, 2), strides=(1, 3)),
    part=pickle_bytes.tensor(offset=2, shape=(3,)),
    odd=pickle_bytes.tensor(offset=1, shape=(3,), strides=(2,)),
    one=pickle_bytes.tensor(offset=5, shape=(1, 1), strides=(99, 7)),
    none=pickle_bytes.tensor(offset=6, shape=(0, 3), strides=(3, 1)),
  )
  file = torch_file.open_torch(write(path, value))
  expected = {
    "turned": [[0, 3], [1, 4], [2, 5]],
    "part": [2, 3, 4],
    "odd": [1, 3, 5],
    "one": [[5]],
    "none": np.zeros((0, 3)),
  }
  for name, values in expected.items():
    np.testing.assert_array_equal(file.read(name), values, err_msg=name)
    assert file.read(name).flags.c_contiguous


def test_strided_views_of_dtypes_that_numpy_lacks_are_read(path):
  source = pickle_bytes.storage(4, "torch\nBFloat16Storage")
  value = pickle_bytes.mapping(w=pickle_bytes.tensor(source, 0, (2, 2), (1, 2)))
  stored = np.arange(4).astype(ml_dtypes.bfloat16)
  file = torch_file.open_torch(
    pickle_bytes.zipped(path, value, [stored.tobytes()])
  )
  np.testing.assert_array_equal(file.read("w"), stored.reshape(2, 2).T)


def test_a_view_of_a_storage_in_the_legacy_format_is_read(path):
  def stored(offset, count):
    numbers = pickle_bytes.plain(offset) + pickle_bytes.plain(count)
    view = b"(" + pickle_bytes.text("1") + numbers + b"t"
    tensor = pickle_bytes.tensor(pickle_bytes.storage(view=view), 1, (2,))
    return pickle_bytes.legacy(path, pickle_bytes.mapping(w=tensor))

  file = torch_file.open_torch(stored(2, 3))
  np.testing.assert_array_equal(file.read("w"), [3, 4])
  with pytest.raises(ValueError, match="view within 6 elements"):
    torch_file.open_torch(stored(2, 5))


def test_nested_dicts_and_plain_values_are_read(path):
  parameter = b"ctorch._utils\n_rebuild_parameter\n(%s\x88}tR"
  # torch keeps the versions of modules in an attribute of the dict.
  state = b"ccollections\nOrderedDict\n)R(%s%su}%s}sb" % (
    pickle_bytes.text("w"),
    parameter % pickle_bytes.tensor(),
    pickle_bytes.text("_metadata"),
  )
  sizes = b"]ctorch\nSize\n(%stRa" % pickle_bytes.plain((2, 3))
  value = pickle_bytes.mapping(state=state, epoch=3, sizes=sizes)
  file = torch_file.open_torch(pickle_bytes.zipped(path, value))
  assert file.shapes == {"state.w": (6,)}
  assert file.values == {"epoch": 3, "sizes": [(2, 3)]}
  assert torch_file.open_torch(path, "state").shapes == {"w": (6,)}
  with pytest.raises(ValueError, match=r"key 'generator'.*'state', 'epoch'"):
    torch_file.open_torch(path, "generator")
  with pytest.raises(ValueError, match="found a int"):
    torch_file.open_torch(path, "epoch")


def shared(inner, levels, each):
  """The instructions of a dict that holds one dict under several names.

  That one holds another likewise, and so on; the innermost has `inner`.
  """
  value = pickle_bytes.mapping(**inner) + b"q\0"
  for level in range(levels):
    again = {f"n{n}": b"h" + bytes([level]) for n in range(1, each)}
    value = pickle_bytes.mapping(n0=value, **again) + b"q" + bytes([level + 1])
  return value


def test_a_dict_under_two_names_is_read_under_both(path):
  value = shared({"w": pickle_bytes.tensor()}, levels=1, each=2)
  file = torch_file.open_torch(pickle_bytes.zipped(path, value))
  assert file.shapes == {"n0.w": (6,), "n1.w": (6,)}
  for name in file.shapes:
    assert file.read(name).tolist() == pickle_bytes.FLOATS.tolist()
  assert torch_file.open_torch(path, "n1").shapes == {"w": (6,)}


def test_a_dict_within_itself_is_refused(path):
  loop = b"}q\0" + pickle_bytes.text("a") + b"}" + pickle_bytes.text("b")
  pickle_bytes.zipped(path, loop + b"h\0ss")
  with pytest.raises(ValueError, match="none within itself; .* under 'a.b.'"):
    torch_file.open_torch(path)


@pytest.mark.parametrize("inner", [{}, {"epoch": 3}])
def test_dicts_that_multiply_are_refused_by_their_entries(
  path, monkeypatch, inner
):
  monkeypatch.setattr(torch_file, "_ENTRIES", 1000)
  pickle_bytes.zipped(path, shared(inner, levels=16, each=9))
  with pytest.raises(ValueError, match="at most 1000 entries, found more"):
    torch_file.open_torch(path)


@pytest.mark.parametrize(
  ("numbers", "message"),
  [
    ({"offset": 1}, r"\(6,\) within .* 24 bytes.* reach byte 28"),
    ({"strides": (2,)}, "reach byte 44"),
    ({"offset": -1}, "offset and strides"),
    ({"strides": (-1,)}, "offset and strides"),
    ({"offset": 2**70}, "offset and strides"),
    ({"shape": (-6,)}, "whole numbers from 0"),
    ({"shape": b"\x88\x85"}, "whole numbers from 0"),
    ({"shape": (2**900,)}, "whole numbers from 0"),
    ({"shape": (2**50, 0, 2**50)}, "fits in memory"),
    ({"shape": (2**40,), "strides": (0,)}, "reach byte"),
    ({"shape": (1,) * 99}, "at most 32 axes, found 99"),
    ({"strides": ()}, "one stride an axis"),
    ({"shape": b"]"}, "tuples"),
    ({"source": b"N"}, "expected a storage, found a NoneType"),
    ({"source": pickle_bytes.storage(7)}, "of 7 float32, found 24 bytes"),
    ({"source": pickle_bytes.storage(-6)}, "storage of -6 float32"),
    ({"source": pickle_bytes.storage(key="9")}, "no storage '9'"),
    (
      {"source": pickle_bytes.storage(kind="torch\nQInt8Storage")},
      "QInt8Storage",
    ),
    ({"source": pickle_bytes.storage(kind="torch\nSize")}, "a torch storage"),
  ],
)
def test_views_beyond_the_storage_are_refused(path, numbers, message):
  value = pickle_bytes.mapping(w=pickle_bytes.tensor(**numbers))
  with pytest.raises(ValueError, match=message) as error:
    torch_file.open_torch(pickle_bytes.zipped(path, value))
  assert str(path) in str(error.value)


def test_a_torchscript_program_is_named(path):
  value = pickle_bytes.mapping(w=pickle_bytes.tensor())
  pickle_bytes.zipped(
    path, value, extra=[("model/constants.pkl", b"\x80\x02).")]
  )
  with pytest.raises(ValueError, match="a TorchScript program; use the file"):
    torch_file.open_torch(path)


def test_damaged_zip_files_are_refused(path):
  good = pickle_bytes.mapping(w=pickle_bytes.tensor())
  with pytest.warns(UserWarning, match="Duplicate name"):
    pickle_bytes.zipped(path, good, extra=[("model/data/0", b"x")])
  with pytest.raises(ValueError, match="'model/data/0' occurs twice"):
    torch_file.open_torch(path)
  pickle_bytes.zipped(path, good, compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match="compressed or encrypted"):
    torch_file.open_torch(path)
  for place, message in ((8, "encrypted"), (42, "no header|within the")):
    raw = bytearray(pickle_bytes.zipped(path, good).read_bytes())
    raw[raw.index(b"PK\x01\x02") + place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
      torch_file.open_torch(path)
  pickle_bytes.zipped(path, good, extra=[("other/data.pkl", b"")])
  with pytest.raises(ValueError, match=r"one entry <name>/data.pkl, found 2"):
    torch_file.open_torch(path)
  pickle_bytes.zipped(path, good, extra=[("model/byteorder", b"big")])
  with pytest.raises(ValueError, match="little-endian"):
    torch_file.open_torch(path)


def test_a_directory_larger_than_any_header_is_not_read(path):
  size = 2**26
  with path.open("wb") as file:
    file.write(b"PK\x03\x04")
    file.truncate(size)
    file.seek(size)
    record = (b"PK\x05\x06", 0, 0, 1, 1, size - 1, 0, 0)
    file.write(struct.pack("<4s4H2LH", *record))
  with pytest.raises(ValueError, match=f"at most 16777216.*{size - 1}"):
    torch_file.open_torch(path)


def test_damaged_legacy_files_are_refused(path):
  good = pickle_bytes.mapping(w=pickle_bytes.tensor())
  raw = pickle_bytes.legacy(path, good).read_bytes()
  path.write_bytes(raw[:-1])
  with pytest.raises(
    ValueError, match=f"up to byte {len(raw)}.*{len(raw) - 1}"
  ):
    torch_file.open_torch(path)
  for count in (-1, 2**62):
    path.write_bytes(raw[:-32] + struct.pack("<q", count) + raw[-24:])
    with pytest.raises(ValueError, match=r"storage '0'.*expected its 6"):
      torch_file.open_torch(path)
  with pytest.raises(ValueError, match="keys of 1 storages, found 2"):
    torch_file.open_torch(pickle_bytes.legacy(path, good, keys=("0", "1")))
  path.write_bytes(b"<!DOCTYPE html><html>")
  with pytest.raises(ValueError, match="found a web page"):
    torch_file.open_torch(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_is_named(path, protocol):
  for value in ({"w": pickle_bytes.FLOATS}, {"w": [1.5]}, [2]):
    path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(ValueError, match="found a plain pickle; load it"):
      torch_file.open_torch(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_is_named(tmp_path, save):
  save(tmp_path / "a.npz", w=pickle_bytes.FLOATS)
  with pytest.raises(ValueError, match=r"found a NumPy file \(\.npz\); use"):
    torch_file.open_torch(tmp_path / "a.npz")


@pytest.mark.parametrize("write", [pickle_bytes.zipped, pickle_bytes.legacy])
def test_a_truncated_file_is_named(path, write):
  raw = write(path, pickle_bytes.mapping(w=pickle_bytes.tensor())).read_bytes()
  for size in range(len(raw)):
    path.write_bytes(raw[:size])
    with pytest.raises(ValueError, match=str(path)):
      torch_file.open_torch(path)


@pytest.mark.parametrize("write", [pickle_bytes.zipped, pickle_bytes.legacy])
def test_a_changed_byte_is_read_or_refused(path, write):
  """Any changed byte is read or raises ValueError."""
  value = pickle_bytes.mapping(
    w=pickle_bytes.tensor(), n=pickle_bytes.mapping(a=7)
  )
  raw = write(path, value).read_bytes()
  values = np.random.default_rng(0).integers(0, 256, len(raw), np.uint8)
  refused = 0
  for at, value in enumerate(values.tolist()):
    path.write_bytes(raw[:at] + bytes([value]) + raw[at + 1 :])
    try:
      file = torch_file.open_torch(path)
      for name in file.shapes:
        file.read(name)
    except ValueError as error:
      refused += 1
      assert str(path) in str(error)
  assert 0 < refused < len(raw)


def test_a_file_truncated_while_open_is_named(path):
  torch_file.save(path, {"w": pickle_bytes.FLOATS})
  file = torch_file.open_torch(path)
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(ValueError, match=f"{path} ends early"):
    file.read("w")
  with pytest.raises(ValueError, match="no tensor 'v'"):
    file.read("v")
