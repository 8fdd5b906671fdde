"""Caching latents: parity, resuming, several processes."""

import dataclasses
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.data import encode
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import mesh as meshes
from tests.lib import raw_clips


@pytest.fixture(scope="module")
def job(dataset, weights, tmp_path_factory) -> encode.Job:
  out = tmp_path_factory.mktemp("encoded") / "data"
  return encode.Job(data=dataset, weights=weights, out=out, records_per_shard=2)


@pytest.fixture(scope="module", autouse=True)
def two_devices():
  with pytest.MonkeyPatch.context() as patch:
    two = jax.local_devices()[:2]
    patch.setattr(jax, "local_devices", lambda *_: two)
    yield


@pytest.fixture(scope="module")
def encoded(job) -> pathlib.Path:
  assert encode.run(job)
  return job.out


def contents(path: pathlib.Path) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in path.glob("*array_record*")}


@pytest.mark.slow
def test_records_equal_those_encoded_one_by_one(encoded, dataset, weights):
  alone = component_loader.Components(
    weights=weights,
    manifest=weights_dir.read(weights),
    mesh=meshes.make(jax.local_devices(), fsdp=2),
    dtype=np.dtype("float32"),
  )

  def twice(encoder, array):
    return encoder.encode(np.stack([array] * 2), split=True)[0]

  text = encoders.TextEncoder.load(alone).texts([*raw_clips.CAPTIONS, ""])
  video, audio = (
    encoders.VideoEncoder.load(alone),
    encoders.AudioEncoder.load(alone),
  )
  before = builder.read(dataset)
  after = builder.read(encoded, geometry=raw_clips.SIZES)
  assert len(after) == len(before) == 5
  for old, new in zip(before, after):
    assert (new.id, new.captions, new.frames) == (
      old.id,
      old.captions,
      old.frames,
    )
    assert new.video is None and new.audio is None
    assert new.sizes == old.sizes
    sound = clips.wave(old)[: old.sizes.audio * 512]
    close(new.latents.audio, twice(audio, sound))
    if old.video is None:
      assert new.latents.video is None
    else:
      close(new.latents.video, twice(video, clips.frames(old)))
    for caption, text_SE in zip(new.captions, new.text, strict=True):
      close(text_SE, text[caption])
  np.testing.assert_allclose(after.null_text, text[""], atol=1e-5)
  assert len(builder.read(encoded, "test")) == 1


def close(stored, wanted):
  """Equal but for the type that is stored."""
  wanted = np.asarray(wanted)
  assert stored.shape == wanted.shape
  np.testing.assert_allclose(
    np.float32(stored), wanted, atol=2e-3 * abs(wanted).max()
  )


@pytest.mark.slow
def test_an_interrupted_job_is_resumed(
  encoded, job, tmp_path, monkeypatch, log_lines
):
  again = dataclasses.replace(job, out=tmp_path / "data")
  write, written = encode.shards.write, []

  def stops(folder, split, number, *rest):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append((split, number))
    write(folder, split, number, *rest)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(encode.shards, "write", stops)
    encode.run(again)
  assert not again.out.exists() and len(written) == 2
  before = times(again.folder)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    # Stopped again when all is written, before it has its name.
    rename = os.rename
    patch.setattr(
      encode.shards.os,
      "rename",
      lambda a, b: interrupted() if b == again.out else rename(a, b),
    )
    encode.run(again)
  assert len(before) == 2 and before < times(again.folder)
  written.clear()
  monkeypatch.setattr(encode.shards, "write", stops)
  assert encode.run(again)
  assert not written and contents(again.out) == contents(encoded)
  assert not again.folder.exists()
  log_lines.clear()
  assert encode.run(again) and log_lines == [f"already encoded: {again.out}"]
  shard = next(again.out.glob("*array_record-*"))
  os.truncate(shard, shard.stat().st_size - 1)
  message = rf"{shard.name}.*remove {again.out} and run the same"
  with pytest.raises(ValueError, match=message):
    encode.run(again)


def times(folder: pathlib.Path) -> set[int]:
  """When each shard was written."""
  return {p.stat().st_mtime_ns for p in folder.glob("[!.]*array_record*")}


def interrupted(*_):
  raise KeyboardInterrupt


def test_processes_share_the_shards(encoded, job, tmp_path, log_lines):
  for process, whole in ((1, False), (0, True)):
    share = dataclasses.replace(
      job, out=tmp_path / "data", process=process, num_processes=2
    )
    assert encode.run(share) is whole
  assert "2 of 4 shards are left to other processes" in log_lines
  assert contents(tmp_path / "data") == contents(encoded)


def test_modalities_may_be_encoded_one_after_the_other(encoded, job, tmp_path):
  text = dataclasses.replace(
    job, out=tmp_path / "text", modalities=("text",), keep_media=True
  )
  assert encode.run(text)
  half = builder.read(text.out)[0]
  assert half.text and half.video and half.latents.video is None
  rest = dataclasses.replace(
    job, data=text.out, out=tmp_path / "all", modalities=("video", "audio")
  )
  assert encode.run(rest)
  for one, other in zip(builder.read(encoded), builder.read(rest.out)):
    for a, b in zip(
      jax.tree.leaves((one.latents, one.text)),
      jax.tree.leaves((other.latents, other.text)),
      strict=True,
    ):
      close(a, b)


def test_mismatches_are_reported_before_weights_are_loaded(
  encoded, job, weights, tmp_path, monkeypatch
):
  monkeypatch.setattr(encode.encoding.RecordEncoder, "load", interrupted)
  with pytest.raises(ValueError, match="storage_dtype differ"):
    encode.run(dataclasses.replace(job, storage_dtype="bfloat16"))
  (tmp_path / "other").mkdir()
  with pytest.raises(ValueError, match="not made by this command"):
    encode.run(dataclasses.replace(job, out=tmp_path / "other"))
  with pytest.raises(ValueError, match="not a dataset of records"):
    encode.run(dataclasses.replace(job, data=tmp_path))
  with pytest.raises(ValueError, match=r"modalities: .*got 'smell'"):
    dataclasses.replace(job, modalities=("smell",))
  with pytest.raises(
    ValueError, match="process 2 is out of range for 2 processes"
  ):
    dataclasses.replace(job, process=2, num_processes=2)
  less = shutil.copytree(weights, tmp_path / "weights")
  (less / "umt5.safetensors").unlink()
  with pytest.raises(ValueError, match="missing .*umt5.safetensors"):
    out = tmp_path / "new"
    encode.run(dataclasses.replace(job, weights=less, out=out))


def test_damaged_media_are_named_and_finished_shards_stay(
  job, tmp_path, monkeypatch
):
  good = [raw_clips.clip(i, 5, tmp_path) for i in range(3)]
  good[2] = dataclasses.replace(good[2], video=good[2].video[:300])
  with monkeypatch.context() as patch:
    patch.setattr(clips, "check", lambda record: None)
    builder.write(tmp_path / "media", {"train": good}, geometry=raw_clips.SIZES)
  bad = dataclasses.replace(
    job, data=tmp_path / "media", out=tmp_path / "data", modalities=("video",)
  )
  with pytest.raises(ValueError, match="'clip-2': its mp4 cannot be decoded"):
    encode.run(bad)
  assert [p.name for p in bad.folder.glob("*.array_record")] == [
    "train-00000.array_record"
  ]
