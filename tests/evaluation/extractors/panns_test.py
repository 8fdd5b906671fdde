"""Cnn14, against a literal network and front end in torch's layouts."""

import itertools
import math

import jax
import numpy as np
import pytest

from ovi_jax.convert import torch_file
from ovi_jax.evaluation.extractors import panns

NARROW = panns.Cnn14Config(channels=(2, 3, 4, 4, 5, 6), classes=7)


def tensors(random: np.random.Generator) -> dict[str, np.ndarray]:
  """Random tensors of a narrow network under torch's names."""
  shapes, inner = {}, 1
  norms = [("bn0", 64)]
  for number, outer in enumerate(NARROW.channels, 1):
    block = f"conv_block{number}"
    for part, width in ((1, inner), (2, outer)):
      shapes[f"{block}.conv{part}.weight"] = (outer, width, 3, 3)
      norms.append((f"{block}.bn{part}", outer))
    inner = outer
  shapes |= {"fc1.weight": (6, 6), "fc1.bias": (6,)}
  shapes |= {"fc_audioset.weight": (7, 6), "fc_audioset.bias": (7,)}
  made = {n: random.normal(0, 0.5, s) for n, s in shapes.items()}
  for name, width in norms:
    for part in ("weight", "bias", "running_mean", "running_var"):
      made[f"{name}.{part}"] = random.uniform(0.3, 1.2, width)
    made[f"{name}.num_batches_tracked"] = np.zeros(1)
  made["logmel_extractor.melW"] = np.zeros((257, 64))
  return {name: value.astype(np.float32) for name, value in made.items()}


def literal(theirs, mel_BTM):
  """The network with channels first; float64."""

  def norm(x, name):
    mean, var, scale, bias = (
      theirs[f"{name}.{part}"].astype(np.float64)[None, :, None, None]
      for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

  def conv(x, name):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = x.shape[2:]
    return sum(
      np.einsum(
        "bchw,oc->bohw",
        padded[:, :, i : i + rows, j : j + columns],
        theirs[name][:, :, i, j],
      )
      for i in range(3)
      for j in range(3)
    )

  x = norm(mel_BTM[:, None].swapaxes(1, 3), "bn0").swapaxes(1, 3)
  for number in range(1, 7):
    block = f"conv_block{number}"
    for part in (1, 2):
      x = conv(x, f"{block}.conv{part}.weight")
      x = np.maximum(norm(x, f"{block}.bn{part}"), 0)
    if number < 6:
      batch, channels, rows, columns = x.shape
      x = x[:, :, : rows // 2 * 2, : columns // 2 * 2]
      x = x.reshape(batch, channels, rows // 2, 2, columns // 2, 2)
      x = x.mean(axis=(3, 5))
  x = x.mean(axis=3)
  x = x.max(axis=2) + x.mean(axis=2)
  x = np.maximum(x @ theirs["fc1.weight"].T + theirs["fc1.bias"], 0)
  tags = x @ theirs["fc_audioset.weight"].T + theirs["fc_audioset.bias"]
  return x, tags


def test_the_network_equals_a_literal_one_on_the_same_weights(
  tmp_path, monkeypatch
):
  random = np.random.default_rng(5)
  theirs = tensors(random)
  torch_file.save(tmp_path / "narrow.pth", theirs)
  read = torch_file.open_torch
  # The public files have the tensors under "model"; save writes a flat dict.
  monkeypatch.setattr(torch_file, "open_torch", lambda path, key: read(path))
  variables = panns.read_weights(tmp_path / "narrow.pth", NARROW)
  mel_BTM = random.normal(-3, 2, (2, 71, 64)).astype(np.float32)
  found = jax.jit(panns.Cnn14(NARROW).apply)(variables, mel_BTM)
  for one, other in zip(found, literal(theirs, mel_BTM), strict=True):
    assert other.std() > 0.01
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", panns.FRONT_ENDS)
def test_frames_equal_literal_ones(name):
  front_end = panns.FRONT_ENDS[name]
  rate, size, hop = front_end.rate, front_end.fft_size, front_end.hop
  wave_A = np.random.default_rng(0).normal(0.2, 0.1, rate).astype(np.float32)
  found = panns.log_mel(wave_A, front_end)
  assert found.shape == ((1001, 64) if front_end.padded else (101, 64))
  centred = wave_A - wave_A.mean() if front_end.centered else wave_A
  frame = 50
  part = centred[frame * hop - size // 2 :][:size].astype(np.float64)
  part = part * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size))
  power = np.abs(np.fft.rfft(part)) ** 2
  low = 50 / (200 / 3)
  high = 15 + 27 * math.log(front_end.high / 1000) / math.log(6.4)
  edges = np.linspace(low, high, 66)[30:33]
  hz = [m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in edges]
  total = 0.0
  for k, value in enumerate(power):
    f = k * rate / size
    weight = min((f - hz[0]) / (hz[1] - hz[0]), (hz[2] - f) / (hz[2] - hz[1]))
    total += max(0.0, weight) * 2 / (hz[2] - hz[0]) * value
  assert found[frame, 30] == pytest.approx(10 * math.log10(total), abs=1e-3)
  assert panns.log_mel(np.zeros(20 * rate, np.float32), front_end).shape == (
    round(front_end.seconds * 100) + 1,
    64,
  )


def test_the_sizes_of_the_public_weights_and_the_advice_without_them():
  network = panns.Cnn14(panns.Cnn14Config())
  shape = jax.ShapeDtypeStruct((1, 64, 64), "float32")
  made = jax.eval_shape(network.init, jax.random.key(0), shape)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(made["params"]))
  # Convolutions, the scale and bias of their norms and of bn0, dense layers.
  sizes = (1, 64, 128, 256, 512, 1024, 2048)
  kernels = sum(9 * b * (a + b) + 4 * b for a, b in itertools.pairwise(sizes))
  assert count == kernels + 2 * 64 + 2049 * 2048 + 2049 * 527
  missing = panns.panns("panns_16k", "").missing
  assert "--weights=panns_16k=FILE" in missing
  with pytest.raises(ValueError, match="no such file"):
    panns.panns("panns_32k", "absent.pth")
