"""8-bit weights: kernels of blocks as int8 or fp8 with a scale per output.

  kernel [(G,) in, out] = q · scale[(G,) 1, out]

`q` takes the place of `…/kernel`, and `…/kernel_scale` [(G,) out], float32, is
beside it. Norms, modulation, biases, embeddings and heads are as they are. Like
factors of a LoRA, kernels are dequantized block by block inside the scan over
blocks (`block_params`). Products are computed in the compute dtype.

Numbers: scale = max |kernel| / largest number of the format. int8 is rounded to
nearest; fp8 is e4m3 (largest number 448).
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

KERNEL, SCALE = "kernel", "kernel_scale"
DTYPES: Mapping[str, np.dtype] = {
  "int8": np.dtype(np.int8),
  "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
_LARGEST = {DTYPES["int8"]: 127.0, DTYPES["fp8"]: 448.0}
_KERNELS = re.compile(
  r"blocks/(?:(?:video|audio)/)?\w*(?:attention|feed_forward)/\w+/kernel"
)
COMPONENTS = ("fusion", "umt5")


def is_quantizable(path: str) -> bool:
  """Whether a parameter of the denoiser or text encoder can have 8 bits."""
  return _KERNELS.fullmatch(path) is not None


def is_quantized(dtype: Any) -> bool:
  """Whether a dtype is that of 8-bit kernels."""
  return np.dtype(dtype) in _LARGEST


def beside(path: str) -> str:
  """The path of the scale of the kernel at `path`."""
  return f"{path.removesuffix(KERNEL)}{SCALE}"


def quantize(kernel: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
  """Quantize a kernel.

  Args:
    kernel: [..., in, out].
    dtype: a value of `DTYPES`.

  Returns:
    The kernel in `dtype`, and its scales [..., out], float32.
  """
  dtype = np.dtype(dtype)
  kernel = np.asarray(kernel, np.float32)
  largest = np.abs(kernel).max(-2)
  scale = np.where(largest > 0, largest, 1.0) / np.float32(_LARGEST[dtype])
  scale = scale.astype(np.float32)
  values = kernel / scale[..., None, :]
  if dtype == DTYPES["int8"]:
    values = np.rint(values)
  return values.astype(dtype), scale


def dequantize(kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """The kernel that was quantized, float32."""
  return kernel.astype(jnp.float32) * scale[..., None, :]


def with_scales(
  shapes: Mapping[str, Any], dtype: Any
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of quantized parameters.

  Args:
    shapes: shapes and dtypes of parameters, by path.
    dtype: a value of `DTYPES`.

  Returns:
    The same with quantizable kernels in `dtype`, and their scales.
  """
  found: dict[str, Any] = {}
  for path, x in shapes.items():
    found[path] = x
    if is_quantizable(path):
      found[path] = jax.ShapeDtypeStruct(x.shape, dtype)
      shape = (*x.shape[:-2], x.shape[-1])
      found[beside(path)] = jax.ShapeDtypeStruct(shape, jnp.float32)
  return found


def without_scales(shapes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Shapes of the parameters that quantized ones stand for.

  Args:
    shapes: shapes and dtypes of parameters, by path.

  Returns:
    Shapes by path, without the scales of quantized kernels. A scale that fits
    no such kernel is kept; a quantized kernel without a scale is left out.
  """
  found = {path: tuple(x.shape) for path, x in shapes.items()}
  for path, x in shapes.items():
    if not is_quantized(x.dtype):
      continue
    scale = shapes.get(beside(path))
    expected = (*x.shape[:-2], x.shape[-1]), np.dtype(np.float32)
    fits = scale is not None and (tuple(scale.shape), scale.dtype) == expected
    if fits and is_quantizable(path):
      del found[beside(path)]
    else:
      del found[path]
  return found


def dtype_of(shapes: Mapping[str, Any]) -> np.dtype | None:
  """The dtype of quantized kernels among parameters; `None` if there are none.

  Args:
    shapes: shapes and dtypes of parameters, by path.
  """
  scaled = (p for p in shapes if p.endswith(f"/{SCALE}"))
  kernels = (f"{p.removesuffix(SCALE)}{KERNEL}" for p in scaled)
  dtypes = (np.dtype(shapes[k].dtype) for k in kernels if k in shapes)
  return next((d for d in dtypes if d in _LARGEST), None)
