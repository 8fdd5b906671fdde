"""Work of the benchmarked passes, from the released sizes; see `ovi_jax.flops`.

Needs neither JAX nor PyTorch.
"""

import dataclasses
import json
import math
import pathlib
import types
from collections.abc import Mapping
from typing import Any

from ovi_jax import flops
from ovi_jax.modality import AV

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


def _tower(sizes: Mapping[str, Any]) -> types.SimpleNamespace:
  """A `flops.Tower`, from the original's names."""
  patch = sizes["patch_size"]
  return types.SimpleNamespace(
    num_layers=sizes["num_layers"],
    hidden_dim=sizes["dim"],
    mlp_dim=sizes["ffn_dim"],
    max_text_len=sizes["text_len"],
    text_dim=sizes["text_dim"],
    channels=sizes["in_dim"],
    token_channels=math.prod(patch) * sizes["in_dim"],
    is_audio=len(patch) == 1,
    stem_dim=-(-(8 * sizes["dim"] // 3) // 256) * 256,
  )


def forward(sizes: Mapping[str, Mapping[str, Any]], clip: Clip) -> float:
  """Operations of one forward pass of both towers, batch 1.

  Args:
    sizes: of the towers `video` and `audio`, under the original's names.
    clip: the latents.
  """
  towers = AV(**{name: _tower(tower) for name, tower in sizes.items()})
  return flops.forward(towers, AV(clip.video_tokens, clip.audio)).total


def step(
  sizes: Mapping[str, Mapping[str, Any]], clip: Clip, slg_layer: int
) -> float:
  """Operations of one guided step: a positive and a negative pass.

  `slg_layer` is left out of the negative one (0 leaves out none); its work is
  not counted, whether it is done or not.
  """
  blocks = sizes["video"]["num_layers"]
  left = blocks - 1 if 0 < slg_layer < blocks else blocks
  shorter = {n: {**tower, "num_layers": left} for n, tower in sizes.items()}
  return forward(sizes, clip) + forward(shorter, clip)
