"""Make the original's PyTorch code run here: any device, with or without flash.

Its inference asks for CUDA, flash-attention and bfloat16. These are its own
modules, imported from a clone of the user's; only what cannot run is replaced:
flash-attention by PyTorch's scaled-dot-product attention, and, for float32, the
casts to bfloat16. Run Python with -O, which drops its dtype assertions (and a
costly check between them).
"""

# Types are checked without torch, which is no dependency.
# pyright: reportMissingImports=false
import importlib
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

ATTENTION_USERS = ("attention", "model", "fusion")


def attend(q, k, v, **_) -> torch.Tensor:
  """Scaled-dot-product attention on [batch, length, heads, head size]."""
  heads_first = (x.transpose(1, 2) for x in (q, k, v))
  values = functional.scaled_dot_product_attention(*heads_first)
  return values.transpose(1, 2)


def use(clone: str, float32: bool, flash: bool = False) -> None:
  """Make `ovi` importable and able to run.

  Args:
    clone: a clone of character-ai/Ovi.
    float32: compute in float32 where it asks for bfloat16.
    flash: leave its flash-attention alone.

  Raises:
    ValueError: no such clone, or Python runs without -O.
  """
  root = pathlib.Path(clone).resolve()
  if not (root / "ovi/modules/fusion.py").is_file():
    raise ValueError(f"{clone} is no clone of character-ai/Ovi")
  if __debug__ and float32:
    raise ValueError("run Python with -O: the original asserts bfloat16")
  sys.path.insert(0, str(root))
  if not torch.cuda.is_available():
    # A default argument of the text encoder, evaluated when it is imported.
    torch.cuda.current_device = lambda: "cpu"
    # Its blocks ask for CUDA's autocast. Without CUDA each of them would search
    # the file system for another library, and say so: once is enough.
    common = torch.cuda.amp.common
    absent = common.amp_definitely_not_available()
    common.amp_definitely_not_available = lambda: absent
    warnings.filterwarnings("ignore", "CUDA is not available")
  if float32:
    torch.Tensor.bfloat16 = lambda self, *_: self.float()
  for name in () if flash else ATTENTION_USERS:
    module(f"modules.{name}").flash_attention = attend


def module(name: str) -> Any:
  """Import `ovi.<name>` of the clone."""
  return importlib.import_module(f"ovi.{name}")


def fill(
  model: nn.Module, make: Callable[[str, tuple[int, ...]], torch.Tensor]
) -> None:
  """Set every parameter to `make(name, shape)`; buffers stay."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.copy_(make(name, tuple(parameter.shape)))


def revision(clone: str) -> str:
  """The commit of the clone, or `unknown`."""
  command = ["git", "-C", clone, "rev-parse", "--short", "HEAD"]
  found = subprocess.run(command, capture_output=True, text=True, check=False)
  return found.stdout.strip() or "unknown"
