"""Writes report.html, to be reviewed before training.

A single file with embedded images: totals, counts and reject reasons of each
stage, score histograms with thresholds, group shares, and example clips.
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
_MAX_DETAIL_CHARS = 600  # of a failure's detail


def write(
  settings: curation_settings.Settings, problems: Sequence[str] = ()
) -> str:
  """Write the report.

  Args:
    settings: settings of the run.
    problems: one line per problem of the run.

  Returns:
    Its path or URL.

  Raises:
    ValueError: there is no input manifest, or a file is damaged.
  """
  count = manifest.load_or_create(settings)
  stages = statistics.collect(settings, count, _progress)
  parts = [
    _summary(settings, stages, problems),
    _stages(stages),
    _reasons(stages),
    _scores(settings, stages),
    _shares(settings, stages),
    _clip_examples(settings, stages),
    _reject_examples(settings, stages),
    _config(settings),
  ]
  url = storage.join(settings.out, NAME)
  title = f"Curation: {settings.out}"
  storage.write(url, page.page(title, parts).encode())
  return url


def _progress(pairs: Iterable) -> Iterable:
  """A progress bar."""
  return console.progress(pairs, desc="report", unit="file")


def _summary(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
  problems: Sequence[str],
) -> str:
  """Totals and problems."""
  first, last = stages[0], _last_stage(stages)
  share = last.passed / max(1, stages[_first_clip_stage(stages)].passed)
  lines_html = [
    f"<h1>Curation of {page.text(settings.out)}</h1>",
    f"<p>Input: <b>{first.passed:,}</b> files in {first.shards:,} shards."
    f" Output of {page.text(last.name)}: <b>{last.passed:,}</b> clips,"
    f" <b>{_duration(last.seconds)}</b>, {share:.1%} of all windows.</p>",
  ]
  tokens = max((stage.tokens for stage in stages), default=(0, 0))
  if any(tokens):
    lines_html.append(_cost(settings, tokens, last.passed))
  lines_html += _sink_results(settings, stages, problems)
  return "\n".join(lines_html)


def _sink_results(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
  problems: Sequence[str],
) -> Iterator[str]:
  """Results of sinks, problems and incomplete stages."""
  incomplete = []
  for pass_ in settings.passes:
    names = [stage.name for stage in pass_.stages]
    if pass_.kind == curation_settings.SINK:
      made = global_stages.read_sink_result(settings, pass_)
      if made is None:
        incomplete += names
      else:
        words = page.text(json.dumps(made["result"], indent=1))
        yield f"<p>Output of {page.text(names[0])}:</p><pre>{words}</pre>"
    else:
      shards = stages[0].shards
      incomplete += [
        s.name for s in stages if s.name in names and s.shards < shards
      ]
  if problems:
    lines = "".join(f"<li>{page.text(line)}</li>" for line in problems)
    yield f'<p class="bad">The run is incomplete:</p><ul>{lines}</ul>'
  elif incomplete:
    shown = page.text(", ".join(incomplete))
    yield f'<p class="bad">Stages with incomplete shards: {shown}.</p>'


def _last_stage(
  stages: Sequence[statistics.StageStatistics],
) -> statistics.StageStatistics:
  """The last stage with output lines; a sink has none."""
  return [stage for stage in stages if stage.shards][-1]


def _first_clip_stage(stages: Sequence[statistics.StageStatistics]) -> int:
  """Index of the first stage whose lines are windows instead of files."""
  for number in range(1, len(stages)):
    before, after = stages[number - 1], stages[number]
    if after.passed + after.rejected + after.failed > before.passed:
      return number
  return 0


def _cost(
  settings: curation_settings.Settings, tokens: tuple[int, int], count: int
) -> str:
  """Tokens of captions, and their cost if prices are set."""
  config = next(s.config for s in settings.stages if s.name == "captions")
  price = (
    tokens[0] * getattr(config, "usd_per_mtok_in", 0.0)
    + tokens[1] * getattr(config, "usd_per_mtok_out", 0.0)
  ) / 1e6
  money = f"; {price:.2f} USD ({price / max(1, count):.5f} per clip)"
  return (
    f"<p>Captions: {tokens[0]:,} input tokens, {tokens[1]:,} output"
    f" tokens{money if price else ''}.</p>"
  )


def _stages(stages: Sequence[statistics.StageStatistics]) -> str:
  """Counts of each stage."""
  rows = []
  shown = [stage for stage in stages if stage.shards]
  for stage in shown:
    num_input = stage.passed + stage.rejected + stage.failed
    share = f"{stage.passed / num_input:.1%}" if num_input else ""
    rows.append(
      [
        stage.name,
        stage.shards,
        num_input,
        stage.passed,
        stage.rejected,
        stage.failed,
        share,
        _duration(stage.seconds),
      ]
    )
  head = ["stage", "shards", "input", "passed", "rejected", "failed"]
  return (
    "<h2>Stages</h2>"
    + page.table([*head, "pass rate", "duration"], rows)
    + page.image(figures.funnel(shown))
  )


def _reasons(stages: Sequence[statistics.StageStatistics]) -> str:
  """Reject reasons."""
  return "<h2>Reject reasons</h2>" + page.image(figures.reasons(stages))


def _scores(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
) -> str:
  """Score histograms with thresholds."""
  panels = []
  for stage, stats in zip(settings.stages, stages[1:], strict=True):
    of_score: dict[str, list[str]] = {name: [] for name in stats.scores}
    for reason, (score, _) in stage.thresholds.items():
      of_score.setdefault(score, []).append(reason)
    for score, bounded in of_score.items():
      dropped = {
        reason: stats.reasons[reason].scores
        for reason in bounded
        if reason in stats.reasons
      }
      kept = stats.scores.get(score, ())
      bounds = _thresholds(stage, bounded, kept, dropped)
      if kept or dropped:
        panels.append((f"{stage.name}: {score}", kept, dropped, bounds))
    for reason, found in stats.reasons.items():
      if found.scores and reason not in stage.thresholds:
        title = f"{stage.name}: {reason}"
        panels.append((title, (), {reason: found.scores}, {}))
  image = page.image(figures.scores(panels))
  return (
    "<h2>Scores</h2><p>Clips passed on (blue) and rejected (orange); dashed"
    f" lines are thresholds.</p>{image}"
  )


def _thresholds(
  stage: curation_settings.Stage,
  reasons: Sequence[str],
  kept: Sequence[float],
  dropped: Mapping[str, Sequence[float]],
) -> dict[str, float]:
  """The thresholds of a score that are within or near its range."""
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
  """Counts by fact, and group shares before and after `balance`."""
  parts = {}
  for number, stage in enumerate(settings.stages):
    if stage.name == "balance":
      fact = stage.config.stage, stage.config.fact
      for each in (stages[number], stages[number + 1]):
        if each.facts.get(fact):
          parts[f"after {each.name}"] = each.facts[fact]
  rows = [
    [f"{stage}.{fact}", value, number]
    for (stage, fact), values in _last_stage(stages).facts.items()
    for value, number in values.items()
  ]
  figure = page.image(figures.shares(parts)) if parts else ""
  table = page.table(["fact", "value", "clips"], rows)
  return f"<h2>Shares</h2>{figure}<h3>Output clips by fact</h3>{table}"


def _clip_examples(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
) -> str:
  """Examples of output clips."""
  shown = []
  for shard, clip in _last_stage(stages).examples:
    prompts = clip.facts.get("captions", {}).get("prompts", [])
    shown.append(_figure(settings, shard, clip, prompts[:1]))
  return "<h2>Examples of output clips</h2>" + "".join(shown)


def _reject_examples(
  settings: curation_settings.Settings,
  stages: Sequence[statistics.StageStatistics],
) -> str:
  """Examples of rejected clips, by stage and reason."""
  shown = ["<h2>Examples of rejected clips</h2>"]
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
  """A rejected clip, or the error of a failed one."""
  score = [] if reject.score is None else [f"score {reject.score:g}"]
  if reject.failed:
    # Not decoded: it may crash this process too.
    detail = page.text(reject.detail[-_MAX_DETAIL_CHARS:])
    return f"<p class=small>{_name(reject.clip)}</p><pre>{detail}</pre>"
  return _figure(settings, shard, reject.clip, [*score, reject.detail])


def _figure(
  settings: curation_settings.Settings,
  shard: int,
  clip: clips.Clip,
  lines: Iterable[str],
) -> str:
  """A thumbnail of a clip with its name and lines of text."""
  folders = [
    settings.shard_files(stage_index, shard).folder
    for stage_index in range(len(settings.stages))
  ]
  with shard_store.open_artifacts(folders, shard) as read_artifact:
    jpeg = thumbnails.thumbnail(clip, read_artifact)
  shown = page.image(jpeg, "jpeg") if jpeg else ""
  below = "".join(
    f"<br>{page.text(line[:_MAX_DETAIL_CHARS])}" for line in lines if line
  )
  caption = f"<figcaption>{_name(clip)}{below}</figcaption>"
  return f"<figure>{shown}{caption}</figure>"


def _config(settings: curation_settings.Settings) -> str:
  """Settings of the stages."""
  rows = [
    [stage.name, stage.key, json.dumps(vars(stage.config), default=str)]
    for stage in settings.stages
  ]
  return "<h2>Settings</h2>" + page.table(["stage", "key", "config"], rows)


def _name(clip: clips.Clip) -> str:
  """Path and start of a clip."""
  start = f", {clip.start:.2f} s" if clip.start else ""
  return page.text(f"{clip.path}{start}")


def _duration(seconds: float) -> str:
  """A readable duration."""
  if not seconds:
    return ""
  hours = seconds / 3600
  return f"{hours:,.1f} h" if hours >= 1 else f"{seconds / 60:.1f} min"
