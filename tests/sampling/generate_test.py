"""Whole runs of `sample.py` on the stand-in: files, reruns, bad input."""

import json
import os
import pathlib
import shutil
import struct

import jax
import numpy as np
import pytest
from PIL import Image

from ovi_jax import cli
from ovi_jax.media import mp4
from ovi_jax.pretrained import weights as stores
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import generate
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings
from tests.lib import config_values
from tests.lib import parity


@pytest.fixture
def run(weights, tmp_path, log_lines):
  """Run with the stand-in's weights; returns (paths, lines logged)."""

  def call(
    prompt=config_values.PROMPTS[0], asked=None, changes=(), **arguments
  ):
    log_lines.clear()
    paths = generate.run(
      requests=asked or requests.from_prompt(prompt),
      settings=settings.Settings.from_config(
        config_values.sample_config(**dict(changes))
      ),
      **{"weights": weights, "out": tmp_path / "out"} | arguments,
    )
    return paths, list(log_lines)

  return call


@pytest.fixture(scope="module")
def noise(golden, tmp_path_factory) -> pathlib.Path:
  """The goldens' noise as a file."""
  path = tmp_path_factory.mktemp("noise") / "noise.npz"
  arrays = golden("sampling")
  video = arrays["noise_v"].transpose(1, 2, 3, 0)
  np.savez(path, video_THWC=video, audio_TC=arrays["noise_a"])
  return path


@pytest.mark.slow
def test_a_run_from_given_noise_equals_the_original(run, noise, golden):
  (path,), lines = run(noise=noise, save_latents=True, maps=True)
  latents = np.load(path.with_suffix(".npz"))
  arrays = golden("sampling")
  video = arrays["e2e_unipc_v"].transpose(1, 2, 3, 0)
  parity.assert_close(latents["video_THWC"], video, "end_to_end")
  parity.assert_close(latents["audio_TC"], arrays["e2e_unipc_a"], "end_to_end")
  frames, fps, wave, rate = mp4.read(path)
  assert frames.shape == (13, 64, 96, 3) and (fps, rate) == (24, 16_000)
  assert abs(len(wave) - 21 * 512) <= 1024 and np.abs(wave).max() > 0.01
  recipe = json.loads(path.with_suffix(".json").read_text())
  assert recipe["prompt"] == config_values.PROMPTS[0] and recipe["seed"] == 103
  assert recipe["config"]["guidance_scale"] == {"video": 4.0, "audio": 3.0}
  assert recipe["weights"]["sha256"].keys() >= {"fusion", "vocoder"}
  assert recipe["noise_sha256"] and recipe["ovi_jax"] and recipe["device"]
  assert recipe["loras"] == []
  assert any("its end is ignored" in line for line in lines)
  drawn = attention_maps.files_of(path)
  assert {p for p in path.parent.rglob("*.*")} == {
    *(path.with_suffix(ending) for ending in (".json", ".mp4", ".npz")),
    *drawn,
  }
  maps = attention_maps.read(path)
  assert maps.audio_STHW.shape == (21, 4, 2, 3)
  np.testing.assert_allclose(maps.audio_STHW.sum((1, 2, 3)), 1, rtol=1e-4)
  assert len(mp4.read(drawn[0])[0]) == 13


@pytest.mark.slow
def test_maps_of_selected_heads_are_written_for_an_existing_clip(run):
  chosen = {"num_steps": 2, "attention_heads": "0.1"}
  (path,), _ = run(changes=chosen, maps=True, save_latents=True)
  files = attention_maps.files_of(path, ((0, 1),))
  assert {p.parent.name for p in files} == {"attention_maps_0.1"}
  assert all(file.exists() for file in files)
  _, lines = run(changes=chosen, maps=True)
  assert lines[-1].startswith("already made")
  # The same clip, other heads: the first maps stay. Another clip: they go.
  run(changes={"num_steps": 2, "attention_heads": "0.0"}, maps=True)
  assert all(file.exists() for file in files)
  run(changes={"num_steps": 1}, overwrite=True)
  left = {p.suffix for p in path.parent.rglob("*.*") if p.is_file()}
  assert left == {".json", ".mp4"}
  with pytest.raises(ValueError, match="the audio tower has .* it has no 9.0"):
    run(changes={"attention_heads": "9.0"}, maps=True)


@pytest.mark.slow
def test_a_second_run_makes_only_what_is_missing(run, tmp_path, monkeypatch):
  changes = {"num_steps": 2, "samples_per_prompt": 2}
  paths, _ = run(changes=changes)
  assert len(paths) == 2
  seeds = [
    json.loads(p.with_suffix(".json").read_text())["seed"] for p in paths
  ]
  assert seeds == [103, 104]
  frames = [mp4.read(p)[0] for p in paths]
  assert not np.array_equal(*frames)
  paths[1].unlink()
  times = paths[0].stat().st_mtime_ns
  again, lines = run(changes=changes)
  assert again == paths and paths[0].stat().st_mtime_ns == times
  assert f"already made: {paths[0]}" in lines
  np.testing.assert_array_equal(mp4.read(paths[1])[0], frames[1])
  # Nothing to do: no weights are touched.
  monkeypatch.setattr(stores, "load", None)
  run(changes=changes)
  with pytest.raises(ValueError, match=r"made with other settings \(config"):
    run(changes=changes | {"num_steps": 3})


@pytest.mark.slow
def test_overlapped_clips_have_the_bytes_of_single_runs(
  run, tmp_path, monkeypatch
):
  one_device = jax.local_devices()[:1]
  monkeypatch.setattr(jax, "local_devices", lambda *args, **kw: one_device)
  asked = [requests.from_prompt(p)[0] for p in ("Rain.", "Wind.", "Surf.")]
  changes = {"num_steps": 2}
  paths, lines = run(asked=asked, changes=changes)
  assert [line for line in lines if line.startswith("wrote")] == [
    f"wrote {path}" for path in paths
  ]
  for path, request in zip(paths, asked):
    (alone,), _ = run(asked=[request], changes=changes, out=tmp_path / "alone")
    for ending in (".mp4", ".json"):
      ours, single = (p.with_suffix(ending).read_bytes() for p in (path, alone))
      assert ours == single
  # Another batch size is no other clip.
  paths[1].unlink()
  _, lines = run(asked=asked, changes=changes | {"batch_size": 3})
  assert sum(line.startswith("already made") for line in lines) == 2
  assert paths[1].exists()


def test_overwrite_regenerates_the_clip(run):
  (path,), _ = run(changes={"num_steps": 1})
  before = path.stat().st_mtime_ns
  run(changes={"num_steps": 2}, overwrite=True)
  assert path.stat().st_mtime_ns > before
  recipe = json.loads(path.with_suffix(".json").read_text())
  assert recipe["config"]["num_steps"] == 2


def test_an_interrupted_write_leaves_no_clip(run, tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(28, "no space left on device")

  monkeypatch.setattr(mp4, "_encode", fail)
  with pytest.raises(OSError, match="no space left"):
    run(changes={"num_steps": 1})
  left = sorted(p.name for p in (tmp_path / "out").iterdir())
  assert left == []


def with_nan(weights, path, component: str, parameter: str) -> pathlib.Path:
  """Converted weights of which one parameter is NaN."""
  shutil.copytree(weights, path)
  file = path / f"{component}.safetensors"
  data = bytearray(file.read_bytes())
  (length,) = struct.unpack("<Q", data[:8])
  header = json.loads(data[8 : 8 + length])
  start, end = header[parameter]["data_offsets"]
  data[8 + length + start : 8 + length + end] = b"\xff" * (end - start)
  file.write_bytes(data)
  return path


@pytest.mark.parametrize(
  ("component", "parameter", "message"),
  [
    ("umt5", "norm/scale", "umt5.safetensors: output is not finite"),
    (
      "fusion",
      "video/head/bias",
      r"step 1 of 3 \(noise level 1\): the latents of video are"
      " not finite;.*convert the.*float32.*video 4, audio 3",
    ),
    (
      "video_vae",
      "decoder/latent/bias",
      "video_vae.safetensors: output is not",
    ),
    ("vocoder", "conv_in/bias", "vocoder.safetensors: output is not"),
  ],
)
def test_weights_with_nan_end_the_run(
  run, weights, tmp_path, component, parameter, message
):
  damaged = with_nan(weights, tmp_path / "damaged", component, parameter)
  with pytest.raises(ValueError, match=message):
    run(weights=damaged, changes={"num_steps": 3})
  assert not list((tmp_path / "out").rglob("*.*"))


@pytest.mark.slow
def test_the_size_follows_the_image(run, tmp_path, golden):
  picture = tmp_path / "first.png"
  Image.fromarray(golden("image")["image_u8"].transpose(1, 0, 2)).save(picture)
  asked = requests.from_prompt("A tall picture", picture)
  (path,), _ = run(asked=asked, changes={"num_steps": 1})
  recipe = json.loads(path.with_suffix(".json").read_text())
  assert (recipe["height"], recipe["width"]) == (96, 64)
  assert recipe["image"]["sha256"]
  assert mp4.read(path)[0].shape == (13, 96, 64, 3)


@pytest.fixture
def no_weights(monkeypatch):
  """Any attempt to load weights fails the test."""

  def refuse(*_, **__):
    raise AssertionError("weights were loaded before the input was checked")

  monkeypatch.setattr(stores, "load", refuse)


BAD_CONFIGS = {
  "solver": ("heun", "solver 'heun' is unknown; choose from"),
  "mode": ("t2a", "mode 't2a' is unknown; choose from auto"),
  "variant": ("1080p", "variant '1080p' is unknown; choose from 720x720_5s"),
  "num_steps": (0, "num_steps must be from 1 to 1000, got 0"),
  "height": (0, "height must be from 1 to 65536, got 0"),
  "width": (-3, "width must be from 1 to 65536, got -3"),
  "flow_shift": (0.0, "flow_shift must be from 0.01 to 100, got 0.0"),
  "slg_layer": (-2, "slg_layer must be from -1 to 512"),
  "samples_per_prompt": (0, "samples_per_prompt must be from 1 to 10000"),
  "batch_size": (0, "batch_size must be from 1 to 1024, got 0"),
  "dtype": ("float16", "dtype 'float16' is unknown; choose from auto"),
  "attention": ("flash", "attention 'flash' is unknown; choose from auto"),
  "seed": (-1, "seeds must be in"),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("field", sorted(BAD_CONFIGS))
def test_an_invalid_config_is_refused(run, field):
  value, message = BAD_CONFIGS[field]
  with pytest.raises(ValueError, match=message):
    run(changes={field: value})


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_steps": 2**31}, "num_steps must be from 1 to 1000, got 2147483648"),
    (
      {"flow_shift": 1e12},
      "flow_shift must be from 0.01 to 100, got 1000000000000.0",
    ),
    ({"flow_shift": float("nan")}, "flow_shift must be .* got nan"),
    (
      {"guidance_scale": {"video": 1e30, "audio": 3.0}},
      "guidance_scale.video must be from",
    ),
    (
      {"guidance_scale": {"video": 4.0, "audio": -1e9}},
      "guidance_scale.audio must be from",
    ),
    ({"height": 10**9}, "height must be from 1 to 65536"),
    ({"samples_per_prompt": 10**9}, "samples_per_prompt must be"),
    ({"slg_layer": 2**40}, "slg_layer must be from -1 to 512"),
    (
      {"negative_prompt": {"video": "a" * 2**22, "audio": "b"}},
      "negative_prompt.video: has 4194304 characters; the limit is 16384",
    ),
    (
      {"negative_prompt": {"video": "a", "audio": "b\x1b[2J"}},
      r"negative_prompt.audio: has the character U\+001B at place 2",
    ),
    ({"attention_heads": "1." + "9" * 5000}, "expected BLOCK.HEAD"),
    ({"mesh": {"data": 2**40, "fsdp": 0, "context": 0, "tensor": 0}}, "mesh"),
  ],
)
def test_values_out_of_bounds_are_refused(run, changes, message):
  with pytest.raises(ValueError, match=message) as error:
    run(changes=changes)
  assert len(str(error.value)) < 300


@pytest.mark.usefixtures("no_weights")
def test_too_many_clips_are_refused(run):
  asked = requests.from_prompt("a") * 50
  with pytest.raises(
    ValueError, match="50 prompts, each 9000 times, are 450000"
  ):
    run(asked=asked, changes={"samples_per_prompt": 9000})


@pytest.mark.parametrize(
  ("prompt", "message"),
  [
    ("A red\0ball", r"the prompt has the character U\+0000 at place 6"),
    ("A \x1b[2J ball", r"the prompt has the character U\+001B at place 3"),
    ("A b\udce9ball", r"the prompt has the character U\+DCE9 at place 4"),
    ("a " * 10_000, "the prompt has 20000 characters; the limit is 16384"),
  ],
)
def test_unreadable_prompts_are_refused(prompt, message):
  with pytest.raises(ValueError, match=message):
    requests.from_prompt(prompt)


@pytest.mark.usefixtures("no_weights")
def test_an_unknown_config_field_is_named():
  with pytest.raises(
    ValueError, match="config.stepps is unknown .did you mean num_steps"
  ):
    settings.Settings.from_config(config_values.sample_config(stepps=3))


@pytest.mark.usefixtures("no_weights")
def test_invalid_weights_are_refused(run, tmp_path):
  with pytest.raises(ValueError, match="convert_torch_weights"):
    run(weights=tmp_path / "nowhere")
  with pytest.raises(
    ValueError, match="are of variant custom, not 960x960_10s"
  ):
    run(changes={"variant": "960x960_10s"})


def test_a_run_from_python_caches_compiled_programs(run, tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.raises(ValueError, match="convert_torch_weights"):
      run(weights=tmp_path / "nowhere")
    assert jax.config.jax_compilation_cache_dir == os.path.expanduser(cli.CACHE)
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_weights")
def test_invalid_images_are_refused(tmp_path):
  with pytest.raises(ValueError, match="image is missing"):
    requests.from_prompt("a", tmp_path / "none.png")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_a_file_that_is_no_image_is_refused(run, tmp_path, content):
  picture = tmp_path / "first.png"
  picture.write_bytes(content)
  asked = requests.from_prompt("a", picture)
  with pytest.raises(ValueError, match="first.png"):
    run(asked=asked)


VIDEO, AUDIO = (4, 4, 6, 48), (21, 20)
BAD_NOISES = {  # content of the file -> message
  "nothing": (None, "is not a file"),
  "text": (b"text", "is not an .npz file"),
  "half": ({"video_THWC": np.zeros(VIDEO)}, "expected audio_TC.npy, found"),
  "whole numbers": (
    {"video_THWC": np.zeros(VIDEO, int), "audio_TC": np.zeros(AUDIO)},
    "video_THWC must be floating point, it is <i8",
  ),
  "too large": (
    {"video_THWC": np.full(VIDEO, 1e300), "audio_TC": np.zeros(AUDIO)},
    "video_THWC must be finite",
  ),
  "small": (
    {"video_THWC": np.zeros((1, 4, 6, 48)), "audio_TC": np.zeros(AUDIO)},
    r"expected video_THWC \(4, 4, 6, 48\)",
  ),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("kind", sorted(BAD_NOISES))
def test_invalid_noise_is_refused(run, tmp_path, kind):
  content, message = BAD_NOISES[kind]
  path = tmp_path / "noise.npz"
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif content is not None:
    np.savez(path, **content)
  with pytest.raises(ValueError, match=message):
    run(noise=path)


@pytest.mark.usefixtures("no_weights")
def test_damaged_noise_is_refused(run, noise, tmp_path):
  whole = noise.read_bytes()
  (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
  np.save(tmp_path / "one.npy", np.zeros(3))
  for name in ("short.npz", "one.npy"):
    with pytest.raises(ValueError, match="is not an .npz file"):
      run(noise=tmp_path / name)


@pytest.mark.usefixtures("no_weights")
def test_given_noise_requires_clips_of_one_size(run, noise, tmp_path, golden):
  picture = tmp_path / "first.png"
  pixels = golden("image")["image_u8"].transpose(1, 0, 2)
  Image.fromarray(pixels).save(picture)
  asked = [
    *requests.from_prompt("A wide clip"),
    *requests.from_prompt("A tall clip", picture),
  ]
  with pytest.raises(ValueError, match="one size; these have 64x96, 96x64"):
    run(asked=asked, noise=noise)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["clip.mp4", "CLIP.MP4", "a/clip.webm"])
def test_an_output_directory_named_like_a_file_is_refused(run, tmp_path, name):
  out = tmp_path / name
  with pytest.raises(ValueError, match=r"a directory, .*--out=.*/(?i:clip)$"):
    run(out=out)
  assert not list(tmp_path.iterdir())
  out.mkdir(parents=True)  # a directory that is there is one
  with pytest.raises(AssertionError, match="weights were loaded"):
    run(out=out)


@pytest.mark.usefixtures("no_weights")
def test_an_output_path_that_is_no_directory_is_refused(run, tmp_path):
  (tmp_path / "file").write_text("")
  for out in (tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(ValueError, match="out: cannot write to the directory"):
      run(out=out)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("", "", ""), "pass one of --prompt=TEXT and --prompts=FILE"),
    (("a", "b.csv", ""), "pass one of"),
    (("", "b.csv", "c.png"), "--image needs --prompt"),
    (("  ", "", ""), "the prompt is empty"),
    (("", "none.csv", ""), "none.csv"),
  ],
)
def test_invalid_flags_are_refused(flags, message):
  with pytest.raises(ValueError, match=message):
    requests.from_flags(*flags, mode="auto")


def test_stray_tags_and_repeated_clips_are_noted(run):
  asked = 2 * requests.from_prompt("A man says <S>hi. Audio: wind")
  paths, lines = run(asked=asked, changes={"num_steps": 1})
  assert any("<S>" in line and "has no <E>" in line for line in lines)
  assert len(paths) == 1
  assert any("1 clips are requested again" in line for line in lines)
