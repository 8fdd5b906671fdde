"""Prompts of the world that nobody trained on, for `sample.py --prompts`."""

import collections
import csv
import io
import itertools
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

from ovi_jax import files
from ovi_jax import storage
from ovi_jax.sampling import requests
from ovi_jax.synthetic.world import world as worlds

_ENOUGH = 100  # clips a prompt that are looked through for new ones


class Trained(NamedTuple):
  """Clips that were trained on: the first of a world.

  Attributes:
    seed: of the world.
    clips: how many.
    what: of `World`.
  """

  seed: int
  clips: int
  what: str = worlds.CLIPS

  @classmethod
  def parse(cls, text: str) -> "Trained":
    """From SEED:CLIPS or SEED:CLIPS:WHAT.

    Raises:
      ValueError: it is something else.
    """
    parts = text.split(":")
    numbers, what = parts[:2], parts[2:] or [worlds.CLIPS]
    digits = all(p.isascii() and p.isdigit() for p in numbers)
    if len(numbers) < 2 or not digits or len(what) > 1:
      raise ValueError(
        f"trained: expected SEED:CLIPS or SEED:CLIPS:WHAT, got {text!r}"
      )
    seed, clips = map(int, numbers)
    found = cls(seed, clips, what[0])
    found.world  # noqa: B018  complains of what there is not
    return found

  @property
  def world(self) -> worlds.World:
    """The world, small: of interest are its captions alone."""
    return worlds.World(seed=self.seed, size=16, what=self.what)


def draw(
  count: int, seed: int, pairs: str, trained: Sequence[Trained] = ()
) -> list[str]:
  """Prompts of clips with picture, sound and events, no two the same.

  What was trained on is no prompt, word by word; kinds (balls, lamps, faces)
  are as frequent as they would be with it.

  Args:
    count: of prompts.
    seed: of the world; another one than that of training.
    pairs: of `World`: "seen", "held_out" or "all".
    trained: clips whose captions are left out.

  Raises:
    ValueError: the count is not positive, or more than there are.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1 prompt, got {count}")
  known = {caption for each in trained for caption in _captions(each)}
  world = worlds.World(seed=seed, size=16, pairs=pairs, complete=True)
  first = dict(itertools.islice(_distinct(world, _ENOUGH * count), count))
  wanted = collections.Counter(first.values())
  found: list[str] = []
  for prompt, kind in _distinct(world, _ENOUGH * count):
    if prompt not in known and wanted[kind]:
      wanted[kind] -= 1
      found.append(prompt)
    if len(found) == count:
      return found
  raise ValueError(
    f"the world has no {count} prompts of this kind; ask for fewer"
  )


def _distinct(world: worlds.World, clips: int) -> Iterator[tuple[str, str]]:
  """Captions of the first clips, no two the same, and the kind of each."""
  seen = set()
  for index in range(clips):
    made = world.clip(index, slice(1), sound=False)
    # Both tag formats, in turns.
    caption = made.captions[index % len(made.captions)]
    if caption not in seen:
      seen.add(caption)
      yield caption, made.scene.kind


def _captions(trained: Trained) -> Iterator[str]:
  world = trained.world
  for index in range(trained.clips):
    yield from world.clip(index, slice(1), sound=False).captions


def write(path: storage.AnyPath, prompts: list[str], seed: int) -> None:
  """Write the CSV that `sample.py` reads, a seed of noise to each prompt.

  With one noise for all, clips of a kind would be alike: their events would
  come at the same times, whatever is asked for.

  Args:
    path: to write.
    prompts: in order.
    seed: of the first; each has the next.

  Raises:
    ValueError: the name does not end in .csv.
    OSError: the folder is not writable, or the disk full.
  """
  if path.suffix != ".csv":
    raise ValueError(f"out: expected a name that ends in .csv, got {path}")
  text = io.StringIO(newline="")
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([requests.PROMPT_COLUMN, requests.SEED_COLUMN])
  writer.writerows(
    (prompt, (seed + row) % requests.SEEDS)
    for row, prompt in enumerate(prompts)
  )
  with files.atomic_path(path) as temporary:
    temporary.write_text(text.getvalue(), "utf-8")
