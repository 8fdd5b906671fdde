"""The Python API: results, and equality with `sample.py`."""

import contextlib
import dataclasses
import json
import pathlib
import threading
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

import ovi_jax
from configs import sample
from ovi_jax import geometry
from ovi_jax import synthetic
from ovi_jax.media import mp4
from ovi_jax.modality import AV
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import conditions
from ovi_jax.sampling import denoise
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import generate
from ovi_jax.sampling import given_encoder
from ovi_jax.sampling import job_errors
from ovi_jax.sampling import opening
from ovi_jax.sampling import outputs
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import tracking
from ovi_jax.sharding import mesh as meshes
from tests.lib import clip_jobs

pytestmark = pytest.mark.usefixtures("one_device")

BALL = "A red ball bounces on a wooden floor. Audio: dull wooden knocks."
LAMP = "A blue lamp flashes. Audio: a low beep."
FEW = {"seed": 7, "num_steps": 2}


@pytest.fixture(scope="module")
def pipe(one_device) -> ovi_jax.Pipeline:
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
    settings=opening.resolve_settings(config, synthetic.WEIGHTS),
    weights=synthetic.WEIGHTS,
    out=tmp_path / "out",
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
    ({"dtype": "float32"}, "dtype: of the loaded weights; pass it to from_pre"),
    ({"guidance_scale": True}, "guidance_scale.video must be a number"),
    ({"num_steps": 0}, "num_steps must be from 1 to 1000"),
    ({"batch_size": 0}, "batch_size must be from 1 to 1024"),
    ({"shard_clips_over_hosts": True}, "pass it to from_pretrained"),
    ({"image": "none.png"}, "none.png"),
  ):
    with pytest.raises(ValueError, match=message):
      pipe(BALL, **arguments)
  with pytest.raises(ValueError, match="expected a prompt or several"):
    pipe([])
  assert pipe._loaded == loaded


@pytest.mark.parametrize(
  ("prompt", "message"),
  [
    *(
      (x, f"prompt: expected text, or a list .*, got {kind}$")
      for x, kind in (
        (pathlib.Path("a"), "PosixPath"),
        (b"A ball", "bytes"),
        (None, "NoneType"),
        (5, "int"),
        ([BALL, 5], "int"),
        ([[BALL, None]], "NoneType"),
        ({BALL: 1}, "dict"),
        (np.int64(3), "int64"),
      )
    ),
  ],
)
def test_prompts_that_are_no_text_are_refused(pipe, prompt, message):
  with pytest.raises(ValueError, match=message):
    pipe(prompt)


@pytest.mark.parametrize("value", [b"x", 5, True, [], np.zeros((2, 2, 3))])
@pytest.mark.parametrize("name", ["image", "last_image", "video", "audio"])
def test_files_that_are_no_path_are_refused(pipe, name, value):
  kind = type(value).__name__
  message = f"the .*: expected the path of a file .*, got {kind}$"
  with pytest.raises(ValueError, match=message):
    pipe(BALL, **{name: value})


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"noise": 5}, "expected the path of a file .*, got int"),
    ({"negative_prompt": b"x"}, "negative_prompt.video: must be text, got byt"),
    ({"negative_prompt": {"audio": 5}}, "negative_prompt.audio: must be text"),
    ({"first_frame_endpoint": 5}, "first_frame_endpoint must be text, got int"),
    ({"num_steps": "2"}, "num_steps must be a whole number, got '2'"),
    ({"num_steps": np.float32(2.5)}, "num_steps must be a whole number"),
  ],
)
def test_other_types_are_named_in_one_line(pipe, values, message):
  with pytest.raises(ValueError, match=message) as error:
    pipe(BALL, **values)
  assert "\n" not in str(error.value)


def test_arguments_of_another_type_open_no_weights(pipe):
  for weights in (5, b"x", ["a"]):
    with pytest.raises(ValueError, match="expected the path of a file or fold"):
      ovi_jax.Pipeline.from_pretrained(weights)
  for lora in (5, ["a.safetensors"], b"x"):
    with pytest.raises(ValueError, match="lora: expected text, FILE"):
      pipe.set_lora(lora)
  with pytest.raises(ValueError, match="there is no file none.safetensors"):
    pipe.set_lora(pathlib.Path("none.safetensors"))
  with pytest.raises(ValueError, match="mesh: expected a mapping of data, fsd"):
    ovi_jax.Pipeline.from_pretrained(mesh=5)
  for opened in ("weights", pathlib.Path("weights"), None):
    with pytest.raises(ValueError, match=r"Pipeline.from_pretrained\(DIR\)"):
      ovi_jax.Pipeline(opened)


def test_scalars_of_numpy_are_numbers():
  found = settings_lib.Settings.from_overrides(
    {
      "num_steps": np.int32(2),
      "seed": np.int64(3),
      "guidance_scale": {"audio": np.float32(2)},
      "negative_prompt": np.str_("dark"),
    }
  )
  assert (found.num_steps, found.seed) == (2, 3)
  assert found.guidance_scale.audio == 2 and type(found.num_steps) is int
  assert found.negative_prompt == AV("dark", "dark")


@pytest.mark.parametrize(
  "mapping",
  [dict, ml_collections.ConfigDict, ml_collections.FrozenConfigDict],
)
def test_pairs_and_the_mesh_may_be_config_dicts(mapping):
  found = settings_lib.Settings.from_overrides(
    {"mesh": mapping({"data": 2}), "guidance_scale": mapping({"audio": 2.0})}
  )
  assert found.mesh["data"] == 2 and found.guidance_scale.audio == 2.0


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


STEP = denoise.Progress(finished=1, total=1, predict=AV)


class Stub:
  """Text encoder, denoiser and decoder in one: a clip is its noise."""

  def __init__(self, denoising=lambda names, on_step: on_step(STEP)):
    self.denoising, self.batches = denoising, []

  def texts(self, texts):
    return {text: np.array([text]) for text in texts}

  def sample(
    self,
    noise,
    positives,
    negative,
    settings,
    first,
    on_step,
    voices_BRC=None,
  ):
    assert voices_BRC is None
    names = "".join(text[0] for text in positives)
    assert negative.video[0] == settings.negative_prompt.video
    assert len(noise.video) == len(noise.audio) == len(names)
    self.batches.append(names)
    self.denoising(names, on_step)
    return jax.tree.map(jnp.asarray, noise)

  def frames(self, latents_BTHWC):
    grey = int(1000 * np.abs(latents_BTHWC).mean()) % 256
    for count in (1, 4):
      yield np.full((count, 32, 32, 3), grey, np.uint8)

  def wave(self, latents_BTC):
    return np.clip(np.ravel(latents_BTC), -1, 1)


def generated(stub, names, finish, *, batch_size=1, devices=1, **arguments):
  """What a pipeline of stubs makes of clips named by letters."""
  components: Any = types.SimpleNamespace(
    mesh=types.SimpleNamespace(size=devices),
    channels=AV(48, 20),
    denoiser=lambda: stub,
    loras=(),
  )
  pipe = pipelines.Pipeline(components)
  pipe._loaded = dict.fromkeys(("text", "decoder"), stub)
  jobs = [
    clip_jobs.job(n, clip_jobs.TALL if n.isupper() else clip_jobs.WIDE)
    for n in names
  ]
  settings = settings_lib.Settings.from_overrides({"batch_size": batch_size})
  return pipe.generate(jobs, settings, finish, **arguments)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_results_keep_the_order_of_requests(batch_size, devices):
  names, order, seen = "aBcDe", [], []

  def finish(made):
    order.append(made.job.text)
    return made.job.text, made.clip

  stub = Stub()
  track = tracking.from_progress(lambda *x: seen.append(x), len(names), 1)
  made = generated(
    stub, names, finish, batch_size=batch_size, devices=devices, track=track
  )
  batches = {1: [*"aBcDe"], 2: ["ac", "BD", "e"], 9: ["ace", "BD"]}
  assert stub.batches == batches[batch_size]
  assert "".join(order) == "".join(stub.batches)
  assert "".join(name for name, _ in made) == names
  finished = np.cumsum([len(batch) for batch in stub.batches])
  assert seen == [(count, len(names)) for count in finished]
  for name, clip in made:
    # The noise of its own seed, whatever stands beside it.
    ((_, alone),) = generated(Stub(), name, finish)
    np.testing.assert_array_equal(clip.latents.video, alone.latents.video)
    np.testing.assert_array_equal(clip.video, alone.video)
    np.testing.assert_array_equal(clip.audio, alone.audio)
    assert clip.metadata == alone.metadata


def test_a_clip_is_finished_while_the_next_is_denoised():
  """Neither ends before the other has begun."""
  denoising, finishing = threading.Event(), threading.Event()

  def denoised(names, on_step):
    if names == "b":
      denoising.set()
      assert finishing.wait(60)

  def finish(made):
    if made.job.text == "a":
      finishing.set()
      assert denoising.wait(60)

  generated(Stub(denoised), "ab", finish)


@pytest.mark.parametrize(
  ("error", "message"),
  [
    (OSError(5, "Input/output error"), "Input/output error: 'a'"),
    (ValueError("no good"), "a: no good"),
  ],
)
def test_an_error_in_the_background_ends_the_next_step(error, message):
  def denoised(names, on_step):
    latest = time.monotonic() + 60
    while names == "b" and time.monotonic() < latest:
      on_step(STEP)

  def finish(made):
    raise error

  stub = Stub(denoised)
  with pytest.raises(type(error), match=message):
    generated(stub, "abc", finish)
  assert stub.batches == ["a", "b"]


def test_cancelled_clips_are_dropped_and_other_batches_go_on():
  cancelled = {"a": [], "b": [1], "c": [0, 1], "d": [0], "e": [0]}
  seen = []

  @contextlib.contextmanager
  def track(number, batch):
    names = "".join(job.text for job in batch)
    seen.append((number, names))

    def on_step(progress):
      if rows := [row for name in names for row in cancelled[name]]:
        raise denoise.CancelledError(rows)

    yield on_step

  stub = Stub()
  made = generated(
    stub, "abcde", lambda made: made.job.text, batch_size=2, track=track
  )
  assert stub.batches == ["ab", "cd", "e"]
  assert seen == [(1, "ab"), (3, "cd"), (5, "e")]
  assert made == ["a"]


def test_a_batch_ends_at_once_when_all_of_it_is_cancelled():
  steps = []

  def denoised(names, on_step):
    for row in (1, 0, 0):
      steps.append(row)
      on_step(STEP)

  @contextlib.contextmanager
  def track(number, batch):
    def on_step(progress):
      raise denoise.CancelledError(steps[-1:])

    yield on_step

  stub = Stub(denoised)
  assert generated(stub, "ab", None, batch_size=2, track=track) == []
  assert steps == [1, 0]


def test_clips_that_are_not_finite_are_named():
  def denoised(names, on_step):
    raise denoise.NonFiniteLatentsError("step 1: not finite", [1, 2])

  with pytest.raises(denoise.NonFiniteLatentsError, match="^b, c: step 1: not"):
    generated(Stub(denoised), "abcd", None, batch_size=4)


def test_a_lora_is_named_as_a_cause_of_values_that_are_not_finite():
  job = types.SimpleNamespace(
    path=pathlib.Path("clip.mp4"), recipe={"loras": [{"path": "strong.st"}]}
  )
  batch: Any = [job]
  with (
    pytest.raises(denoise.NonFiniteLatentsError) as error,
    job_errors.rows_named(batch),
  ):
    raise denoise.NonFiniteLatentsError("step 1", [0])
  assert str(error.value) == (
    "clip: step 1; or a LoRA is damaged or too strong: strong.st"
  )


def test_an_interrupted_run_leaves_whole_files(tmp_path):
  writing, interrupted = threading.Event(), threading.Event()

  def denoised(names, on_step):
    if names == "cd":
      assert writing.wait(60)
      interrupted.set()
      raise KeyboardInterrupt

  def finish(made):
    path = tmp_path / made.job.path
    writing.set()
    assert interrupted.wait(60)
    frames = iter([made.clip.video])
    outputs.write(path, made.clip.metadata, frames, made.clip.audio, None)

  with pytest.raises(KeyboardInterrupt):
    generated(Stub(denoised), "abcd", finish, batch_size=2)
  clips = sorted(tmp_path.glob("*.mp4"))
  # The first one is completed; the second may have begun before the end.
  assert [p.stem for p in clips] in (["a"], ["a", "b"])
  for path in clips:
    assert len(mp4.read(path)[0]) == 5
    assert outputs.is_complete(path, clip_jobs.job(path.stem).recipe)
  assert len(list(tmp_path.iterdir())) == 2 * len(clips)


@pytest.fixture
def latents_of(one_device, weights, tmp_path, golden):
  """Latents of seven clips of the stand-in, in the order of requests."""
  picture = tmp_path / "first.png"
  Image.fromarray(golden("image")["image_u8"]).save(picture)
  long = "Waves roll in and out of a cave. " * 20
  asked = [
    dataclasses.replace(request, index=row, seed=seed)
    for row, (prompt, image, seed) in enumerate(
      [
        ("Rain.", None, None),
        (long, None, 7),
        (BALL, picture, 8),
        (LAMP, None, 9),
        ("Rain.", None, 10),
        (long, picture, 11),
        ("A <S>word<E>. Audio: a voice.", None, 12),
      ],
      1,
    )
    for request in requests.from_prompt(prompt, image)
  ]

  def make(batch_size: int, **mesh: int) -> list[AV]:
    sizes = mesh or {"data": 1}
    count = int(np.prod(list(sizes.values())))
    components = denoisers.SamplingComponents(
      weights=weights,
      manifest=weights_dir.read(weights),
      mesh=meshes.make(one_device[:count], **sizes),
      dtype=jnp.dtype("float32"),
      backend="xla_head",
    )
    settings = settings_lib.Settings.from_overrides(
      {
        "num_steps": 2,
        "slg_layer": 1,
        "negative_prompt": {"video": "blur", "audio": "robotic, " * 9},
        "batch_size": batch_size,
      }
    )
    jobs, noise = planning.plan(asked, settings, components, tmp_path, "")
    return pipelines.Pipeline(components).generate(
      jobs, settings, lambda made: jax.tree.map(np.asarray, made.latents), noise
    )

  return make


def assert_all_close(found: list[AV], expected: list[AV]) -> None:
  assert len(found) == len(expected) == 7
  for ours, reference in zip(found, expected):
    for a, b in zip(ours, reference):
      assert a.shape == b.shape and np.abs(b).max() > 1
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.slow
def test_a_batch_equals_single_clips(latents_of):
  """Mixed lengths and seeds, first frames, guidance; the rest of a batch."""
  alone = latents_of(1)
  for size in (2, 5):
    assert_all_close(latents_of(size), alone)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_batch_over_a_mesh_equals_single_clips(latents_of):
  """Each device has one pass of one clip."""
  assert_all_close(latents_of(4, data=2, fsdp=4), latents_of(1))


def test_a_part_of_the_voice_does_not_encode_the_given_files_again():
  video = ("video", (1.0, 3.0))

  def files(**given: Any) -> Any:
    request: Any = types.SimpleNamespace(
      image=None, given=conditions.Conditions(video=pathlib.Path("a"), **given)
    )
    job: Any = types.SimpleNamespace(request=request, clip=None, extended=None)
    return given_encoder._files(job)

  assert files(spans=(video,)) == files(
    voice=pathlib.Path("b"), spans=(video, ("voice", (0.0, 2.0)))
  )
  assert files(spans=(video,)) != files()
