"""A compiled program's text, read: instructions, shapes, loops.

XLA prints an optimized program as computations of instructions, one a line.
This reads as much of it as its costs need (`costs`): results, operands, and
the attributes that name other computations.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from collections.abc import Mapping

BITS: Mapping[str, int] = {
  "pred": 8, "token": 0, "opaque": 0,
  "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8,
  "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
  "f4e2m1fn": 4, "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3": 8, "f8e8m0fnu": 8,
  "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_CONTINUED = ('"', "}}")  # lines of a kernel's metadata
_INTEGERS = ("s32", "s64", "u32", "u64")
_ON_CHIP = re.compile(r"S\([1-9]\)")  # memory spaces other than the main one


@dataclasses.dataclass(frozen=True)
class Array:
  """The shape of a result, or of a part of one.

  Attributes:
    dtype: as XLA names it.
    shape: its axes.
    in_hbm: whether it lies in main memory; some lie in memory on the chip.
  """

  dtype: str
  shape: tuple[int, ...]
  in_hbm: bool = True

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    return self.size * BITS[self.dtype] // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line.

  Attributes:
    name: unique in its computation.
    opcode: such as "fusion".
    results: one array, or the parts of a tuple.
    operands: names of instructions.
    text: all that follows the operands.
  """

  name: str
  opcode: str
  results: tuple[Array, ...]
  operands: tuple[str, ...]
  text: str

  def called(self, attribute: str) -> str:
    """The computation that an attribute names; empty if there is none."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.text)
    return found[1] if found else ""

  @property
  def bytes(self) -> int:
    return sum(array.bytes for array in self.results)

  @property
  def literal(self) -> str:
    """The value of a constant, the number of a parameter."""
    return self.text.removeprefix("(").partition(")")[0]

  @property
  def index(self) -> int:
    """Which part of a tuple this one takes."""
    found = re.search(r"\bindex=(\d+)", self.text)
    if not found:
      raise ValueError(f"{self.name} takes no part of a tuple")
    return int(found[1])


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in order."""

  name: str
  instructions: tuple[Instruction, ...]

  @functools.cached_property
  def by_name(self) -> dict[str, Instruction]:
    return {each.name: each for each in self.instructions}

  def operand(self, instruction: Instruction, number: int) -> Array:
    """The shape of an operand that is one array."""
    return self.by_name[instruction.operands[number]].results[0]


@dataclasses.dataclass(frozen=True)
class Program:
  """All computations, and the one that is run."""

  computations: Mapping[str, Computation]
  entry: str

  def trip_count(self, loop: Instruction) -> int:
    """How often a loop's body runs.

    Raises:
      ValueError: the loop does not count to a constant.
    """
    known = re.search(r"known_trip_count[^\d]*(\d+)", loop.text)
    if known:
      return int(known[1])
    condition = self.computations[loop.called("condition")]
    # A loop counts from 0 while its counter is less than a constant.
    constants = [
      int(each.literal)
      for each in condition.instructions
      if each.opcode == "constant" and each.results[0].dtype in _INTEGERS
    ]
    less = "direction=LT" in "".join(
      text for each in condition.instructions for text in self._texts(each)
    )
    if len(constants) != 1 or not less:
      raise ValueError(
        f"loop {loop.name} has no constant number of trips: its condition"
        f" {condition.name} has constants {constants}"
      )
    return -(-constants[0] // self._step(loop, condition))

  def _step(self, loop: Instruction, condition: Computation) -> int:
    """By how much a loop counts: a scan by 1, what XLA unrolled by more."""
    counters = [
      each.index
      for each in condition.instructions
      if each.opcode == "get-tuple-element"
      and each.results[0].dtype in _INTEGERS
      and not each.results[0].shape
    ]
    body = self.computations[loop.called("body")]
    results = [e for e in body.instructions if e.opcode == "tuple"]
    if len(counters) != 1 or not results:
      return 1
    counted = body.by_name[results[-1].operands[counters[0]]]
    parts = [body.by_name[name] for name in counted.operands]
    steps = [int(e.literal) for e in parts if e.opcode == "constant"]
    return steps[0] if counted.opcode == "add" and len(steps) == 1 else 1

  def _texts(self, instruction: Instruction) -> Iterator[str]:
    """Of an instruction, and of a fusion's parts."""
    yield instruction.text
    called = instruction.called("calls")
    if called:
      yield from (each.text for each in self.computations[called].instructions)


def parse(text: str) -> Program:
  """Read what `compiled.as_text()` gives.

  Raises:
    ValueError: it is no such text.
  """
  computations: dict[str, Computation] = {}
  entry, name = "", ""
  lines: list[Instruction] = []
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      name, lines = header[2], []
      entry = name if header[1] else entry
    elif line == "}":
      computations[name] = Computation(name, tuple(lines))
    else:
      found = _INSTRUCTION.match(line)
      if found:
        lines.append(_instruction(found[1], line[found.end() :]))
      elif lines and line.startswith(_CONTINUED):
        text = f"{lines[-1].text}{line}"
        lines[-1] = dataclasses.replace(lines[-1], text=text)
  if not entry:
    raise ValueError("expected the text of a compiled program, with an ENTRY")
  return Program(computations, entry)


def _instruction(name: str, rest: str) -> Instruction:
  shape, rest = _until(rest, " ")
  opcode, _, rest = rest.strip().partition("(")
  operands, rest = _until(rest, ")")
  # Values of constants and numbers of parameters stand where operands do.
  literal = opcode in ("constant", "parameter")
  text = f"({operands}){rest}" if literal else rest
  names = () if literal else tuple(_NAME.findall(operands))
  return Instruction(name, opcode, arrays(shape), names, text)


def _until(text: str, end: str) -> tuple[str, str]:
  """Split at the first `end` outside of brackets."""
  depth = 0
  for place, letter in enumerate(text):
    if depth == 0 and letter == end:
      return text[:place], text[place + 1 :]
    depth += (letter in "([{") - (letter in ")]}")
  return text, ""


def arrays(shape: str) -> tuple[Array, ...]:
  """The arrays of a shape as XLA writes it; layouts say where they lie."""
  return tuple(
    Array(
      dtype,
      tuple(int(n) for n in axes.split(",") if n),
      in_hbm=not _ON_CHIP.search(layout or ""),
    )
    for dtype, axes, layout in _ARRAY.findall(shape)
    if dtype in BITS
  )
