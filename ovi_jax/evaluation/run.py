"""Evaluates systems: clips in, scores with intervals and checks out.

Clips of systems are paired by name; only names that all systems have are
scored, so that all are scored on the same prompts. The clips of the reference
need no pairs, except for rules that compare a clip with its own reference.
"""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from ovi_jax import untrusted
from ovi_jax.evaluation import clips as clips_lib
from ovi_jax.evaluation import distributions
from ovi_jax.evaluation import features
from ovi_jax.evaluation import imported
from ovi_jax.evaluation import intervals
from ovi_jax.evaluation import lists
from ovi_jax.evaluation import protocols
from ovi_jax.evaluation.extractors import registry

REFERENCE = "reference"
SET_DRAWS = 100
_NO_FEATURES = "no clip has the features"
_ONE_TAKE = "that needs a second recording of each true clip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is evaluated, and how.

  Attributes:
    systems: folder of each system's clips, by name.
    reference: folder of true clips, or None.
    cache: folder of features.
    protocols: names or JSON files.
    prompts: names and texts of clips; see `clips.read_folder`.
    weights: paths by extractor.
    extractors: dotted paths of further extractors.
    imported: folders of imported features by system, or "reference".
    sanity_clips: most clips of which distorted versions are scored.
    draws: bootstrap resamplings of means over clips.
    set_draws: the same for statistics of sets, which cost more.
    seed: of the resamplings.
  """

  systems: Mapping[str, pathlib.Path]
  reference: pathlib.Path | None = None
  cache: pathlib.Path
  protocols: Sequence[str] = ("basic",)
  prompts: lists.PromptTable = dataclasses.field(
    default_factory=lists.PromptTable
  )
  weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
  extractors: Sequence[str] = ()
  imported: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  sanity_clips: int = 64
  draws: int = intervals.DRAWS
  set_draws: int = SET_DRAWS
  seed: int = 0

  def __post_init__(self):
    problems = []
    if not self.systems:
      problems.append("expected at least one system")
    if REFERENCE in self.systems:
      problems.append(f"a system cannot have the name {REFERENCE!r}")
    unknown = self.imported.keys() - {*self.systems, REFERENCE}
    problems += [f"features: there is no system {n!r}" for n in sorted(unknown)]
    if REFERENCE in self.imported and self.reference is None:
      problems.append("features of the reference need --reference=DIR")
    for name in ("sanity_clips", "draws", "set_draws", "seed"):
      if getattr(self, name) < 0:
        problems.append(f"{name} must be at least 0")
    if problems:
      raise ValueError("evaluation: " + "; ".join(problems))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """A score of a system.

  Attributes:
    interval: value and 95 % interval; NaN if it is not measured.
    clips: number of clips that were measured.
    of: number of clips.
    missing: why it is not measured; "" if it is.
    warnings: what limits the value.
    change: difference from the first system on the same clips, if the score is
      a mean over clips.
  """

  interval: intervals.Interval = intervals.NOTHING
  clips: int = 0
  of: int = 0
  missing: str = ""
  warnings: tuple[str, ...] = ()
  change: intervals.Interval | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
  """A score of distorted versions of true clips.

  Attributes:
    values: by sanity row.
    problems: orders that do not hold.
    skipped: why nothing was checked; "" if something was.
  """

  values: Mapping[str, float]
  problems: tuple[str, ...] = ()
  skipped: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """A score of all systems.

  Attributes:
    protocol: its name.
    score: definition.
    cells: by system; that of the reference, if there is one, is the first.
    check: on distorted clips.
  """

  protocol: str
  score: protocols.Score
  cells: Mapping[str, Cell]
  check: Check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """All scores, and what they are scores of.

  Attributes:
    lines: one per score.
    systems: scored clips by system, and of the reference.
    left_out: names of clips that some system lacks, by system.
    unmatched: names of imported features that no clip has, by system.
    base: whose clips the distorted versions are made of.
    extractors: identity of each extractor that was used.
    protocols: that were computed.
  """

  lines: Sequence[Line]
  systems: Mapping[str, Sequence[clips_lib.Clip]]
  left_out: Mapping[str, Sequence[str]]
  unmatched: Mapping[str, Sequence[str]]
  base: str
  extractors: Sequence[Mapping[str, object]]
  protocols: Sequence[protocols.Protocol]


# Arrays of the clips of a system, in their order.
Table = Sequence[features.Arrays]


def run(settings: Settings) -> Result:
  """Evaluate.

  Raises:
    ValueError: a folder, a protocol, weights or features cannot be used, or the
      systems have no clip in common.
    OSError: the cache cannot be written.
  """
  chosen = protocols.load(settings.protocols)
  available = registry.make(settings.weights)
  for path in settings.extractors:
    extractor = features.custom(path)
    available[extractor.name] = extractor
  given = {
    name: imported.read(path) for name, path in settings.imported.items()
  }
  clips, left_out, unmatched = _read(settings, given)
  scores = [score for protocol in chosen for score in protocol.scores]
  wanted = list(dict.fromkeys(n for score in scores for n in score.features))
  usable = [
    available[name]
    for name in wanted
    if name in available and not available[name].missing
  ]
  tables = {}
  for name, of_system in clips.items():
    sources = [clips_lib.Source(clip=clip) for clip in of_system]
    tables[name] = features.extract(usable, sources, settings.cache)
    for clip, table in zip(of_system, tables[name], strict=True):
      table |= _of_clip(given.get(name, {}), clip)
  base = next(iter(clips))
  distorted = _distorted(settings, clips[base], usable, scores)
  distorted[protocols.TRUE] = tables[base][: settings.sanity_clips]
  lines = []
  for protocol in chosen:
    for score in protocol.scores:
      absent = _absent(score, available, given)
      lines.append(
        Line(
          protocol=protocol.name,
          score=score,
          cells=_cells(score, clips, tables, settings, absent),
          check=_check(score, distorted, absent),
        )
      )
  return Result(
    lines=lines,
    systems=clips,
    left_out=left_out,
    unmatched=unmatched,
    base=base,
    extractors=[extractor.describe() for extractor in usable],
    protocols=chosen,
  )


def _of_clip(table: imported.Table, clip: clips_lib.Clip) -> features.Arrays:
  """Imported features of a clip, by its name or by that of its file."""
  return table.get(clip.name) or table.get(clip.path.stem) or {}


def _read(
  settings: Settings, given: Mapping[str, imported.Table]
) -> tuple[
  dict[str, list[clips_lib.Clip]], dict[str, list[str]], dict[str, list[str]]
]:
  """Clips by system, the reference first.

  Also names that are left out, and those of imported features without a clip.
  """
  systems = {
    name: clips_lib.read_folder(folder, settings.prompts)
    for name, folder in settings.systems.items()
  }
  names = [{clip.name for clip in clips} for clips in systems.values()]
  common = set.intersection(*names)
  if not common:
    raise ValueError(
      "the systems have no clip name in common; files of the same prompt need"
      " the same name in all folders"
    )
  left_out = {
    name: sorted(set.union(*names) - {clip.name for clip in clips})
    for name, clips in systems.items()
  }
  found = {
    name: [clip for clip in clips if clip.name in common]
    for name, clips in systems.items()
  }
  if settings.reference is not None:
    reference = clips_lib.read_folder(settings.reference, settings.prompts)
    systems[REFERENCE] = reference
    left_out[REFERENCE] = sorted(common - {clip.name for clip in reference})
    found = {REFERENCE: reference, **found}
  unmatched = {}
  for name, table in given.items():
    known = {x for clip in systems[name] for x in (clip.name, clip.path.stem)}
    if unknown := sorted(table.keys() - known):
      unmatched[name] = unknown
    if len(unknown) == len(table):
      raise ValueError(
        f"{settings.imported[name]}: expected features of clips of {name},"
        f" found {', '.join(untrusted.shortened(list(map(repr, unknown))))}"
      )
  left_out = {name: lacks for name, lacks in left_out.items() if lacks}
  return found, left_out, unmatched


def _distorted(
  settings: Settings,
  clips: Sequence[clips_lib.Clip],
  extractors: Sequence[features.Extractor],
  scores: Sequence[protocols.Score],
) -> dict[str, Table]:
  """Features of distorted versions of the first clips, by sanity row.

  A row has those features only of which a score orders it. A clip has its place
  in all rows, without features where its sound cannot be replaced.
  """
  clips = clips[: settings.sanity_clips]
  rows: dict[str, list[clips_lib.Source | None]] = {
    name: [clips_lib.Source(clip=clip, delay=delay) for clip in clips]
    for name, delay in protocols.DELAYS.items()
  }
  rows[protocols.NOISE] = [
    clips_lib.Source(clip=clip, noise=True) for clip in clips
  ]
  others = _others(clips)
  rows[protocols.ANOTHER] = [
    clips_lib.Source(clip=clip, sound_of=others[clip.name])
    if clip.name in others
    else None
    for clip in clips
  ]
  tables = {}
  for row, sources in rows.items():
    wanted = {
      name
      for score in scores
      for name in score.features
      if not score.of_pairs and any(row in order for order in score.orders)
    }
    needed = [each for each in extractors if each.name in wanted]
    there = [source for source in sources if source is not None]
    found = iter(features.extract(needed, there, settings.cache))
    tables[row] = [{} if each is None else next(found) for each in sources]
  return tables


def _others(clips: Sequence[clips_lib.Clip]) -> dict[str, clips_lib.Clip]:
  """By name, the clip whose sound replaces a clip's own.

  It is half the list away, because neighbours are often takes of one scene, or
  the next one after that of another text. Clips without one are left out.
  """
  sounding = [clip for clip in clips if clip.has_sound]
  count, found = len(sounding), {}
  for place, clip in enumerate(sounding):
    for step in range(count):
      other = sounding[(place + max(1, count // 2) + step) % count]
      if other is not clip and (not clip.text or other.text != clip.text):
        found[clip.name] = other
        break
  return found


def _absent(
  score: protocols.Score,
  available: Mapping[str, features.Extractor],
  given: Mapping[str, Mapping[str, features.Arrays]],
) -> str:
  """Why features of a score are missing; "" if they are not."""
  there = {
    name.partition(".")[0]
    for table in given.values()
    for arrays in table.values()
    for name in arrays
  }
  for name in score.features:
    if name in there:
      continue
    if name not in available:
      return f"needs imported features {name!r}"
    if available[name].missing:
      return available[name].missing
  return ""


def _cells(
  score: protocols.Score,
  clips: Mapping[str, Sequence[clips_lib.Clip]],
  tables: Mapping[str, Table],
  settings: Settings,
  absent: str,
) -> dict[str, Cell]:
  """The score of each system."""
  cells: dict[str, Cell] = {}
  first: np.ndarray | None = None
  reference = tables.get(REFERENCE)
  by_name = {}
  if reference is not None:
    names = [clip.name for clip in clips[REFERENCE]]
    by_name = dict(zip(names, reference, strict=True))
  for name, table in tables.items():
    if absent or (score.of_pairs and reference is None):
      missing = absent or distributions.NO_REFERENCE
      cells[name] = Cell(of=len(table), missing=missing)
    elif score.of_sets:
      cells[name] = _set_cell(score, table, reference, settings)
    else:
      pairs = [by_name.get(clip.name) for clip in clips[name]]
      try:
        value_N = clip_values(score, table, pairs)
      except ValueError as error:
        cells[name] = Cell(of=len(table), missing=str(error))
        continue
      groups = score.groups_of([clip.name for clip in clips[name]])
      weight_N = score.weights_of(table)
      cells[name] = _clip_cell(value_N, settings, groups, weight_N)
      if name == REFERENCE:
        continue
      if first is None:
        first = value_N
      elif np.isfinite(value_N - first).any():
        change = intervals.bootstrap_mean(
          value_N - first, settings.draws, settings.seed, groups, weight_N
        )
        cells[name] = dataclasses.replace(cells[name], change=change)
  return cells


def clip_values(
  score: protocols.Score,
  table: Table,
  references: Sequence[features.Arrays | None],
) -> np.ndarray:
  """The value of each clip [N] float64; NaN where it cannot be measured.

  Raises:
    ValueError: features have another form than the rule expects.
  """
  return np.array(
    [
      score.compute(arrays, reference)
      for arrays, reference in zip(table, references, strict=True)
    ],
    np.float64,
  )


def _clip_cell(
  value_N: np.ndarray,
  settings: Settings,
  groups: Sequence[str] | None,
  weight_N: np.ndarray | None,
) -> Cell:
  """A mean over clips, or over the means of groups of clips."""
  measured = int(np.isfinite(value_N).sum())
  return Cell(
    interval=intervals.bootstrap_mean(
      value_N, settings.draws, settings.seed, groups, weight_N
    ),
    clips=measured,
    of=len(value_N),
    missing="" if measured else _NO_FEATURES,
  )


def _set_cell(
  score: protocols.Score,
  table: Table,
  reference: Table | None,
  settings: Settings,
) -> Cell:
  """A statistic of a set; of clips that have the features."""
  kept = [arrays for arrays in table if _has(score, arrays)]
  if not kept:
    return Cell(of=len(table), missing=_NO_FEATURES)
  against = None
  if reference is not None:
    against = [arrays for arrays in reference if _has(score, arrays)]
  try:
    statistic = score.compute(kept, against)
    interval = intervals.bootstrap_statistic(
      statistic.value, len(kept), settings.set_draws, settings.seed
    )
  except ValueError as error:
    return Cell(of=len(table), missing=str(error))
  missing = "" if math.isfinite(interval.value) else "too few clips"
  return Cell(
    interval=interval,
    clips=len(kept),
    of=len(table),
    missing=missing,
    warnings=statistic.warnings,
  )


def _has(score: protocols.Score, arrays: features.Arrays) -> bool:
  """Whether a clip has what a score of sets is computed of."""
  there = {name.partition(".")[0] for name in arrays}
  array = score.params.get("array")
  return there.issuperset(score.features) and (array is None or array in arrays)


def _check(
  score: protocols.Score, distorted: Mapping[str, Table], absent: str
) -> Check:
  """Whether a score puts distorted clips below true ones.

  Sets are compared with true clips that are not in them: one half of the clips
  with the other half.
  """
  true = distorted[protocols.TRUE]
  values = dict.fromkeys(protocols.SANITY, math.nan)
  if not score.orders:
    return Check(values=values, skipped="nothing to order")
  if score.of_pairs:
    # Compared with itself, a true clip is the best by definition.
    return Check(values=values, skipped=absent or _ONE_TAKE)
  places, against = list(range(len(true))), true
  if score.compares_sets:
    there = [place for place in places if _has(score, true[place])]
    places, against = there[::2], [true[place] for place in there[1::2]]
  for row, table in distorted.items():
    if absent or not table:
      continue
    part = [table[place] for place in places]
    try:
      if score.of_sets:
        values[row] = _set_value(score, part, against)
      else:
        values[row] = _mean(clip_values(score, part, [None] * len(part)))
    except ValueError:
      # Features of another form, which the cells name.
      continue
  problems, compared = [], 0
  for order in score.orders:
    for better, worse in itertools.pairwise(order):
      one, other = values[better], values[worse]
      if not math.isfinite(one - other):
        continue
      compared += 1
      gain = one - other if score.better == protocols.HIGHER else other - one
      if not gain > 0:
        problems.append(f"{better} is not better than {worse}")
  skipped = "" if compared else (absent or "no row is measured")
  return Check(values=values, problems=tuple(problems), skipped=skipped)


def _set_value(score: protocols.Score, table: Table, true: Table) -> float:
  kept, against = (
    [arrays for arrays in each if _has(score, arrays)] for each in (table, true)
  )
  if not kept or not against:
    return math.nan
  return float(score.compute(kept, against).value(np.arange(len(kept))))


def _mean(value_N: np.ndarray) -> float:
  value_N = value_N[np.isfinite(value_N)]
  return float(value_N.mean()) if len(value_N) else math.nan
