"""DINO's vision transformer of the original, in torch.

Only where torch and a clone of facebookresearch/dino are; the default tests
compare with what

  python -m tests.lib.torch_dino CLONE

wrote to `tests/goldens/dino.npz`. Weights are made of their names (`seeded`).
"""

import functools
import pathlib
import sys

import numpy as np

from tests.lib.curation import seeded

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "dino.npz"
PATCH, TRAINED, WIDTH, MLP, LAYERS = 8, 4, 128, 256, 2
SIDE = PATCH * TRAINED


def shapes() -> dict[str, tuple[int, ...]]:
  """Names and shapes of a small backbone, as in the public files."""
  found: dict[str, tuple[int, ...]] = {
    "cls_token": (1, 1, WIDTH),
    "pos_embed": (1, TRAINED**2 + 1, WIDTH),
    "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
    "patch_embed.proj.bias": (WIDTH,),
  }
  linears = {
    "attn.qkv": (3 * WIDTH, WIDTH),
    "attn.proj": (WIDTH, WIDTH),
    "mlp.fc1": (MLP, WIDTH),
    "mlp.fc2": (WIDTH, MLP),
  }
  norms = ["norm"]
  for number in range(LAYERS):
    norms += [f"blocks.{number}.norm1", f"blocks.{number}.norm2"]
    for name, shape in linears.items():
      found[f"blocks.{number}.{name}.weight"] = shape
      found[f"blocks.{number}.{name}.bias"] = shape[:1]
  for norm in norms:
    found |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
  return found


def main(clone: str) -> None:
  """Write the golden: inputs and class tokens of wide and of square frames."""
  import torch

  sys.path.insert(0, clone)
  import vision_transformer  # of the clone

  network = vision_transformer.VisionTransformer(
    img_size=[SIDE],
    patch_size=PATCH,
    embed_dim=WIDTH,
    depth=LAYERS,
    num_heads=WIDTH // 64,
    mlp_ratio=MLP / WIDTH,
    qkv_bias=True,
    norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
  ).eval()
  network.load_state_dict(
    {n: torch.from_numpy(x) for n, x in seeded.tensors(shapes()).items()}
  )
  made = {}
  for name, (rows, columns) in {"wide": (45, 80), "square": (40, 40)}.items():
    frames = torch.from_numpy(seeded.frames(2, rows, columns)).float()
    pictures = torch.nn.functional.interpolate(
      frames.permute(0, 3, 1, 2),
      (SIDE, int(SIDE * columns / rows)),
      mode="bilinear",
    )
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pictures = pictures / 255 - torch.tensor(mean)[:, None, None]
    pictures = pictures / torch.tensor(std)[:, None, None]
    with torch.no_grad():
      made[name] = network(pictures).numpy()
    made[f"{name}_pictures"] = pictures.permute(0, 2, 3, 1).numpy()
  np.savez_compressed(GOLDEN, **made)


if __name__ == "__main__":
  main(sys.argv[1])
