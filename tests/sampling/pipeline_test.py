"""The Python API: results, and equality with `sample.py`."""

import json
import pathlib

import numpy as np
import pytest

import ovi_jax
from configs import sample
from ovi_jax import geometry
from ovi_jax import synthetic
from ovi_jax.media import mp4
from ovi_jax.sampling import generate
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as settings_lib

BALL = "A red ball bounces on a wooden floor. Audio: dull wooden knocks."
LAMP = "A blue lamp flashes. Audio: a low beep."
FEW = {"seed": 7, "num_steps": 2}


@pytest.fixture(scope="module")
def pipe() -> ovi_jax.Pipeline:
  return ovi_jax.Pipeline.from_pretrained()


@pytest.fixture(scope="module")
def clip(pipe) -> ovi_jax.Clip:
  return pipe(BALL, progress=False, **FEW)


@pytest.mark.slow
def test_a_clip_has_frames_and_sound(clip):
  assert clip.video.shape == (121, 64, 64, 3) and clip.video.dtype == np.uint8
  assert clip.audio.dtype == np.float32 and np.abs(clip.audio).max() <= 1
  assert (clip.fps, clip.sample_rate) == (geometry.FPS, geometry.SAMPLE_RATE)
  assert abs(len(clip.audio) / clip.sample_rate - 121 / clip.fps) < 0.05
  assert "64x64, 121 frames" in repr(clip)


@pytest.mark.slow
def test_sample_py_writes_the_same_file(clip, tmp_path):
  path = clip.save(tmp_path / "new" / "ball.mp4")
  config = sample.get_config()
  config.update(FEW)
  (made,) = generate.run(
    requests=requests.from_prompt(BALL),
    settings=planning.resolve_settings(config, synthetic.WEIGHTS),
    weights=synthetic.WEIGHTS,
    out=tmp_path / "out",
    log=lambda _: None,
  )
  assert made.read_bytes() == path.read_bytes()
  ours, theirs = (
    json.loads(p.with_suffix(".json").read_text()) for p in (path, made)
  )
  assert ours == theirs


@pytest.mark.slow
def test_prompts_are_generated_in_order_with_progress(pipe, clip):
  seen = []
  both = pipe(
    [LAMP, BALL],
    progress=lambda step, total: seen.append((step, total)),
    log=lambda _: None,
    **FEW,
  )
  assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
  np.testing.assert_array_equal(both[1].video, clip.video)
  np.testing.assert_array_equal(both[1].audio, clip.audio)
  assert (both[0].video != clip.video).any()


@pytest.mark.slow
def test_components_are_loaded_once_or_freed(pipe, clip):
  assert pipe._loaded.keys() == {"text", "denoiser", "decoder"}
  freed = ovi_jax.Pipeline.from_pretrained(keep_loaded=False)
  again = freed(BALL, progress=False, **FEW)
  assert not freed._loaded
  np.testing.assert_array_equal(again.video, clip.video)


@pytest.mark.slow
def test_a_notebook_shows_a_player_with_sound(clip, tmp_path):
  html = clip._repr_html_()
  assert html.startswith("<video controls")
  path = clip.save(tmp_path / "clip.mp4")
  frames, _, wave, _ = mp4.read(path)
  assert len(frames) == 121 and wave is not None
  with pytest.raises(ValueError, match=r"ends in \.mp4"):
    clip.save(tmp_path / "clip.avi")


def test_errors_are_raised_before_weights_are_loaded(pipe):
  loaded = dict(pipe._loaded)
  for arguments, message in (
    ({"stepps": 3}, r"stepps is unknown \(did you mean num_steps\?\)"),
    ({"dtype": "float32"}, "dtype: of the loaded weights; give it to from_pre"),
    ({"guidance_scale": True}, "guidance_scale.video must be a number"),
    ({"num_steps": 0}, "num_steps must be from 1 to 1000"),
    ({"image": "none.png"}, "none.png"),
  ):
    with pytest.raises(ValueError, match=message):
      pipe(BALL, **arguments)
  with pytest.raises(ValueError, match="expected a prompt or several"):
    pipe([])
  assert pipe._loaded == loaded


def test_unreadable_weights_are_refused(tmp_path):
  with pytest.raises(ValueError, match="convert_torch_weights.py"):
    ovi_jax.Pipeline.from_pretrained(tmp_path / "none")
  with pytest.raises(ValueError, match="from_pretrained takes variant, dtype"):
    ovi_jax.Pipeline.from_pretrained(seed=3)


def test_defaults_are_those_of_the_config():
  config = {k: v for k, v in sample.get_config().to_dict().items()}
  pairs = {"guidance_scale", "negative_prompt"}
  fixed = {
    name: value
    for name, value in config.items()
    if name not in pairs and value is not None
  }
  assert fixed == dict(settings_lib.FIXED)
  assert set(config) == set(settings_lib.FIXED) | set(settings_lib.DEFAULTS)


def test_one_value_applies_to_both_modalities():
  found = settings_lib.Settings.from_overrides(
    {"guidance_scale": 2.0, "negative_prompt": {"audio": "hum"}}
  )
  assert tuple(found.guidance_scale) == (2.0, 2.0)
  assert found.negative_prompt.audio == "hum"
  assert (
    found.negative_prompt.video
    == settings_lib.DEFAULTS["negative_prompt"]["video"]
  )


def test_the_package_is_imported_without_the_api():
  text = pathlib.Path(ovi_jax.__file__).read_text()
  assert "importlib.import_module" in text
  with pytest.raises(AttributeError, match="no attribute 'Pipe'"):
    _ = ovi_jax.Pipe
