"""What a program will need of chips that are not here, and what bounds it.

Memory is the compiler's own account. Operations, traffic and messages are
counted in the compiled program (`costs`). Times are what each of the three
would take alone at the chip's peak, so a step takes at least the longest of
them, and about their sum if nothing overlaps.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
import time
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax

from ovi_jax import chips
from ovi_jax import files
from ovi_jax.aot import costs
from ovi_jax.aot import groups
from ovi_jax.aot import hlo
from ovi_jax.aot import links
from ovi_jax.attention import splash

LISTED = 8  # arrays that are named when memory does not suffice
_FULL = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """One program on one kind of machine; bytes and operations of one chip.

  Attributes:
    program: what it is.
    device_kind: the chip.
    devices: how many.
    mesh: sizes of the mesh's axes.
    arguments: bytes of parameters, states, inputs.
    temporaries: bytes of all else.
    peak: bytes in use at the worst moment; `None` if it did not compile.
    capacity: bytes of the chip.
    model_operations: that the geometry asks for; `None` if not counted.
    operations: that the program does.
    traffic: bytes to and from main memory.
    messages: bytes sent, by kind of collective and mesh axes.
    seconds: of products, memory and messages, each alone.
    compile_seconds: here.
    largest: the largest arrays, most bytes first.
    said: by the compiler, where it refused.
  """

  program: str
  device_kind: str
  devices: int
  mesh: Mapping[str, int]
  arguments: int
  temporaries: int
  peak: int | None
  capacity: int
  model_operations: float | None
  operations: float
  traffic: float
  messages: Mapping[str, float]
  seconds: Mapping[str, float]
  compile_seconds: float
  largest: Mapping[str, int]
  said: str = ""

  @property
  def fits(self) -> bool:
    return self.peak is not None and self.peak <= self.capacity

  @property
  def ratio(self) -> float | None:
    """Operations done over operations asked for."""
    if not self.model_operations or self.peak is None:
      return None
    return self.operations / self.model_operations

  @property
  def bound(self) -> str:
    """What takes longest alone; "" of a program that was refused."""
    return max(self.seconds, key=lambda name: self.seconds[name], default="")

  def lines(self) -> list[str]:
    """For a reader."""
    axes = " x ".join(f"{n} {s}" for n, s in self.mesh.items() if s > 1)
    lines = [
      f"{self.program}: {self.devices} x {self.device_kind}, mesh"
      f" {axes or 'of one'}; compiled in {self.compile_seconds:.0f} s"
    ]
    if self.peak is None:
      return [
        *lines,
        f"  does not fit: {self.said}",
        f"  memory of a chip: {_gib(self.arguments)} of arguments,"
        f" {_gib(self.temporaries)} temporary, of {_gib(self.capacity)}",
        *self._advice(),
      ]
    share = self.peak / self.capacity
    lines += [
      f"  memory of a chip: {_gib(self.arguments)} of arguments,"
      f" {_gib(self.temporaries)} temporary; {_gib(self.peak)} of"
      f" {_gib(self.capacity)} ({share:.0%})",
      f"  operations of a chip: {self.operations / 1e12:.1f} TFLOP compiled"
      + self._asked(),
    ]
    lines += [
      f"  messages, {name}: {size / 1e6:.1f} MB"
      for name, size in self.messages.items()
    ]
    times = ", ".join(f"{n} {s:.3f}" for n, s in self.seconds.items())
    lines.append(
      f"  seconds alone: {times}; bound by {self.bound},"
      f" {self.seconds[self.bound]:.3f} to {sum(self.seconds.values()):.3f} s"
    )
    return lines if self.fits else [*lines, *self._advice()]

  def _asked(self) -> str:
    if not self.model_operations:
      return ""
    asked = self.model_operations / 1e12
    return f", {asked:.1f} of the model: {self.ratio:.3f}"

  def _advice(self) -> list[str]:
    """The largest arrays, and what of the mesh and the settings would help."""
    listed = [f"    {_gib(size)} {name}" for name, size in self.largest.items()]
    split = math.prod(self.mesh.get(n, 1) for n in ("fsdp", "context"))
    helps = [
      "more devices along fsdp or context, which split weights and their states"
      if split < self.devices
      else "more devices, or more of these along context, which splits tokens"
    ]
    if self.program.startswith("training"):
      helps.append(
        "more parts, as long as each chip has more than one example of a part"
      )
      helps.append("remat=full, average_on_host")
    which = "arguments" if self.peak is None else "arrays"
    return [
      f"  the largest {which} of a chip:",
      *listed,
      f"  what helps: {'; '.join(helps)}",
    ]

  def plain(self) -> dict[str, Any]:
    """As what JSON holds, what is derived included."""
    return dataclasses.asdict(self) | {
      "fits": self.fits,
      "ratio": self.ratio,
      "bound": self.bound,
    }


def write(
  folder: pathlib.Path, name: str, reports: Sequence[Report]
) -> pathlib.Path:
  """Write reports as JSON to `aot_NAME.json`, and say where that is."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"aot_{name.replace(':', '_')}.json"
  text = json.dumps([each.plain() for each in reports], indent=2) + "\n"
  with files.replacing(path) as temporary:
    pathlib.Path(temporary).write_text(text, "utf-8")
  return path


def make(
  program: str,
  lowered: jax.stages.Lowered,
  given: Any,
  mesh: jax.sharding.Mesh,
  model_operations: float | None,
) -> Report:
  """Compile a program and account for it.

  Args:
    program: its name.
    lowered: for the devices of the mesh.
    given: its arguments, shapes with shardings.
    mesh: where it will run.
    model_operations: that the geometry asks for, all devices together; `None`
      if nobody counted them.

  Raises:
    ValueError: the kind of chip, or something in the program, is not known.
  """
  kind = mesh.devices.flat[0].device_kind
  chip = chips.CHIPS.get(kind)
  if chip is None:
    raise ValueError(f"nothing is known of {kind}; add it to ovi_jax/chips.py")
  arguments = _arguments(given)
  shared: dict[str, Any] = {
    "program": program,
    "device_kind": kind,
    "devices": mesh.size,
    "mesh": dict(mesh.shape),
    "capacity": int(chip.memory * chips.GIB),
    "model_operations": model_operations and model_operations / mesh.size,
  }
  if (alone := sum(arguments.values())) > shared["capacity"]:
    # No need to compile it to see that.
    said = f"its arguments alone are {_gib(alone)} of a chip"
    return _refused(shared, arguments, said, 0.0)
  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if _FULL not in str(error):
      raise
    return _refused(shared, arguments, str(error), time.perf_counter() - began)
  seconds = time.perf_counter() - began
  parsed = hlo.parse(compiled.as_text() or "")
  found = costs.of(parsed, functools.partial(_blocks, kind))
  memory: Any = compiled.memory_analysis()
  messages, exchange = _messages(found, mesh, chip)
  return Report(
    **shared,
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    peak=memory.peak_memory_in_bytes,
    operations=found.operations,
    traffic=found.traffic,
    messages=messages,
    seconds={
      "products": found.operations / (chip.tflops * 1e12),
      "memory": found.traffic / (chip.bandwidth * 1e9),
      "messages": exchange,
    },
    compile_seconds=seconds,
    largest=_first(arguments | _temporaries(parsed)),
  )


def _blocks(kind: str, queries: int, keys: int) -> tuple[int, int]:
  """Rows of a flash kernel's blocks."""
  return splash.blocks_of_filled(kind, queries, keys)


def _refused(
  shared: Mapping[str, Any],
  arguments: Mapping[str, int],
  said: str,
  seconds: float,
) -> Report:
  """The compiler found no room."""
  needs = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", said)
  whole = re.search(r"HLO temporaries \(([\d.]+)([KMG])\)", said)
  temporaries = {
    f"{shape} {name}": int(float(size) * _UNITS[unit])
    for size, unit, name, shape in re.findall(
      r"Size: ([\d.]+)([KMG])\s+(?:Operator: op_name=\"([^\"]*)\")?.*?"
      r"Shape: (\S+)",
      said,
      re.DOTALL,
    )
  }
  return Report(
    **shared,
    arguments=sum(arguments.values()),
    temporaries=int(float(whole[1]) * _UNITS[whole[2]]) if whole else 0,
    peak=None,
    operations=0.0,
    traffic=0.0,
    messages={},
    seconds={},
    compile_seconds=seconds,
    largest=_first(dict(arguments) | temporaries),
    said=needs[0] if needs else said.splitlines()[0],
  )


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def _gib(size: float) -> str:
  return f"{size / chips.GIB:.2f} GiB"


def _first(sizes: Mapping[str, int]) -> dict[str, int]:
  order = sorted(sizes, key=lambda name: -sizes[name])
  return {name: sizes[name] for name in order[:LISTED]}


def _arguments(given: Any) -> dict[str, int]:
  """Bytes of every argument on one device, by path."""
  sizes = {}
  for path, x in jax.tree_util.tree_leaves_with_path(given):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    local = x.sharding.shard_shape(x.shape)
    sizes[name] = math.prod(local) * x.dtype.itemsize
  return sizes


def _temporaries(program: hlo.Program) -> dict[str, int]:
  """The largest results in the program, by what made them."""
  sizes: dict[str, int] = {}
  for computation in program.computations.values():
    for each in computation.instructions:
      if each.opcode in ("parameter", "tuple", "while", "get-tuple-element"):
        continue
      named = re.search(r'op_name="([^"]*)"', each.text)
      if named and each.results and each.results[0].main:
        array = max(each.results, key=lambda a: a.bytes)
        shape = ",".join(map(str, array.shape))
        name = f"{array.dtype}[{shape}] {named[1]}"
        sizes[name] = max(sizes.get(name, 0), array.bytes)
  return sizes


def _messages(
  found: costs.Costs, mesh: jax.sharding.Mesh, chip: chips.Chip
) -> tuple[dict[str, float], float]:
  """Bytes by kind and axes, and the seconds that all of them take."""
  shape = dict(mesh.shape)
  sizes: dict[str, float] = {}
  seconds = 0.0
  places = links.places_of(mesh.devices.flat)
  for (kind, group), size in sorted(found.messages.items()):
    axes = groups.axes_of(group, shape)
    name = f"{kind} over {', '.join(axes)}"
    sizes[name] = sizes.get(name, 0.0) + size
    if places is not None:
      seconds += links.seconds(kind, size, places[list(group)], places, chip)
  return sizes, seconds
