"""How much arithmetic a forward pass of the denoiser is, from its sizes alone.

Counts the multiplications and additions of matrix products (2 each pair): the
products of both towers' blocks, fusion included, their embeddings and heads.
Norms, rotary positions, softmax and the time embedding (one vector a clip, or
two) are left out. Needs neither JAX nor PyTorch.

The keys, values and embedding of the prompt are counted, though ours computes
them once a clip: they are 0.5 % of a pass, and figures stay comparable.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

STEM_KERNEL = 7
RELEASED = pathlib.Path(__file__).parents[1] / "ovi_jax/models/released.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """Latents of a clip: frames, rows, columns of video; steps of audio."""

  video: tuple[int, int, int]
  audio: int

  @property
  def video_tokens(self) -> int:
    return math.prod(self.video) // 4


# The nearest to a square of each variant's area.
CLIPS = {
  "720x720_5s": Clip(video=(31, 44, 46), audio=157),
  "960x960_5s": Clip(video=(31, 60, 60), audio=157),
  "960x960_10s": Clip(video=(61, 60, 60), audio=314),
}
SMALL = Clip(video=(3, 4, 6), audio=9)


def released_sizes(small: bool = False) -> dict[str, dict[str, Any]]:
  """Sizes of both released towers under the original's names."""
  sizes = json.loads(RELEASED.read_text())["fusion"]
  if small:
    tiny = {"dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 2}
    tiny |= {"text_len": 16, "text_dim": 32}
    sizes = {name: tower | tiny for name, tower in sizes.items()}
  return sizes


def forward(sizes: Mapping[str, Mapping[str, Any]], clip: Clip) -> float:
  """Operations of one forward pass of both towers, batch 1.

  Args:
    sizes: of the towers `video` and `audio`, under the original's names.
    clip: the latents.
  """
  tokens = {"video": clip.video_tokens, "audio": clip.audio}
  total = 0
  for name, other in (("video", "audio"), ("audio", "video")):
    total += _tower(sizes[name], tokens[name], tokens[other])
  return 2.0 * total


def step(
  sizes: Mapping[str, Mapping[str, Any]], clip: Clip, skip_layer: int
) -> float:
  """Operations of one guided step: a positive and a negative pass.

  `skip_layer` is left out of the negative one (0 leaves out none); its work is
  not counted, whether it is done or not.
  """
  blocks = sizes["video"]["num_layers"]
  left = blocks - 1 if 0 < skip_layer < blocks else blocks
  shorter = {n: {**tower, "num_layers": left} for n, tower in sizes.items()}
  return forward(sizes, clip) + forward(shorter, clip)


def _tower(sizes: Mapping[str, Any], tokens: int, others: int) -> int:
  """Multiplications of one tower that also reads `others` foreign tokens."""
  width, hidden = sizes["dim"], sizes["ffn_dim"]
  text, text_width = sizes["text_len"], sizes["text_dim"]
  # Self-attention has four products, cross-attention a query and an output.
  products = tokens * width * (6 * width + 2 * hidden)
  products += (text + others) * 2 * width**2
  attention = 2 * tokens * width * (tokens + text + others)
  ends = text * width * (text_width + width)
  ends += tokens * width * math.prod(sizes["patch_size"]) * sizes["out_dim"]
  return (
    sizes["num_layers"] * (products + attention) + ends + tokens * _stem(sizes)
  )


def _stem(sizes: Mapping[str, Any]) -> int:
  """Multiplications that make one token of latents."""
  width, channels = sizes["dim"], sizes["in_dim"]
  if len(sizes["patch_size"]) > 1:
    return math.prod(sizes["patch_size"]) * channels * width
  hidden = -(-(8 * width // 3) // 256) * 256
  return STEM_KERNEL * width * (channels + 3 * hidden)
