"""Eval samples: playable and deterministic."""

import dataclasses
import functools
import json
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax import geometry
from ovi_jax.data import schema
from ovi_jax.data import settings as data_settings
from ovi_jax.media import mp4
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import decoders
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import denoise as denoising
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import noise
from ovi_jax.sampling import settings as sampling_settings
from ovi_jax.sharding import mesh as meshes
from ovi_jax.sharding import sharding_rules
from ovi_jax.training import param_filter
from ovi_jax.training import state_sharding
from ovi_jax.training import step
from ovi_jax.training.evaluators import eval_samples
from tests.lib import config_values
from tests.lib import parity
from tests.lib import small_step
from tests.lib import standin_models

SIZE = data_settings.Bucket(video=(2, 4, 6), audio=7)
SETTINGS = eval_samples.EvalSamplesConfig(num_samples=2, num_steps=2, seed=5)
DRAW = np.random.default_rng(3)
PROMPTS = tuple(
  eval_samples.EvalPrompt(
    name, f"caption of {name}", DRAW.standard_normal((rows, 48))
  )
  for name, rows in (("../clip one", 3), ("Clip_One", 9))
)
ONE = meshes.make(jax.devices()[:1])
EIGHT = meshes.make(jax.devices()[:8], data=2, fsdp=4)


@functools.cache
def towers(*names: str) -> tuple[fusion.FusionDiT, step.TrainState]:
  """The stand-in's model and a state, of one tower or both."""
  made, state = small_step.step_config()
  if len(names) == 2:
    return made.objective.model, state
  config = AV(**{n: getattr(standin_models.fusion_config(), n) for n in names})
  absent = AV(*AV._fields)._asdict().keys() - set(names)
  kept = {
    path: x
    for path, x in param_filter.flat(standin_models.fusion_params()).items()
    if not absent & set(path.split("/")) and "fusion_" not in path
  }
  state = step.init_state(made, *param_filter.split(kept, "all"), seed=1)
  return fusion.FusionDiT(config), state


@pytest.fixture(scope="module")
def components(weights):
  return component_loader.Components(
    weights=weights,
    manifest=weights_dir.read(weights),
    mesh=ONE,
    dtype=jnp.dtype("float32"),
  )


@pytest.fixture(scope="module")
def maker(components):
  """Makes what makes samples of a tower or two, in a directory."""

  def make(path, *names, **changes):
    model, _ = towers(*(names or AV._fields))
    given = {
      "model": model,
      "mesh": ONE,
      "components": components,
      "directory": path,
      "prompts": PROMPTS,
      "null_SE": small_step.NULL,
      "size": SIZE,
      "settings": SETTINGS,
    }
    return eval_samples.SampleEvaluator(**given | changes)

  return make


@pytest.fixture(scope="module")
def made(maker, tmp_path_factory):
  """The files of a state after its hundredth step."""
  state = towers("video", "audio")[1]._replace(step=jnp.int32(100))
  return maker(tmp_path_factory.mktemp("run"))(state)


def denoised(params=None, mesh=ONE) -> AV:
  """Latents of clips of both towers."""
  model, state = towers("video", "audio")
  text = [prompt.text_SE for prompt in PROMPTS]
  given = model, state.params(ema=True) if params is None else params
  with jax.set_mesh(mesh):
    made = eval_samples.denoise(*given, text, small_step.NULL, SIZE, SETTINGS)
    return jax.device_put(made, sharding_rules.replicated(mesh))


@pytest.fixture(scope="module")
def latents():
  return denoised()


@pytest.mark.slow
def test_samples_are_playable_clips(made):
  # Two ids that are one name to some file systems; none leaves the folder.
  folder = made[0].parent
  assert [p.name for p in made] == ["clip_one.mp4", "Clip_One-2.mp4"]
  assert folder.parts[-2:] == ("samples", "step-00000100")
  for path in made:
    frames, fps, sound, rate = mp4.read(path)
    assert frames.shape == (5, 64, 96, 3) and fps == 24 and frames.std() > 1
    assert sound is not None and len(sound) == 7 * 512 and rate == 16_000
    assert np.abs(sound).max() > 1e-4
  listed = json.loads((folder / "samples.json").read_text())
  assert listed["step"] == 100
  assert listed["settings"] == dataclasses.asdict(SETTINGS) | {
    "guidance_scale": {"video": 4.0, "audio": 3.0},
    "protocols": [],
  }
  assert listed["clips"][1] == {
    "file": "Clip_One-2.mp4",
    "id": "Clip_One",
    "caption": "caption of Clip_One",
    "seed": 6,
  }
  assert {p.name for p in folder.iterdir()} == {
    "samples.json",
    *(p.name for p in made),
  }


@pytest.mark.slow
def test_samples_depend_on_the_state_only(made, maker, tmp_path):
  _, state = towers("video", "audio")
  with jax.set_mesh(EIGHT):  # as the loop does
    again = maker(tmp_path / "again")(state)
  for ours, reference in zip(again, made):
    assert ours.read_bytes() == reference.read_bytes()
  assert state.ema_params is not None
  moved = state._replace(
    ema_params={n: 1.1 * x for n, x in state.ema_params.items()}
  )
  other = maker(tmp_path / "other")(moved)
  assert other[0].read_bytes() != made[0].read_bytes()


@pytest.mark.slow
def test_samples_equal_those_of_the_sampler(components, latents):
  """Its own noise and prompt, guided away from the empty prompt."""
  model, state = towers("video", "audio")
  fields = {
    f.name: getattr(components, f.name) for f in dataclasses.fields(components)
  }
  denoiser = denoisers.Denoiser(
    components=denoisers.SamplingComponents(**fields, backend="xla"),
    model=model,
    params=state.params(ema=True),
  )
  chosen = config_values.sample_config()
  chosen.update(num_steps=2, solver="unipc", flow_shift=5.0, slg_layer=0)
  chosen.guidance_scale.update(video=4.0, audio=3.0)
  frames, height, width = SIZE.video
  clip = geometry.Clip(
    latent_frames=frames,
    latent_height=height,
    latent_width=width,
    audio_latents=SIZE.audio,
  )
  for row, prompt in enumerate(PROMPTS):
    start = noise.sample_noise(5 + row, clip, AV(48, 20))
    expected = denoiser.sample(
      jax.tree.map(lambda a: a[None], start),
      [prompt.text_SE],
      AV(small_step.NULL, small_step.NULL),
      sampling_settings.Settings.from_config(chosen),
    )
    for ours, reference in zip(latents, expected):
      parity.assert_close(ours[row], reference[0], "devices")


@pytest.mark.slow
def test_eight_devices_equal_one(latents):
  _, state = towers("video", "audio")
  placed = state_sharding.state_shardings(state, small_step.CONFIG, EIGHT)
  spread = jax.device_put(jax.tree.map(np.array, state), placed)
  denoising.step.clear_cache()
  eight = denoised(spread.params(ema=True), EIGHT)
  assert denoising.step._cache_size() == 1
  for ours, reference in zip(eight, latents):
    parity.assert_close(ours, reference, "devices")


@pytest.mark.slow
def test_a_video_tower_gives_clips_without_audio(maker, tmp_path):
  made = maker(tmp_path, "video")(towers("video")[1])
  frames, _, sound, _ = mp4.read(made[1])
  assert frames.shape == (5, 64, 96, 3) and sound is None


@pytest.mark.slow
def test_an_audio_tower_gives_waves(maker, tmp_path):
  made = maker(tmp_path, "audio", size=data_settings.Bucket(audio=7))
  paths = made(towers("audio")[1])
  assert [p.suffix for p in paths] == [".wav", ".wav"]
  with wave.open(str(paths[0])) as file:
    assert file.getparams()[:4] == (1, 2, 16_000, 7 * 512)
    heard = np.frombuffer(file.readframes(7 * 512), "<i2")
  assert np.abs(heard).max() > 4


def test_only_requested_decoders_are_loaded(components):
  decoder = decoders.Decoder.load(components, ["audio"])
  assert decoder.video is None and decoder.audio and decoder.vocoder
  decoder = decoders.Decoder.load(components, AV(video=1).present())
  assert decoder.video and decoder.audio is None and decoder.vocoder is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_samples": 0}, "num_samples must be from 1 to 1024, got 0"),
    ({"num_steps": 0}, "num_steps must be from 1 to 1000, got 0"),
    ({"solver": "heun"}, "solver 'heun' is unknown; choose from unipc"),
    ({"flow_shift": 0.0}, "flow_shift must be from 0.01"),
    (
      {"guidance_scale": AV(4.0, float("nan"))},
      "guidance_scale.audio must be from -100 to 100",
    ),
    ({"seed": 2**32 - 1}, "seeds must be in"),
  ],
)
def test_invalid_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    eval_samples.EvalSamplesConfig(**{"num_samples": 2} | changes)


def test_mismatches_are_reported_before_training(maker, tmp_path):
  with pytest.raises(ValueError, match="expected 2 prompts, got 1; lower"):
    maker(tmp_path, prompts=PROMPTS[:1])
  with pytest.raises(ValueError, match="size: expected one for audio"):
    maker(tmp_path, size=data_settings.Bucket(video=(2, 4, 6)))
  wide = dataclasses.replace(standin_models.fusion_config().audio, channels=8)
  model = fusion.FusionDiT(AV(None, wide))
  with pytest.raises(ValueError, match="in_dim is 8, but audio_vae embed_dim"):
    maker(tmp_path, model=model)


def record(number: int, **changes) -> schema.Record:
  given = {
    "id": f"clip-{number}",
    "source": "",
    "captions": ("first", "second"),
    "text": (np.full((2, 48), number, "f2"), np.zeros((1, 48), "f2")),
  }
  return schema.Record(**given | changes)


def test_prompts_are_the_first_captions_of_the_first_records():
  found = eval_samples.prompts((record(n) for n in range(5)), 3)
  assert [p.id for p in found] == ["clip-0", "clip-1", "clip-2"]
  assert found[2].caption == "first" and (found[2].text_SE == 2).all()
  assert found[2].text_SE.dtype == np.float32
  assert len(eval_samples.prompts([record(0)], 3)) == 1
  with pytest.raises(ValueError, match="'clip-0' has no text embedding"):
    eval_samples.prompts([record(0, text=())], 3)
  with pytest.raises(ValueError, match="at least one held-out record"):
    eval_samples.prompts([], 3)
