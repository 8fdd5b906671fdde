"""8-bit weights of the small Ovi: errors, sizes, memory and scores.

  python -m benchmarks.eight_bit [--count=32] [--out=benchmarks/results]

The shipped weights are exported as a release and converted with `--quantize`.
Velocities of one pass of the DiT, and latents of 8 guided steps (with the text
encoder of the same weights), are compared with those of the shipped weights in
float32. Sizes are of the files, and of the released model by its shapes. Memory
is what the resident set grows by when a random DiT of 0.23 B parameters is
loaded in bfloat16 on the CPU. Clips of `--count` new prompts of the synthetic
world are sampled from the int8 weights; their scores stand beside those of the
model card, of 96 new prompts and the shipped weights.
"""

import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ovi_jax
from benchmarks import machine
from ovi_jax import cli
from ovi_jax import synthetic
from ovi_jax.convert import convert
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import dit
from ovi_jax.models import quantized
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.training import param_filter
from scripts.small_ovi import card

PROMPTS = (
  "A red ball bounces on a wooden floor. Audio: dull wooden knocks.",
  "A blue lamp flashes three times. Audio: three low beeps.",
  "A face with a green hat says <S>ah oh ee<E>. Audio: a low voice.",
  "A big yellow ball bounces on a rubber mat. Audio: soft rubber thuds.",
)
SHIPPED = "bfloat16"  # the dtype of the shipped weights
STORED = (SHIPPED, *quantized.DTYPES)
COMPUTED = ("float32", "bfloat16")
_T = 500.0  # noise time of the single pass
_STEPS = 8
# A DiT whose loading is seen in the resident set.
_TOWER: Mapping[str, Any] = {
  "hidden_dim": 1024,
  "num_layers": 4,
  "num_heads": 8,
  "mlp_dim": 4096,
  "text_dim": 1024,
  "max_text_len": 64,
}
LARGE = AV(
  dit.DiTConfig(channels=16, **_TOWER),
  dit.DiTConfig(channels=20, patch=(1,), **_TOWER),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Errors:
  """Root mean squares of differences over those of the reference.

  Attributes:
    stored: dtype of the kernels.
    computed: compute dtype.
    one_pass: of the velocities of video and sound.
    guided_steps: of the latents after all steps.
  """

  stored: str
  computed: str
  one_pass: AV[float]
  guided_steps: AV[float]


def write_weights(kind: str, out: pathlib.Path) -> None:
  """Write the shipped weights with kernels of 8 bits; others are linked."""
  source = synthetic.WEIGHTS
  manifest = weights_dir.manifest_of(source)
  with tempfile.TemporaryDirectory() as folder:
    release = pathlib.Path(folder) / "release"
    convert.export(source, release, quantized.COMPONENTS)
    made = convert.convert(
      release,
      out,
      variant=None,
      sizes=manifest.sizes,
      components=quantized.COMPONENTS,
      quantize=kind,
    )
  others = [c for c in manifest.digests if c in architecture.COMPONENTS]
  others = [c for c in others if c not in quantized.COMPONENTS]
  weights_dir.link(source, out, others)
  digests = {**manifest.digests, **made.digests}
  dataclasses.replace(manifest, digests=digests).save(out)


def outputs(
  folder: pathlib.Path, dtype: str, text_BSE: np.ndarray | None
) -> tuple[np.ndarray, AV[np.ndarray], AV[np.ndarray]]:
  """Text embedding, velocities of one pass, latents of guided steps.

  Args:
    folder: of the weights.
    dtype: compute dtype.
    text_BSE: that the pass is given; by default that of these weights.
  """
  pipe = ovi_jax.Pipeline.from_pretrained(folder, dtype=dtype)
  components = pipe.components
  if text_BSE is None:
    encoder = encoders.TextEncoder.load(components)
    text_BSE = np.asarray(encoder.texts(PROMPTS[:1])[PROMPTS[0]])[None]
  denoiser, clip = components.denoiser(), components.arch.clip
  assert clip is not None
  random = np.random.default_rng(0)
  grid = clip.latent_frames, clip.latent_height, clip.latent_width
  shapes = AV(
    (*grid, components.channels.video),
    (clip.audio_latents, components.channels.audio),
  )
  x = AV(*(random.standard_normal((4, *s), np.float32) for s in shapes))
  text = np.repeat(np.asarray(text_BSE, np.float32), 4, 0)
  with components.computing():
    velocity: Any = jax.jit(denoiser.model.apply)(
      {"params": denoiser.params},
      jax.tree.map(jnp.asarray, x),
      AV(*(jnp.full((4, 1), _T) for _ in shapes)),
      AV(text, text),
    )
  clips = pipe(list(PROMPTS), seed=1, num_steps=_STEPS, progress=False)
  latents = AV(*(np.stack(part) for part in zip(*(c.latents for c in clips))))
  return text_BSE, jax.tree.map(np.asarray, velocity), latents


def rms_error(found: AV[Any], reference: AV[Any]) -> AV[float]:
  """Root mean square of the difference over that of the reference."""

  def one(ours: Any, theirs: Any) -> float:
    ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs))
    return math.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))

  return AV(*map(one, found, reference))


def errors(folders: Mapping[str, pathlib.Path]) -> list[Errors]:
  """Errors of all weights and compute dtypes; the first is the reference."""
  found: list[Errors] = []
  text = reference = None
  for stored, folder in folders.items():
    for computed in COMPUTED:
      text, *made = outputs(folder, computed, text)
      reference = reference or made
      one_pass, guided = map(rms_error, made, reference)
      found.append(
        Errors(
          stored=stored,
          computed=computed,
          one_pass=one_pass,
          guided_steps=guided,
        )
      )
      print(found[-1], flush=True)
  return found


def released_bytes(kind: str) -> dict[str, int]:
  """Bytes of the released DiT and text encoder."""
  arch = architecture.Architecture.from_release(architecture.released_sizes())
  return {
    component: _bytes(_shapes(component, arch.config(component), kind))
    for component in quantized.COMPONENTS
  }


def _shapes(
  component: str, config: Any, kind: str
) -> dict[str, jax.ShapeDtypeStruct]:
  tree = architecture.parameter_shapes(component, config)
  shapes = {
    path: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    for path, x in param_filter.flat(tree).items()
  }
  if kind == SHIPPED:
    return shapes
  return quantized.with_scales(shapes, quantized.DTYPES[kind])


def _bytes(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes.values())


def resident_bytes(kind: str) -> int:
  """What the resident set grows by when `LARGE` is loaded in bfloat16."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "fusion.safetensors"
    shapes = _shapes("fusion", LARGE, kind)
    noise = np.random.default_rng(0).standard_normal(2**20, np.float32)
    with weights.Writer(path, shapes) as writer:
      for name, x in shapes.items():
        writer.write(name, None, np.resize(noise, x.shape).astype(x.dtype))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
      return pool.apply(_growth, (str(path),))


def _growth(path: str) -> int:
  jnp.zeros(1).block_until_ready()
  before = _resident()
  params = weights.load(path, dtype=jnp.bfloat16)
  jax.block_until_ready(params)
  return _resident() - before


def _resident() -> int:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def scores(folder: pathlib.Path, count: int, out: pathlib.Path) -> Any:
  """Scores of clips of new prompts, by the evaluation."""
  evaluation = "ovi_jax.synthetic.evaluation"
  prompts, clips, table = (out / n for n in ("prompts.csv", "clips", "scores"))
  given = f"--count={count}", "--seed=1000", f"--out={prompts}"
  _run("-m", evaluation, "prompts", *given, "--trained=1:5000,3:2500:two_balls")
  given = f"--prompts={prompts}", f"--out={clips}", "--config.dtype=float32"
  _run("sample.py", f"--weights={folder}", *given)
  _run("-m", evaluation, f"--clips={clips}", f"--out={table}")
  return json.loads(table.read_text("utf-8"))["scores"]


def card_scores() -> dict[str, str]:
  """The column of new prompts of the model card, by score."""
  text = (synthetic.WEIGHTS / card.CARD).read_text("utf-8")
  rows = [line.strip("|").split("|") for line in text.splitlines()]
  return {row[0].strip(): row[2].strip() for row in rows if len(row) == 4}


def _run(*words: str) -> None:
  subprocess.run([sys.executable, *words], cwd=machine.ROOT, check=True)


def measure(folders: Mapping[str, pathlib.Path]) -> dict[str, Any]:
  """All results but scores, as JSON values."""
  return {
    "errors": [
      dataclasses.asdict(each)
      | {
        "one_pass": each.one_pass._asdict(),
        "guided_steps": each.guided_steps._asdict(),
      }
      for each in errors(folders)
    ],
    "file_bytes": {
      kind: {
        component: weights_dir.component_file(path, component).stat().st_size
        for component in quantized.COMPONENTS
      }
      for kind, path in folders.items()
    },
    "released_bytes": {kind: released_bytes(kind) for kind in STORED},
    "resident_bytes": {kind: resident_bytes(kind) for kind in STORED},
    "scores": [],
    "machine": machine.describe(),
  }


def markdown(found: Mapping[str, Any]) -> str:
  """The results as tables."""
  lines = [
    "# 8-bit weights of the small Ovi",
    "",
    "Error: root mean square of the difference from the shipped weights in",
    "float32, over that of the reference; video, sound.",
    "",
    "| kernels | compute dtype | one pass of the DiT | 8 guided steps |",
    "|---|---|---|---|",
  ]
  for each in found["errors"]:
    cells = [
      ", ".join(f"{100 * each[name][m]:.2f} %" for m in ("video", "audio"))
      for name in ("one_pass", "guided_steps")
    ]
    row = [each["stored"], each["computed"], *cells]
    lines.append("| " + " | ".join(row) + " |")
  lines += [
    "",
    "| kernels | DiT, text encoder, MB on disk | released, GB | resident, MB |",
    "|---|---|---|---|",
  ]
  for kind, sizes in found["file_bytes"].items():
    row = [
      kind,
      ", ".join(f"{size / 1e6:.2f}" for size in sizes.values()),
      ", ".join(
        f"{s / 1e9:.2f}" for s in found["released_bytes"][kind].values()
      ),
      f"{found['resident_bytes'][kind] / 1e6:.0f}",
    ]
    lines.append("| " + " | ".join(row) + " |")
  lines += [
    "",
    "Resident: a random DiT of 0.23 B parameters, loaded in bfloat16.",
    "",
    "Scores of new prompts, with 95 % intervals:",
    "",
    "| score | model card | int8, computed in float32 |",
    "|---|---|---|",
  ]
  known = card_scores()
  for each in found["scores"]:
    if each["name"] in known and each["clips"]:
      value, low, high = (100 * each[n] for n in ("value", "low", "high"))
      cell = f"{value:.1f} % ({low:.0f} to {high:.0f})"
      lines.append(f"| {each['name']} | {known[each['name']]} | {cell} |")
  return "\n".join(
    [*lines, "", "Command: `python -m benchmarks.eight_bit`", ""]
  )


FLAGS = flags.FLAGS


def main() -> None:
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    folders = {SHIPPED: synthetic.WEIGHTS}
    for kind in quantized.DTYPES:
      folders[kind] = folder / kind
      write_weights(kind, folders[kind])
    found = measure(folders)
    write(pathlib.Path(FLAGS.out), found)
    if FLAGS.count:
      found["scores"] = scores(folders["int8"], FLAGS.count, folder)
      write(pathlib.Path(FLAGS.out), found)
  print(markdown(found), end="")


def write(out: pathlib.Path, found: Mapping[str, Any]) -> None:
  """Write eight_bit.json and eight_bit.md."""
  out.mkdir(parents=True, exist_ok=True)
  text = json.dumps(found, indent=1) + "\n"
  (out / "eight_bit.json").write_text(text, "utf-8")
  (out / "eight_bit.md").write_text(markdown(found), "utf-8")


if __name__ == "__main__":
  results = pathlib.Path(__file__).with_name("results")
  flags.DEFINE_integer(
    "count", 32, "Number of prompts that are scored; 0 for none."
  )
  flags.DEFINE_string("out", str(results), "Folder for eight_bit.json and .md.")
  cli.run(main)
