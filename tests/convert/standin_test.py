"""The stand-in release, written and read again."""

import sys

import pytest

from ovi_jax.convert import reader
from ovi_jax.convert import standin
from ovi_jax.convert.standin import write


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  out_dir = tmp_path_factory.mktemp("release")
  return out_dir, write.write_release(out_dir)


def test_every_tensor_is_written_byte_for_byte(release):
  out_dir, _ = release
  for file in standin.manifest()["files"]:
    key = "generator" if file.endswith("best_netG.pt") else None
    found = reader.open_tensors(out_dir / file, key)
    expected = standin.tensors(file)
    assert set(found.shapes) == set(expected)
    for name, array in expected.items():
      assert found.dtypes[name] == array.dtype == "float32"
      assert found.shapes[name] == array.shape
      assert found.read(name).tobytes() == array.tobytes(), (file, name)


def test_the_layout_is_that_of_the_release(release):
  out_dir, written = release
  assert sorted(str(path.relative_to(out_dir)) for path in written) == [
    "MMAudio/ext_weights/best_netG.pt",
    "MMAudio/ext_weights/v1-16.pth",
    "Ovi/model.safetensors",
    "Wan2.2-TI2V-5B/Wan2.2_VAE.pth",
    "Wan2.2-TI2V-5B/google/umt5-xxl/special_tokens_map.json",
    "Wan2.2-TI2V-5B/google/umt5-xxl/tokenizer.json",
    "Wan2.2-TI2V-5B/google/umt5-xxl/tokenizer_config.json",
    "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth",
  ]
  tokenizer = out_dir / write.TOKENIZER / "tokenizer.json"
  assert tokenizer.read_text() == (standin.HERE / "tokenizer.json").read_text()


def test_the_command_writes_the_same_bytes(
  release, tmp_path, monkeypatch, capsys
):
  out_dir, written = release
  monkeypatch.setattr(sys, "argv", ["write", str(tmp_path)])
  write.main()
  printed = capsys.readouterr().out
  for path in written:
    again = tmp_path / path.relative_to(out_dir)
    assert again.read_bytes() == path.read_bytes()
    assert str(again) in printed
