"""Encoding on the fly: training from mp4 equals cached latents."""

import jax
import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import encode
from ovi_jax.data import loader
from ovi_jax.training import batch_encoder
from ovi_jax.training import logs
from ovi_jax.training import settings
from ovi_jax.training import task as tasks
from tests.lib import raw_clips
from tests.lib import small_training


@pytest.fixture(scope="module")
def media(tmp_path_factory):
  """Clips, a sound without a picture, and a clip that is shorter."""
  folder = tmp_path_factory.mktemp("media")
  frames = (5, 5, 5, 0, 1)
  records = [raw_clips.clip(i, f, folder) for i, f in enumerate(frames)]
  builder.write(
    folder / "data", {"train": records}, geometry=small_training.SIZES
  )
  return folder / "data"


@pytest.fixture(scope="module")
def cached(media, weights):
  out = media.with_name("cached")
  job = encode.Job(data=media, weights=weights, out=out)
  with pytest.MonkeyPatch.context() as patch:
    use(patch, 2)
    assert encode.run(job)
  return out


def use(patch, count):
  """Only so many devices are there."""
  some = jax.devices()[:count]
  patch.setattr(jax, "devices", lambda *_: some)
  patch.setattr(jax, "local_devices", lambda *_: some)


def batches(values, count):
  """The first batches of a run on the devices, and the empty prompt."""
  chosen = settings.Settings.from_config(values)
  mesh = tasks.make(chosen).make_mesh()
  source = loader.load(chosen.data, batch=chosen.batch_size, seed=0)
  ready = batch_encoder.load(
    chosen, batch_encoder.open_pretrained(chosen, mesh)
  )
  made = [ready(next(source), mesh) for _ in range(count)]
  return made, ready.null_text(source.null_text)


@pytest.mark.slow
def test_encoding_on_the_fly_equals_cached_latents(
  media, cached, weights, monkeypatch
):
  use(monkeypatch, 2)
  sizes = {"batch_size": 2, "mesh.fsdp": 2}
  live, live_null = batches(
    small_training.fusion_config(
      media, weights, **small_training.ON_THE_FLY, **sizes
    ),
    3,
  )
  kept, kept_null = batches(
    small_training.fusion_config(cached, weights, **sizes), 3
  )
  close(live_null, kept_null)
  heard = []
  for one, other in zip(live, kept, strict=True):
    for a, b in zip(one.lengths, other.lengths):
      np.testing.assert_array_equal(a, b)
    for a, b in zip(
      jax.tree.leaves((one.text, one.latents.video)),
      jax.tree.leaves((other.text, other.latents.video)),
      strict=True,
    ):
      close(a, b)
    for row, length in enumerate(np.asarray(one.lengths.audio)):
      sound, alone = one.latents.audio[row], other.latents.audio[row]
      heard.append(int(length))
      # A shorter sound is encoded with the silence that fills its bucket.
      if length == small_training.SOUND:
        close(sound, alone)
      assert sound[:length].any() and not sound[length:].any()
  assert {1, 5, 6} == set(heard)


def close(one, other):
  """Equal but for the type that is stored."""
  one, other = np.asarray(one), np.asarray(other)
  assert one.shape == other.shape and one.dtype == other.dtype
  np.testing.assert_allclose(one, other, atol=2e-3 * abs(other).max())


@pytest.mark.slow
def test_training_reads_mp4_directly(media, weights, tmp_path, monkeypatch):
  use(monkeypatch, 1)
  assert small_training.run(
    small_training.fusion_config(media, weights, **small_training.ON_THE_FLY),
    tmp_path,
  )
  lines = logs.read(tmp_path)
  assert [line["step"] for line in lines] == [2, 4]
  # 2·2·2 and 6 tokens per clip.
  tokens = [
    line["perf/tokens_per_second"] / line["perf/clips_per_second"]
    for line in lines
  ]
  np.testing.assert_allclose(tokens, 8 + 6, rtol=1e-6)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      small_training.ON_THE_FLY | {"pretrained": ""},
      "set --config.pretrained=DIR, or cache",
    ),
    (small_training.ON_THE_FLY | {"pretrained": "nowhere"}, "nowhere"),
    (
      small_training.ON_THE_FLY | {"model.audio.channels": 8},
      "in_dim is 8, but audio_vae embed_dim",
    ),
    (
      {"data.text_source": "smoke"},
      "data.text_source 'smoke' is unknown",
    ),
    ({}, "has no embedding of the empty prompt"),
    (
      {"data.text_source": "captions"},
      "as media only, expected cached latents",
    ),
  ],
)
def test_incompatible_data_and_weights_are_refused(
  changes, message, media, weights, tmp_path, monkeypatch
):
  use(monkeypatch, 1)
  with pytest.raises(ValueError, match=message):
    small_training.run(
      small_training.fusion_config(media, weights, **changes), tmp_path / "run"
    )
