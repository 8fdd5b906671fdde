"""Prompts of the world that nobody trained on, for `sample.py --prompts`."""

import csv
import io
import pathlib

from ovi_jax import files
from ovi_jax.data.world import world as worlds
from ovi_jax.sampling import requests

_ENOUGH = 20  # clips a prompt that are looked through for new ones


def draw(count: int, seed: int, pairs: str) -> list[str]:
  """Prompts of clips with picture, sound and events, no two the same.

  Args:
    count: of prompts.
    seed: of the world; another one than that of training.
    pairs: of `World`: "seen", "held_out" or "all".

  Raises:
    ValueError: the count is not positive, or more than there are.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1 prompt, got {count}")
  world = worlds.World(seed=seed, size=16, pairs=pairs, complete=True)
  found: dict[str, None] = {}
  for index in range(_ENOUGH * count):
    captions = world.clip(index, slice(0, 1)).captions
    # Both tag formats, in turns.
    found[captions[index % len(captions)]] = None
    if len(found) == count:
      return list(found)
  raise ValueError(f"the world has no {count} prompts; ask for fewer")


def write(path: pathlib.Path, prompts: list[str]) -> None:
  """Write the CSV that `sample.py` reads.

  Raises:
    ValueError: the name does not end in .csv.
    OSError: the folder is not writable, or the disk full.
  """
  if path.suffix != ".csv":
    raise ValueError(f"out: expected a name that ends in .csv, got {path}")
  text = io.StringIO(newline="")
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([requests.PROMPT_COLUMN])
  writer.writerows([prompt] for prompt in prompts)
  with files.replacing(path) as temporary:
    temporary.write_text(text.getvalue(), "utf-8")
