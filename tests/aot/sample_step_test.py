"""What the report of a sampling step says is given, without compilation."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import sample
from ovi_jax import synthetic
from ovi_jax.aot import report
from ovi_jax.aot import sample_step
from ovi_jax.aot import topology
from ovi_jax.lora import apply as lora_apply
from ovi_jax.lora import files as lora_files
from ovi_jax.modality import AV
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import conditions
from ovi_jax.sampling import opening
from ovi_jax.sampling import settings as settings_lib
from tests.lib import random_loras

FILE = pathlib.Path("a")


@pytest.fixture
def name(monkeypatch):
  """The name of the report of clips that are given something."""
  found = []
  monkeypatch.setattr(topology, "devices", lambda _: jax.devices()[:1])
  monkeypatch.setattr(
    report, "publish", lambda _, name, __: found.append(name) or True
  )

  def run(
    image: bool = False,
    mode: str | None = None,
    quantize: str = "",
    seconds: float | None = None,
    window: float = 0.0,
    lora: str = "",
    **given: Any,
  ) -> str:
    config = sample.get_config()
    config.conditioning, config.window_seconds = mode, window
    asked = {"given": conditions.Conditions(**given), "quantize": quantize}
    weights, out = synthetic.WEIGHTS, pathlib.Path("out")
    assert sample_step.run(
      "v6e:2x4",
      config,
      weights,
      out,
      image=image,
      seconds=seconds,
      lora=lora,
      **asked,
    )
    return found.pop()

  return run


def test_reports_of_other_conditions_or_modes_have_other_names(name):
  t2v = name()
  assert t2v.endswith("_v6e:2x4")
  assert name(image=True) == f"{t2v}_image"
  assert name(video=FILE) == f"{t2v}_video_renoise"
  assert name(video=FILE, mode="clean") == f"{t2v}_video_clean"
  assert name(image=True, audio=FILE) == f"{t2v}_image_audio_renoise"
  assert (
    name(video=FILE, keep_audio_until=1.0)
    == f"{t2v}_video_keep_audio_until_renoise"
  )
  assert name(audio=FILE, keep=((0, 1),)) == f"{t2v}_audio_keep_renoise"
  assert name(voice=FILE, mode="clean") == f"{t2v}_voice_clean"
  # Of clips of another length, and of the later windows of long ones.
  assert name(seconds=2) == f"{t2v}_13_latent_frames"
  assert name(seconds=20) == f"{t2v}_31_latent_frames_windows_renoise"
  assert name(extend=FILE, mode="clean") == f"{t2v}_extend_clean"
  # Windows that are shorter than the weights' clips.
  assert name(window=2) == f"{t2v}_13_latent_frames_windows_renoise"
  assert name(window=2, seconds=2) == f"{t2v}_13_latent_frames"


def test_a_lora_recommends_how_given_latents_are_shown(name, tmp_path):
  towers = weights_dir.manifest_of(synthetic.WEIGHTS).architecture.fusion
  made = random_loras.make(
    towers, lambda slot: slot.path.endswith("self_attention/query/kernel")
  )
  path = tmp_path / "a.safetensors"
  text = {lora_files.CONDITIONING_KEY: lora_files.CLEAN}
  made = dataclasses.replace(made, metadata=text)
  lora_files.write(path, made, towers)
  assert name(video=FILE, lora=str(path)) == f"{name()}_lora_video_clean"


def test_conditions_that_leave_nothing_to_generate_are_refused(name):
  for given, message in (
    ({"keep": ((0.0, 99.0),)}, "nothing is left to generate"),
    ({"keep": ((0.1, 0.11),)}, "0.1-0.11 is too short for video"),
    ({"keep_audio_until": 0.01}, "0.01 s is too short; use at least"),
  ):
    with pytest.raises(ValueError, match=message):
      name(video=FILE, **given)


def test_weights_that_are_not_there_may_have_kernels_of_8_bits(name):
  manifest = weights_dir.released("720x720_5s")
  settings = settings_lib.Settings.from_overrides({"dtype": "bfloat16"})
  components = opening.components_of(
    FILE, manifest, settings, jax.devices()[:1], "cpu"
  )
  sizes = []
  for dtype in (None, np.dtype(np.int8)):
    found = sample_step._parameters("fusion", components, dtype)
    leaves = jax.tree.leaves(found)
    sizes.append(sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves))
    kernel = found["blocks"]["video"]["feed_forward"]["in"]["kernel"]
    assert kernel.dtype == (jnp.bfloat16 if dtype is None else dtype)
  assert sizes[0] == 2 * 11_660_753_108 and 0.52 < sizes[1] / sizes[0] < 0.54
  with pytest.raises(
    ValueError, match="is for reports without local weights, but"
  ):
    name(quantize="int8")


def test_factors_of_loras_are_arguments_of_the_step(tmp_path):
  path = tmp_path / "a.safetensors"
  manifest = weights_dir.manifest_of(synthetic.WEIGHTS)
  towers = manifest.architecture.fusion
  made = random_loras.make(
    towers, lambda slot: slot.path.endswith("self_attention/query/kernel")
  )
  lora_files.write(path, made, towers)
  settings = settings_lib.Settings.from_overrides({})
  components = opening.components_of(
    synthetic.WEIGHTS, manifest, settings, jax.devices()[:1], "cpu"
  )
  loras = lora_apply.load(str(path), towers, manifest)
  components = dataclasses.replace(components, loras=loras)
  found = sample_step._parameters("fusion", components)
  query = found["blocks"]["video"]["self_attention"]["query"]
  assert query["lora_down"].shape == (6, 192, 3)
  assert query["kernel"].dtype == jnp.float32  # computed in
  assert "lora_down" not in found["blocks"]["video"]["self_attention"]["key"]


def test_a_program_says_how_many_latents_are_given():
  masks: AV[Any] = AV(np.ones(3, bool), np.arange(9) < 4)
  assert sample_step._latents_given(masks, "renoise") == (
    ", given 3 of 3 video latents and 4 of 9 audio latents (renoise)"
  )
  assert sample_step._latents_given(AV(), "clean") == ""
