"""Write the dummy release in the layout and the file formats of the original.

  python -m ovi_jax.convert.standin.write OUT

OUT then holds, in 10 MB, what `convert/download.py` fetches: weights on which
to try conversion, sampling and training without a download.
"""

import argparse
import os
import pathlib
import shutil

from safetensors import numpy as safetensors

from ovi_jax import console
from ovi_jax.convert import standin
from ovi_jax.convert import torch_file

TOKENIZER = "Wan2.2-TI2V-5B/google/umt5-xxl"
_TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
)
# The dict of tensors lies in another dict, under this name.
_WRAPPED = {"MMAudio/ext_weights/best_netG.pt": "generator"}


def write_release(out_dir: str | os.PathLike[str]) -> list[pathlib.Path]:
  """Write every file of the dummy release; the same bytes each time.

  Args:
    out_dir: made if it is not there; files in it are replaced.

  Returns:
    The files written.
  """
  root = pathlib.Path(out_dir)
  written: list[pathlib.Path] = []
  for file in standin.manifest()["files"]:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = standin.tensors(file)
    if path.suffix == ".safetensors":
      safetensors.save_file(tensors, path)
    else:
      torch_file.save(path, tensors, wrap=_WRAPPED.get(file))
    written.append(path)
  tokenizer = root / TOKENIZER
  tokenizer.mkdir(parents=True, exist_ok=True)
  for file in _TOKENIZER_FILES:
    shutil.copyfile(standin.HERE / file, tokenizer / file)
    written.append(tokenizer / file)
  return written


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("out", type=pathlib.Path, help="directory to write to")
  console.setup()
  for path in write_release(parser.parse_args().out):
    console.log(f"{path.stat().st_size:>9,} {path}")


if __name__ == "__main__":
  main()
