"""Names in a safetensors header are bounded."""

import json
import struct

import pytest

from ovi_jax.pretrained import tensor_file
from ovi_jax.pretrained import weights


def write(path, *names):
  """A safetensors file of empty tensors under any names."""
  entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
  raw = json.dumps(dict.fromkeys(names, entry)).encode()
  path.write_bytes(struct.pack("<Q", len(raw)) + raw)
  return path


def test_a_name_of_half_a_megabyte_is_refused_in_one_short_line(tmp_path):
  path = write(tmp_path / "fusion.safetensors", "a/" * 250_000 + "a")
  for read in (tensor_file.open_safetensors, weights.shapes, weights.load):
    with pytest.raises(ValueError, match="1 to 512 characters") as error:
      read(path)
    assert len(str(error.value)) < 600 and str(path) in str(error.value)


def test_many_deep_names_are_refused_by_their_depth(tmp_path):
  names = ["a/" * 250 + f"{n:04}" for n in range(5000)]
  path = write(tmp_path / "fusion.safetensors", *names)
  with pytest.raises(ValueError, match="at most 32 levels deep"):
    weights.shapes(path)


@pytest.mark.parametrize("text", ["{}", "1e1"])
def test_a_header_of_too_many_values_is_refused_unparsed(
  text, tmp_path, monkeypatch
):
  path = tmp_path / "fusion.safetensors"
  count = (4 << 20) // (len(text) + 1)
  raw = f'{{"a": [{",".join([text] * count)}]}}'.encode()
  path.write_bytes(struct.pack("<Q", len(raw)) + raw)
  monkeypatch.setattr(json, "loads", None)
  with pytest.raises(ValueError, match="at most 262144 values, found") as error:
    tensor_file.open_safetensors(path)
  assert str(path) in str(error.value)


def test_names_within_the_bounds_are_read(tmp_path):
  path = write(tmp_path / "x", "a" * 512, "b/" * 31 + "b")
  assert len(weights.shapes(path)) == 2
  with pytest.raises(ValueError, match="1 to 512 characters, found one of 0"):
    tensor_file.open_safetensors(write(path, ""))
