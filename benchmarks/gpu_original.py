"""Time the original's full-size denoising step on a GPU, with random weights.

  python -O benchmarks/gpu_original.py --original=CLONE
  python -O benchmarks/gpu_original.py --original=CLONE --small --device=cpu

Runs in a Python with PyTorch for CUDA and the clone's requirements, on the
shapes of `gpu_step`, in bfloat16. Attention is PyTorch's scaled-dot-product
attention (its flash kernel), or flash-attention where that is installed and
--flash is given.
"""

# Types are checked without torch, which is no dependency.
# pyright: reportMissingImports=false
import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import cases
from benchmarks import flops
from benchmarks import original
from benchmarks import recipe


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--original", required=True)
  parser.add_argument("--clips", default="720x720_5s,960x960_10s")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--slg_layer", type=int, default=11)
  parser.add_argument("--device", default="cuda")
  parser.add_argument("--flash", action="store_true")
  parser.add_argument("--small", action="store_true")
  parser.add_argument("--out", default="")
  return parser.parse_args()


def timed(run: Callable[[], Any], device: str) -> float:
  """Seconds of one execution, to its end."""
  start = time.perf_counter()
  run()
  if device == "cuda":
    torch.cuda.synchronize()
  return time.perf_counter() - start


def build(sizes: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
  """Its model with random parameters, made where they live."""
  fusion = recipe.module("modules.fusion").FusionModel
  with torch.device("meta"):
    model = fusion(dict(sizes["video"]), dict(sizes["audio"]))
  model = model.to(dtype).to_empty(device=device).eval()
  model.set_rope_params()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      norm = name.endswith("weight") and parameter.ndim == 1
      parameter.fill_(1.0) if norm else parameter.normal_(std=0.02)
  return model


def measure(
  model: Any, clip: flops.Clip, arguments: argparse.Namespace, dtype: Any
) -> dict[str, Any]:
  """Time the guided steps of one clip."""
  device = arguments.device
  shared = {"device": device, "dtype": dtype}
  tower = model.video_model
  x = {
    "video": torch.randn(tower.in_dim, *clip.video, **shared),
    "audio": torch.randn(clip.audio, model.audio_model.in_dim, **shared),
  }
  text = torch.randn(tower.text_len, tower.text_dim, **shared)
  texts = {name: text for name in cases.PROMPTS}
  solvers = {name: original.scheduler(device) for name in x}
  seconds = []
  for i in range(arguments.repeats + 2):

    def step(i=i) -> None:
      with torch.amp.autocast("cuda", enabled=device == "cuda", dtype=dtype):
        following = original.guided_step(
          model, solvers, x, texts, i, arguments.slg_layer
        )
      x.update(following)

    seconds.append(timed(step, device))
  return {
    "tokens": clip.video_tokens,
    "step_time": statistics.median(seconds[2:]),
    "step_time_min": min(seconds[2:]),
  }


def peak(side: int, device: str, dtype: torch.dtype) -> float:
  """Operations a second of a product of two matrices of `side` rows."""
  a = torch.randn(side, side, device=device, dtype=dtype)
  count = 10

  def products() -> None:
    for _ in range(count):
      torch.matmul(a, a)

  timed(products, device)
  return count * 2 * side**3 / min(timed(products, device) for _ in range(5))


def main() -> None:
  arguments = parse()
  device, on_gpu = arguments.device, arguments.device == "cuda"
  if on_gpu and not torch.cuda.is_available():
    sys.exit("gpu_original: no CUDA here (--small --device=cpu tries it out)")
  dtype = torch.bfloat16 if on_gpu else torch.float32
  recipe.use(arguments.original, float32=not on_gpu, flash=arguments.flash)
  sizes = flops.released_sizes(arguments.small)
  clips = {n: flops.CLIPS[n] for n in arguments.clips.split(",")}
  if arguments.small:
    clips = {"small": flops.SMALL}
  best = peak(256 if arguments.small else 8192, device, dtype)
  figures: dict[str, Any] = {
    "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    "torch": torch.__version__,
    "original": recipe.revision(arguments.original),
    "attention": "flash-attention" if arguments.flash else "sdpa",
    "peak_tflops": best / 1e12,
  }
  model = build(sizes, device, dtype)
  for name, clip in clips.items():
    figures[name] = measure(model, clip, arguments, dtype)
    work = flops.step(sizes, clip, arguments.slg_layer)
    rate = work / figures[name]["step_time"]
    held = torch.cuda.max_memory_allocated() if on_gpu else None
    figures[name] |= {
      "step_tflop": work / 1e12,
      "tflops": rate / 1e12,
      "share_of_peak": rate / best,
      "peak_bytes": held,
    }
    print(name, json.dumps(figures[name]), flush=True)
  print(json.dumps(figures, indent=1))
  if arguments.out:
    encoded = json.dumps(figures, indent=1) + "\n"
    pathlib.Path(arguments.out).write_text(encoded)


if __name__ == "__main__":
  with torch.inference_mode():
    main()
