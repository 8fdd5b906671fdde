"""Worker: the original's side of every case, in float32 on the CPU.

Runs in a Python that has torch, without JAX; see `recipe` for what it changes.
"""

# Types are checked without torch, which is no dependency.
# pyright: reportMissingImports=false
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks import cases
from benchmarks import recipe
from benchmarks import worker


def _tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
  return torch.from_numpy(cases.tensor(name, shape))


def guided_step(
  model: torch.nn.Module,
  solvers: Mapping[str, Any],
  x: dict[str, torch.Tensor],
  texts: Mapping[str, torch.Tensor],
  i: int,
  slg_layer: int,
) -> dict[str, torch.Tensor]:
  """One guided step as the original's engine takes it.

  Args:
    model: its fusion model.
    solvers: a scheduler for each modality, at step `i`.
    x: samples, video [C, T, H, W] and audio [T, C].
    texts: embedding [tokens, width] of each of `cases.PROMPTS`.
    i: the step.
    slg_layer: block left out of the negative pass.
  """
  t = solvers["video"].timesteps[i]
  _, patch_h, patch_w = model.video_model.patch_size
  shared = {
    "vid": [x["video"]],
    "audio": [x["audio"]],
    "t": torch.full((1,), t, device=x["video"].device),
    "vid_seq_len": x["video"][0].numel() // (patch_h * patch_w),
    "audio_seq_len": len(x["audio"]),
    "first_frame_is_clean": False,
  }
  text = [texts["positive"]]
  positive = model(vid_context=text, audio_context=text, **shared)
  negative = model(
    vid_context=[texts["negative_video"]],
    audio_context=[texts["negative_audio"]],
    slg_layer=slg_layer,
    **shared,
  )
  following = {}
  for name, up, down in zip(("video", "audio"), positive, negative):
    velocity = down[0] + cases.GUIDANCE[name] * (up[0] - down[0])
    following[name] = solvers[name].step(
      velocity[None], t, x[name][None], return_dict=False
    )[0][0]
  return following


def scheduler(device: Any = "cpu") -> Any:
  """Its UniPC at the first of `cases.STEPS` steps."""
  unipc = recipe.module("utils.fm_solvers_unipc").FlowUniPCMultistepScheduler
  solver = unipc(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
  solver.set_timesteps(cases.STEPS, device=device, shift=cases.SHIFT)
  return solver


def prepare_denoise(case: cases.Case) -> worker.Work:
  """Guided steps of a run of `cases.STEPS`, one after the other."""
  sizes = case.sizes
  fusion = recipe.module("modules.fusion").FusionModel
  model = fusion(dict(sizes["video"]), dict(sizes["audio"])).eval()
  recipe.fill(model, _tensor)
  video = torch.from_numpy(case.input("video").transpose(3, 0, 1, 2).copy())
  noise = {"video": video, "audio": torch.from_numpy(case.input("audio"))}
  texts = {n: torch.from_numpy(case.input(n)) for n in cases.PROMPTS}
  loop: dict[str, Any] = {"x": noise, "i": 0, "solvers": {}}

  def run() -> None:
    if loop["i"] == 0:
      loop["solvers"] = {name: scheduler() for name in noise}
    loop["x"] = guided_step(
      model, loop["solvers"], loop["x"], texts, loop["i"], case.slg_layer
    )
    loop["i"] = (loop["i"] + 1) % cases.STEPS

  def check() -> dict[str, np.ndarray]:
    for _ in range(cases.CHECK_STEPS):
      run()
    change = {n: (loop["x"][n] - noise[n]).numpy() for n in noise}
    return change | {"video": change["video"].transpose(1, 2, 3, 0)}

  return worker.Work(check, run, _versions())


def prepare_vae_decode(case: cases.Case) -> worker.Work:
  """Latents to pixels in memory."""
  vae = recipe.module("modules.vae2_2")

  def build(pretrained_path: Any, **sizes: Any) -> torch.nn.Module:
    del pretrained_path
    model = vae.WanVAE_(**{**sizes, **case.sizes})
    recipe.fill(model, _tensor)
    return model

  # It reads a checkpoint file of the released widths; ours are smaller.
  vae._video_vae = build
  model = vae.Wan2_2_VAE(c_dim=case.sizes["dim"], device="cpu")
  latents = case.input("latents").transpose(3, 0, 1, 2)[None]
  latents = torch.from_numpy(latents.copy())

  def run() -> torch.Tensor:
    return model.wrapped_decode(latents)

  def check() -> dict[str, np.ndarray]:
    return {"frames": run()[0].permute(1, 2, 3, 0).numpy()}

  return worker.Work(check, run, _versions())


def prepare_vocoder(case: cases.Case) -> worker.Work:
  """A spectrogram to a waveform."""
  bigvgan = recipe.module("modules.mmaudio.ext.bigvgan.bigvgan")
  sizes = bigvgan.OmegaConf.load(bigvgan._bigvgan_vocoder_path)
  sizes.update(case.sizes)
  model = bigvgan.BigVGANVocoder(sizes).eval()
  recipe.fill(model, _tensor)
  model.remove_weight_norm()
  mel = torch.from_numpy(case.input("mel").T.copy()[None])

  def run() -> torch.Tensor:
    return model(mel)

  def check() -> dict[str, np.ndarray]:
    return {"wave": run()[0, 0].numpy()}

  return worker.Work(check, run, _versions())


def _versions() -> dict[str, str]:
  return {"torch": torch.__version__, "numpy": np.__version__}


PREPARE: Mapping[str, Callable[[cases.Case], worker.Work]] = {
  "denoise": prepare_denoise,
  "vae_decode": prepare_vae_decode,
  "vocoder": prepare_vocoder,
}


def prepare(order: Mapping[str, Any]) -> worker.Work:
  torch.set_num_threads(order["threads"])
  recipe.use(order["original"], float32=True)
  case = cases.all_cases(order["small"])[order["case"]]
  work = PREPARE[case.kind](case)
  commit = recipe.revision(order["original"])
  return work._replace(versions={**work.versions, "original": commit})


if __name__ == "__main__":
  with torch.inference_mode():
    worker.serve(prepare)
