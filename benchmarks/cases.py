"""What is measured: sizes, inputs and weights that both sides make alike.

Weights and inputs are a fixed function of their names in the release, so two
processes that share no memory and no file compute on the same numbers, and
what they compute can be compared. Nothing here needs JAX or PyTorch.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

STEPS = 50
SHIFT = 5.0
GUIDANCE = {"video": 4.0, "audio": 3.0}
PROMPT_TOKENS = 100  # of each prompt; the rest of the text length is zeros
CHECK_STEPS = 3  # denoising steps after which both sides are compared
PROMPTS = ("positive", "negative_video", "negative_audio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One thing to time.

  Attributes:
    name: as `--cases` and the report call it.
    kind: `denoise`, `vae_decode` or `vocoder`.
    about: what it is, for the report.
    sizes: of the model, under the original's names.
    inputs: shape of each input in our layout, channels last, by name.
    slg_layer: block left out of the negative pass; 0 leaves out none.
  """

  name: str
  kind: str
  about: str
  sizes: Mapping[str, Any]
  inputs: Mapping[str, tuple[int, ...]]
  slg_layer: int = 0

  def input(self, name: str) -> np.ndarray:
    """The input `name`, standard normal, float32."""
    return _noise(f"input/{name}", self.inputs[name])


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The float32 weight that both sides give the tensor `name`.

  Kernels keep the variance of what they are applied to; norms are about 1,
  biases and logarithms about 0.
  """
  noise = _noise(name, shape)
  if name.endswith("original0"):  # norms of filters under weight norm
    # The last one is small, to keep the wave off the flat ends of tanh.
    norm = np.float32(0.05 if name.startswith("conv_post") else 1.0)
    return norm * (1 + np.float32(0.1) * noise)
  if name.endswith("gamma") or (name.endswith("weight") and len(shape) == 1):
    return 1 + np.float32(0.2) * noise
  if len(shape) > 1 and not name.endswith("modulation"):
    return noise / np.float32(np.prod(shape[1:]) ** 0.5)
  return np.float32(0.1) * noise


def _noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Standard normal numbers; the legacy stream is the same everywhere."""
  state = np.random.RandomState(zlib.crc32(name.encode()))
  return state.standard_normal(shape).astype(np.float32)


def _towers(
  width: int, heads: int, hidden: int, blocks: int, text: int
) -> dict[str, Any]:
  shared = {
    "dim": width,
    "ffn_dim": hidden,
    "freq_dim": 256,
    "text_dim": width,
    "num_heads": heads,
    "num_layers": blocks,
    "text_len": text,
    "window_size": [-1, -1],
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
  }
  video = {"model_type": "ti2v", "patch_size": [1, 2, 2], "in_dim": 48}
  audio = {"model_type": "t2a", "patch_size": [1], "in_dim": 20}
  audio["temporal_rope_scaling_factor"] = 0.19676
  towers = {"video": video, "audio": audio}
  return {n: shared | t | {"out_dim": t["in_dim"]} for n, t in towers.items()}


def _denoise(small: bool, slg_layer: int) -> Case:
  width, heads, hidden, blocks, text = 768, 6, 3584, 6, 512
  video, audio = (8, 32, 32, 48), (157, 20)
  if small:
    width, heads, hidden, blocks, text = 64, 2, 96, 4, 112
    video, audio = (2, 4, 6, 48), (9, 20)
  tokens = video[0] * video[1] * video[2] // 4
  inputs = {"video": video, "audio": audio}
  inputs |= {name: (PROMPT_TOKENS, width) for name in PROMPTS}
  skipped = f", block {slg_layer} skipped when negative" if slg_layer else ""
  return Case(
    name=f"denoise_skip{slg_layer}" if slg_layer else "denoise",
    kind="denoise",
    about=(
      f"one guided denoising step (two passes, guidance, UniPC{skipped}): width"
      f" {width}, {blocks} blocks, {heads} heads, feed-forward {hidden}, text"
      f" {text}, {tokens} video and {audio[0]} audio tokens"
    ),
    sizes=_towers(width, heads, hidden, blocks, text),
    inputs=inputs,
    slg_layer=slg_layer,
  )


def _vae_decode(small: bool) -> Case:
  dim, frames, side = (8, 2, 2) if small else (64, 5, 16)
  return Case(
    name="vae_decode",
    kind="vae_decode",
    about=(
      f"Wan2.2 autoencoder: {frames} latents to {4 * frames - 3} frames of"
      f" {16 * side} by {16 * side} pixels, width {dim} (released: 256)"
    ),
    sizes={"dim": dim, "dec_dim": dim},
    inputs={"latents": (frames, side, side, 48)},
  )


def _vocoder(small: bool) -> Case:
  width, frames = (64, 12) if small else (512, 314)
  return Case(
    name="vocoder",
    kind="vocoder",
    about=(
      f"BigVGAN: {frames} mel frames to {frames / 62.5:.2f} s of sound, width"
      f" {width} (released: 1536)"
    ),
    sizes={"upsample_initial_channel": width},
    inputs={"mel": (frames, 80)},
  )


def all_cases(small: bool = False) -> dict[str, Case]:
  """Every case by name; `small` ones only show that the harness works."""
  cases = [
    _denoise(small, 0),
    _denoise(small, 3),
    _vae_decode(small),
    _vocoder(small),
  ]
  return {case.name: case for case in cases}
