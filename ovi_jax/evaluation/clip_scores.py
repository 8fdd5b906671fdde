"""Means of cheap scores over a few clips, for the logs of training.

Scores of sets, and those whose features need a reference, weights that are not
given or packages that are not installed, are left out.
"""

import math
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from ovi_jax import storage
from ovi_jax.evaluation import clips as clips_lib
from ovi_jax.evaluation import features
from ovi_jax.evaluation import lists
from ovi_jax.evaluation import protocols
from ovi_jax.evaluation import run
from ovi_jax.evaluation.extractors import registry


def means(
  paths: Sequence[storage.AnyPath],
  texts: Sequence[str],
  names: Sequence[str],
) -> dict[str, float]:
  """Mean scores by `protocol/score`.

  Args:
    paths: files of clips, of different names.
    texts: what each shows and sounds.
    names: of protocols.

  Raises:
    ValueError: a protocol is unknown, or a clip cannot be read.
  """
  chosen, available = protocols.load(names), registry.make({})
  scores = {
    f"{protocol.name}/{score.name}": score
    for protocol in chosen
    for score in protocol.scores
    if not score.of_sets
    and all(n in available and not available[n].missing for n in score.features)
  }
  wanted = dict.fromkeys(n for s in scores.values() for n in s.features)
  extractors = [available[name] for name in wanted]
  tables: list[features.Arrays] = []
  with tempfile.TemporaryDirectory(prefix="ovi_jax-") as cache:
    for path, text in zip(paths, texts, strict=True):
      table = lists.PromptTable(texts={path.stem: text})
      with storage.local_copy(path) as local:
        source = clips_lib.Source(clip=clips_lib.read_clip(local, table))
        tables += features.extract(extractors, [source], pathlib.Path(cache))
  found = {}
  for name, score in scores.items():
    value_N = run.clip_values(score, tables, [None] * len(tables))
    if np.isfinite(value_N).any():
      found[name] = float(np.nanmean(value_N))
  return {name: mean for name, mean in found.items() if math.isfinite(mean)}
