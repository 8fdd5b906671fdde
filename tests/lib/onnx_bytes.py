"""Small ONNX models as bytes, without the package onnx."""

import struct
from collections.abc import Sequence

UINT8, FLOAT = 2, 1


def varint(value: int) -> bytes:
  parts = []
  while value > 127:
    parts.append(value & 127 | 128)
    value >>= 7
  return bytes([*parts, value])


def message(number: int, content: bytes | str) -> bytes:
  """A field that is a message or a text."""
  content = content.encode() if isinstance(content, str) else content
  return varint(number << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
  return varint(field << 3) + varint(value)


def node(kind: str, inputs: Sequence[str], output: str) -> bytes:
  parts = [message(1, name) for name in inputs]
  return message(1, b"".join([*parts, message(2, output), message(4, kind)]))


def value(field: int, name: str, kind: int, shape: Sequence[int]) -> bytes:
  """An input (11) or output (12) of the graph."""
  sizes = b"".join(message(1, number(1, size)) for size in shape)
  tensor = message(1, number(1, kind) + message(2, sizes))
  return message(field, message(1, name) + message(2, tensor))


def constant(name: str, kind: int, content: float) -> bytes:
  """A scalar."""
  packed = struct.pack("<f" if kind == FLOAT else "B", content)
  return message(5, number(2, kind) + message(8, name) + message(9, packed))


def model(graph: bytes) -> bytes:
  return (
    number(1, 8)
    + message(7, message(2, "g") + graph)
    + message(8, number(2, 17))
  )


def yamnet(scale: float = 0.05, zero: int = 144) -> bytes:
  """A model with the values of YAMNet's, that returns its input."""
  embedding = "/model/Reshape_output_0_qdq"
  return model(
    node("DequantizeLinear", ["audio", "audio_scale", "audio_zero_point"], "x")
    + node("Flatten", ["x"], embedding)
    + node("Identity", [embedding], "class_scores_updated")
    + node(
      "QuantizeLinear",
      ["class_scores_updated", "audio_scale", "audio_zero_point"],
      "class_scores",
    )
    + constant("audio_scale", FLOAT, scale)
    + constant("audio_zero_point", UINT8, zero)
    + value(11, "audio", UINT8, (1, 1, 96, 64))
    + value(12, "class_scores", UINT8, (1, 96 * 64))
  )
