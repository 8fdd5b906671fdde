"""What is no file of weights is named wherever weights are opened."""

import json
import os

import numpy as np
import pytest
from safetensors import numpy as safetensors

from ovi_jax.convert import reader
from ovi_jax.convert import torch_file
from ovi_jax.curation.models import syncnet_weights
from ovi_jax.evaluation.extractors import panns
from ovi_jax.evaluation.extractors import vggish
from ovi_jax.evaluation.extractors import voice
from ovi_jax.lora import files as lora_files
from ovi_jax.pretrained import tensor_file
from ovi_jax.pretrained import weights

TENSORS = {"a": np.ones(2, np.float32)}
POINTER = (
  b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 23321506\n"
)
FOREIGN = [
  (POINTER, "found a git-lfs pointer to the file; fetch the file itself"),
  (b"<!DOCTYPE html>\n<html>Sign in</html>", "found a web page: the address"),
  (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "what macOS keeps beside"),
  (b"\xfd7zXZ\x00\x00\x04", "an xz archive; unpack it"),
  (b"", "found an empty file"),
  (b"\xef\xbb\xbf" + POINTER, "found a git-lfs pointer"),
  (b"No\nab" + "é".encode() * 300, "found text, which begins 'No'"),
  (b"Entry not found\nhere", "found text, which begins 'Entry not found'; fe"),
]
SAFETENSORS_ONLY = [
  tensor_file.open_safetensors,
  weights.shapes,
  weights.load,
  lora_files.metadata_of,
]
TORCH_ONLY = [panns.read_weights, voice.read_weights]
ANY = [
  reader.open_tensors,
  syncnet_weights.load,
  vggish.read_weights,
]


@pytest.mark.parametrize("open_file", [*SAFETENSORS_ONLY, *TORCH_ONLY, *ANY])
@pytest.mark.parametrize(("content", "message"), FOREIGN)
def test_what_holds_no_weights_is_named_everywhere(
  open_file, content, message, tmp_path
):
  path = tmp_path / "model.safetensors"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    open_file(path)
  text = str(error.value)
  assert str(path) in text and "\n" not in text and len(text) < 400


@pytest.mark.parametrize("open_file", SAFETENSORS_ONLY)
def test_other_formats_are_named_where_safetensors_are_expected(
  open_file, tmp_path
):
  path = tmp_path / "model.safetensors"
  torch_file.save(path, TENSORS)
  with pytest.raises(ValueError, match="found a file that torch.save") as error:
    open_file(path)
  assert "safetensors.torch.save_file" in str(error.value)
  path.write_text(json.dumps({"weight_map": {}}))
  with pytest.raises(ValueError, match="found JSON, such as a config or the"):
    open_file(path)


@pytest.mark.parametrize("open_file", [torch_file.open_torch, *TORCH_ONLY])
def test_safetensors_are_named_where_a_torch_file_is_expected(
  open_file, tmp_path
):
  path = tmp_path / "model.pt"
  safetensors.save_file(TENSORS, path)
  with pytest.raises(ValueError, match="safetensors.*use the torch file"):
    open_file(path)


def test_a_named_pipe_is_not_opened(tmp_path):
  os.mkfifo(tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match="found a named pipe"):
    tensor_file.open_safetensors(tmp_path / "model.safetensors")
