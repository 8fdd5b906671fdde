"""Pickles as data: what is understood, what is refused, what is bounded."""

import io
import struct

import pytest

from ovi_jax.convert import torch_file
from ovi_jax.convert import torch_pickle
from tests.lib import pickle_bytes


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.pth"


def test_a_pickle_of_protocol_four_is_read(path):
  frame = b"\x80\x04\x95" + struct.pack("<Q", 99)
  names = b"\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94"
  # The name, kept as value 1, is recalled as a key of the dict.
  value = frame + names + b"\x93\x94)R(h\x01" + pickle_bytes.tensor() + b"u"
  assert torch_file.open_torch(pickle_bytes.zipped(path, value)).shapes == {
    "OrderedDict": (6,)
  }


@pytest.mark.parametrize(
  "value",
  [
    b"c__builtin__\nset\n](" + pickle_bytes.text("a") + b"e\x85R",
    b"cbuiltins\nset\n)R",
    b"c__builtin__\nfrozenset\n](" + pickle_bytes.text("a") + b"e\x85R",
    b"\x8f(" + pickle_bytes.text("a") + b"\x90",
    b"(" + pickle_bytes.text("a") + b"\x91",
  ],
)
def test_sets_beside_the_tensors_are_read(path, value):
  content = pickle_bytes.mapping(w=pickle_bytes.tensor(), names=value)
  found = torch_file.open_torch(pickle_bytes.zipped(path, content))
  assert set(found.shapes) == {"w"}
  assert found.values["names"] in ([], ["a"])


def test_nested_sets_take_no_time_or_memory(path):
  # Each would copy the one before it: 10,000 copies of 100,000 items.
  one = b"](" + b"K\x01" * 100_000 + b"eq\x00"
  sets = b"(" + one + b"c__builtin__\nset\nh\x00\x85R" * 10_000 + b"t"
  content = pickle_bytes.mapping(w=pickle_bytes.tensor(), names=sets)
  found = torch_file.open_torch(pickle_bytes.zipped(path, content))
  assert len({id(x) for x in found.values["names"]}) == 1


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (b"ctorch\ndevice\n" + pickle_bytes.text("cuda") + b"K\x00\x86R", "cuda"),
    (
      b"c_codecs\nencode\n"
      + pickle_bytes.text("ab")
      + pickle_bytes.text("latin1")
      + b"\x86R",
      "ab",
    ),
    (b"c__builtin__\nbytearray\n" + pickle_bytes.text("ab") + b"\x85R", "ab"),
    (b"c__builtin__\ncomplex\nK\x01K\x02\x86R", 1),
    (
      b"ccollections\nCounter\n}" + pickle_bytes.text("a") + b"K\x02s\x85R",
      None,
    ),
  ],
)
def test_plain_values_beside_tensors_are_accepted(path, value, expected):
  content = pickle_bytes.mapping(w=pickle_bytes.tensor(), beside=value)
  found = torch_file.open_torch(pickle_bytes.zipped(path, content))
  assert set(found.shapes) == {"w"}
  assert found.values.get("beside") == expected


def test_parameters_with_attributes_are_read(path):
  value = (
    b"ctorch._utils\n_rebuild_parameter_with_state\n("
    + pickle_bytes.tensor()
    + b"\x88ccollections\nOrderedDict\n)R}"
    + pickle_bytes.text("no_decay")
    + b"\x88stR"
  )
  found = torch_file.open_torch(
    pickle_bytes.zipped(path, pickle_bytes.mapping(w=value))
  )
  assert found.shapes == {"w": (6,)}


@pytest.mark.parametrize("kind", [b"\nTensor", b".nn.parameter\nBuffer"])
def test_buffers_and_tensors_with_attributes_are_read(path, kind):
  arguments = pickle_bytes.tensor().removeprefix(
    b"ctorch._utils\n_rebuild_tensor_v2\n"
  )[:-1]
  value = (
    b"ctorch._tensor\n_rebuild_from_type_v2\n("
    b"ctorch._utils\n_rebuild_tensor_v2\n"
    b"ctorch"
    + kind
    + b"\n"
    + arguments
    + b"}"
    + pickle_bytes.text("persistent")
    + b"\x88stR"
  )
  found = torch_file.open_torch(
    pickle_bytes.zipped(path, pickle_bytes.mapping(w=value))
  )
  assert found.shapes == {"w": (6,)}


@pytest.mark.parametrize(
  "value",
  [
    b"(Nctorch\nTensor\n)}tR",
    b"(ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n)}tR",
    b"(ctorch._utils\n_rebuild_tensor_v2\nctorch\nSize\n)}tR",
    b"(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n]}tR",
    b"(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n)}tR",
  ],
)
def test_tensors_with_attributes_of_another_type_are_refused(path, value):
  value = b"ctorch._tensor\n_rebuild_from_type_v2\n" + value
  with pytest.raises(ValueError, match="refused"):
    torch_file.open_torch(
      pickle_bytes.zipped(path, pickle_bytes.mapping(w=value))
    )


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("torch._utils\n_rebuild_sparse_tensor", "sparse tensor; .*to_dense"),
    ("torch._utils\n_rebuild_meta_tensor_no_storage", "the meta device"),
    ("torch._utils\n_rebuild_qtensor", "quantized tensor; use the 16-bit"),
    ("torch._utils\n_rebuild_nested_tensor", "a nested tensor"),
    ("torch.nn.parameter\nUninitializedParameter", "has no numbers yet"),
    ("torch\nfloat8_e4m3fnuz", "a format that is not read"),
    ("torch.distributed.tensor\nDTensor", "sharded over processes; gather"),
    ("torchao.dtypes\nAffineQuantizedTensor", "quantized by another tool"),
  ],
)
def test_unsupported_tensors_are_named_with_advice(path, name, message):
  value = {"net.q.weight": b"c" + name.encode() + b"\n(N"}
  content = pickle_bytes.mapping(a=pickle_bytes.tensor(), **value)
  with pytest.raises(ValueError, match=message) as error:
    torch_file.open_torch(pickle_bytes.zipped(path, content))
  assert "at 'net.q.weight'" in str(error.value)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("value", "name"),
  [
    (b"c__builtin__\nset\nN\x85R", "set with 1"),
    (b"c__builtin__\nlist\n)R", "__builtin__.list"),
    (
      b"cposix\nsystem\n" + pickle_bytes.text("touch hacked") + b"\x85R",
      "posix.system",
    ),
    (b"cbuiltins\neval\n" + pickle_bytes.text("1") + b"\x85R", "builtins.eval"),
    (b"\x8c\x08builtins\x8c\x04eval\x93", "builtins.eval"),
    (b"ctorch.storage\n_load_from_bytes\n", "torch.storage._load_from_bytes"),
    (b"cnumpy._core.multiarray\n_reconstruct\n", "multiarray._reconstruct"),
    (b"ctorch\nfloat32.newbyteorder\n", "torch.float32.newbyteorder"),
    (b"(iposix\nsystem\n", "instruction b'i'"),
    (b"(cposix\nsystem\no", "posix.system"),
    (b"ccollections\nOrderedDict\n]\x85R", "OrderedDict with 1"),
    (b"ctorch._utils\n_rebuild_parameter\nNNN\x87R", "parameter with 3"),
    (
      pickle_bytes.tensor(rest=b"}" + pickle_bytes.text("conj") + b"\x88s"),
      "tensor_v2 with 7",
    ),
  ],
)
def test_anything_but_tensors_and_plain_values_is_refused(path, value, name):
  with pytest.raises(ValueError, match="refused") as error:
    torch_file.open_torch(
      pickle_bytes.zipped(path, pickle_bytes.mapping(w=value))
    )
  assert name in str(error.value) and str(path) in str(error.value)


# Each is small in the file and would be endless, huge or deadly elsewhere.
@pytest.mark.parametrize(
  ("value", "message"),
  [
    (pickle_bytes.mapping(w=b"]" * 90_000 + b"a" * 89_999), "found none"),
    (pickle_bytes.mapping(w=b")" + b"\x85" * 90_000), "found none"),
    (pickle_bytes.mapping(w=b"K\x01" + b"q\x00h\x00\x86" * 200), "found none"),
    (b"}K\x01" + b"q\x00h\x00\x86" * 200 + b"K\x01s", "found a tuple"),
    (b"}K\x01" * 9000 + b"}" + b"s" * 9000, "16 deep"),
    (b"}q\x00K\x01h\x00s", "16 deep"),
    (b"}q\x00" + b"}(K\x01h\x00K\x02h\x00uq\x00" * 60, "16 deep"),
    (b"}r\xff\xff\xff\x7f", "found none"),
    (b"}j\xff\xff\xff\x7f", "never kept"),
    (b"}(K\x01u", "one less"),
    (b"}(K\x01K\x02K\x01K\x03u", "1 occurs twice"),
    (
      pickle_bytes.mapping(a=pickle_bytes.mapping(b=b"N"))
      + pickle_bytes.text("a.b")
      + b"Ns",
      "'a.b' occurs twice",
    ),
    (b"}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"Ns", "below 9007"),
    (
      b"}\x8a\x07" + (-(2**53)).to_bytes(7, "little", signed=True) + b"Ns",
      "below 9007",
    ),
    (b"s", "has not made"),
    (b"e", "not opened"),
    (b"c" + b"a" * 1000, "name of less than 200"),
    (b"X\xff\xff\xff\xffabc", "ends early"),
    (b"K\x01", "found a int"),
    (b"X\x01\x00\x00\x00\xff", "can't decode"),
    (b"\x80\x09}", "protocol"),
    (b"K\x01Q", "expected a tuple"),
  ],
)
def test_hostile_pickles_are_refused(path, value, message):
  with pytest.raises(ValueError, match=message) as error:
    torch_file.open_torch(pickle_bytes.zipped(path, value))
  assert str(path) in str(error.value)


def test_pickles_beyond_the_size_limit_are_refused(path, monkeypatch):
  monkeypatch.setattr(torch_pickle, "_INSTRUCTIONS", 1000)
  with pytest.raises(ValueError, match="at most 1000 instructions"):
    torch_file.open_torch(pickle_bytes.zipped(path, b"}" * 1001))


def test_the_reader_stops_after_a_pickle():
  stream = io.BytesIO(b"\x80\x02K\x07.rest")
  assert torch_pickle.load(stream) == (7, {})
  assert stream.read() == b"rest"
