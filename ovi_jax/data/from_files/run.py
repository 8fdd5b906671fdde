"""An import: from a folder and captions to a dataset, and what is said of it.

Beside the dataset OUT is the folder OUT.import: `report.txt`, `refused.csv`,
`contact_sheet.png`, `import.json` (what the dataset was made of), and `clips`
with finished files until the dataset is whole.
"""

import collections
import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import json
import logging
import pathlib
import re
import shlex
import shutil
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from ovi_jax import cli
from ovi_jax import console
from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import prompt
from ovi_jax import storage
from ovi_jax import synthetic
from ovi_jax import untrusted
from ovi_jax.data import builder
from ovi_jax.data import captions as captions_lib
from ovi_jax.data import schema
from ovi_jax.data import shards
from ovi_jax.data.from_files import listing
from ovi_jax.data.from_files import settings as settings_lib
from ovi_jax.data.from_files import sheet
from ovi_jax.data.from_files import work

_log = logging.getLogger(__name__)
TRAIN, TEST = captions_lib.TRAIN, captions_lib.TEST
_SMALL = 64, 64  # height and width of the model that comes with the package
_SHOWN = 10  # lines of a list
_RECIPE = "import.json"
_REPORT = "report.txt"
_DECIDING = ("variant", "eval_fraction", "seed", "records_per_shard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
  """A file that was imported.

  Attributes:
    file: with its captions.
    result: of cutting it.
    split: of all its clips.
  """

  file: listing.File
  result: work.Result
  split: str


def run(settings: settings_lib.Settings) -> None:
  """Import files and log a report; resumes an interrupted import.

  Args:
    settings: of the import.

  Raises:
    ValueError: settings, table or folder will not do, no clip can be imported,
      or something else stands under `out`; the message says what to do.
    OSError: the disk is full, or a folder is not writable.
  """
  found = listing.read(settings)
  recipe = _recipe(settings, found)
  if storage.is_remote(settings.out):
    storage.check_access(storage.path(settings.out))
  if shards.is_published(settings.out):
    _check_recipe(settings, recipe)
    builder.check(settings.out)
    report = (settings.folder / _REPORT).read_text("utf-8")
    _log.info(report.removesuffix("\n"))
    _log.info(f"already imported: {settings.out}")
    return
  folder = settings.folder / "clips"
  folder.mkdir(parents=True, exist_ok=True)
  with _alone(settings.folder):
    jobs = [work.job(file, folder, settings) for file in found.files]
    with console.progress(
      total=len(jobs), unit="file", desc="importing"
    ) as bar:
      work.run(jobs, settings.num_workers, bar.update)
    results = [work.Result.read(job.target) for job in jobs]
    imported, refusals = _sorted_out(settings, found, results)
    _write_refusals(settings.folder / "refused.csv", refusals)
    report = "\n".join(_report(settings, imported, refusals, found.notes))
    if not any(each.split == TRAIN for each in imported):
      raise ValueError(_nothing(settings, imported, report))
    _write_sheet(settings.folder / "contact_sheet.png", imported)
    _write_text(settings.folder / _REPORT, report)
    _write_text(settings.folder / _RECIPE, json.dumps(recipe, indent=1))
    builder.write(
      settings.out,
      {name: _records(imported, name) for name in (TRAIN, TEST)},
      geometry=schema.Geometry(),
      records_per_shard=settings.records_per_shard,
      may_be_empty=(TEST,),
    )
    shutil.rmtree(folder)
  _log.info(report)


def _recipe(
  settings: settings_lib.Settings, found: listing.Listing
) -> dict[str, Any]:
  """The settings that determine the dataset, as JSON."""
  digest = hashlib.sha256()
  for file in found.files:
    parts = file.name, file.size, file.modified, file.captions, file.split
    digest.update(f"{json.dumps(parts)}\n".encode())
  return {
    "settings": {
      **work.deciding(settings),
      **{name: getattr(settings, name) for name in _DECIDING},
    },
    "files": len(found.files),
    "digest": digest.hexdigest(),
  }


def _check_recipe(
  settings: settings_lib.Settings, recipe: dict[str, Any]
) -> None:
  """ValueError unless the dataset that is there was made by this recipe."""
  advice = "use another --out, or remove it"
  try:
    kept = untrusted.read_json(settings.folder / _RECIPE)
  except FileNotFoundError as error:
    raise ValueError(
      f"--out: {settings.out} exists and was not made by this command; {advice}"
    ) from error
  if kept == recipe:
    return
  before = kept.get("settings", {}) if isinstance(kept, dict) else {}
  different = [
    name
    for name, value in recipe["settings"].items()
    if before.get(name) != value
  ]
  raise ValueError(
    f"--out: {settings.out} exists and was made"
    + (
      f" with other settings ({', '.join(different)})"
      if different
      else " of other files or captions"
    )
    + f"; {advice}"
  )


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
  """Keep other imports to the same dataset out."""
  with open(folder / ".lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f"--out: another process is importing to it ({folder}); wait for it, or"
        " use another"
      ) from error
    yield


def _sorted_out(
  settings: settings_lib.Settings,
  found: listing.Listing,
  results: Sequence[work.Result],
) -> tuple[list[Imported], list[listing.Refusal]]:
  """The files of which clips were made, with their splits; all refusals."""
  refusals = list(found.refusals)
  kept: list[tuple[listing.File, work.Result]] = []
  first: dict[str, str] = {}
  for file, result in zip(found.files, results, strict=True):
    for where, reason, advice in result.refused:
      refusals.append(
        listing.Refusal(
          name=f"{file.name} {where}".strip(), reason=reason, advice=advice
        )
      )
    if not result.windows:
      continue
    if result.digest in first:
      refusals.append(
        listing.Refusal(
          name=file.name,
          reason="the same content as another file",
          advice=f"remove it, or {first[result.digest]}; several captions of"
          " one file are several rows",
        )
      )
      continue
    first[result.digest] = file.name
    kept.append((file, result))
  held_out = _held_out(settings, kept)
  imported = [
    Imported(
      file=file,
      result=result,
      split=file.split or (TEST if result.digest in held_out else TRAIN),
    )
    for file, result in kept
  ]
  return imported, sorted(refusals, key=lambda r: (r.name, r.reason))


def _held_out(
  settings: settings_lib.Settings,
  kept: Sequence[tuple[listing.File, work.Result]],
) -> set[str]:
  """Contents whose clips are held out where the table does not say.

  One at least, if any are wanted: of few files chance may choose none.
  """
  chances = {
    result.digest: builder.hash_fraction(result.digest, settings.seed)
    for file, result in kept
    if not file.split
  }
  found = {d for d, c in chances.items() if c < settings.eval_fraction}
  said = any(file.split == TEST for file, _ in kept)
  if not found and not said and settings.eval_fraction and len(chances) > 1:
    found = {min(chances, key=lambda digest: chances[digest])}
  return found


def _records(
  imported: Sequence[Imported], split: str
) -> Iterator[schema.Record]:
  """The records of a split, read one by one."""
  for each in imported:
    if each.split != split:
      continue
    stem = prompt.file_stem(pathlib.PurePosixPath(each.file.name).stem)
    for number, window in enumerate(each.result.windows):
      place = round(window["start"] * 1000)
      yield schema.Record(
        id=f"{stem}-{each.result.digest[:16]}-{place:08d}",
        source=(
          f"{listing.shown(each.file.name)}"
          f" {window['start']:.3f}+{window['seconds']:.3f}"
        ),
        captions=each.file.captions,
        video=each.result.load(number, "mp4"),
        audio=each.result.load(number, "pcm"),
        frames=window["frames"],
        height=window["height"],
        width=window["width"],
      )


def _write_text(path: pathlib.Path, text: str) -> None:
  with files.atomic_path(path) as temporary:
    temporary.write_text(f"{text}\n", encoding="utf-8")


def _write_refusals(
  path: pathlib.Path, refusals: Sequence[listing.Refusal]
) -> None:
  """All refusals as a table."""
  with (
    files.atomic_path(path) as temporary,
    open(temporary, "w", encoding="utf-8", newline="") as file,
  ):
    writer = csv.writer(file)
    writer.writerow(["file", "reason", "what to do"])
    for each in refusals:
      row = each.name, each.reason, each.advice
      writer.writerow([untrusted.printable(cell, 1000) for cell in row])


def _write_sheet(path: pathlib.Path, imported: Sequence[Imported]) -> None:
  """Draw clips from all of the dataset."""
  clips = [
    (each, number)
    for each in imported
    for number in range(len(each.result.windows))
  ]
  cells = []
  for place in sheet.spread(len(clips)):
    each, number = clips[place]
    window = each.result.windows[number]
    size = f", {window['height']}x{window['width']}" if window["video"] else ""
    begin = f"from {window['start']:.2f} s, " if window["start"] else ""
    silent = "" if window["audio"] else ", no audio"
    cells.append(
      sheet.Cell(
        picture=each.result.load(number, "png") or b"",
        name=each.file.name,
        title=f"{each.split}, {begin}{window['seconds']:.2f} s{size}{silent}",
        caption=each.file.captions[0],
      )
    )
  with files.atomic_path(path) as temporary:
    sheet.draw(cells).save(temporary, "PNG")


def _report(
  settings: settings_lib.Settings,
  imported: Sequence[Imported],
  refusals: Sequence[listing.Refusal],
  notes: Sequence[tuple[str, str]],
) -> Iterator[str]:
  """Lines on what was imported and refused, and what comes next."""
  windows = [(e, w) for e in imported for w in e.result.windows]
  if notes:
    yield f"captions, {untrusted.counted(len(notes), 'note')}:"
    yield from _some([f"  {listing.shown(n)}: {said}" for n, said in notes])
  if refusals:
    yield f"refused, {len(refusals)}:"
    rows = [
      [
        listing.shown(r.name),
        untrusted.printable(r.reason),
        untrusted.escape(r.advice),
      ]
      for r in refusals
    ]
    yield from _some(_aligned([["file", "reason", "what to do"], *rows]), 1)
    if len(refusals) > _SHOWN:
      counts = collections.Counter(r.reason for r in refusals)
      most = counts.most_common(3)
      yield "  most often: " + "; ".join(f"{why} ({n})" for why, n in most)
    yield f"  all of them: {settings.folder / 'refused.csv'}"
  if not windows:
    return
  yield (
    f"imported {untrusted.counted(len(windows), 'clip')} of"
    f" {untrusted.counted(len(imported), 'file')}:"
    f" {_counted(e.split for e, _ in windows)}"
  )
  seconds = [w["seconds"] for _, w in windows]
  yield (
    f"  length: {sum(seconds):.1f} s in all, {min(seconds):.2f} to"
    f" {max(seconds):.2f} s each"
  )
  sizes = [
    f"{w['height']}x{w['width']}, {w['frames']} frames"
    for _, w in windows
    if w["video"]
  ]
  if sizes:
    yield f"  height x width: {_counted(sizes)}"
    rates = {f"{e.result.facts['fps']:g}" for e in imported}
    yield (
      f"  resampled to {geometry.FPS} fps from"
      f" {', '.join(sorted(rates, key=float)[:_SHOWN])}"
    )
  texts = [len(e.file.captions) for e in imported]
  several = sum(count > 1 for count in texts)
  yield (
    f"  captions: {sum(texts)}"
    + (f"; several of {untrusted.counted(several, 'file')}" if several else "")
  )
  silent = sum(not w["audio"] for _, w in windows)
  if silent:
    yield (
      f"  without audio: {untrusted.counted(silent, 'clip')}, for training of"
      " the video alone"
    )
  combed = sum(bool(e.result.facts["interlaced"]) for e in imported)
  if combed:
    yield (
      f"  interlaced: {untrusted.counted(combed, 'file')}; deinterlace before,"
      " with ffmpeg -vf yadif"
    )
  yield f"look at {settings.folder / 'contact_sheet.png'}"
  yield from _next(settings, [w for _, w in windows])


def _nothing(
  settings: settings_lib.Settings, imported: Sequence[Imported], report: str
) -> str:
  """Why there is no dataset."""
  if imported:
    return (
      f"{report}\nno clip is left to train on: all are in the split {TEST};"
      " lower --eval_fraction, or write another split in the table"
    )
  return f"{report}\nno clip was imported to {settings.out}"


def _counted(values: Iterable[str]) -> str:
  """Each value and how often it comes, the most frequent first."""
  counts = collections.Counter(values).most_common()
  shown = [f"{value} ({count})" for value, count in counts[:_SHOWN]]
  if len(counts) > _SHOWN:
    shown.append(f"and {len(counts) - _SHOWN} more")
  return ", ".join(shown)


def _some(lines: Sequence[str], head: int = 0) -> Iterator[str]:
  """The first ten lines after the head, and how many more there are."""
  yield from lines[: head + _SHOWN]
  if len(lines) > head + _SHOWN:
    yield f"  and {len(lines) - head - _SHOWN} more"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Rows of a table as lines; columns have the width of what is shown."""
  seen = rows[: _SHOWN + 1]
  widths = [max(len(row[n]) for row in seen) for n in range(len(rows[0]) - 1)]
  return [
    "  "
    + "  ".join(
      [cell.ljust(width) for cell, width in zip(row, widths)] + [row[-1]]
    )
    for row in rows
  ]


def _next(
  settings: settings_lib.Settings, windows: Sequence[dict[str, Any]]
) -> Iterator[str]:
  """The commands that train on the dataset."""
  out = shlex.quote(str(settings.out))
  latents = shlex.quote(f"{settings.out}-latents")
  sources = f"('{settings.out}-latents',)"
  plain = re.fullmatch(r"[\w./()', -]+", sources)
  sources = (
    f'--config.data.sources="{sources}"'
    if plain
    else shlex.quote(f"--config.data.sources={sources}")
  )
  yield "next (docs/how_to/own_clips.md, docs/how_to/fine_tune.md):"
  small = all((w["height"], w["width"]) == _SMALL for w in windows)
  weights = shlex.quote(str(synthetic.WEIGHTS)) if small else "WEIGHTS"
  config = "small" if small else "fine_tune:WEIGHTS"
  if settings.audio_only:
    weights, config = "WEIGHTS", "audio_finetune"
  yield (
    f"  python -m ovi_jax.data.encode --data={out} --weights={weights}"
    f" --out={latents}"
  )
  train = cli.invocation("ovi-train")
  train = f"  {train} --config={config} --workdir=RUN {sources}"
  if settings.audio_only:
    yield train
    return
  # The longest of each size holds the shorter ones.
  longest: dict[tuple[int, int], int] = {}
  for window in windows:
    size = window["height"], window["width"]
    longest[size] = max(longest.get(size, 0), window["frames"])
  _, row, column = geometry.VIDEO_STRIDES
  buckets = tuple(
    (geometry.latent_frames(frames), height // row, width // column)
    for (height, width), frames in sorted(longest.items())
  )
  yield f'{train} --config.data.video_buckets="{buckets}"'
