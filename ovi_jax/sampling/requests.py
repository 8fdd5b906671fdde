"""What to generate: prompts and images, checked before weights are loaded.

A prompt given directly, or a CSV or TSV file with a header: `text_prompt` and,
if wanted, `image_path` and `seed`. (`validate_and_process_user_prompt` and
`inference.py` of the original.)
"""

import collections
import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterable
from collections.abc import Sequence

from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax.media import images

# auto: image-to-video where a row has an image; t2v: images are ignored;
# i2v: every row must have one.
MODES = ("auto", "t2v", "i2v")
PROMPT_COLUMN, IMAGE_COLUMN = "text_prompt", "image_path"
SEED_COLUMN = "seed"
SEEDS = 2**32
_TOLD = 10  # problems that are listed
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One clip to generate.

  Attributes:
    prompt: as the user wrote it.
    image: picture of the first frame, or None for text-to-video.
    index: row of the input, from 1.
    seed: of the noise; `None` for the settings', which `expand` fills in.
    size: height and width of the clip in pixels; set by `expand`.
    notes: to show the user, on how the image was read; set by `expand`.
    stem: name of the output without its ending; set by `expand`.
  """

  prompt: str
  image: pathlib.Path | None
  index: int = 1
  seed: int | None = None
  size: tuple[int, int] = (0, 0)
  notes: tuple[str, ...] = ()
  stem: str = ""


def from_prompt(
  prompt: str, image: str | os.PathLike[str] | None = None, mode: str = "auto"
) -> list[Request]:
  """Make the request of one prompt.

  Args:
    prompt: what to generate.
    image: picture of the first frame.
    mode: one of `MODES`.

  Raises:
    ValueError: the mode is unknown, the prompt empty, or the image missing.
  """
  _check_mode(mode)
  return [_request(prompt, image, mode, 1, "", [pathlib.Path()])]


def from_file(
  path: str | os.PathLike[str], mode: str = "auto"
) -> list[Request]:
  """Read one request a row from a CSV or TSV file.

  Args:
    path: UTF-8 text whose first line names the columns: `text_prompt` and, if
      wanted, `image_path` and `seed`; others are ignored. Relative image paths
      start at the current folder or, failing that, at the file's.
    mode: one of `MODES`.

  Raises:
    ValueError: the mode is unknown, or the file is missing, empty, malformed,
      lacks the prompt column, or has rows without prompt, with an image that
      is not there or a seed that is none. Every bad row is listed.
  """
  _check_mode(mode)
  path = pathlib.Path(path)
  header, rows = _table(path)
  folders = [pathlib.Path(), path.parent]
  requests, problems = [], []
  for index, row in enumerate(rows, 1):
    # A row may leave out its last cells.
    cells = dict(zip(header, [*row, *[""] * (len(header) - len(row))]))
    prompt, image = cells[PROMPT_COLUMN], cells.get(IMAGE_COLUMN, "").strip()
    where = f"row {index}: "
    try:
      if len(row) > len(header):
        raise ValueError(
          f"{where}{len(row)} cells for {len(header)} columns; put a prompt"
          " that holds the separator in double quotes"
        )
      request = _request(prompt, image or None, mode, index, where, folders)
      seed = _seed(cells.get(SEED_COLUMN, "").strip(), where)
      requests.append(dataclasses.replace(request, seed=seed))
    except ValueError as error:
      problems.append(str(error))
  if problems:
    raise ValueError(f"{path}:\n  " + "\n  ".join(problems))
  return requests


def from_flags(
  prompt: str, prompts_file: str, image: str, mode: str
) -> list[Request]:
  """The requests of a command line; an empty argument was not given.

  Raises:
    ValueError: neither or both of `prompt` and `prompts_file`, an image with a
      file of prompts, or whatever is wrong with the one that was given.
  """
  if bool(prompt) == bool(prompts_file):
    raise ValueError(
      "give one of --prompt=TEXT and --prompts=FILE (CSV or TSV with a column"
      f" {PROMPT_COLUMN})"
    )
  if not prompts_file:
    return from_prompt(prompt, image or None, mode)
  if image:
    raise ValueError(
      f"--image goes with --prompt; give {IMAGE_COLUMN} in {prompts_file}"
    )
  return from_file(prompts_file, mode)


def expand(
  requests: Iterable[Request],
  each_example_n_times: int,
  seed: int,
  *,
  height: int,
  width: int,
  area: int,
) -> list[Request]:
  """Repeat requests with new seeds, and settle sizes and output names.

  Reads every image once, so a broken one is found here.

  Args:
    requests: from `from_prompt` or `from_file`.
    each_example_n_times: repetitions of a request, at least 1.
    seed: of the first repetition of those that have none of their own;
      repetition k has seed + k.
    height: pixels wished for without an image; only the ratio counts.
    width: pixels wished for without an image.
    area: pixels a frame of the variant.

  Returns:
    The requests with seed, size and stem. Stems differ even where a file system
    ignores case: `prompt_HxW_seed`, and the row where that is not unique.

  Raises:
    ValueError: no repetition, a size or area that is not positive or too long
      and narrow, or an image that cannot be read; every bad row is listed.
  """
  if each_example_n_times < 1:
    raise ValueError(
      f"each_example_n_times must be at least 1, got {each_example_n_times}"
    )
  requests = list(requests)
  sizes = _sizes(requests, geometry.snap(height, width, area), area)
  return _named(
    dataclasses.replace(
      request, seed=(first + k) % SEEDS, size=size, notes=notes
    )
    for request, (size, notes) in zip(requests, sizes, strict=True)
    for first in [seed if request.seed is None else request.seed]
    for k in range(each_example_n_times)
  )


def _named(requests: Iterable[Request]) -> list[Request]:
  """The requests with stems of their own, given seeds and sizes."""
  named = []
  for request in requests:
    height, width = request.size
    name = prompts.file_stem(request.prompt)
    stem = f"{name}_{height}x{width}_{request.seed}"
    named.append(dataclasses.replace(request, stem=stem))
  uses = collections.Counter(r.stem.casefold() for r in named)
  return [
    dataclasses.replace(r, stem=f"{r.stem}_{r.index}")
    if uses[r.stem.casefold()] > 1
    else r
    for r in named
  ]


def _sizes(
  requests: Sequence[Request], default: tuple[int, int], area: int
) -> list[tuple[tuple[int, int], tuple[str, ...]]]:
  """Height and width of each clip, and notes; an image decides for itself."""
  known: dict[pathlib.Path | None, tuple[tuple[int, int], tuple[str, ...]]] = {
    None: (default, ())
  }
  problems = []
  for request in requests:
    if request.image is None or request.image in known:
      continue
    try:
      image_HWC, notes = images.read_image(request.image)
      rows, columns, _ = image_HWC.shape
      size = geometry.image_size(rows, columns, area)
      known[request.image] = size, tuple(f"image: {n}" for n in notes)
    except ValueError as error:
      problems.append(f"row {request.index}: {error}")
  if problems:
    more = len(problems) - _TOLD
    listed = problems[:_TOLD] + ([f"and {more} more"] if more > 0 else [])
    raise ValueError("unfit images:\n  " + "\n  ".join(listed))
  return [known[r.image] for r in requests]


def _check_mode(mode: str) -> None:
  """ValueError unless the mode is known."""
  if mode not in MODES:
    raise ValueError(
      f"mode {mode!r} is unknown; choose from {', '.join(MODES)}"
    )


def _request(
  prompt: str,
  image: str | os.PathLike[str] | None,
  mode: str,
  index: int,
  where: str,
  folders: Sequence[pathlib.Path],
) -> Request:
  """A checked request; `where` begins its error messages."""
  if not prompts.clean(prompt):
    raise ValueError(f"{where}the prompt is empty; write one, or drop the row")
  if mode == "t2v":
    return Request(prompt=prompt, image=None, index=index)
  if image is None:
    if mode == "i2v":
      raise ValueError(
        f"{where}no image; mode i2v wants one ({IMAGE_COLUMN}), mode auto"
        " does without"
      )
    return Request(prompt=prompt, image=None, index=index)
  places = [folder / pathlib.Path(image) for folder in folders]
  found = next((p for p in places if p.is_file()), None)
  if found is None:
    looked = " or ".join(dict.fromkeys(str(p.absolute()) for p in places))
    raise ValueError(
      f"{where}the image is missing: {looked}; correct the path, or use mode"
      " t2v to ignore images"
    )
  return Request(prompt=prompt, image=found, index=index)


def _seed(text: str, where: str) -> int | None:
  """The seed in a cell; None of an empty one."""
  if not text:
    return None
  if not (text.isascii() and text.isdigit() and int(text) < SEEDS):
    raise ValueError(
      f"{where}expected a {SEED_COLUMN} from 0 to {SEEDS - 1}, got {text!r};"
      " leave the cell empty for that of the settings"
    )
  return int(text)


def _table(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
  """Header and rows of a CSV or TSV file; empty lines are skipped."""
  delimiter = _DELIMITERS.get(path.suffix.lower())
  if delimiter is None:
    raise ValueError(
      f"{path} ends in {path.suffix or 'nothing'!r}; expected"
      f" {' or '.join(_DELIMITERS)}"
    )
  try:
    # With or without the byte order mark that spreadsheets write.
    text = path.read_bytes().decode("utf-8-sig")
  except OSError as error:
    raise ValueError(f"{path}: {error.strerror}; expected a file") from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 ({error}); save it so") from error
  reader = csv.reader(
    io.StringIO(text, newline=""), delimiter=delimiter, strict=True
  )
  table: list[list[str]] = []
  try:
    for row in reader:
      if row:
        table.append(row)
  except csv.Error as error:
    raise ValueError(
      f"{path}: row {len(table)} (line {reader.line_num}) is malformed:"
      f" {error}; is a double quote unclosed, or one inside not doubled?"
    ) from error
  if not table:
    raise ValueError(f"{path} is empty; expected a header with {PROMPT_COLUMN}")
  header = [name.strip() for name in table.pop(0)]
  optional = IMAGE_COLUMN, SEED_COLUMN
  if header.count(PROMPT_COLUMN) != 1 or max(map(header.count, optional)) > 1:
    raise ValueError(
      f"{path} needs one column {PROMPT_COLUMN} and at most one each of"
      f" {' and '.join(optional)}; its header has {header}"
    )
  if not table:
    raise ValueError(f"{path} has a header but no rows; add a prompt a line")
  return header, table
