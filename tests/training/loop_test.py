"""The training loop: restarts, signals, non-finite losses, logs."""

import contextlib
import dataclasses
import os
import signal
import types

import jax
import numpy as np
import pytest

from ovi_jax import flops
from ovi_jax import storage
from ovi_jax.checkpoint import manager
from ovi_jax.sharding import mesh as meshes
from ovi_jax.training import bad_steps
from ovi_jax.training import goodput
from ovi_jax.training import logs
from ovi_jax.training import loop
from ovi_jax.training import state_sharding
from ovi_jax.training import step as steps
from ovi_jax.training import watchdog
from tests.lib import parity
from tests.lib import small_step

STEPS = 6


class Cycle:
  """Batches that are a function of their number; notes what was seen."""

  def __init__(self, on_batch=lambda number, batch: batch):
    self.number, self.seen, self.on_batch = 0, [], on_batch

  def __next__(self):
    batch = small_step.batch()
    size = len(batch.ids)
    batch = batch._replace(ids=batch.ids + self.number * size)
    self.seen.append(batch.ids.tolist())
    self.number += 1
    return self.on_batch(self.number, batch)

  def get_state(self):
    return {"number": self.number}

  def set_state(self, state):
    self.number = state["number"]


def one_run(
  path,
  source,
  *,
  devices=1,
  parts=1,
  checkpoint_every=0,
  evaluate=None,
  skip=0,
  **changes,
):
  """Open a run's directory, continue, close it; returns the last state."""
  made, state = small_step.step_config(parts, num_train_steps=STEPS, **changes)
  mesh = meshes.make(jax.devices()[:devices], fsdp=devices)
  shardings = state_sharding.state_shardings(state, small_step.CONFIG, mesh)
  state = jax.device_put(jax.tree.map(np.array, state), shardings)
  kept = manager.Manager(path / "checkpoints")
  with kept, logs.Logs(path) as written:
    work = loop.TrainContext(
      step_config=made,
      mesh=mesh,
      input=source,
      null_SE=small_step.NULL,
      manager=kept,
      logs=written,
      directory=str(path),
      intervals=loop.Intervals(
        log_every=2,
        checkpoint_every=checkpoint_every,
        eval_every=3 if evaluate else 0,
      ),
      evaluate=evaluate or (lambda _: {}),
      skip_bad_steps=skip,
      cost=lambda batch: flops.batch_cost(
        small_step.CONFIG,
        jax.tree.map(np.shape, batch.latents),
        attention_only=True,
      ),
    )
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
    state = loop.restore(work, target) or state
    finished = loop.run(work, state)
    last = kept.restore_newest(target)
    assert last is not None
    return finished, last.step, last.state


def until(number, told=signal.SIGTERM):
  """Ask the process to stop while batch `number` is being made."""

  def on_batch(now, batch):
    if now == number:
      os.kill(os.getpid(), told)
    return batch

  return on_batch


def spoiled(*numbers):
  """Let a record of these batches be NaN."""

  def on_batch(now, batch):
    if now in numbers:
      batch.latents.audio[5, 0] = np.nan
    return batch

  return on_batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing interrupts."""
  path, source = tmp_path_factory.mktemp("whole"), Cycle()
  finished, number, state = one_run(path, source)
  assert finished and number == STEPS
  return path, source, jax.device_get(state)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_state(whole, tmp_path):
  _, source, expected = whole
  first = Cycle(until(3))
  finished, number, _ = one_run(tmp_path, first)
  assert not finished and number == 3
  second = Cycle()
  finished, number, state = one_run(tmp_path, second)
  assert finished and number == STEPS
  assert first.seen + second.seen == source.seen
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)


@pytest.mark.slow
def test_ctrl_c_saves_as_sigterm_does(tmp_path, capfd, log_lines):
  before, said = signal.getsignal(signal.SIGINT), log_lines
  source = Cycle(until(2, signal.SIGINT))
  finished, number, _ = one_run(tmp_path, source)
  assert not finished and number == 2
  assert signal.getsignal(signal.SIGINT) is before
  assert "Ctrl-C again ends at once, without saving" in capfd.readouterr().err
  assert said[0] == "compiling the step (latents: video 2x4x6, audio 9) …"
  assert said[1].startswith("goodput ")
  assert said[2:] == [
    "interrupted at step 2 of 6; checkpoint saved; run the same command to"
    " resume"
  ]


@pytest.mark.slow
def test_the_eval_loss_is_logged_before_the_first_step(tmp_path, log_lines):

  def held_out(state):
    start = 2 - int(state.step) / 8
    names = ("video", "video_t0.00-0.50", "audio")
    return {f"eval/loss_{name}": start for name in names}

  assert one_run(tmp_path, Cycle(), evaluate=held_out)[0]
  assert [line for line in log_lines if "held-out" in line] == [
    "step 0: held-out loss video 2.0000, audio 2.0000",
    "step 3: held-out loss video 1.6250, audio 1.6250",
    "step 6: held-out loss video 1.2500, audio 1.2500",
  ]
  first = logs.read(tmp_path)[0]
  assert (first["step"], first["eval/loss_video_t0.00-0.50"]) == (0, 2)


def test_each_batch_shape_is_announced_once(log_lines):
  bar = types.SimpleNamespace(clear=lambda: 0, refresh=lambda: 0)
  loop._log_compilation(bar, 2, 4, small_step.batch())
  assert log_lines == [
    "compiling bucket 2 of 4 (latents: video 2x4x6, audio 9) …"
  ]
  assert loop._shapes(small_step.batch()) == loop._shapes(small_step.batch())


@pytest.mark.slow
@pytest.mark.nightly
def test_a_run_resumes_on_fewer_devices_with_more_accumulation(tmp_path):
  """From 8 devices to 2; a step of each part is skipped."""
  # No steps by the sign of gradients that are all rounding.
  settings = dataclasses.replace(small_step.SETTINGS, eps=1e-4)
  changes = {"skip": 2, "optimizer": settings}
  _, _, expected = one_run(tmp_path / "one", Cycle(spoiled(2, 5)), **changes)
  source = Cycle(lambda n, batch: until(3)(n, spoiled(2)(n, batch)))
  one_run(tmp_path / "run", source, devices=8, **changes)
  source = Cycle(spoiled(5))
  finished, _, state = one_run(
    tmp_path / "run", source, devices=2, parts=4, **changes
  )
  assert finished and len(source.seen) == 3
  kernel = "blocks/video/self_attention/query/kernel"
  assert len(state.trained_params[kernel].sharding.device_set) == 2
  assert not state.trained_params[kernel].sharding.is_fully_replicated
  state, expected = jax.device_get((state, expected))
  assert int(state.skip.skipped) == int(expected.skip.skipped) == 2
  for part in ("trained_params", "ema_params"):
    ours, reference = getattr(state, part), getattr(expected, part)
    for path, value in reference.items():
      # Of what was learnt, not of the weights themselves.
      moved = np.abs(
        value - small_step.step_config()[1].trained_params[path]
      ).max()
      assert np.abs(ours[path] - value).max() <= 1e-2 * moved, path
      assert parity.relative_error(ours[path], value) < 1e-5, path
  # Roots of second moments have the units of gradients.
  compared = 0
  for (path, ours), value in zip(
    jax.tree.leaves_with_path(state.opt_state),
    jax.tree.leaves(expected.opt_state),
    strict=True,
  ):
    name = jax.tree_util.keystr(path)
    if ".nu" in name:
      ours, value = np.sqrt(ours), np.sqrt(value)
    if ".mu" in name or ".nu" in name:
      assert parity.relative_error(ours, value) < 1e-5, name
      compared += 1
  assert compared == 2 * len(expected.trained_params)


def test_logs_hold_the_documented_metrics(whole):
  lines = logs.read(whole[0])
  assert [line["step"] for line in lines] == [2, 4, 6]
  for line in lines:
    assert line["train/loss"] > 0.3 and line["train/loss_video"] > 0.3
    assert line["train/loss_audio"] > 0.3 and line["train/grad_norm"] > 0
    assert line["train/learning_rate"] == pytest.approx(1e-3)
    assert line["perf/step_time"] > 0
    assert 0 <= line["perf/data_wait_frac"] <= 1
    ratio = line["perf/tokens_per_second"] / line["perf/clips_per_second"]
    assert ratio == pytest.approx(2 * 2 * 3 + 9)
    assert "perf/mfu" not in line


def test_step_times_exclude_evaluation_and_checkpoints(monkeypatch):
  """Excluded are compilation, evaluation and logging."""
  clock, written = [0.0], []
  monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

  class Slow:
    def scalars(self, step, values):
      clock[0] += 0.5
      written.append(values.get("perf/step_time"))

  work = types.SimpleNamespace(
    step_config=small_step.step_config(num_train_steps=STEPS)[0],
    intervals=loop.Intervals(log_every=2),
    logs=Slow(),
    timer=goodput.Timer(),
  )
  window = loop.MetricAccumulator(work)
  ones = np.ones(1)
  metrics = steps.StepMetrics(
    np.ones(()), {"sound": ones}, np.ones(()), np.zeros((), bool), np.int32(0)
  )
  # Seconds until each step ends; the first compiles.
  for number, seconds in enumerate((60, 2, 3, 3, 2, 4), 1):
    clock[0] += seconds
    window.add(loop.StepRecord(number, metrics, ones, 1, None, 0.0, 0.0))
    if number == 5:
      clock[0] += 100
      window.pause()
  assert window.loss == 1
  # A line takes half a second, which is the following step's.
  assert written == [2, (3 + 3 + 0.5) / 2, 4]


def test_a_trace_of_a_run_in_a_store_is_uploaded(bucket):
  context = types.SimpleNamespace(
    intervals=loop.Intervals(profile_steps=(1, 2)), directory=f"{bucket}/run"
  )
  profiler = loop.Profiler(context)
  for number in range(3):
    profiler.at(number)
  profiler.end()
  system, root = storage.file_system(f"{bucket}/run/trace")
  assert any(name.endswith(".xplane.pb") for name in system.find(root))


@pytest.mark.parametrize(
  ("end", "expected"),
  [
    # The run is interrupted while it is traced.
    (5, ["start", "pause", "save", "unlimited", "upload"]),
    (2, ["start", "pause", "unlimited", "upload", "pause", "save"]),
  ],
)
def test_a_trace_is_uploaded_after_the_last_checkpoint_and_not_timed(
  monkeypatch, end, expected
):
  events, state = [], types.SimpleNamespace(step=0, sharding=None)
  metrics = steps.StepMetrics(
    np.ones(()), {}, np.ones(()), np.zeros((), bool), np.int32(0)
  )

  class Watchdog:
    begin = at = staticmethod(lambda _: None)
    is_on = True

    @contextlib.contextmanager
    def unlimited(self, phase):
      self.is_on = False
      yield
      self.is_on = True

  watch = Watchdog()

  def upload(profiler):
    if not watch.is_on:
      events.append("unlimited")
    events.append("upload")

  class Accumulator(loop.MetricAccumulator):
    add = log_slowest_host = lambda *_: None

    def pause(self):
      if events:
        events.append("pause")

  monkeypatch.setattr(loop, "MetricAccumulator", Accumulator)
  monkeypatch.setattr(
    loop, "compile_step", lambda *_: lambda s, b: (s, metrics)
  )
  monkeypatch.setattr(loop, "_save", lambda *_: events.append("save"))
  monkeypatch.setattr(loop.Profiler, "_upload", upload)
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
  monkeypatch.setattr(
    jax.profiler, "start_trace", lambda _: events.append("start")
  )
  context = types.SimpleNamespace(
    step_config=small_step.step_config(num_train_steps=STEPS)[0],
    intervals=loop.Intervals(log_every=0, profile_steps=(1, end)),
    timer=goodput.Timer(),
    directory="run",
    input=Cycle(),
    encode_batch=lambda host, mesh: host,
    mesh=None,
    num_buckets=1,
    cost=None,
    logs=types.SimpleNamespace(flush=lambda: None),
    manager=types.SimpleNamespace(wait=lambda: None),
  )
  assert not loop._loop(context, state, lambda number: number == 4, watch)
  assert events == expected


def test_more_bad_steps_than_allowed_end_the_run(tmp_path, log_lines):
  message = (
    r"step 4: loss nan, .*\(source:index\) 0:29\. 1 bad steps were skipped"
    r" before.*exclude_records \(add 0:29\), lower"
  )
  with pytest.raises(loop.BadStepError, match=message):
    one_run(tmp_path, Cycle(spoiled(2, 4)), checkpoint_every=3, skip=1)
  with manager.Manager(tmp_path / "checkpoints") as kept:
    assert kept.steps() == [3]
  assert "step 2: loss nan" in log_lines[1]
  assert log_lines[1].endswith("no update (1 of at most 1 skipped)")


def test_encoders_compile_for_each_shape_of_a_batch_without_time_limit():
  phases, encoded, batch = [], [], small_step.batch()
  clock = watchdog.Watchdog(3600)

  def encode(host, mesh):
    phases.append(clock._phase if clock._began is None else "limited")
    return host

  context = types.SimpleNamespace(encode_batch=encode, mesh=None)
  fewer = jax.tree.map(lambda x: x[:2], batch)
  for host in (batch, batch, fewer, batch, fewer):
    clock.begin(0)
    loop._encode(context, host, encoded, clock)
  compiling = "compiling the encoders"
  assert phases == [compiling, "limited", compiling, "limited", "limited"]


@pytest.mark.parametrize(
  ("losses", "suspects", "hint"),
  [
    ([1, np.nan, 2, 1], ["0:3"], r"exclude_records \(add 0:3\), lower"),
    ([1, 1, 2, 3], ["0:9", "0:8", "0:3"], "exclude_records, lower"),
    ([np.nan] * 4, ["0:3", "0:8", "0:9"], "exclude_records, lower"),
  ],
)
def test_records_of_a_bad_step_are_in_the_order_of_the_batch(
  monkeypatch, losses, suspects, hint
):
  """Three processes: the first and the last read the second part."""
  of_all = [[1, [8, 9]], [0, [3, 3]], [1, [8, 9]]]
  monkeypatch.setattr(loop.distributed, "gather", lambda value: of_all)
  written = []
  context = types.SimpleNamespace(
    mesh=meshes.make(jax.devices()[:1], fsdp=1),
    logs=types.SimpleNamespace(event=lambda *event: written.append(event[2])),
    skip_bad_steps=0,
  )
  metrics = steps.StepMetrics(
    np.float32(np.nan),
    {"video": np.array(losses)},
    np.float32(1),
    np.ones((), bool),
    np.int32(1),
  )
  record = loop.StepRecord(5, metrics, np.array([8, 9]), 4, None, 0.0, 0.0)
  with pytest.raises(loop.BadStepError, match=hint):
    loop._report_bad(context, record, metrics)
  assert written[0]["records"] == ["0:3", "0:3", "0:8", "0:9"]
  assert written[0]["suspects"] == suspects


@pytest.mark.slow
def test_skipped_steps_leave_the_state_bit_by_bit_also_when_resumed(
  tmp_path, monkeypatch, log_lines
):
  """A NaN and a spike; what is compared to applies no update there."""
  monkeypatch.setattr(bad_steps, "MIN_ACCEPTED", 2)

  def on_batch(now, batch):
    if now == 5:
      for latents in batch.latents:
        latents *= 50
    return spoiled(3)(now, batch)

  changes = {"skip": 2, "skip_loss_spikes": 3.0}
  first = Cycle(lambda n, batch: until(4)(n, on_batch(n, batch)))
  assert not one_run(tmp_path, first, **changes)[0]
  finished, _, state = one_run(tmp_path, Cycle(on_batch), **changes)
  assert finished

  made, expected = small_step.step_config(
    num_train_steps=STEPS, skip_loss_spikes=3.0
  )
  mesh, source = meshes.make(jax.devices()[:1], fsdp=1), Cycle(on_batch)
  shardings = state_sharding.state_shardings(expected, small_step.CONFIG, mesh)
  expected = jax.device_put(jax.tree.map(np.array, expected), shardings)
  step = steps.jit_train_step(shardings, mesh)
  with jax.set_mesh(mesh):
    for number in range(1, STEPS + 1):
      batch = state_sharding.batch(next(source), mesh)
      before = jax.device_get(expected)
      expected, _ = step(made, expected, batch, small_step.NULL)
      if number in (3, 5):
        expected = jax.device_put(
          before._replace(step=before.step + 1), shardings
        )
  same = jax.tree.map(
    lambda ours, theirs: (
      np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    ),
    state._replace(skip=None),
    expected._replace(skip=None),
  )
  assert all(jax.tree.leaves(same))
  assert int(state.skip.skipped) == 2 and int(state.skip.accepted) == 4
  lines = {line["step"]: line for line in logs.read(tmp_path)}
  assert lines[3]["skipped_step"]["suspects"] == ["0:21"]
  assert lines[5]["skipped_step"]["reason"] == "a spike"
  assert len(lines[5]["skipped_step"]["records"]) == 8
  assert lines[6]["train/skipped_steps"] == 2 and lines[6]["train/loss"] < 10
  assert sum("made no update" in line for line in log_lines) == 2


@pytest.mark.parametrize(
  ("size", "parts", "message"),
  [
    (
      12,
      1,
      "batch_size 12 must be a multiple of 8: 1 microbatches.*; use 8",
    ),
    (
      24,
      2,
      "multiple of 16: 2 microbatches .*, each over 8 devices.*use 16",
    ),
    (0, 1, "batch_size 0 must be a multiple of 8"),
  ],
)
def test_a_batch_that_devices_do_not_divide_is_refused(size, parts, message):
  mesh = meshes.make(jax.devices()[:8], data=2, fsdp=4)
  with pytest.raises(ValueError, match=message):
    state_sharding.check_batch(size, parts, mesh)
  state_sharding.check_batch(32, 2, mesh)


def test_invalid_intervals_are_refused():
  with pytest.raises(ValueError, match="checkpoint_every must be 0"):
    loop.Intervals(checkpoint_every=-1)
  with pytest.raises(ValueError, match="profile_steps must be"):
    loop.Intervals(profile_steps=(3, 2))
