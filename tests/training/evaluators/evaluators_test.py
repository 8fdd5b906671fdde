"""A run that evaluates its loss and writes samples."""

import numpy as np
import pytest

from ovi_jax import storage
from ovi_jax.data import builder
from ovi_jax.media import mp4
from ovi_jax.training import logs
from tests.lib import raw_clips
from tests.lib import small_training

pytestmark = pytest.mark.usefixtures("one_device")
SCRATCH = {
  "init_from.video": "scratch",
  "init_from.audio": "scratch",
  "trainable": "all",
}
SHOWN = {
  "eval_every": 2,
  "sample_every": 4,
  "eval_samples.num_samples": 2,
  "eval_samples.num_steps": 2,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Eight clips to train on, three held out."""
  path = tmp_path_factory.mktemp("data") / "clips"
  records = [small_training.record(i) for i in range(11)]
  builder.write(
    path,
    {"train": records[:8], "test": records[8:]},
    geometry=small_training.SIZES,
    null_text=np.full((1, 48), 0.5, np.float32),
  )
  return str(path)


@pytest.mark.slow
def test_a_run_writes_eval_losses_and_samples(clips, weights, tmp_path):
  changes = SCRATCH | SHOWN | {"pretrained": str(weights)}
  changes |= {"profile_steps": (1, 2)}
  assert small_training.run(
    small_training.config("fusion", clips, **changes), tmp_path
  )
  lines = [x for x in logs.read(tmp_path) if "eval/loss_video" in x]
  assert [line["step"] for line in lines] == [0, 2, 4]
  for name in ("video", "audio"):
    assert f"eval/loss_{name}_t0.75-1.00" in lines[0]
    assert 0.3 < lines[0][f"eval/loss_{name}"] < 5
  folder = tmp_path / "samples" / "step-00000004"
  made = sorted(p.name for p in folder.glob("*.mp4"))
  assert made == ["clip_8.mp4", "clip_9.mp4"]
  frames, fps, wave, rate = mp4.read(folder / made[0])
  assert frames.shape == (5, 64, 64, 3) and fps == 24
  assert rate == 16_000 and abs(wave.size - 6 * 512) <= 1024
  assert list((tmp_path / "trace").rglob("*.xplane.pb"))


@pytest.mark.slow
@pytest.mark.nightly
def test_ema_on_the_host_equals_ema_on_the_device(clips, weights, tmp_path):
  shown = SCRATCH | {"eval_every": 4, "checkpoint_every": 2}
  losses = []
  for place in (False, True):
    changes = shown | {"optimizer.ema_on_host": place}
    path = tmp_path / str(place)
    assert small_training.run(
      small_training.config("fusion", clips, **changes, num_train_steps=4), path
    )
    losses += logs.read(path)[-1:]
  for name in ("eval/loss_video", "eval/loss_audio"):
    np.testing.assert_allclose(losses[0][name], losses[1][name], rtol=1e-5)
  # Gone on with from its checkpoint, still on the host.
  longer = small_training.config("fusion", clips, **changes, num_train_steps=6)
  assert small_training.run(longer, path)


@pytest.mark.slow
def test_a_run_on_media_writes_eval_losses_and_samples_to_a_store(
  weights, bucket, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  media_ = [raw_clips.clip(i, 5, tmp_path) for i in range(6)]
  builder.write(
    tmp_path / "data",
    {"train": media_[:4], "test": media_[4:]},
    geometry=small_training.SIZES,
  )
  changes = small_training.ON_THE_FLY | SHOWN
  values = small_training.fusion_config(tmp_path / "data", weights, **changes)
  run = storage.path(f"{bucket}/run")
  assert small_training.run(values, run)
  assert any("eval/loss_audio" in x for x in logs.read(run))
  made = run / "samples" / "step-00000004"
  assert len(list(made.glob("*.mp4"))) == 2
  assert not (tmp_path / "gs:").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"eval_every": 1, "eval.split": "x"}, "no source has the held-out split"),
    (
      {"sample_every": 1},
      "samples need the encoders and decoders",
    ),
    (
      {"sample_every": 1, "eval_samples.num_samples": 4},
      "expected 4 held-out rec",
    ),
    ({"eval_samples.solver": "magic"}, "solver 'magic' is unknown"),
    ({"eval.num_timestep_bins": 0}, "num_timestep_bins of 1 or"),
    ({"eval_every": 1, "eval.batch_size": -1}, "batch_size of 0 or more"),
  ],
)
def test_invalid_evaluator_settings_are_refused(
  changes, message, clips, weights, tmp_path
):
  if "eval_samples.num_samples" in changes:
    changes = changes | {"pretrained": str(weights)}
  values = small_training.config("fusion", clips, **SCRATCH | changes)
  with pytest.raises(ValueError, match=message):
    small_training.run(values, tmp_path / "run")
  assert not (tmp_path / "run").exists()
