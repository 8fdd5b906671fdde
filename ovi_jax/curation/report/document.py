"""The report of a run, which a person reads before training: report.html.

One file with all its pictures: what went in and came out, counts and reasons of
each stage, the scores with the bounds drawn, hours and shares, and clips that
were kept and dropped, to look at.
"""

import json
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

from ovi_jax import console
from ovi_jax.curation import clip as clips
from ovi_jax.curation.engine import global_stages
from ovi_jax.curation.engine import manifest
from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import storage
from ovi_jax.curation.report import figures
from ovi_jax.curation.report import page
from ovi_jax.curation.report import statistics
from ovi_jax.curation.report import thumbnails

NAME = "report.html"
_MAX_DETAIL_CHARS = 600  # characters of a failure's detail


def write(
  settings: curation_settings.Settings, problems: Sequence[str] = ()
) -> str:
  """Write the report.

  Args:
    settings: of the run.
    problems: what could not be done, a line each.

  Returns:
    Where it is.

  Raises:
    ValueError: nothing was numbered yet, or a file is damaged.
  """
  count = manifest.load_or_create(settings)
  stages = statistics.collect(settings, count, _progress)
  parts = [
    _summary(settings, stages, problems),
    _stages(stages),
    _reasons(stages),
    _scores(settings, stages),
    _shares(settings, stages),
    _kept(settings, stages),
    _dropped(settings, stages),
    _config(settings),
  ]
  place = storage.join(settings.out, NAME)
  title = f"Curation: {settings.out}"
  storage.write(place, page.page(title, parts).encode())
  return place


def _progress(pairs: Iterable) -> Iterable:
  """A line of progress."""
  return console.progress(pairs, desc="report", unit="file")


def _summary(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
  problems: Sequence[str],
) -> str:
  """What went in and what came out, and what is wrong."""
  first, last = stages[0], _last_stage(stages)
  share = last.passed / max(1, stages[_first_clip_stage(stages)].passed)
  said = [
    f"<h1>Curation of {page.text(settings.out)}</h1>",
    f"<p><b>{first.passed:,}</b> files in {first.shards:,} shards went in;"
    f" <b>{last.passed:,}</b> clips, <b>{_hours(last.seconds)}</b>, came"
    f" through {page.text(last.name)}: {share:.1%} of the clips that the files"
    " were cut into.</p>",
  ]
  tokens = max((stage.tokens for stage in stages), default=(0, 0))
  if any(tokens):
    said.append(_cost(settings, tokens, last.passed))
  said += _sink_results(settings, stages, problems)
  return "\n".join(said)


def _sink_results(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
  problems: Sequence[str],
) -> Iterator[str]:
  """What was written in the end, and what is not done."""
  undone = []
  for part in settings.passes:
    names = [stage.name for stage in part.stages]
    if part.kind == curation_settings.SINK:
      made = global_stages.read_sink_result(settings, part)
      if made is None:
        undone += names
      else:
        words = page.text(json.dumps(made["result"], indent=1))
        yield f"<p>{page.text(names[0])} wrote:</p><pre>{words}</pre>"
    else:
      shards = stages[0].shards
      undone += [
        s.name for s in stages if s.name in names and s.shards < shards
      ]
  if problems:
    lines = "".join(f"<li>{page.text(line)}</li>" for line in problems)
    yield f'<p class="bad">Not all is done:</p><ul>{lines}</ul>'
  elif undone:
    shown = page.text(", ".join(undone))
    yield f'<p class="bad">Shards are left to do in: {shown}.</p>'


def _last_stage(
  stages: Sequence[statistics.StageStatistics],
) -> statistics.StageStatistics:
  """The last stage that has lines; one that writes the end has none."""
  return [stage for stage in stages if stage.shards][-1]


def _first_clip_stage(stages: Sequence[statistics.StageStatistics]) -> int:
  """From which stage on lines are clips, no more files."""
  for number in range(1, len(stages)):
    before, after = stages[number - 1], stages[number]
    if after.passed + after.refused + after.failed > before.passed:
      return number
  return 0


def _cost(
  settings: curation_settings.Settings, tokens: tuple[int, int], count: int
) -> str:
  """What captions took, and what they cost if prices are given."""
  config = next(s.config for s in settings.stages if s.name == "captions")
  price = (
    tokens[0] * getattr(config, "usd_per_mtok_in", 0.0)
    + tokens[1] * getattr(config, "usd_per_mtok_out", 0.0)
  ) / 1e6
  money = f", which cost {price:.2f} ({price / max(1, count):.5f} a clip)"
  return (
    f"<p>Captions took {tokens[0]:,} tokens of requests and {tokens[1]:,} of"
    f" answers{money if price else ''}.</p>"
  )


def _stages(stages: Sequence[statistics.StageStatistics]) -> str:
  """How many each stage passed on."""
  rows = []
  shown = [stage for stage in stages if stage.shards]
  for stage in shown:
    came = stage.passed + stage.refused + stage.failed
    share = f"{stage.passed / came:.1%}" if came else ""
    rows.append(
      [
        stage.name,
        stage.shards,
        came,
        stage.passed,
        stage.refused,
        stage.failed,
        share,
        _hours(stage.seconds),
      ]
    )
  head = ["stage", "shards", "came", "passed", "refused", "failed"]
  return (
    "<h2>Stages</h2>"
    + page.table([*head, "share", "hours"], rows)
    + page.image(figures.funnel(shown))
  )


def _reasons(stages: Sequence[statistics.StageStatistics]) -> str:
  """Why clips were refused."""
  return "<h2>Reasons</h2>" + page.image(figures.reasons(stages))


def _scores(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
) -> str:
  """What was measured, with the bounds drawn."""
  panels = []
  for stage, gathered in zip(settings.stages, stages[1:], strict=True):
    of_score: dict[str, list[str]] = {name: [] for name in gathered.scores}
    for reason, (score, _) in stage.thresholds.items():
      of_score.setdefault(score, []).append(reason)
    for score, bounded in of_score.items():
      dropped = {
        reason: gathered.reasons[reason].scores
        for reason in bounded
        if reason in gathered.reasons
      }
      kept = gathered.scores.get(score, ())
      bounds = _bounds(stage, bounded, kept, dropped)
      if kept or dropped:
        panels.append((f"{stage.name}: {score}", kept, dropped, bounds))
    for reason, found in gathered.reasons.items():
      if found.scores and reason not in stage.thresholds:
        title = f"{stage.name}: {reason}"
        panels.append((title, (), {reason: found.scores}, {}))
  image = page.image(figures.scores(panels))
  return (
    "<h2>Scores</h2><p>Of clips passed on (blue) and refused (orange); a dashed"
    f" line is the bound.</p>{image}"
  )


def _bounds(
  stage: curation_settings.Stage,
  reasons: Sequence[str],
  kept: Sequence[float],
  dropped: Mapping[str, Sequence[float]],
) -> dict[str, float]:
  """The bounds of a score that some clip is beyond, or not far from."""
  low, high = min(kept, default=0.0), max(kept, default=0.0)
  found = {}
  for reason in reasons:
    bound = getattr(stage.config, stage.thresholds[reason][1])
    near = kept and 2 * low - high <= (bound or 0.0) <= 2 * high - low
    if bound is not None and (near or reason in dropped):
      found[reason] = float(bound)
  return found


def _shares(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
) -> str:
  """What the clips are, by their facts; and before and after the balance."""
  parts = {}
  for number, stage in enumerate(settings.stages):
    if stage.name == "balance":
      fact = stage.config.stage, stage.config.fact
      for each in (stages[number], stages[number + 1]):
        if each.facts.get(fact):
          parts[f"{each.name} passed on"] = each.facts[fact]
  rows = [
    [f"{stage}.{fact}", value, number]
    for (stage, fact), values in _last_stage(stages).facts.items()
    for value, number in values.items()
  ]
  figure = page.image(figures.shares(parts)) if parts else ""
  table = page.table(["fact", "value", "clips"], rows)
  return (
    f"<h2>Shares</h2>{figure}<h3>Of the clips that came through</h3>{table}"
  )


def _kept(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
) -> str:
  """Clips that came through, to look at."""
  shown = []
  for shard, clip in _last_stage(stages).examples:
    prompts = clip.facts.get("captions", {}).get("prompts", [])
    shown.append(_figure(settings, shard, clip, prompts[:1]))
  return "<h2>Kept</h2>" + "".join(shown)


def _dropped(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
) -> str:
  """Clips that did not, by stage and reason."""
  shown = ["<h2>Dropped</h2>"]
  for stage in stages:
    for name, reason in stage.reasons.items():
      title = f"{stage.name}: {name} ({reason.count:,})"
      shown.append(f"<h3>{page.text(title)}</h3>")
      for shard, reject in reason.examples:
        shown.append(_reject(settings, shard, reject))
  return "".join(shown)


def _reject(
  settings: curation_settings.Settings, shard: int, reject: clips.Reject
) -> str:
  """A clip that was dropped, or what it failed with."""
  score = [] if reject.score is None else [f"score {reject.score:g}"]
  if reject.failed:
    # It is not opened: it may end this process too.
    detail = page.text(reject.detail[-_MAX_DETAIL_CHARS:])
    return f"<p class=small>{_name(reject.clip)}</p><pre>{detail}</pre>"
  return _figure(settings, shard, reject.clip, [*score, reject.detail])


def _figure(
  settings: curation_settings.Settings,
  shard: int,
  clip: clips.Clip,
  lines: Iterable[str],
) -> str:
  """A picture of a clip with its name, and lines below."""
  folders = [
    settings.shard_files(place, shard).folder
    for place in range(len(settings.stages))
  ]
  with shard_store.open_artifacts(folders, shard) as keeper:
    jpeg = thumbnails.thumbnail(clip, keeper)
  shown = page.image(jpeg, "jpeg") if jpeg else ""
  below = "".join(
    f"<br>{page.text(line[:_MAX_DETAIL_CHARS])}" for line in lines if line
  )
  caption = f"<figcaption>{_name(clip)}{below}</figcaption>"
  return f"<figure>{shown}{caption}</figure>"


def _config(settings: curation_settings.Settings) -> str:
  """How to get the same again."""
  rows = [
    [stage.name, stage.key, json.dumps(vars(stage.config), default=str)]
    for stage in settings.stages
  ]
  return "<h2>Settings</h2>" + page.table(["stage", "key", "config"], rows)


def _name(clip: clips.Clip) -> str:
  """Where a clip is."""
  start = f", {clip.start:.2f} s" if clip.start else ""
  return page.text(f"{clip.path}{start}")


def _hours(seconds: float) -> str:
  """A length, for people."""
  if not seconds:
    return ""
  hours = seconds / 3600
  return f"{hours:,.1f} h" if hours >= 1 else f"{seconds / 60:.1f} min"
