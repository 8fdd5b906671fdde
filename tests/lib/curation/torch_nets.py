"""The layers of SyncNet and MTCNN as the public code defines them, in torch.

Only where torch is installed; the default tests compare with what

  python -m tests.lib.curation.torch_nets [FOLDER]

(the folder of facenet-pytorch's weights) wrote to `tests/goldens/syncnet.npz`
and `mtcnn.npz`. Weights are made of their names, so both sides have the same
without a file of them.
"""

import pathlib
import sys
import zlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parents[3] / "goldens"
# Of a network that is narrow, to be quick.
NARROW = {"divisor": 16, "embedding": 64}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A weight: the same for the same name and shape, of a useful size."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  drawn = random.standard_normal(shape, np.float32)
  kind = name.rsplit(".", 1)[-1]
  if kind == "running_var":
    # The first layers see numbers of their own size.
    first = {"netcnnlip.1.running_var": 1e4, "netcnnaud.1.running_var": 300.0}
    return np.float32(first.get(name, 0.5)) * np.exp(0.3 * drawn)
  if kind == "weight" and len(shape) > 1:
    return drawn * np.float32(np.sqrt(2 / np.prod(shape[1:])))
  if kind == "weight":
    # Of a norm, or of a rectifier that lets some through.
    return 1 + np.float32(0.2) * drawn if "net" in name else drawn * 0.2
  return np.float32(0.1) * drawn


def syncnet_inputs() -> tuple[np.ndarray, np.ndarray]:
  """Two stretches of six frames, BGR; three windows of MFCC each."""
  random = np.random.default_rng(7)
  # Patches rather than noise, of which every average is the same.
  patches = random.integers(0, 256, (2, 6, 4, 4, 3), np.uint8)
  frames_BTHWC = patches.repeat(56, 2).repeat(56, 3)
  windows_BTKM = random.standard_normal((2, 3, 13, 20), np.float32) * 12
  return frames_BTHWC, windows_BTKM


def syncnet(divisor: int = 1, embedding: int = 1024):
  """The network, with the names of the public weights."""
  from torch import nn

  def width(channels: int) -> int:
    return channels // divisor

  def layers(three: bool, first, kernels, pools) -> nn.Sequential:
    conv = nn.Conv3d if three else nn.Conv2d
    norm = nn.BatchNorm3d if three else nn.BatchNorm2d
    channels, made = first, []
    for number, (out, options) in enumerate(kernels):
      made += [conv(channels, width(out), **options), norm(width(out))]
      made += [nn.ReLU()]
      channels = width(out)
      if number in pools:
        pool = nn.MaxPool3d if three else nn.MaxPool2d
        made.append(pool(**pools[number]))
    return nn.Sequential(*made)

  def head() -> nn.Sequential:
    hidden = width(512)
    return nn.Sequential(
      nn.Linear(hidden, hidden),
      nn.BatchNorm1d(hidden),
      nn.ReLU(),
      nn.Linear(hidden, embedding),
    )

  around = {"kernel_size": 3, "padding": 1}
  flat = {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)}
  half = {"kernel_size": (1, 3, 3), "stride": (1, 2, 2)}
  return nn.ModuleDict(
    {
      "netcnnaud": layers(
        False,
        1,
        [
          (64, around),
          (192, around),
          (384, around),
          (256, around),
          (256, around),
          (512, {"kernel_size": (5, 4)}),
        ],
        {
          0: {"kernel_size": 1, "stride": 1},
          1: {"kernel_size": 3, "stride": (1, 2)},
          4: {"kernel_size": 3, "stride": 2},
        },
      ),
      "netfcaud": head(),
      "netfclip": head(),
      "netcnnlip": layers(
        True,
        3,
        [
          (96, {"kernel_size": (5, 7, 7), "stride": (1, 2, 2)}),
          (
            256,
            {
              "kernel_size": (1, 5, 5),
              "stride": (1, 2, 2),
              "padding": (0, 1, 1),
            },
          ),
          (256, flat),
          (256, flat),
          (256, flat),
          (512, {"kernel_size": (1, 6, 6)}),
        ],
        {0: half, 1: {**half, "padding": (0, 1, 1)}, 4: half},
      ),
    }
  )


def fill(network):
  """Give a network its weights, and set it to inference."""
  import torch

  state = {
    name: torch.from_numpy(tensor(name, tuple(value.shape)))
    for name, value in network.state_dict().items()
    if not name.endswith("num_batches_tracked")
  }
  network.load_state_dict(state, strict=False)
  return network.eval()


def syncnet_outputs(divisor: int = 1, embedding: int = 1024):
  """Embeddings of `syncnet_inputs`, [2, 2, E] and [2, 3, E]."""
  import torch

  network = fill(syncnet(divisor, embedding))
  frames_BTHWC, windows_BTKM = syncnet_inputs()
  frames = torch.from_numpy(frames_BTHWC.astype(np.float32))
  frames = frames.permute(0, 4, 1, 2, 3)
  lips = [
    network["netfclip"](
      network["netcnnlip"](frames[:, :, t : t + 5]).flatten(1)
    )
    for t in range(2)
  ]
  windows = torch.from_numpy(windows_BTKM)
  sound = [
    network["netfcaud"](network["netcnnaud"](windows[:, t, None]).flatten(1))
    for t in range(3)
  ]
  return torch.stack(lips, 1).numpy(), torch.stack(sound, 1).numpy()


def write_syncnet() -> None:
  """Make `goldens/syncnet.npz`."""
  lips, sound = syncnet_outputs()
  narrow_lips, narrow_sound = syncnet_outputs(**NARROW)
  np.savez_compressed(
    GOLDENS / "syncnet.npz",
    lips=lips,
    sound=sound,
    narrow_lips=narrow_lips,
    narrow_sound=narrow_sound,
  )


def mtcnn_input(side: int) -> np.ndarray:
  """Three pictures [3, side, side, 3] in [-1, 1], patches and noise."""
  random = np.random.default_rng(side)
  patches = random.uniform(-1, 1, (3, side // 4 + 1, side // 4 + 1, 3))
  noise = random.normal(0, 0.1, (3, side, side, 3))
  whole = patches.repeat(4, 1).repeat(4, 2)[:, :side, :side] + noise
  return np.clip(whole, -1, 1).astype(np.float32)


def mtcnn():
  """The three networks, with the names of the public weights."""
  from torch import nn

  def conv(number: int, before: int, after: int, kernel: int = 3):
    return {
      f"conv{number}": nn.Conv2d(before, after, kernel),
      f"prelu{number}": nn.PReLU(after),
    }

  def pool(number: int, size: int):
    return {f"pool{number}": nn.MaxPool2d(size, 2, ceil_mode=True)}

  def dense(number: int, before: int, after: int):
    # Columns before rows before channels.
    return {
      f"turn{number}": Turned(),
      f"dense{number}": nn.Linear(before, after),
      f"prelu{number}": nn.PReLU(after),
    }

  class Turned(nn.Module):
    def forward(self, x):
      return x.permute(0, 3, 2, 1).flatten(1)

  class Network(nn.Module):
    def __init__(self, trunk, heads):
      super().__init__()
      self.order = list(trunk)
      for name, layer in {**trunk, **heads}.items():
        self.add_module(name, layer)
      self.heads = list(heads)

    def forward(self, x):
      for name in self.order:
        x = getattr(self, name)(x)
      face, *others = (getattr(self, name)(x) for name in self.heads)
      return face.softmax(1)[:, 1], *others

  return {
    "pnet": Network(
      conv(1, 3, 10) | pool(1, 2) | conv(2, 10, 16) | conv(3, 16, 32),
      {"conv4_1": nn.Conv2d(32, 2, 1), "conv4_2": nn.Conv2d(32, 4, 1)},
    ),
    "rnet": Network(
      conv(1, 3, 28)
      | pool(1, 3)
      | conv(2, 28, 48)
      | pool(2, 3)
      | conv(3, 48, 64, 2)
      | dense(4, 576, 128),
      {"dense5_1": nn.Linear(128, 2), "dense5_2": nn.Linear(128, 4)},
    ),
    "onet": Network(
      conv(1, 3, 32)
      | pool(1, 3)
      | conv(2, 32, 64)
      | pool(2, 3)
      | conv(3, 64, 64)
      | pool(3, 2)
      | conv(4, 64, 128, 2)
      | dense(5, 1152, 256),
      {
        "dense6_1": nn.Linear(256, 2),
        "dense6_2": nn.Linear(256, 4),
        "dense6_3": nn.Linear(256, 10),
      },
    ),
  }


# Of the first network any size will do; odd ones reach beyond the end.
MTCNN_SIDES = {"pnet": (12, 37, 64), "rnet": (24,), "onet": (48,)}


def write_mtcnn(folder: str) -> None:
  """Make `goldens/mtcnn.npz`, of shared weights and of the shipped ones."""
  import torch

  arrays = {}
  for name, network in mtcnn().items():
    shipped = torch.load(f"{folder}/{name}.pt")
    for kind in ("shared", "shipped"):
      fill(network)
      if kind == "shipped":
        network.load_state_dict(shipped)
      for side in MTCNN_SIDES[name]:
        x = torch.from_numpy(mtcnn_input(side)).permute(0, 3, 1, 2)
        for number, out in enumerate(network(x)):
          if number and out.ndim == 4:
            out = out.permute(0, 2, 3, 1)
          arrays[f"{kind}_{name}_{side}_{number}"] = out.numpy()
  np.savez_compressed(GOLDENS / "mtcnn.npz", **arrays)


if __name__ == "__main__":
  import torch

  with torch.inference_mode():
    write_syncnet()
    if len(sys.argv) > 1:
      write_mtcnn(sys.argv[1])
