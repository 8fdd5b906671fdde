"""The overfitting benchmark: clips, codec, metrics and a smallest run."""

import json
import pathlib

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import overfit
from benchmarks import overfit_codec
from benchmarks import overfit_data
from benchmarks import overfit_report
from ovi_jax.modality import AV

FRAMES = 13


@pytest.fixture(scope="module")
def clips():
  return overfit_data.clips(0, FRAMES)


@pytest.fixture(scope="module")
def codec(clips):
  return overfit_codec.Codec.fit(clips)


def test_sounds_match_the_frames():
  """Loud where the lamp is bright, and where the ball touches the floor."""
  ball, lamp = (overfit_data.clip(s) for s in overfit_data.scenes(0)[:2])
  assert ball.frames.shape == (121, 64, 64, 3)
  assert ball.log_mel.shape == (314, 80)
  loud_T = np.abs(lamp.wave[: 120 * 666]).reshape(120, 666).mean(1)
  light_T = lamp.frames[:120].max(-1).mean((1, 2))
  assert np.corrcoef(loud_T, light_T)[0, 1] > 0.9
  onset = round(ball.scene.phase * 16_000)
  assert np.abs(ball.wave[onset : onset + 800]).max() > 0.3
  lowest = round(ball.scene.phase * 24)
  moved_HW = np.abs(ball.frames[lowest] - ball.frames[lowest - 8]).sum(-1)
  assert moved_HW[45:].max() > 0.3


def test_all_clips_differ():
  found = [s for n in (0, 1) for s in overfit_data.scenes(n)]
  assert len({s.caption for s in found}) == 2 * overfit_data.CLIPS
  assert len({round(s.pitch, 3) for s in found}) == 2 * overfit_data.CLIPS
  texts = [overfit_data.text(n, i, 48) for n in (0, 1) for i in range(8)]
  assert {4, 12} <= {len(t) for t in texts} <= set(range(4, 13))
  assert len({t.tobytes() for t in texts}) == 16
  assert overfit_data.text(-1, 0, 48).shape == (1, 48)


def test_latents_have_unit_scale_and_decode(clips, codec):
  video = np.stack([codec.encode_video(c.frames) for c in clips])
  audio = np.stack([codec.encode_audio(c.log_mel) for c in clips])
  assert video.shape == (8, 4, 4, 4, 48)
  assert audio.shape == (8, 16, 20)
  for latents in (video, audio):
    flat = latents.reshape(-1, latents.shape[-1])
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-3)
    assert np.square(flat).mean() == pytest.approx(1, abs=1e-3)
  for clip, video_THWC, audio_TC in zip(clips, video, audio):
    frames = codec.decode_video(video_THWC)
    assert overfit_codec.psnr(frames, clip.frames) > 35
    heard = codec.decode_audio(audio_TC)
    assert overfit_codec.mel_distance(heard, clip.log_mel) < 2


def test_a_saved_codec_is_reloaded_exactly(clips, codec, tmp_path):
  overfit_codec.Codec.load(tmp_path, clips)
  kept = overfit_codec.Codec.load(tmp_path, ())
  np.testing.assert_allclose(
    kept.encode_video(clips[0].frames),
    codec.encode_video(clips[0].frames),
    atol=1e-3,
  )


def test_metrics_have_their_known_values():
  black, grey = np.zeros((4, 4)), np.full((4, 4), 0.1)
  assert overfit_codec.psnr(grey, black) == pytest.approx(20)
  assert overfit_codec.mel_distance(grey, black) == pytest.approx(2)
  table = overfit_codec.table(overfit_codec.psnr, [black[:2]], [black, grey])
  np.testing.assert_allclose(table, [[100, 20]])


def test_a_sample_is_compared_with_all_clips(clips, codec):
  samples = [AV(c.frames, c.log_mel) for c in clips]
  samples[1] = AV(clips[0].frames, clips[0].log_mel[:20])
  found = overfit_report.measured(codec, clips, samples)
  assert found["video"]["nearest_is_right"] == 7
  assert found["video"]["right"][0] == 100
  assert found["video"]["wrong_nearest"][1] == 100
  assert found["audio"]["wrong_nearest"][1] == 0
  assert found["audio"]["right"][1] > 3


def run(path: pathlib.Path, monkeypatch, stages: list[str]) -> dict:
  """Results of the smallest run of some stages."""
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda *_: one)
  values = {"workdir": str(path / "runs"), "out": str(path / "out")}
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(small=True, stages=stages, **values):
    overfit.main()
  return json.loads((path / "out/overfit.json").read_text())["stages"]


@pytest.mark.slow
def test_the_smallest_run_is_trained_sampled_and_resumed(tmp_path, monkeypatch):
  """A stage is trained, sampled and measured; a second run reuses it."""
  first = run(tmp_path, monkeypatch, ["audio_pretrain"])
  trained = first["audio_pretrain"]["trained"]["audio"]
  assert len(trained["right"]) == overfit_data.CLIPS
  assert first["audio_pretrain"]["steps"] == 3
  again = run(tmp_path, monkeypatch, ["audio_pretrain"])
  assert again["audio_pretrain"]["trained"]["audio"] == trained
  text = (tmp_path / "out/overfit.md").read_text()
  assert "| audio_pretrain, trained, audio |" in text
  assert str(tmp_path) not in text


@pytest.mark.slow
@pytest.mark.nightly
def test_each_stage_starts_from_the_previous_one(tmp_path, monkeypatch):
  found = run(tmp_path, monkeypatch, list(overfit.STAGES))
  assert list(found) == list(overfit.STAGES)
  learnt = found["audio_pretrain"]["trained"]["audio"]["right"]
  begun = found["audio_finetune"]["before"]["audio"]["right"]
  assert begun[0] == pytest.approx(learnt[0], rel=1e-4)
  fused = found["fusion"]
  assert fused["before"]["video"]["right"] != fused["deaf"]["video"]["right"]
  assert fused["trained"]["audio"]["right"] != fused["deaf"]["audio"]["right"]
  assert (tmp_path / "out/overfit.png").stat().st_size > 10_000
