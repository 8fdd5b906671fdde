"""The denoiser's mapping table covers every released file."""

import json
import pathlib

import numpy as np

from ovi_jax.convert import fusion as names
from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.modality import AV
from tests.lib import standin_models

GOLDENS = pathlib.Path(__file__).resolve().parents[1] / "goldens"
FULL = json.loads((GOLDENS / "full_manifest.json").read_text())


def shapes_of(entries: dict) -> dict:
  return {name: tuple(shape) for name, shape in entries.items()}


def test_every_released_tensor_maps_to_one_parameter():
  flat = mapping.flatten(standin_models.full_fusion_shapes())
  ours = {path: x.shape for path, x in flat.items()}
  released = shapes_of(FULL["Ovi/model.safetensors"])
  mapping.check(names.rows(standin_models.FULL_FUSION), released, ours)


def test_wan_is_the_video_tower_without_fusion():
  flat = mapping.flatten(standin_models.full_fusion_shapes())
  ours = {
    path: x.shape
    for path, x in flat.items()
    if path.startswith(("video/", "blocks/video/")) and "fusion_" not in path
  }
  (file,) = [f for f in FULL if "diffusion_pytorch_model" in f]
  config = standin_models.FULL_FUSION.video
  mapping.check(names.wan_rows(config), shapes_of(FULL[file]), ours)


def test_a_round_trip_gives_the_same_bytes():
  tensors = standin.tensors(standin_models.FUSION_FILE)
  flat = mapping.flatten(standin_models.fusion_params())

  def read(path: str, index: int | None) -> np.ndarray:
    return flat[path] if index is None else flat[path][index]

  rows = names.rows(standin_models.fusion_config())
  back = dict(mapping.to_torch(rows, read))
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert back[name].shape == tensor.shape
    assert back[name].tobytes() == tensor.tobytes(), name


def test_an_audio_only_checkpoint_is_converted():
  config = AV(audio=standin_models.fusion_config().audio)
  rows = names.rows(config)
  assert not any("fusion" in row.ours for row in rows)
  assert all(row.names(0)[0].startswith("audio_model.") for row in rows)
