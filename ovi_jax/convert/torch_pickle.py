"""Read the pickle inside a torch file as data, without running it.

A pickle is a program, and Python's own unpickler runs it. This one knows the
few instructions with which torch writes tensors and plain containers, and puts
inert records in the place of tensors. Anything else is refused by its name: no
class is looked up, no function is called, and the work is bounded by the length
of the pickle. (Formats: `torch/serialization.py`, `pickletools` of Python.)
"""

import dataclasses
import io
import struct
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

# Far above the release's 62,000 instructions for 2,073 tensors.
_INSTRUCTIONS = 2_000_000
_NAME_LIMIT = 200
# Python hashes larger numbers modulo 2^61 - 1: keys could be made to collide.
_KEY_LIMIT = 2**53

_NAMES = (
  "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float8_e4m3fn"
  " float8_e5m2 bfloat16 float16 float32 float64 complex64 complex128"
)
DTYPES: Mapping[str, np.dtype] = {n: jnp.dtype(n) for n in _NAMES.split()}
STORAGES: Mapping[str, np.dtype] = {
  f"torch.{kind}Storage": DTYPES[dtype]
  for kind, dtype in {
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "BFloat16": "bfloat16",
    "Half": "float16",
    "Float": "float32",
    "Double": "float64",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
  }.items()
}
UNTYPED = "torch.storage.UntypedStorage"  # of bytes

# Values beside tensors become what they are made of: nothing is copied, since
# copies of copies would add up.
_INERT = {
  "_codecs.encode",
  "__builtin__.bytearray",
  "builtins.bytearray",
  "__builtin__.complex",
  "builtins.complex",
  "torch.device",
}
# A set becomes a list: nothing is hashed.
_SETS = {
  f"{module}.{name}"
  for module in ("builtins", "__builtin__")
  for name in ("set", "frozenset")
}
# Tensors that carry attributes, as `torch.nn.Buffer` does.
_TENSOR_TYPES = {
  "torch.Tensor",
  "torch.nn.parameter.Buffer",
  "torch.nn.parameter.Parameter",
}
_CALLS = (
  _SETS
  | _INERT
  | _TENSOR_TYPES
  | {
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
  }
)

# Beginning of a name -> what it is of, and what to do.
_REFUSED = {
  "torch._utils._rebuild_sparse": "a sparse tensor; save it with .to_dense()",
  "torch._utils._rebuild_meta": (
    "a tensor on the meta device, which has no numbers; save the model after"
    " its weights are loaded"
  ),
  "torch.nn.parameter.Uninitialized": (
    "a parameter that has no numbers yet; save the model after its first use"
  ),
  "torch._utils._rebuild_qtensor": "a quantized tensor; use the 16-bit file",
  "torch.Q": "a quantized tensor; use the 16-bit file",
  "torch._utils._rebuild_nested": "a nested tensor, expected a plain one",
  "torch._utils._rebuild_wrapper_subclass": (
    "a tensor subclass, expected a plain tensor"
  ),
  "torch._utils._rebuild_device_tensor_from_numpy": (
    "a tensor of another device; save it with .cpu()"
  ),
  "torch.distributed.": (
    "a tensor that is sharded over processes; gather the full state dict"
    " before saving"
  ),
  **dict.fromkeys(
    ("torch.float", "torch.complex", "torch.bits"),
    "numbers in a format that is not read; save it with .bfloat16()",
  ),
  **dict.fromkeys(
    ("torchao.", "optimum.quanto.", "bitsandbytes.", "torch.ao."),
    "weights quantized by another tool; use the 16-bit file",
  ),
}

_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"}
_TEXTS = {b"X": "<I", b"\x8c": "<B", b"U": "<B", b"T": "<I"}
_TUPLES = {b")": 0, b"\x85": 1, b"\x86": 2, b"\x87": 3}
_PUTS = {b"q": "<B", b"r": "<I"}
_GETS = {b"h": "<B", b"j": "<I"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage:
  """Bytes in the file that tensors share.

  Attributes:
    key: the name under which the file keeps them.
    dtype: of the elements.
    count: number of elements, as the pickle says: any whole number.
    view: (first element, elements) that tensors may use, or None for all.
  """

  key: str
  dtype: np.dtype
  count: int
  view: tuple[Any, Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """A tensor as the pickle describes it; its numbers are not yet checked."""

  storage: Storage
  dtype: np.dtype
  offset: Any
  shape: tuple[Any, ...]
  strides: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Global:
  """Stands for a class or function of torch; does nothing."""

  name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Machine:
  """The stack machine's state.

  Attributes:
    stream: the pickle.
    frames: its stack, cut at the marks; the last frame is the top.
    memo: values kept to be recalled.
    storages: by key, those that have been referred to.
  """

  stream: io.BytesIO
  frames: list[list[Any]]
  memo: dict[int, Any]
  storages: dict[str, Storage]

  def unpack(self, layout: str) -> Any:
    (value,) = struct.unpack(layout, self.bytes(struct.calcsize(layout)))
    return value

  def bytes(self, count: int) -> bytes:
    raw = self.stream.read(count)
    if len(raw) != count:
      raise ValueError(
        f"the pickle ends early: expected {count} bytes, found {len(raw)}"
      )
    return raw

  def line(self) -> str:
    raw = self.stream.readline(_NAME_LIMIT)
    if not raw.endswith(b"\n"):
      raise ValueError(f"expected a name of less than {_NAME_LIMIT} bytes")
    return raw[:-1].decode()

  def push(self, value: Any) -> None:
    self.frames[-1].append(value)

  def pop(self, expected: type | None = None) -> Any:
    self.top(expected)
    return self.frames[-1].pop()

  def top(self, expected: type | None = None) -> Any:
    """The last value; of exactly the type `expected` if one is given."""
    if not self.frames[-1]:
      raise ValueError("the pickle takes a value that it has not made")
    value = self.frames[-1][-1]
    if expected is not None and type(value) is not expected:
      raise ValueError(
        f"expected a {expected.__name__}, found a {type(value).__name__}"
      )
    return value

  def last_text(self) -> str:
    """The last text on the stack: a tensor's name while it is made."""
    values = (v for frame in reversed(self.frames) for v in reversed(frame))
    return next((v for v in values if type(v) is str), "")

  def pop_frame(self) -> list[Any]:
    """The values since the last mark."""
    if len(self.frames) < 2:
      raise ValueError("the pickle closes a container it has not opened")
    return self.frames.pop()


def load(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
  """Read one pickle.

  Args:
    stream: at the pickle's first byte; afterwards at the byte behind it.

  Returns:
    dicts, lists, tuples, text and numbers, with a `Tensor` for each tensor; and
    every storage that was referred to, by key.

  Raises:
    ValueError: it is damaged, or holds something else, named in the message.
  """
  machine = _Machine(stream=stream, frames=[[]], memo={}, storages={})
  for _ in range(_INSTRUCTIONS):
    code = machine.bytes(1)
    if code == b".":
      return machine.pop(), machine.storages
    if not (_plain(machine, code) or _container(machine, code)):
      _torch(machine, code)
  raise ValueError(f"expected a pickle of at most {_INSTRUCTIONS} instructions")


def _plain(machine: _Machine, code: bytes) -> bool:
  """Carry out an instruction about numbers, text or the memo, if it is one."""
  if code in _CONSTANTS:
    machine.push(_CONSTANTS[code])
  elif code in _NUMBERS:
    machine.push(machine.unpack(_NUMBERS[code]))
  elif code in _TEXTS:
    machine.push(machine.bytes(machine.unpack(_TEXTS[code])).decode())
  elif code == b"\x8a":  # a whole number of up to 255 bytes
    raw = machine.bytes(machine.unpack("<B"))
    machine.push(int.from_bytes(raw, "little", signed=True))
  elif code in _PUTS:
    machine.memo[machine.unpack(_PUTS[code])] = machine.top()
  elif code == b"\x94":
    machine.memo[len(machine.memo)] = machine.top()
  elif code in _GETS:
    index = machine.unpack(_GETS[code])
    if index not in machine.memo:
      raise ValueError(f"the pickle recalls value {index}, which it never kept")
    machine.push(machine.memo[index])
  elif code == b"\x80":
    if (protocol := machine.unpack("<B")) > 5:
      raise ValueError(f"expected pickle protocol 2 to 5, found {protocol}")
  elif code == b"\x95":  # length of what follows, for buffering
    machine.bytes(8)
  else:
    return False
  return True


def _container(machine: _Machine, code: bytes) -> bool:
  """Carry out an instruction about tuples, lists or dicts, if it is one."""
  if code == b"(":
    machine.frames.append([])
  elif code in _TUPLES:
    values = [machine.pop() for _ in range(_TUPLES[code])]
    machine.push(tuple(reversed(values)))
  elif code == b"t":
    machine.push(tuple(machine.pop_frame()))
  elif code in (b"]", b"\x8f"):
    machine.push([])
  elif code == b"\x91":  # a frozenset
    machine.push(machine.pop_frame())
  elif code == b"}":
    machine.push({})
  elif code == b"a":
    value = machine.pop()
    machine.top(list).append(value)
  elif code in (b"e", b"\x90"):
    values = machine.pop_frame()
    machine.top(list).extend(values)
  elif code == b"s":
    value, key = machine.pop(), machine.pop()
    _set(machine.top(dict), [key, value])
  elif code == b"u":
    values = machine.pop_frame()
    _set(machine.top(dict), values)
  else:
    return False
  return True


def _set(target: dict[Any, Any], values: list[Any]) -> None:
  """Put key, value, key, value… into a dict."""
  if len(values) % 2:
    raise ValueError("expected a value for each key of a dict, found one less")
  for key, value in zip(values[::2], values[1::2], strict=True):
    # Other keys could be made so that hashing them never ends.
    if type(key) not in (str, int):
      raise ValueError(
        f"expected names of text or whole numbers, found a {type(key).__name__}"
      )
    if type(key) is int and abs(key) >= _KEY_LIMIT:
      raise ValueError(f"expected whole numbers below {_KEY_LIMIT} as names")
    if key in target:
      raise ValueError(f"{key!r:.{_NAME_LIMIT}} occurs twice")
    target[key] = value


def _torch(machine: _Machine, code: bytes) -> None:
  """Carry out an instruction that makes an object, if it is one of torch's."""
  if code == b"c":
    module, name = machine.line(), machine.line()
    machine.push(_find(f"{module}.{name}", machine))
  elif code == b"\x93":
    name, module = machine.pop(str), machine.pop(str)
    machine.push(_find(f"{module}.{name}", machine))
  elif code == b"Q":
    storage = _storage(machine.pop(tuple))
    first = machine.storages.setdefault(storage.key, storage)
    if (first.dtype, first.count) != (storage.dtype, storage.count):
      raise ValueError(f"storage {storage.key!r:.40} is described in two ways")
    machine.push(storage)
  elif code == b"R":
    arguments = machine.pop(tuple)
    machine.push(_call(machine.pop(_Global).name, arguments))
  elif code == b"b":
    # The attributes of an OrderedDict: module versions, not weights.
    machine.pop(dict)
    machine.top(dict)
  else:
    at = machine.stream.tell() - 1
    raise ValueError(
      f"refused: pickle instruction {code!r} at byte {at}; only tensors,"
      " numbers, text and plain containers are read"
    )


def _find(name: str, machine: _Machine) -> _Global | np.dtype:
  """An inert placeholder for what the pickle names."""
  if name in _CALLS or name in STORAGES or name == UNTYPED:
    return _Global(name=name)
  if name.removeprefix("torch.") in DTYPES and name.startswith("torch."):
    return DTYPES[name.removeprefix("torch.")]
  at = f" at {key!r:.{_NAME_LIMIT}}" if (key := machine.last_text()) else ""
  what = next((w for n, w in _REFUSED.items() if name.startswith(n)), None)
  raise ValueError(
    f"refused: {name!r:.{_NAME_LIMIT}}{at}; "
    + (
      what
      or "only tensors, numbers, text and plain containers are read. Save the"
      " bare state_dict() with torch.save"
    )
  )


def _storage(reference: tuple[Any, ...]) -> Storage:
  """The storage of a persistent reference."""
  if len(reference) not in (5, 6):
    raise ValueError(
      f"expected a reference of 5 or 6 parts, found {len(reference)}"
    )
  tag, kind, key, _, count = reference[:5]
  view = reference[5] if len(reference) == 6 else None
  if type(tag) is not str or tag != "storage":
    raise ValueError("expected a reference to a storage, found another")
  dtypes = {**STORAGES, UNTYPED: DTYPES["uint8"]}
  if type(kind) is not _Global or kind.name not in dtypes:
    raise ValueError(f"expected a torch storage, found a {type(kind).__name__}")
  if type(key) is not str or type(count) is not int:
    raise ValueError("expected a storage's key and number of elements")
  if view is not None:
    if type(view) is not tuple or len(view) != 3:
      raise ValueError("expected a view of a key, an offset and a size")
    view = view[1:]
  return Storage(key=key, dtype=dtypes[kind.name], count=count, view=view)


# What these wrap; the other functions wrap a tensor.
_WRAPPED = {"collections.Counter": dict, "torch.Size": tuple}


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
  """What torch's function `name` would make, as an inert record."""
  match name, len(arguments):
    case "collections.OrderedDict", 0:
      return {}
    case _, 0 if name in _SETS:
      return []
    case _, 1 if name in _SETS and type(arguments[0]) is list:
      return arguments[0]  # not copied: copies of copies would add up
    case _, 1 | 2 if name in _INERT:
      return arguments[0]
    case (
      ("collections.Counter", 1)
      | ("torch.Size", 1)
      | ("torch._utils._rebuild_parameter", 3)
      | ("torch._utils._rebuild_parameter_with_state", 4)
      | ("torch._utils._rebuild_device_tensor_from_cpu_tensor", 4)
    ) if type(arguments[0]) is _WRAPPED.get(name, Tensor):
      return arguments[0]
    case "torch._tensor._rebuild_from_type_v2", 4:
      return _typed(*arguments[:3])
    case "torch._utils._rebuild_tensor", 4:
      return _tensor(arguments, None)
    case "torch._utils._rebuild_tensor_v2", 6:
      return _tensor(arguments, None)
    case "torch._utils._rebuild_tensor_v2", 7 if not arguments[6]:
      return _tensor(arguments, None)
    case "torch._utils._rebuild_tensor_v3", 7:
      return _tensor(arguments, arguments[6])
    case "torch._utils._rebuild_tensor_v3", 8 if not arguments[7]:
      return _tensor(arguments, arguments[6])
  raise ValueError(
    f"refused: {name} with {len(arguments)} arguments of its kind"
  )


def _typed(rebuild: Any, kind: Any, arguments: Any) -> Tensor:
  """A tensor that carries attributes: (function, type, arguments, …)."""
  plain = (
    type(rebuild) is _Global
    and rebuild.name.startswith("torch._utils._rebuild")
    and type(kind) is _Global
    and kind.name in _TENSOR_TYPES
    and type(arguments) is tuple
  )
  if not plain:
    raise ValueError("refused: expected a tensor with attributes, found others")
  return _call(rebuild.name, arguments)


def _tensor(arguments: tuple[Any, ...], dtype: Any) -> Tensor:
  """A tensor of (storage, offset, shape, strides, …)."""
  storage, offset, shape, strides = arguments[:4]
  if type(storage) is not Storage:
    raise ValueError(f"expected a storage, found a {type(storage).__name__}")
  if type(shape) is not tuple or type(strides) is not tuple:
    raise ValueError("expected a shape and strides that are tuples")
  if dtype is None:
    dtype = storage.dtype
  if not isinstance(dtype, np.dtype):
    raise ValueError(f"expected a torch dtype, found a {type(dtype).__name__}")
  return Tensor(
    storage=storage,
    dtype=dtype,
    offset=offset,
    shape=shape,
    strides=strides,
  )
