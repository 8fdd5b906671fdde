"""Networks in ONNX files, run by onnxruntime on one CPU thread."""

import importlib
import pathlib
from collections.abc import Sequence
from typing import Any

_ERRORS = "onnxruntime.capi.onnxruntime_pybind11_state"
_GRAPH, _OUTPUT, _NAME = 7, 12, 1  # fields of the messages of ONNX


def session(path: pathlib.Path, what: str) -> Any:
  """An `InferenceSession`.

  Args:
    path: of the file; its external data are beside it.
    what: needs it, for the error.

  Raises:
    ValueError: onnxruntime is missing, or cannot use the file.
  """
  try:
    import onnxruntime

    library: Any = importlib.import_module(_ERRORS)
  except ImportError as error:
    raise ValueError(
      f"{what} needs onnxruntime: pip install -e '.[eval]'"
    ) from error
  failures = (
    *(library.Fail, library.InvalidArgument, library.InvalidGraph),
    *(library.InvalidProtobuf, library.NoSuchFile, library.NotImplemented),
    library.RuntimeException,
  )
  options: Any = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  try:
    return onnxruntime.InferenceSession(
      str(path), options, providers=["CPUExecutionProvider"]
    )
  except failures as error:
    first = str(error).splitlines()[0][:200]
    raise ValueError(f"{what}: {path.name} cannot be used: {first}") from error


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
  """A model that also returns inner values or constants.

  A message that occurs twice is merged (protobuf's encoding), so that a second
  graph, of outputs alone, adds them to the first.

  Args:
    model: content of a file.
    names: of the values.
  """
  outputs = b"".join(
    _field(_OUTPUT, _field(_NAME, name.encode())) for name in names
  )
  return model + _field(_GRAPH, outputs)


def _field(number: int, content: bytes) -> bytes:
  """A field with a length, of less than 16 KiB."""
  length = len(content)
  assert length < 1 << 14
  low, high = length & 0x7F, length >> 7
  return bytes([number << 3 | 2, low | 0x80, high]) + content
