"""FLOPs, HBM traffic and collective bytes of one device, from compiled HLO.

Loop bodies are multiplied by their trip counts. Flash kernels are custom calls
without a cost in HLO; theirs is computed from the shapes of their operands.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np

from ovi_jax.aot import collectives
from ovi_jax.aot import hlo

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
# Query-by-key matmuls of each kernel. The fused backward kernel computes all
# three gradients; JAX names it dkv too.
KERNEL_MATMULS: Mapping[str, int] = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
# A block size in the metadata of a kernel: its name and its value.
_BLOCK_SIZE = re.compile(r'"(block_\w+)\\*": (\d+)')
# Instructions without HBM traffic of their own.
_NO_TRAFFIC = frozenset(
  [
    "after-all", "async-done", "async-update", "bitcast", "constant",
    "copy-done", "get-tuple-element", "iota", "parameter", "partition-id",
    "replica-id", "slice-done", "tuple", "while", "conditional", "call",
    "all-gather-done", "all-reduce-done", "collective-permute-done",
  ]
)  # fmt: skip


# Memory for results that other instructions write.
_ALLOCATION = 'custom_call_target="AllocateBuffer"'


@dataclasses.dataclass(frozen=True)
class Costs:
  """Costs of one device.

  Attributes:
    flops: of matrix multiplications and convolutions.
    bytes_accessed: read from and written to HBM.
    collective_bytes: sent, by kind of collective and participating devices.
    async_bytes: those of them that are sent while the device computes.
    sync_count: executed collectives that the device waits for.
    async_count: executed collectives that computation overlaps.
  """

  flops: float = 0.0
  bytes_accessed: float = 0.0
  collective_bytes: Mapping[tuple[str, tuple[int, ...]], float] = (
    dataclasses.field(default_factory=dict)
  )
  async_bytes: Mapping[tuple[str, tuple[int, ...]], float] = dataclasses.field(
    default_factory=dict
  )
  sync_count: float = 0.0
  async_count: float = 0.0

  def __add__(self, other: "Costs") -> "Costs":
    sent, overlapped = (
      collections.Counter(x) for x in (self.collective_bytes, self.async_bytes)
    )
    sent.update(other.collective_bytes)
    overlapped.update(other.async_bytes)
    return Costs(
      self.flops + other.flops,
      self.bytes_accessed + other.bytes_accessed,
      sent,
      overlapped,
      self.sync_count + other.sync_count,
      self.async_count + other.async_count,
    )

  def __mul__(self, times: float) -> "Costs":
    return Costs(
      self.flops * times,
      self.bytes_accessed * times,
      {key: value * times for key, value in self.collective_bytes.items()},
      {key: value * times for key, value in self.async_bytes.items()},
      self.sync_count * times,
      self.async_count * times,
    )

  def without_collectives(self) -> "Costs":
    """The same, but for what is sent."""
    return Costs(self.flops, self.bytes_accessed)

  def overlapped(self) -> "Costs":
    """The same, with all collectives asynchronous."""
    return dataclasses.replace(
      self,
      async_bytes=self.collective_bytes,
      sync_count=0.0,
      async_count=self.sync_count + self.async_count,
    )


def count(program: hlo.Program) -> Costs:
  """Count the costs of a program on one device.

  Raises:
    ValueError: the trip count of a loop or the FLOPs of a kernel are unknown.
  """

  @functools.cache
  def total(name: str, inside: bool) -> Costs:
    computation = program.computations[name]
    costs, sent = Costs(), set()
    uses = collections.Counter(
      channel
      for each in computation.instructions
      for channel in _channels(program, each)
    )
    for each in computation.instructions:
      found = one(computation, each, inside)
      # An async collective is repeated in each fusion that it overlaps with.
      channels = _channels(program, each)
      if channels and channels <= sent:
        found = found.without_collectives()
      elif any(uses[channel] > 1 for channel in channels):
        found = found.overlapped()
      sent |= channels
      costs += found
    return costs

  def one(where: hlo.Computation, each: hlo.Instruction, inside: bool) -> Costs:
    if each.opcode == "while":
      body, condition = (total(each.called(n), False) for n in _LOOP)
      return (body + condition) * program.trip_count(each)
    if each.opcode in ("call", "async-start"):
      called = each.called("calls") or each.called("to_apply")
      costs = total(called, False)
      return costs.overlapped() if each.opcode == "async-start" else costs
    if each.opcode == "conditional":
      branches = [total(n, False) for n in _branches(each)]
      return max(branches, key=lambda c: (c.flops, c.bytes_accessed))
    costs = Costs()
    if each.opcode == "fusion":
      called = each.called("calls")
      costs += total(called, True)
      if called.startswith("all-reduce-scatter"):
        costs = dataclasses.replace(
          costs, collective_bytes=_as_reduce_scatter(costs.collective_bytes)
        )
    elif each.opcode in _FLOP_COUNTERS:
      costs += Costs(flops=_FLOP_COUNTERS[each.opcode](where, each))
    kind = each.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
      sent = Costs(
        collective_bytes=_collective_bytes(kind, where, each), sync_count=1
      )
      costs += sent if kind == each.opcode else sent.overlapped()
    if not inside and _has_traffic(each):
      moved = _bytes_accessed(program, where, each)
      if _is_kernel(each):
        moved += _reread_bytes(where, each)
      costs += Costs(bytes_accessed=moved)
    return costs

  return total(program.entry, False)


_LOOP = ("body", "condition")


def _has_traffic(each: hlo.Instruction) -> bool:
  return each.opcode not in _NO_TRAFFIC and _ALLOCATION not in each.text


def _channels(program: hlo.Program, each: hlo.Instruction) -> frozenset[str]:
  """The channels of a collective, or of those in a fusion."""
  if each.opcode.removesuffix("-start") in COLLECTIVES:
    return frozenset(re.findall(r"\bchannel_id=(\d+)", each.text))
  if each.opcode != "fusion":
    return frozenset()
  called = program.computations[each.called("calls")]
  parts = (_channels(program, part) for part in called.instructions)
  return frozenset().union(*parts)


def _branches(each: hlo.Instruction) -> list[str]:
  listed = re.search(r"branch_computations=\{([^}]*)\}", each.text)
  if listed:
    return re.findall(r"[\w.\-]+", listed[1])
  return [each.called(f"{n}_computation") for n in ("true", "false")]


def _dot(where: hlo.Computation, each: hlo.Instruction) -> float:
  left = where.operand(each, 0)
  found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.text)
  axes = [int(n) for n in found[1].split(",") if n] if found else []
  contracted = math.prod(left.shape[axis] for axis in axes)
  return 2.0 * each.results[0].size * contracted


def _convolution(where: hlo.Computation, each: hlo.Instruction) -> float:
  """FLOPs without padding; TPU programs express dots as convolutions."""
  left, right = where.operand(each, 0), where.operand(each, 1)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.text)
  if not labels:
    raise ValueError(f"convolution {each.name} has no dim_labels")
  spatial = [letter for letter in labels[1] if letter.isdigit()]
  window = _window(each.text, len(spatial))
  pairs = 1.0
  for number, letter in enumerate(spatial):
    pairs *= _valid_taps(
      left.shape[labels[1].index(letter)],
      right.shape[labels[2].index(letter)],
      each.results[0].shape[labels[3].index(letter)],
      **{name: values[number] for name, values in window.items()},
    )
  batch = each.results[0].shape[labels[3].index("b")]
  features = each.results[0].shape[labels[3].index("f")]
  inputs = right.shape[labels[2].index("i")]
  grouped = re.search(r"batch_group_count=(\d+)", each.text)
  if grouped:
    # Batches of a group are summed like features of the input.
    batch = left.shape[labels[1].index("b")] // int(grouped[1])
  return 2.0 * batch * features * inputs * pairs


def _window(text: str, axes: int) -> dict[str, list]:
  """What `window={...}` says of each spatial axis."""
  found = re.search(r"window=\{([^}]*)\}", text)
  fields = dict(part.split("=") for part in found[1].split()) if found else {}

  def numbers(name: str) -> list[int]:
    given = fields.get(name)
    return [int(n) for n in given.split("x")] if given else [1] * axes

  pads = fields.get("pad")
  low = [int(p.split("_")[0]) for p in pads.split("x")] if pads else [0] * axes
  return {
    "stride": numbers("stride"),
    "low": low,
    "spread_left": numbers("lhs_dilate"),
    "spread_right": numbers("rhs_dilate"),
  }


@functools.cache
def _valid_taps(
  left: int,
  right: int,
  out: int,
  stride: int,
  low: int,
  spread_left: int,
  spread_right: int,
) -> int:
  """Pairs of output and kernel positions that read an input, along one axis."""
  place = np.arange(out)[:, None] * stride - low
  place = place + np.arange(right)[None] * spread_right
  inside = (place >= 0) & (place <= (left - 1) * spread_left)
  return int((inside & (place % spread_left == 0)).sum())


def _kernel(where: hlo.Computation, each: hlo.Instruction) -> float:
  """FLOPs of a flash kernel, by its name and the shapes of q and k."""
  if not _is_kernel(each):
    return 0.0
  products = KERNEL_MATMULS[_kernel_name(each)]
  q, k, *_ = _tensor_operands(where, each)
  return 2.0 * products * q.size * k.shape[-2]


def _is_kernel(each: hlo.Instruction) -> bool:
  return 'custom_call_target="tpu_custom_call"' in each.text


def _kernel_name(each: hlo.Instruction) -> str:
  names = [n for n in KERNEL_MATMULS if each.name.startswith(n)]
  if not names:
    raise ValueError(
      f"the FLOPs of kernel {each.name} are unknown; known kernels are"
      f" {', '.join(KERNEL_MATMULS)}"
    )
  return names[0]


def _tensor_operands(
  where: hlo.Computation, each: hlo.Instruction
) -> list[hlo.Array]:
  """Operands of a kernel; the first are queries, keys and values."""
  given = (where.by_name[n].results[0] for n in each.operands)
  return [
    operand
    for operand in given
    if len(operand.shape) >= 3 and operand.dtype in ("bf16", "f16", "f32")
  ]


def _reread_bytes(where: hlo.Computation, each: hlo.Instruction) -> float:
  """Bytes that a kernel reads again after the first time.

  The forward kernel reads keys and values once per query block, the backward
  kernel everything indexed by queries once per key block.
  """
  q, k, v, *others = _tensor_operands(where, each)
  sizes = {name: int(n) for name, n in _BLOCK_SIZE.findall(each.text)}
  if _kernel_name(each) == "splash_mha_fwd":
    rows = sizes.get("block_q", q.shape[-2])
    return (k.bytes + v.bytes) * (q.shape[-2] / rows - 1.0)
  columns = sizes.get("block_kv_dkv", k.shape[-2])
  return sum(a.bytes for a in (q, *others)) * (k.shape[-2] / columns - 1.0)


_FLOP_COUNTERS: Mapping[
  str, Callable[[hlo.Computation, hlo.Instruction], float]
] = {"dot": _dot, "convolution": _convolution, "custom-call": _kernel}


def _bytes_accessed(
  program: hlo.Program, where: hlo.Computation, each: hlo.Instruction
) -> float:
  """Bytes that an instruction reads from and writes to HBM."""
  results = [a for a in each.results if a.in_hbm]
  written = sum(a.bytes for a in results)
  if each.opcode == "copy-start":
    # Source and copy, of which one is a result again.
    return sum(a.bytes for a in each.results[:2] if a.in_hbm)
  if each.opcode == "slice-start":
    part = each.results[1]
    return part.bytes * (1.0 + part.in_hbm)
  if each.opcode in ("dynamic-slice", "slice", "gather"):
    return 2.0 * written
  if each.opcode == "dynamic-update-slice":
    return 2.0 * where.operand(each, 1).bytes
  read = 0.0
  called = program.computations.get(each.called("calls"))
  for number, name in enumerate(each.operands):
    operand = where.by_name[name].results
    size = sum(a.bytes for a in operand if a.in_hbm)
    if each.opcode == "fusion" and called is not None and size:
      part = _sliced_bytes(program, called, number)
      size = size if part is None else min(size, part)
    read += size
  if each.opcode == "fusion" and called is not None:
    written = _fusion_written_bytes(program, called, each)
  return read + written


def _fusion_written_bytes(
  program: hlo.Program, called: hlo.Computation, each: hlo.Instruction
) -> float:
  """Bytes that a fusion writes; of an updated slice, only the slice."""
  root = called.instructions[-1]
  if root.opcode != "tuple" or len(root.operands) != len(each.results):
    made = [root]
  else:
    made = [called.by_name[name] for name in root.operands]
  if len(made) != len(each.results):
    return float(sum(a.bytes for a in each.results if a.in_hbm))
  return sum(
    _updated_bytes(program, called, part)
    for part, result in zip(made, each.results)
    if result.in_hbm
  )


def _updated_bytes(
  program: hlo.Program, where: hlo.Computation, each: hlo.Instruction
) -> float:
  """Bytes of a result of a fusion that are new: all, or an updated slice."""
  if each.opcode == "dynamic-update-slice":
    return float(where.operand(each, 1).bytes)  # in place
  if each.opcode == "bitcast":
    return _updated_bytes(program, where, where.by_name[each.operands[0]])
  if each.opcode == "fusion" and len(each.results) == 1:
    inner = program.computations[each.called("calls")]
    return _updated_bytes(program, inner, inner.instructions[-1])
  return float(each.bytes)


def _sliced_bytes(
  program: hlo.Program, called: hlo.Computation, number: int
) -> float | None:
  """Bytes that a fusion reads of an operand, if it only reads slices."""
  parameter = next(
    each.name
    for each in called.instructions
    if each.opcode == "parameter" and int(each.literal) == number
  )
  return _used_bytes(program, called, parameter)


def _is_layout(program: hlo.Program, each: hlo.Instruction) -> bool:
  """Whether an instruction of a fusion is its operand in another layout.

  So is a nested fusion of a copy: only what is used of it is read.
  """
  if each.opcode != "fusion":
    return each.opcode == "bitcast"
  inner = program.computations[each.called("calls")].instructions
  first, *others = (x.opcode for x in inner)
  return first == "parameter" and others in (["copy"], ["bitcast"])


def _used_bytes(
  program: hlo.Program, where: hlo.Computation, name: str
) -> float | None:
  """Bytes of a value that its users in a fusion read; `None` for all of it."""
  total = 0.0
  for user in where.instructions:
    for number, operand in enumerate(user.operands):
      if operand != name:
        continue
      taken: float | None = None
      if user.opcode == "dynamic-slice":
        taken = float(user.bytes) if number == 0 else 0.0
      elif user.opcode == "dynamic-update-slice" and number == 0:
        taken = 0.0  # in place
      elif _is_layout(program, user):
        is_result = user is where.instructions[-1]
        taken = None if is_result else _used_bytes(program, where, user.name)
      elif user.opcode == "fusion":
        inner = program.computations[user.called("calls")]
        taken = _sliced_bytes(program, inner, number)
      if taken is None:
        return None
      total += taken
  return total


def _collective_bytes(
  kind: str, where: hlo.Computation, each: hlo.Instruction
) -> dict[tuple[str, tuple[int, ...]], float]:
  """Bytes that a device sends, by kind and participating devices."""
  group = max(
    map(tuple, collectives.replica_groups(each.text)), key=len, default=()
  )
  count = len(group)
  if count < 2:
    return {}
  share = (count - 1) / count
  operands = sum(
    a.bytes for name in each.operands for a in where.by_name[name].results
  )
  whole = {
    "all-gather": operands * count * share,
    "all-reduce": 2.0 * operands * share,
    "reduce-scatter": operands * share,
    "all-to-all": operands * share,
    "ragged-all-to-all": operands * share,
    "collective-permute": float(operands),
  }
  return {(kind, group): whole[kind]} if operands else {}


def _as_reduce_scatter(
  sent: Mapping[tuple[str, tuple[int, ...]], float],
) -> dict[tuple[str, tuple[int, ...]], float]:
  """An all-reduce of which each device keeps a slice sends half as much."""
  return {("reduce-scatter", g): value / 2 for (_, g), value in sent.items()}
