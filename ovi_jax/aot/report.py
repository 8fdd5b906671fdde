"""Memory, FLOPs and collective traffic of a program, compiled ahead of time.

HBM sizes are the compiler's own. FLOPs, bytes accessed and collective bytes are
counted in the compiled program (`costs`). The roofline has the seconds that
compute, HBM and interconnect would each take at the chip's peak: a step takes
at least the longest of them and, without overlap, about their sum. Real
programs reach neither bound.
"""

import contextlib
import dataclasses
import json
import logging
import math
import re
import time
from collections.abc import Iterable
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from ovi_jax import files
from ovi_jax import hardware
from ovi_jax import storage
from ovi_jax.aot import collectives
from ovi_jax.aot import costs
from ovi_jax.aot import hlo

_log = logging.getLogger(__name__)
LISTED = 8  # largest arrays that are named
USUAL_MFU = 0.4  # model FLOP/s over peak; the best video DiTs reach 0.5 to 0.57
LIBRARIES = ("jax", "jaxlib", "libtpu")
_FULL = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """One program on one topology; sizes and FLOPs are of one chip.

  Attributes:
    program: its name.
    device_kind: the chip.
    num_devices: chips that run it.
    mesh: sizes of the mesh axes.
    argument_size: bytes of parameters, states and inputs.
    temp_size: bytes of temporaries.
    peak_memory: most bytes in use at once; `None` if it did not compile.
    hbm_capacity: bytes of HBM.
    model_flops: by the model's sizes; `None` if not counted.
    compiled_flops: matrix FLOPs of the compiled program.
    bytes_accessed: read from and written to HBM.
    collective_bytes: sent, by kind of collective and mesh axes.
    async_bytes: those of `collective_bytes` that computation overlaps.
    collective_counts: executed collectives, "sync" and "async".
    roofline_seconds: of "compute", "hbm" and "ici", each alone at peak.
    exposed_ici_seconds: of synchronous collectives, at peak.
    mfu_seconds: at `USUAL_MFU`; `None` if `model_flops` is not counted.
    flags: of the compiler, of the profile.
    versions: of the libraries that compiled it.
    compile_time: seconds, on this machine.
    largest_arrays: bytes by name, largest first.
    error: the compiler's message, if it refused.
  """

  program: str
  device_kind: str
  num_devices: int
  mesh: Mapping[str, int]
  argument_size: int
  temp_size: int
  peak_memory: int | None = None
  hbm_capacity: int
  model_flops: float | None
  compiled_flops: float = 0.0
  bytes_accessed: float = 0.0
  collective_bytes: Mapping[str, float] = dataclasses.field(
    default_factory=dict
  )
  async_bytes: Mapping[str, float] = dataclasses.field(default_factory=dict)
  collective_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  roofline_seconds: Mapping[str, float] = dataclasses.field(
    default_factory=dict
  )
  exposed_ici_seconds: float = 0.0
  mfu_seconds: float | None = None
  flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  compile_time: float
  largest_arrays: Mapping[str, int]
  error: str = ""

  @property
  def fits(self) -> bool:
    return (
      self.peak_memory is not None and self.peak_memory <= self.hbm_capacity
    )

  @property
  def flops_ratio(self) -> float | None:
    """Compiled FLOPs over model FLOPs."""
    if not self.model_flops or self.peak_memory is None:
      return None
    return self.compiled_flops / self.model_flops

  @property
  def bound_by(self) -> str:
    """The longest of the roofline; "" of a program that was refused."""
    return max(
      self.roofline_seconds,
      key=lambda name: self.roofline_seconds[name],
      default="",
    )

  def lines(self) -> list[str]:
    """The report as text."""
    axes = " x ".join(f"{n} {s}" for n, s in self.mesh.items() if s > 1)
    lines = [
      f"{self.program}: {self.num_devices} x {self.device_kind}, mesh"
      f" {axes or 'of one'}; compiled in {self.compile_time:.0f} s"
    ]
    if self.peak_memory is None:
      return [
        *lines,
        f"  does not fit: {self.error}",
        f"  HBM of a chip: {_gib(self.argument_size)} of arguments,"
        f" {_gib(self.temp_size)} of temporaries, of {_gib(self.hbm_capacity)}",
        *self._advice(),
      ]
    share = self.peak_memory / self.hbm_capacity
    lines += [
      f"  HBM of a chip: {_gib(self.argument_size)} of arguments,"
      f" {_gib(self.temp_size)} of temporaries; peak"
      f" {_gib(self.peak_memory)} of {_gib(self.hbm_capacity)} ({share:.0%})",
      f"  compute of a chip: {self.compiled_flops / 1e12:.1f} TFLOP compiled"
      + self._model_flops(),
    ]
    lines += [
      f"  collectives, {name}: {size / 1e6:.1f} MB"
      f" ({self.async_bytes.get(name, 0.0) / size:.0%} asynchronous)"
      for name, size in self.collective_bytes.items()
    ]
    if self.collective_counts:
      lines.append(
        f"  collectives of a step: {self.collective_counts['sync']} synchronous"
        f" ({self.exposed_ici_seconds:.3f} s exposed, at peak),"
        f" {self.collective_counts['async']} asynchronous"
      )
    times = ", ".join(f"{n} {s:.3f}" for n, s in self.roofline_seconds.items())
    longest, total = (f(self.roofline_seconds.values()) for f in (max, sum))
    lines.append(
      f"  seconds at peak (roofline): {times}; bound by {self.bound_by},"
      f" {longest:.3f} to {total:.3f} s"
    )
    if self.mfu_seconds:
      lines.append(
        f"  seconds at {USUAL_MFU:.0%} MFU: {self.mfu_seconds:.3f}; no program"
        " reaches the roofline"
      )
    return lines if self.fits else [*lines, *self._advice()]

  def _model_flops(self) -> str:
    if not self.model_flops:
      return ""
    model = self.model_flops / 1e12
    return f", {model:.1f} by the model's sizes: ratio {self.flops_ratio:.3f}"

  def _advice(self) -> list[str]:
    """The largest arrays, and changes of mesh and settings that save memory."""
    listed = [
      f"    {_gib(size)} {name}" for name, size in self.largest_arrays.items()
    ]
    split = math.prod(self.mesh.get(n, 1) for n in ("fsdp", "context"))
    helps = [
      "more devices along fsdp or context, which shard weights and their states"
      if split < self.num_devices
      else "more devices, or more of these along context, which shards tokens"
    ]
    if self.program.startswith("training"):
      helps.append(
        "a larger grad_accum_steps, while a chip has more than one example of a"
        " microbatch"
      )
      helps.append("remat=full, ema_on_host")
    which = "arguments" if self.peak_memory is None else "arrays"
    return [
      f"  the largest {which} of a chip:",
      *listed,
      f"  to save memory: {'; '.join(helps)}",
    ]

  def plain(self) -> dict[str, Any]:
    """The report as JSON values, derived ones included."""
    return dataclasses.asdict(self) | {
      "fits": self.fits,
      "flops_ratio": self.flops_ratio,
      "bound_by": self.bound_by,
    }


def publish(
  folder: storage.AnyPath, name: str, reports: Iterable[Report]
) -> bool:
  """Log reports as they come, and write them as JSON to `aot_NAME.json`.

  Returns:
    Whether all programs fit.
  """
  made = []
  for each in reports:
    for line in each.lines():
      _log.info(line)
    made.append(each)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"aot_{name.replace(':', '_')}.json"
  text = json.dumps([each.plain() for each in made], indent=2) + "\n"
  with files.atomic_path(path) as temporary:
    temporary.write_text(text, "utf-8")
  _log.info(f"wrote {path}")
  return all(each.fits for each in made)


def compile_and_report(
  program: str,
  lowered: jax.stages.Lowered,
  arguments: Any,
  mesh: jax.sharding.Mesh,
  model_flops: float | None,
  flags: Mapping[str, str] | None = None,
) -> Report:
  """Compile a program and report what it needs.

  Args:
    program: its name.
    lowered: for the devices of the mesh.
    arguments: shapes with shardings.
    mesh: the devices.
    model_flops: over all devices; `None` if not counted.
    flags: of the compiler, as they are in the environment.

  Raises:
    ValueError: the kind of chip, or an instruction of the program, is unknown.
  """
  kind = mesh.devices.flat[0].device_kind
  chip = hardware.CHIPS.get(kind)
  if chip is None:
    raise ValueError(
      f"device kind {kind!r} is unknown; add its peak numbers to"
      " ovi_jax/hardware.py"
    )
  sizes = _argument_sizes(arguments)
  shared: dict[str, Any] = {
    "program": program,
    "device_kind": kind,
    "num_devices": mesh.size,
    "mesh": dict(mesh.shape),
    "hbm_capacity": int(chip.hbm_gib * hardware.GIB),
    "model_flops": model_flops and model_flops / mesh.size,
    "flags": dict(flags or {}),
    "versions": _versions(),
  }
  if model_flops:
    work = shared["model_flops"] / (chip.peak_tflops * 1e12)
    shared["mfu_seconds"] = work / USUAL_MFU
  if (alone := sum(sizes.values())) > shared["hbm_capacity"]:
    # It need not be compiled to see that it does not fit.
    said = f"its arguments alone are {_gib(alone)} of a chip"
    return _refused(shared, sizes, said, 0.0)
  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if _FULL not in str(error):
      raise
    return _refused(shared, sizes, str(error), time.perf_counter() - began)
  seconds = time.perf_counter() - began
  parsed = hlo.parse(compiled.as_text() or "")
  found = costs.count(parsed)
  memory: Any = compiled.memory_analysis()
  sent, ici_seconds = _collective_bytes(found.collective_bytes, mesh, chip)
  overlapped, hidden_seconds = _collective_bytes(found.async_bytes, mesh, chip)
  return Report(
    **shared,
    argument_size=memory.argument_size_in_bytes,
    temp_size=memory.temp_size_in_bytes,
    peak_memory=memory.peak_memory_in_bytes,
    compiled_flops=found.flops,
    bytes_accessed=found.bytes_accessed,
    collective_bytes=sent,
    async_bytes=overlapped,
    collective_counts={
      "sync": round(found.sync_count),
      "async": round(found.async_count),
    },
    exposed_ici_seconds=ici_seconds - hidden_seconds,
    roofline_seconds={
      "compute": found.flops / (chip.peak_tflops * 1e12),
      "hbm": found.bytes_accessed / (chip.hbm_bandwidth * 1e9),
      "ici": ici_seconds,
    },
    compile_time=seconds,
    largest_arrays=_first(sizes | _temp_arrays(parsed)),
  )


def _refused(
  shared: Mapping[str, Any],
  arguments: Mapping[str, int],
  said: str,
  seconds: float,
) -> Report:
  """The report of a program that does not fit."""
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
    argument_size=sum(arguments.values()),
    temp_size=int(float(whole[1]) * _UNITS[whole[2]]) if whole else 0,
    compile_time=seconds,
    largest_arrays=_first(dict(arguments) | temporaries),
    error=needs[0] if needs else said.splitlines()[0],
  )


def _versions() -> dict[str, str]:
  """Of the libraries that are installed."""
  found = {}
  for name in LIBRARIES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[name] = metadata.version(name)
  return found


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def _gib(size: float) -> str:
  return f"{size / hardware.GIB:.2f} GiB"


def _first(sizes: Mapping[str, int]) -> dict[str, int]:
  order = sorted(sizes, key=lambda name: -sizes[name])
  return {name: sizes[name] for name in order[:LISTED]}


def _argument_sizes(arguments: Any) -> dict[str, int]:
  """Bytes of every argument on one device, by path."""
  sizes = {}
  for path, x in jax.tree_util.tree_leaves_with_path(arguments):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    local = x.sharding.shard_shape(x.shape)
    sizes[name] = math.prod(local) * x.dtype.itemsize
  return sizes


def _temp_arrays(program: hlo.Program) -> dict[str, int]:
  """The largest temporaries, by the operation that produces them."""
  sizes: dict[str, int] = {}
  for computation in program.computations.values():
    for each in computation.instructions:
      if each.opcode in ("parameter", "tuple", "while", "get-tuple-element"):
        continue
      named = re.search(r'op_name="([^"]*)"', each.text)
      if named and each.results and each.results[0].in_hbm:
        array = max(each.results, key=lambda a: a.bytes)
        shape = ",".join(map(str, array.shape))
        name = f"{array.dtype}[{shape}] {named[1]}"
        sizes[name] = max(sizes.get(name, 0), array.bytes)
  return sizes


def _collective_bytes(
  found: Mapping[tuple[str, tuple[int, ...]], float],
  mesh: jax.sharding.Mesh,
  chip: hardware.Chip,
) -> tuple[dict[str, float], float]:
  """Bytes by kind and mesh axes, and the seconds of all of them."""
  shape = dict(mesh.shape)
  sizes: dict[str, float] = {}
  seconds = 0.0
  places = collectives.coordinates(mesh.devices.flat)
  for (kind, group), size in sorted(found.items()):
    axes = collectives.mesh_axes(group, shape)
    name = f"{kind} over {', '.join(axes)}"
    sizes[name] = sizes.get(name, 0.0) + size
    if places is not None:
      seconds += collectives.transfer_seconds(
        kind, size, places[list(group)], places, chip
      )
  return sizes, seconds
