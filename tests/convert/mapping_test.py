"""The mapping engine lists all mismatches at once."""

import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.convert.mapping import Rearrange
from ovi_jax.convert.mapping import Row

ROWS = [
  Row("layers.{}.weight", "layers/kernel", Rearrange("o i -> i o"), 2),
  Row("bias", "bias"),
]
TORCH = {
  "layers.0.weight": (2, 3),
  "layers.1.weight": (2, 3),
  "bias": (4,),
}
OURS = {"layers/kernel": (2, 3, 2), "bias": (4,)}


def problems(rows, torch=TORCH, ours=OURS) -> str:
  with pytest.raises(ValueError) as error:
    mapping.check(rows, torch, ours)
  return str(error.value)


def test_a_matching_table_passes():
  mapping.check(ROWS, TORCH, OURS)


def test_unknown_and_missing_names_are_listed():
  torch = {k: v for k, v in TORCH.items() if k != "layers.1.weight"}
  message = problems(ROWS, torch | {"odd": (1,)}, OURS | {"more": (1,)})
  assert "3 tensors do not fit" in message
  assert "tensor missing from the file: layers.1.weight" in message
  assert "tensor unknown to the table: odd(1,)" in message
  assert "parameter no row sets: more(1,)" in message


@pytest.mark.parametrize("name", ["freqs", "blocks.0.lora", "odd\x1b"])
def test_one_stray_tensor_is_one_line(name):
  message = problems(ROWS, TORCH | {name: (1024, 64)})
  assert message.startswith("1 tensor does not fit the architecture, which is")
  assert message.isprintable() and "--arch" not in message
  assert f"unknown to the table: {name[:3]}" in message


def test_extra_tensors_of_a_complete_model_are_reported_as_extra():
  message = problems(ROWS, TORCH | {"odd": (1,), "other": (2,)})
  assert message.startswith("2 tensors do not fit the architecture, which is")
  assert "complete without; remove" in message and "--arch" not in message


def test_one_missing_tensor_is_one_line():
  message = problems(ROWS[1:], {}, {"bias": (4,)})
  assert "1 tensor does not fit" in message and "--arch" in message
  assert "\n" not in message


def test_a_parameter_mapped_twice_is_refused():
  message = problems([*ROWS, Row("bias", "bias")])
  assert "parameter set twice: bias" in message
  assert "tensor used twice: bias" in message


def test_an_unknown_parameter_is_refused():
  assert "unknown to the model: other" in problems(
    [*ROWS, Row("odd", "other")], TORCH | {"odd": (1,)}
  )


def test_wrong_shapes_are_refused():
  message = problems(ROWS, TORCH | {"bias": (5,), "layers.0.weight": (3, 2)})
  assert "bias(5,) gives (5,), bias expects (4,)" in message
  assert "layers.0.weight(3, 2) gives (2, 3)" in message
  assert "layers.1" not in message


def test_another_number_of_axes_or_blocks_is_refused():
  assert "layers.0.weight(2,)" in problems(
    ROWS, TORCH | {"layers.0.weight": (2,)}
  )
  ours = OURS | {"layers/kernel": (3, 3, 2)}
  assert "has (3,) blocks, not 2" in problems(ROWS, TORCH, ours)


def test_gather_and_scatter_are_inverse():
  random = np.random.default_rng(0)
  tensors = {n: random.standard_normal(s) for n, s in TORCH.items()}
  ours = mapping.gather(ROWS, tensors.__getitem__)
  assert {p: a.shape for p, a in ours.items()} == OURS
  np.testing.assert_array_equal(
    ours["layers/kernel"][1], tensors["layers.1.weight"].T
  )

  def read(path, index):
    return ours[path] if index is None else ours[path][index]

  back = dict(mapping.to_torch(ROWS, read))
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)


def test_nest_and_flatten_are_inverse():
  tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
  flat = {"a/b": 1, "a/c/d": 2, "e": 3}
  assert mapping.flatten(tree) == flat and mapping.nest(flat) == tree
