"""AOT reports for absent devices, through the commands.

The compiler for TPUs comes with the `dev` extra; no TPU is needed.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from ovi_jax.aot import topology

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*words: str) -> tuple[int, str]:
  done = subprocess.run(
    [sys.executable, *words],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["v5p:3x3x3", "v9:2x2", "v5e", ""])
def test_unknown_topologies_are_refused(name):
  with pytest.raises(ValueError, match=r"known are v5p: v5p:2x2x1 .*v6e:16x16"):
    topology.devices(name)


def test_a_missing_libtpu_is_named_with_the_command_to_install_it(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"libtpu .*pip install -e '\.\[aot\]'"):
    topology.devices("v5e:2x2")


def test_devices_of_a_topology():
  devices = topology.devices("v6e:2x4")
  assert len(devices) == 8 and devices[0].device_kind == "TPU v6 lite"


@pytest.mark.slow
@pytest.mark.nightly
def test_the_released_models_step_stays_within_bounds(tmp_path):
  """720 by 720 pixels, 5 s, on four v5p; what is recorded, and 5 % more."""
  code, output = run(
    "sample.py",
    "--aot=v5p:2x2x1",
    "--config.variant=720x720_5s",
    "--config.height=704",
    "--config.width=704",
    f"--out={tmp_path}",
  )
  assert code == 0, output
  text = (tmp_path / "aot_720x720_5s_v5p_2x2x1.json").read_text()
  step, decoding, _ = json.loads(text)
  assert step["model_flops"] == pytest.approx(118.9e12, rel=1e-3)
  assert 1 <= step["flops_ratio"] < 1.03
  assert step["peak_memory"] < 1.05 * 10.44 * 2**30
  assert step["bytes_accessed"] < 1.05 * 240e9
  assert step["collective_bytes"]["all-to-all over context"] < 1.05 * 2766e6
  assert step["collective_bytes"]["all-gather over context"] < 1.05 * 5107e6
  assert decoding["peak_memory"] < 1.05 * 2.10 * 2**30
  assert decoding["compiled_flops"] < 1.05 * 9.8e12


@pytest.mark.parametrize(
  "codec",
  ["codec_video", pytest.param("codec_audio", marks=pytest.mark.slow)],
)
def test_codecs_are_refused(codec, tmp_path):
  code, output = run(
    "train.py",
    f"--config=configs/{codec}.py:mini",
    "--aot=v5e:2x2",
    f"--workdir={tmp_path}",
  )
  assert code == 1
  assert output.startswith("train: --aot supports the stages of the towers"), (
    output
  )
  assert "video_vae" in output or "audio_vae" in output


@pytest.mark.slow
def test_a_training_step_is_compiled_and_reported(tmp_path):
  code, output = run(
    "train.py",
    "--config=configs/fusion.py:mini",
    "--aot=v5e:2x2",
    f"--workdir={tmp_path}",
    "--config.mesh.fsdp=2",
    "--config.mesh.context=2",
    "--config.context_parallelism=ring",  # seven heads
  )
  assert code == 0, output
  assert "4 x TPU v5 lite, mesh fsdp 2 x context 2" in output
  (found,) = json.loads((tmp_path / "aot_train_v5e_2x2.json").read_text())
  assert found["fits"] and found["peak_memory"] < 2**30
  assert 1.0 < found["flops_ratio"] < 1.05  # 1.026 when it was written
  assert any("context" in name for name in found["collective_bytes"])
  assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
@pytest.mark.nightly
def test_a_lora_on_a_base_of_8_bits_that_is_not_there(tmp_path):
  words = "train.py", "--config=configs/fusion.py:mini", "--aot=v5e:1x1"
  lora = "--config.trainable=lora", f"--workdir={tmp_path}"
  code, output = run(*words, "--aot_quantize=int8", *lora)
  assert code == 0, output
  path = tmp_path / "aot_train_v5e_1x1_lora_int8.json"
  (found,) = json.loads(path.read_text())
  arrays = found["largest_arrays"]
  # Of no kernel there is more than a byte for each number.
  name = "0/frozen_params/blocks/video/feed_forward/in/kernel"
  assert arrays.get(name, 0) in (0, 4 * 224 * 256)
  assert found["fits"] and found["argument_size"] < 30e6
  code, output = run(*words, "--aot_quantize=int8", lora[1])
  assert code == 1 and "for the base of a LoRA" in output


@pytest.mark.slow
def test_a_step_of_a_batch_of_clips(tmp_path):
  code, said = run(
    "sample.py", "--aot=v5e:1x1", "--config.batch_size=2", f"--out={tmp_path}"
  )
  assert code == 0, said
  assert "guided step of 2 clips of 64x64, 31 latent frames" in said
  (report,) = tmp_path.glob("aot_*.json")
  step, _, encoding = json.loads(report.read_text())
  assert encoding["program"] == "embedding of one prompt"
  assert 0.9 < step["flops_ratio"] < 1.2  # of one clip, it would be half


@pytest.mark.slow
def test_a_step_with_given_latents_costs_as_much_as_image_to_video(tmp_path):
  """Sound for a video, in the mode that has all kinds of masks."""
  works = []
  for name, words in (
    ("i2v", ["--image=a.png"]),
    ("v2a", ["--video=a.mp4", "--keep_audio_until=1"]),
  ):
    out = tmp_path / name
    code, said = run("sample.py", "--aot=v6e:1x1", f"--out={out}", *words)
    assert code == 0, said
    (report,) = out.glob("aot_*.json")
    works.append(json.loads(report.read_text())[0]["flops_ratio"])
  assert works[1] == pytest.approx(works[0], rel=0.02)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_model_that_exceeds_hbm_is_reported(tmp_path):
  """The released model on one chip of 16 GiB."""
  code, output = run(
    "sample.py",
    "--aot=v5e:1x1",
    "--config.variant=720x720_5s",
    f"--out={tmp_path}",
  )
  assert code == 3, output
  assert "does not fit: its arguments alone are" in output
  assert "the largest arguments of a chip" in output
  assert "feed_forward/in/kernel" in output and "to save memory" in output
  assert "Traceback" not in output
