"""AOT reports on full-size training and sampling, compiled without a TPU.

  pip install -e '.[aot]'
  python -m benchmarks.scaling [--only=NAME,…] [--dry_run]

Runs the commands below (minutes each on two cores), keeps their reports in
`benchmarks/results/scaling/NAME.json`, and writes the tables of all reports
into `docs/explanation/scaling.md` and, of variations, `docs/lab_notebook.md`,
between their markers. Existing reports are reused; delete one to remake it.
`NAME_tried` is a variation of the case NAME.
"""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import flags

from configs import fusion
from ovi_jax import cli
from ovi_jax import files
from ovi_jax import flag_profiles
from ovi_jax import hardware
from ovi_jax.aot import report

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results" / "scaling"
DOCS = HERE.parent / "docs"
# Document -> the tables in it.
DOCUMENTS: Mapping[pathlib.Path, Sequence[str]] = {
  DOCS / "explanation" / "scaling.md": (
    "reports",
    "bound",
    "collectives",
    "days",
    "commands",
  ),
  DOCS / "lab_notebook.md": ("tried",),
}
STEPS = 50  # of a sampled clip
TRAIN_STEPS: Any = fusion.get_config().num_train_steps
GIB = 2**30


def _train(topology: str, **changes: Any) -> tuple[str, ...]:
  words = ["train.py", "--config=configs/fusion.py", f"--aot={topology}"]
  words += [f"--config.{n.replace('__', '.')}={v}" for n, v in changes.items()]
  return tuple(words)


def _sample(
  topology: str, variant: str, attention: str = "", **mesh: int
) -> tuple[str, ...]:
  size = 704 if variant == "720x720_5s" else 960
  words = ["sample.py", f"--aot={topology}", f"--config.variant={variant}"]
  words += [f"--config.height={size}", f"--config.width={size}"]
  words += [f"--config.mesh.{axis}={count}" for axis, count in mesh.items()]
  words += [f"--config.context_parallelism={attention}"] if attention else []
  return tuple(words)


def _lora(topology: str, devices: str = "", **changes: Any) -> tuple[str, ...]:
  """A LoRA of 720x720_5s with the settings of `configs/lora.py`."""
  named = ":".join(["configs/lora.py", "720x720_5s", *filter(None, [devices])])
  _, _, *rest = _train(topology, **changes)
  return ("train.py", f"--config={named}", *rest)


# All weights and a clip at a time on each chip, as on one GPU.
ALONE = {
  "batch_size": 32,
  "grad_accum_steps": 8,
  "mesh__data": 4,
  "mesh__fsdp": 1,
  "remat": "full",
}
BATCH_768 = {"remat": "attention"}  # the batch of the config, and the paper's
SAVE_ALL = "attention+projections+mlp"
TRIED = "_tried"
OLDER = " †"
# Name -> command.
CASES: Mapping[str, Sequence[str]] = {
  "train_v5p_64": (
    *_train(
      "v5p:4x4x4",
      grad_accum_steps=12,
      mesh__fsdp=64,
      remat=SAVE_ALL,
    ),
    "--flags_profile=v5p",
  ),
  "train_v5p_512": (
    *_train(
      "v5p:8x8x8",
      grad_accum_steps=3,
      mesh__fsdp=256,
      mesh__context=2,
      remat=SAVE_ALL,
    ),
    "--flags_profile=v5p",
  ),
  "train_v6e_256": (
    *_train(
      "v6e:16x16",
      grad_accum_steps=6,
      mesh__fsdp=128,
      mesh__context=2,
      remat=SAVE_ALL,
    ),
    "--flags_profile=v6e",
  ),
  "train_v5e_256": (
    *_train(
      "v5e:16x16",
      grad_accum_steps=6,
      mesh__fsdp=128,
      mesh__context=2,
      remat="attention+mlp",
    ),
    "--flags_profile=v5e",
  ),
  "sample_720_v5p_4": _sample("v5p:2x2x1", "720x720_5s"),
  "sample_960_v5p_4": _sample("v5p:2x2x1", "960x960_10s"),
  "sample_720_v6e_8": _sample("v6e:2x4", "720x720_5s"),
  "sample_960_v6e_8": _sample("v6e:2x4", "960x960_10s"),
  "sample_720_v5e_16": _sample("v5e:4x4", "720x720_5s"),
  "sample_960_v5e_16": _sample("v5e:4x4", "960x960_10s"),
  "sample_720_v6e_1": _sample("v6e:1x1", "720x720_5s"),
  "sample_960_v6e_1": _sample("v6e:1x1", "960x960_10s"),
  "sample_720_v6e_1_int8": (
    *_sample("v6e:1x1", "720x720_5s"),
    "--aot_quantize=int8",
  ),
  "lora_720_v6e_8": _lora("v6e:2x4", "v6e-8"),
  "lora_720_v5p_1": _lora("v5p:2x2x1", **ALONE),
  "lora_720_v5p_1_int8": (
    *_lora("v5p:2x2x1", **ALONE),
    "--aot_quantize=int8",
  ),
  # Only attention is saved, and no flags are set.
  "train_v5p_64_tried": _train(
    "v5p:4x4x4", grad_accum_steps=12, mesh__fsdp=64, **BATCH_768
  ),
  # Tensor parallelism instead of context parallelism.
  "train_v5p_512_tried": _train(
    "v5p:8x8x8", grad_accum_steps=3, mesh__fsdp=256, mesh__tensor=2, **BATCH_768
  ),
  # Everything in a block is rematerialized.
  "train_v6e_256_tried": _train(
    "v6e:16x16", grad_accum_steps=3, mesh__fsdp=256, remat="full"
  ),
  # A whole example on each chip.
  "train_v5e_256_tried": _train(
    "v5e:16x16", grad_accum_steps=3, mesh__fsdp=256, **BATCH_768
  ),
  # Both passes of guidance on all chips.
  "sample_720_v5p_4_tried": _sample(
    "v5p:2x2x1", "720x720_5s", data=1, context=4
  ),
  # Ring attention.
  "sample_960_v5p_4_tried": _sample(
    "v5p:2x2x1", "960x960_10s", attention="ring"
  ),
  "sample_720_v6e_8_tried": _sample("v6e:2x4", "720x720_5s", data=1, context=8),
  # Tensor parallelism instead of context parallelism.
  "sample_960_v6e_8_tried": _sample("v6e:2x4", "960x960_10s", data=2, tensor=4),
  "sample_720_v5e_16_tried": _sample(
    "v5e:4x4", "720x720_5s", data=2, fsdp=2, context=4
  ),
  "sample_960_v5e_16_tried": _sample(
    "v5e:4x4", "960x960_10s", attention="ring"
  ),
}


def with_folder(words: Sequence[str], folder: str) -> list[str]:
  """A command that writes its report to a folder."""
  flag = "--workdir" if words[0] == "train.py" else "--out"
  return [*words, f"{flag}={folder}"]


def printed(name: str) -> str:
  """A case as it can be run by hand."""
  return f"{name}: python {shlex.join(with_folder(CASES[name], 'reports'))}"


def run(name: str, words: Sequence[str]) -> None:
  """Run a command and keep its report.

  Raises:
    ValueError: it left none.
  """
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
      [sys.executable, *with_folder(words, folder)],
      cwd=HERE.parent,
      check=False,
    )
    made = sorted(pathlib.Path(folder).glob("aot_*.json"))
    if not made:
      raise ValueError(f"{name} left no report, exit code {done.returncode}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(made[0], RESULTS / f"{name}.json")


def table(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """A row a command: its first program, and the seconds of a clip.

  Rows whose report names no library versions are marked: older versions of
  this package compiled them.
  """
  lines = [
    "| | chips, mesh | GiB of a chip | FLOPs, compiled / model | seconds of"
    " compute, HBM, ICI (exposed) | of a step | at 40 % MFU | of a clip |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for name, programs in reports.items():
    first = programs[0]
    axes = " x ".join(f"{n} {s}" for n, s in first["mesh"].items() if s > 1)
    kind = first["device_kind"]
    mark = "" if first.get("versions") else OLDER
    row = [name + mark, f"{first['num_devices']} {kind}, {axes or 'one'}"]
    if first["peak_memory"] is None:
      row += [f"does not fit: {first['error']}", *[""] * 5]
    else:
      share = first["peak_memory"] / first["hbm_capacity"]
      low, high = _seconds(first)
      row += [
        f"{first['peak_memory'] / GIB:.1f}, {share:.0%}",
        f"{first['flops_ratio']:.3f}",
        _roofline(first),
        f"{low:.2f} to {high:.2f}",
        f"{_mfu_seconds(first):.2f}",
        _clip(programs),
      ]
    lines.append("| " + " | ".join(row) + " |")
  return "\n".join(lines) + "\n"


def bound(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """What the first programs are bound by, as a sentence."""
  others = []
  for name, (first, *_) in reports.items():
    if first["peak_memory"] is None or first["bound_by"] == "compute":
      continue
    times = first["roofline_seconds"]
    others.append(
      f"`{name}` ({first['bound_by'].upper()} {times[first['bound_by']]:.2f},"
      f" compute {times['compute']:.2f} s)"
    )
  text = "At peak, all rows are bound by compute"
  return text + (f", except {', '.join(others)}.\n" if others else ".\n")


def collectives(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """A row for each first program that says which collectives overlap."""
  lines = [
    "| | flags profile | GB sent by a chip, synchronous, asynchronous |"
    " all-gather | all-reduce | reduce-scatter | all-to-all | collectives,"
    " synchronous, asynchronous | exposed ICI seconds |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for name, (first, *_) in reports.items():
    if not first.get("collective_counts") or not first["collective_bytes"]:
      continue
    sent, hidden = first["collective_bytes"], first["async_bytes"]
    kinds = ("", "all-gather", "all-reduce", "reduce-scatter", "all-to-all")
    counts = first["collective_counts"]
    row = [
      name,
      _profile(first),
      *(_gigabytes(sent, hidden, kind) for kind in kinds),
      f"{counts['sync']:,}, {counts['async']:,}",
      f"{first['exposed_ici_seconds']:.2f} of"
      f" {first['roofline_seconds']['ici']:.2f}",
    ]
    lines.append("| " + " | ".join(row) + " |")
  return "\n".join(lines) + "\n"


def _gigabytes(
  sent: Mapping[str, float], hidden: Mapping[str, float], kind: str
) -> str:
  """Of a kind of collective, or of all: synchronous and asynchronous."""
  total, overlapped = (
    sum(size for name, size in sizes.items() if name.startswith(kind)) / 1e9
    for sizes in (sent, hidden)
  )
  return f"{total - overlapped:.1f}, {overlapped:.1f}"


def _profile(program: Mapping[str, Any]) -> str:
  """The profile whose flags a program was compiled with."""
  found = [
    row["profile"]
    for row in flag_profiles.table()
    if row["flags"] == program["flags"]
    and row["device_kind"] == program["device_kind"]
  ]
  return found[0] if found else flag_profiles.NONE


def days(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """A row for each training step of the config's batch: time of all steps."""
  lines = [
    f"| | chips | days for {TRAIN_STEPS:,} steps at"
    f" {100 * report.USUAL_MFU:.0f} % MFU (estimate) | chip-hours |",
    "|---|---|---|---|",
  ]
  for name, (first, *_) in reports.items():
    if not name.startswith("train_") or first["peak_memory"] is None:
      continue
    hours = TRAIN_STEPS * _mfu_seconds(first) / 3600
    chips = first["num_devices"]
    row = [name, f"{chips} {first['device_kind']}"]
    row += [f"{hours / 24:.1f}", f"{hours * chips:,.0f}"]
    lines.append("| " + " | ".join(row) + " |")
  return "\n".join(lines) + "\n"


def _roofline(program: Mapping[str, Any]) -> str:
  times = program["roofline_seconds"]
  exposed = program.get("exposed_ici_seconds", times["ici"])
  texts = [f"{times[n]:.2f}" for n in ("compute", "hbm", "ici")]
  return f"{', '.join(texts)} ({exposed:.2f})"


def _mfu_seconds(program: Mapping[str, Any]) -> float:
  peak = hardware.CHIPS[program["device_kind"]].peak_tflops * 1e12
  return program["model_flops"] / (report.USUAL_MFU * peak)


def _seconds(program: Mapping[str, Any]) -> tuple[float, float]:
  """If everything overlaps, and if nothing does."""
  each = program["roofline_seconds"].values()
  return max(each), sum(each)


def _clip(programs: Sequence[Mapping[str, Any]]) -> str:
  """Seconds of a clip: all steps, and the decoding of every latent frame."""
  if len(programs) < 2:
    return ""
  steps, decoding = (_seconds(p) for p in programs[:2])
  (frames,) = re.findall(r"\b(\d+) latent frames", programs[0]["program"])
  low, high = (STEPS * s + int(frames) * d for s, d in zip(steps, decoding))
  return f"{low:.0f} to {high:.0f}"


def filled(text: str, parts: Mapping[str, str]) -> str:
  """A document with parts put between `<!-- NAME -->` and `<!-- /NAME -->`.

  Raises:
    ValueError: it does not have just one pair of these marks for each.
  """
  for name, part in parts.items():
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1:
      raise ValueError(f"expected one {begin.strip()} and one {end.strip()}")
    before, rest = text.split(begin)
    text = before + begin + part + end + rest.split(end)[1]
  return text


FLAGS = flags.FLAGS


def main() -> None:
  chosen = FLAGS.only or list(CASES)
  if unknown := [name for name in chosen if name not in CASES]:
    raise ValueError(f"no case {unknown}; choose from {', '.join(CASES)}")
  for name in chosen:
    print(printed(name), flush=True)
    if not FLAGS.dry_run and not (RESULTS / f"{name}.json").exists():
      run(name, CASES[name])
  if FLAGS.dry_run:
    return
  found = {
    name: json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    for name in CASES
    if (RESULTS / f"{name}.json").exists()
  }
  chosen, tried = (
    {n: r for n, r in found.items() if n.endswith(TRIED) == wanted}
    for wanted in (False, True)
  )
  commands = [printed(name) for name in found]
  parts = {
    "reports": table(chosen),
    "bound": bound(chosen),
    "collectives": collectives(chosen),
    "days": days(chosen),
    "tried": table(tried),
    "commands": "\n".join(["```", *commands, "```", ""]),
  }
  for document, names in DOCUMENTS.items():
    own = {name: parts[name] for name in names}
    with files.atomic_path(document) as temporary:
      temporary.write_text(filled(document.read_text("utf-8"), own), "utf-8")
  print(parts["reports"], parts["tried"], sep="\n", end="")


if __name__ == "__main__":
  flags.DEFINE_list("only", [], "Cases to run; all by default.")
  flags.DEFINE_bool("dry_run", False, "Print the commands only.")
  cli.run(main)
