"""Means of cheap scores over a few clips, for the logs of training.

Scores of sets or of pairs with a reference, and those whose features need
weights that are not given or packages that are not installed, are left out.
"""

import contextlib
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
    if not (score.of_sets or score.of_pairs)
    and all(n in available and not available[n].missing for n in score.features)
  }
  wanted = dict.fromkeys(n for s in scores.values() for n in s.features)
  extractors = [available[name] for name in wanted]
  by_name = {p.stem: text for p, text in zip(paths, texts, strict=True)}
  table = lists.PromptTable(texts=by_name)
  with contextlib.ExitStack() as stack:
    cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="ovi_jax-"))
    local = [stack.enter_context(storage.local_copy(path)) for path in paths]
    # Once over all clips: weights are read once, and batches are full.
    tables = features.extract(
      extractors,
      [
        clips_lib.Source(clip=clips_lib.read_clip(path, table))
        for path in local
      ],
      pathlib.Path(cache),
    )
  found = {}
  for name, score in scores.items():
    value_N = run.clip_values(score, tables, [None] * len(tables))
    if np.isfinite(value_N).any():
      found[name] = float(np.nanmean(value_N))
  return {name: mean for name, mean in found.items() if math.isfinite(mean)}
