"""The engine, with trivial models: checks, progress, failures, restarts."""

import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from ovi_jax.media import mp4
from ovi_jax.sampling import outputs
from ovi_jax.studio import adapters
from ovi_jax.studio import engine as engines
from ovi_jax.studio import jobs
from ovi_jax.studio import requests
from tests.lib import fake_sampling

BALL = "A red ball bounces."
QUICK = {"num_steps": 2}


@pytest.fixture(scope="module")
def pipe():
  return fake_sampling.pipeline()[0]


@pytest.fixture
def make(pipe, tmp_path):
  """Opens an engine on the folder, with models of its own."""
  opened = []

  def call(**options):
    components = pipe.components
    pipeline = type(pipe)(components)
    models = fake_sampling.Models(components)
    pipeline._loaded = dict.fromkeys(pipe._loaded, models)
    store = jobs.JobStore(tmp_path / "out")
    engine = engines.Engine(pipeline, store, **options)
    opened.append((engine, store))
    return engine, models

  yield call
  for engine, store in opened:
    engine.pipeline._loaded["denoiser"].gate.set()
    engine.close()
    store.close()


def picture(rows=40, columns=40) -> io.BytesIO:
  buffer = io.BytesIO()
  Image.new("RGB", (columns, rows), "teal").save(buffer, "PNG")
  return buffer


def finished(engine, *ids):
  found = [engine.wait(id, 60) for id in ids]
  assert [job.status for job in found] == ["finished"] * len(ids), found
  return found


def test_a_clip_is_what_sample_py_would_write(make):
  engine, _ = make()
  job = engine.submit(BALL, QUICK | {"seed": 5, "width": 64, "height": 64})
  assert (job.status, job.position, job.num_steps) == ("queued", 1, 2)
  assert (job.width, job.height) == (64, 64)
  assert job.seconds == pytest.approx(121 / 24)
  engine.start()
  (job,) = finished(engine, job.id)
  path = engine.store.folder / job.clip
  assert path.name.startswith("A_red_ball_bounces") and "_5.mp4" in path.name
  assert len(mp4.read(path)[0]) == 5
  assert outputs.prompt_of(path) == BALL
  recipe = json.loads(path.with_suffix(".json").read_text())
  assert (recipe["seed"], recipe["config"]["num_steps"]) == (5, 2)
  with np.load(outputs.latents_of(path)) as latents:
    assert latents["video_THWC"].shape == (31, 4, 4, 16)
  assert outputs.is_complete(path, recipe)


def test_a_clip_that_is_there_is_not_made_again(make):
  engine, models = make()
  same = [engine.submit(BALL, QUICK | {"seed": 5}) for _ in range(3)]
  other = engine.submit(BALL, {"num_steps": 3, "seed": 5})
  engine.start()
  found = finished(engine, *(job.id for job in (*same, other)))
  assert len({job.clip for job in found[:3]}) == 1
  assert found[3].clip == found[0].clip.replace(".mp4", "_2.mp4")
  assert models.batches == [1, 1]
  folder = engine.store.folder
  for job in found[:3]:
    assert (folder / found[0].clip).exists()
    engine.delete(job.id)
  assert sorted(x.suffix for x in folder.glob("*_5.*")) == []
  assert (folder / found[3].clip).exists()


def test_seeds_are_random_and_kept(make):
  engine, _ = make()
  seeds = {engine.submit(BALL).request.settings["seed"] for _ in range(3)}
  assert len(seeds) == 3 and all(0 <= seed < 2**32 for seed in seeds)


def test_given_files_are_copied_and_their_paths_are_not_written(make, tmp_path):
  engine, _ = make()
  source = tmp_path / "secret name.png"
  source.write_bytes(picture().getvalue())
  job = engine.submit(BALL, QUICK, {"image": source, "last_image": picture()})
  source.unlink()
  assert job.request.given == {"image": "image", "last_image": "last_image"}
  engine.start()
  (job,) = finished(engine, job.id)
  text = (engine.store.folder / job.clip).with_suffix(".json").read_text()
  given = json.loads(text)
  assert given["image"]["path"] == f"studio/given/{job.id}/image"
  assert str(tmp_path) not in text and "secret" not in text
  engine.delete(job.id)
  assert not engine.store.given_folder(job.id).exists()


def test_a_request_can_be_repeated_with_changes(make):
  engine, _ = make()
  first = engine.submit(BALL, QUICK | {"seed": 5}, {"image": picture()})
  engine.cancel(first.id)
  again = engine.again(first.id, seed=6)
  engine.delete(first.id)
  engine.start()
  (found,) = finished(engine, again.id)
  assert found.request.prompt == BALL
  assert found.request.settings == QUICK | {"seed": 6}
  assert found.request.given == {"image": "image"}
  with pytest.raises(jobs.UnknownJobError):
    engine.again(first.id)


def clip(tmp_path, count=25, side=32) -> str:
  path = tmp_path / "given.mp4"
  frames = np.zeros((count, side, side, 3), np.uint8)
  mp4.write(path, [frames], np.zeros(count * 16000 // 24, np.float32))
  return str(path)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"prompt": " "}, "the prompt is empty"),
    ({"prompt": "a" * 10_001}, "at most 10000 characters, got 10001"),
    ({"settings": {"numsteps": 3}}, "'numsteps' is unknown.*num_steps"),
    ({"settings": {"num_steps": 0}}, "num_steps must be from 1 to 1000, got 0"),
    ({"settings": {"num_steps": True}}, "num_steps"),
    ({"settings": {"seed": -1}}, "seeds must be in"),
    ({"settings": {"solver": "heun"}}, "'heun' is unknown"),
    ({"settings": {"guidance_scale": {"smell": 2}}}, "'smell' is unknown"),
    ({"settings": {"guidance_scale": [1, 2]}}, "guidance_scale"),
    ({"settings": {"batch_size": 2}}, "'batch_size' is unknown"),
    ({"given": {"picture": "x.png"}}, "'picture' is unknown"),
    ({"given": {"image": "/no/such.png"}}, "image: there is no such file"),
    ({"given": {"image": "/dev/zero"}}, "image: expected a regular file"),
    ({"given": {"image": io.BytesIO(b"GIF89a")}}, "^image: found a GIF"),
    ({"given": {"image": io.BytesIO(bytes(5 << 20))}}, "at most 4 MiB"),
    (
      {"given": {"image": picture(400, 600)}},
      "at most 100000 pixels, found 240",
    ),
    ({"given": {"image": picture(8, 80)}}, "8 to 1, got 8x80"),
    (
      {"given": {"video": picture()}},
      "video: expected a media file, found a PNG picture",
    ),
    (
      {"given": {"audio": "CLIP"}},
      "audio: expected at most 1 seconds, found 2",
    ),
    ({"given": {"keep": "5"}}, "keep: expected intervals"),
    ({"given": {"trim": {"video": "0-1"}}}, "trim: there is no video"),
    ({"given": {"trim": {"image": "0-1"}}}, "trim: 'image' is unknown"),
    ({"seconds": 1.5}, "seconds: expected at most 1, got 1.5"),
    ({"seconds": float("nan")}, "seconds: expected at most 1, got nan"),
    ({"seconds": 0.01}, "seconds must be at least 0.17"),
    ({"generate": "smell"}, "generate 'smell' is unknown"),
    ({"given": {"keep": "0-1"}}, "add one"),
    ({"lora": "/no/such/lora.safetensors"}, "lora.safetensors"),
  ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
  make, tmp_path, arguments, message
):
  limits = requests.Limits(file_bytes=4 << 20, pixels=100_000, seconds=1.0)
  engine, _ = make(limits=limits)
  arguments = {"prompt": BALL} | arguments
  given = arguments.get("given", {})
  if "CLIP" in given.values():
    arguments["given"] = dict.fromkeys(given, clip(tmp_path, 50))
  with pytest.raises(requests.RequestError, match=message) as raised:
    engine.submit(**arguments)
  said = str(raised.value)
  assert "\n" not in said and str(tmp_path) not in said and "/no" not in said
  assert engine.query() == []
  given_files = engine.store.folder / jobs.FOLDER / "given"
  assert not given_files.exists() or not list(given_files.iterdir())


@pytest.mark.parametrize(
  ("trim", "message"),
  [
    ("2-1", "trim: expected intervals"),
    ("0-1,1.5-2", "trim: expected one interval of video"),
    ([1.0], "trim: expected"),
    ("3-4", "video video: the part begins at 3 s, the file lasts 2.0"),
    ("1-1.1", "the file lasts 0.10 s; the shortest clip"),
  ],
)
def test_parts_that_a_file_has_not_are_refused(make, tmp_path, trim, message):
  engine, _ = make()
  given = {"video": clip(tmp_path, 50), "trim": {"video": trim}}
  with pytest.raises(requests.RequestError, match=message) as raised:
    engine.submit(BALL, None, given)
  assert str(tmp_path) not in str(raised.value)


def test_a_part_of_a_file_is_used_and_kept_for_repetitions(make, tmp_path):
  engine, _ = make()
  given = {"video": clip(tmp_path, 50), "trim": {"video": "0.5-1.5"}}
  job = engine.submit(BALL, QUICK, given)
  assert job.request.given == {"video": "video", "trim": {"video": [0.5, 1.5]}}
  assert job.seconds == pytest.approx(21 / 24)  # of 24 frames, 1 + 4 k
  again = engine.again(job.id, seed=1)
  assert again.request.given == job.request.given
  engine.start()
  for found in finished(engine, job.id, again.id):
    path = (engine.store.folder / found.clip).with_suffix(".json")
    assert json.loads(path.read_text())["given"]["video"]["seconds"] == [
      *(0.5, 1.5)
    ]


def test_length_and_tower_are_those_that_are_asked_for(make):
  engine, _ = make()
  short = engine.submit(BALL, QUICK, seconds=0.5)
  long = engine.submit(BALL, QUICK, seconds=11.0)
  sound = engine.submit(BALL, QUICK, seconds=0.5, generate="audio")
  silent = engine.submit(BALL, QUICK, seconds=0.5, generate="video")
  assert [x.seconds for x in (short, long, sound)] == [
    pytest.approx(frames / 24) for frames in (13, 265, 13)
  ]
  assert (short.num_steps, long.num_steps) == (2, 6)  # in three windows
  engine.cancel(long.id)
  engine.start()
  found = finished(engine, short.id, sound.id, silent.id)
  suffixes = [x.clip.rpartition(".")[2] for x in found]
  assert suffixes == ["mp4", "wav", "mp4"]
  assert mp4.read(engine.store.folder / found[2].clip)[2] is None
  again = engine.again(sound.id, seed=9)
  assert (again.request.seconds, again.request.generate) == (0.5, "audio")
  finished(engine, again.id)


@pytest.mark.parametrize("folder", ["samples", "."])
def test_messages_lose_paths_and_no_words(pipe, tmp_path, monkeypatch, folder):
  monkeypatch.chdir(tmp_path)
  loras = tmp_path / "my loras"
  loras.mkdir()
  store = jobs.JobStore(folder)
  engine = engines.Engine(pipe, store, adapters=adapters.Adapters(loras))
  weights = pipe.components.weights
  for said, shown in (
    ("its sound has 1.5 samples a second", None),
    (f"{loras}/a.safetensors: damaged", "a.safetensors: damaged"),
    (f"{weights}/vae/a.json: damaged", "vae/a.json: damaged"),
    (f"weights in {weights} have no tower", "weights in … have no tower"),
  ):
    assert engine.planner.public_message(ValueError(said)) == (shown or said)
  store.close()


def test_only_so_many_clips_wait(make):
  engine, _ = make(limits=requests.Limits(queued=1))
  engine.submit(BALL)
  with pytest.raises(engines.QueueFullError, match="1 clips are queued"):
    engine.submit(BALL)


def test_progress_and_previews_can_be_followed(make):
  engine, models = make(preview_every=2)
  models.gate.clear()
  engine.start()
  job = engine.submit(BALL, {"num_steps": 5})
  seen = []
  for now in engine.events(job.id):
    if now.status == jobs.RUNNING and not models.gate.is_set():
      models.gate.set()
    preview = engine.preview(job.id)
    seen.append((now.status, now.step, preview and preview.step))
  assert seen[-1] == ("finished", 5, None)
  steps = [step for _, step, _ in seen]
  assert steps == sorted(steps)
  (job,) = finished(engine, job.id)
  # Without somebody who asks, none are made.
  previews = []
  real = engine.pipeline.preview
  engine.pipeline.preview = lambda *x: previews.append(real(*x)) or previews[-1]
  other = engine.submit("Rain.", {"num_steps": 5})
  finished(engine, other.id)
  assert previews == []
  other = engine.submit("Snow.", {"num_steps": 5})
  assert engine.preview(other.id) is None or previews
  finished(engine, other.id)
  assert [x.step for x in previews] in ([2, 4], [4], [])
  for preview in previews:
    assert preview.frames.shape == (5, 32, 32, 3)
    assert preview.audio.ndim == 1


def test_a_clip_is_made_though_its_previews_fail(make):
  engine, models = make(preview_every=1)
  called = []

  def preview(*arguments):
    called.append(arguments)
    raise RuntimeError("RESOURCE_EXHAUSTED")

  engine.pipeline.preview = preview
  job = engine.submit(BALL, QUICK)
  assert engine.preview(job.id) is None
  engine.start()
  finished(engine, job.id)
  assert called and models.batches == [1]


def test_a_clip_that_is_being_deleted_is_made_again(make):
  engine, models = make()
  engine.start()
  (job,) = finished(engine, engine.submit(BALL, QUICK | {"seed": 5}).id)
  remove, again = engine._remove_clip, []

  def slow(path):
    again.append(engine.submit(BALL, QUICK | {"seed": 5}).id)
    engine.wait(again[0], 0.2)
    remove(path)

  engine._remove_clip = slow
  engine.delete(job.id)
  (found,) = finished(engine, *again)
  assert (engine.store.folder / found.clip).exists()
  assert models.batches == [1, 1]


def test_a_warm_up_leaves_nothing(make):
  engine, models = make(warm_up=True)
  engine.start()
  while not models.batches:
    time.sleep(0.01)
  finished(engine, engine.submit("Rain.", QUICK | {"seed": 1}).id)
  assert models.batches == [1, 1]
  assert len(list(engine.store.folder.glob("*.mp4"))) == 1


def test_estimates_follow_the_latest_clip(make):
  engine, models = make()
  engine.start()
  finished(engine, engine.submit(BALL, {"num_steps": 4}).id)
  models.gate.clear()
  models.began.clear()
  running = engine.submit("Rain.", {"num_steps": 4}).id
  waiting = engine.submit("Snow.", {"num_steps": 4}).id
  assert models.began.wait(60)
  first, second = engine.get(running), engine.get(waiting)
  assert second.position == 1
  assert first.seconds_left is not None and first.seconds_left > 0
  assert second.seconds_left > first.seconds_left / 2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_jobs_are_cancelled_in_the_queue_and_at_any_step(make, batch_size):
  engine, models = make(batch_size=batch_size)
  models.gate.clear()
  ids = [engine.submit(BALL, QUICK | {"seed": n}).id for n in range(4)]
  assert engine.cancel(ids[3]).status == jobs.CANCELLED
  engine.start()
  assert models.began.wait(60)
  assert engine.cancel(ids[0]).status == jobs.CANCELLED
  models.gate.set()
  found = finished(engine, ids[1], ids[2])
  assert engine.get(ids[0]).status == engine.get(ids[3]).status == "cancelled"
  clips = sorted(x.name for x in engine.store.folder.glob("*.mp4"))
  assert clips == sorted(job.clip for job in found)
  assert engine.cancel(ids[1]).status == jobs.FINISHED  # too late
  assert models.batches == ([1, 1, 1] if batch_size == 1 else [2, 1])


def test_a_clip_that_is_cancelled_while_it_is_written_is_removed(make):
  engine, _ = make()
  job = engine.submit(BALL, QUICK)
  real = outputs.write

  def write(*arguments, **more):
    real(*arguments, **more)
    assert engine.store.cancel(job.id)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(outputs, "write", write)
    engine.start()
    assert engine.wait(job.id, 60).status == jobs.CANCELLED
    finished_next = engine.submit("Rain.", QUICK)
    patch.setattr(outputs, "write", real)
    engine.wait(finished_next.id, 60)
  assert not list(engine.store.folder.glob("A_red*"))


def test_a_failure_is_of_one_job(make):
  engine, models = make(batch_size=4)
  ids = [engine.submit(BALL, QUICK | {"seed": n}).id for n in range(4)]
  real, alone = models.sample, []

  def sample(noise, positives, *rest, **others):
    if len(positives) > 1:
      raise RuntimeError("RESOURCE_EXHAUSTED: /secret/place")
    alone.append(1)
    if len(alone) == 2:
      raise RuntimeError("RESOURCE_EXHAUSTED: /secret/place")
    if len(alone) == 3:
      weights = engine.pipeline.components.weights
      raise ValueError(f"{weights}/fusion.safetensors: damaged\n twice")
    return real(noise, positives, *rest, **others)

  models.sample = sample
  engine.start()
  found = [engine.wait(id, 60) for id in ids]
  assert [x.status for x in found] == [
    "finished",
    "failed",
    "failed",
    "finished",
  ]
  assert found[1].error == "internal error (RuntimeError); see the server's log"
  assert found[2].error == "fusion.safetensors: damaged twice"
  finished(engine, engine.submit("Rain.", QUICK).id)


@pytest.mark.parametrize("last", [2, 4])
def test_a_job_whose_end_cannot_be_stored_is_taken_again(make, last):
  engine, models = make()
  real, tries = engine.store._transaction, []

  def transaction():
    if [x for x in engine.query() if x.status == jobs.RUNNING]:
      tries.append(1)
      if 2 <= len(tries) <= last:
        raise jobs.StorageError("the disk is full")
    return real()

  engine.store._transaction = transaction
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engines, "_RETRY", 0.01)
    id = engine.submit(BALL, QUICK).id
    engine.start()
    finished(engine, id)
  assert len(tries) > last
  assert models.batches == [1]


def test_a_closed_engine_puts_its_job_back(make):
  engine, models = make()
  models.gate.clear()
  engine.start()
  id = engine.submit(BALL, QUICK).id
  next(x for x in engine.events(id) if x.status == jobs.RUNNING)
  closing = threading.Thread(target=engine.close)
  closing.start()
  assert engine._closing.wait(60)
  models.gate.set()
  closing.join()
  assert engine.get(id).status == jobs.QUEUED
  engine.store.close()
  again, _ = make()
  again.start()
  finished(again, id)


def test_a_clip_that_was_written_before_the_process_died_is_kept(make):
  engine, models = make()
  id = engine.submit(BALL, QUICK).id
  with pytest.MonkeyPatch.context() as patch:
    # The process ends between the last write and the end of the job.
    patch.setattr(engine.store, "finish", lambda *x, **y: True)
    patch.setattr(engine.store, "interrupt", lambda *x: None)
    engine.start()
    while not list(engine.store.folder.glob("*.mp4")):
      assert engine.wait(id, 0.05).status != jobs.FAILED
    engine.close()
  engine.store.close()
  again, models = make()
  again.start()
  (job,) = finished(again, id)
  assert models.batches == []
  again.delete(id)
  assert not (again.store.folder / job.clip).exists()
