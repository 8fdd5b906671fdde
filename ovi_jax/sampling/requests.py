"""What to generate: prompts and images, checked before weights are loaded.

A prompt given directly, or a CSV or TSV file with a header: `text_prompt` and,
if wanted, `image_path` and `seed`. (`validate_and_process_user_prompt` and
`inference.py` of the original.)
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from collections.abc import Sequence

from ovi_jax import config as config_lib
from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax import storage
from ovi_jax import tables
from ovi_jax import untrusted
from ovi_jax.media import images

# auto: image-to-video where a row has an image; t2v: images are ignored;
# i2v: every row must have one.
MODES = ("auto", "t2v", "i2v")
PROMPT_COLUMN, IMAGE_COLUMN = "text_prompt", "image_path"
SEED_COLUMN = "seed"
SEEDS = 2**32
_HASH_LENGTH = 10  # hexadecimal digits of a name


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
  image: storage.AnyPath | None
  index: int = 1
  seed: int | None = None
  size: tuple[int, int] = (0, 0)
  notes: tuple[str, ...] = ()
  stem: str = ""

  def __post_init__(self):
    if problem := prompts.unreadable(self.prompt):
      raise ValueError(f"the prompt {problem}")


def from_prompt(
  prompt: str, image: str | os.PathLike[str] | None = None, mode: str = "auto"
) -> list[Request]:
  """Make the request of one prompt.

  Args:
    prompt: description of video and audio.
    image: picture of the first frame.
    mode: one of `MODES`.

  Returns:
    A list of one request.

  Raises:
    ValueError: the mode is unknown, the prompt empty, or the image missing.
  """
  config_lib.check(config_lib.invalid_choice("mode", mode, MODES), "")
  return [_request(prompt, image, mode, 1, [pathlib.Path()])]


def from_file(
  path: str | os.PathLike[str], mode: str = "auto"
) -> list[Request]:
  """Read requests from a CSV or TSV file.

  Args:
    path: a table (see `tables`) with a header: `text_prompt` and, optionally,
      `image_path` and `seed`; other columns are ignored. Relative image paths
      start at the current folder or, failing that, at the file's.
    mode: one of `MODES`.

  Returns:
    A request for each row.

  Raises:
    ValueError: the mode is unknown, or the file is missing, empty, malformed,
      lacks the prompt column, or has rows without a prompt, with a missing
      image or an invalid seed. Lists the first ten of these rows.
  """
  config_lib.check(config_lib.invalid_choice("mode", mode, MODES), "")
  path = storage.locate(path)
  folders = [pathlib.Path(), path.parent]

  def parse(row: tables.Row) -> Request:
    image = row.cells[IMAGE_COLUMN].strip()
    request = _request(
      row.cells[PROMPT_COLUMN], image or None, mode, row.number, folders
    )
    seed = _seed(row.cells[SEED_COLUMN].strip())
    return dataclasses.replace(request, seed=seed)

  rows = tables.read_table(
    path, required=(PROMPT_COLUMN,), optional=(IMAGE_COLUMN, SEED_COLUMN)
  )
  return tables.parse_rows(path, rows, parse)


def from_flags(
  prompt: str, prompts_file: str, image: str, mode: str
) -> list[Request]:
  """The requests of a command line; an empty argument was not given.

  Args:
    prompt: as of `from_prompt`.
    prompts_file: as of `from_file`.
    image: as of `from_prompt`.
    mode: one of `MODES`.

  Returns:
    The requests.

  Raises:
    ValueError: neither or both of `prompt` and `prompts_file` are given, an
      image is given with a file, or as `from_prompt` and `from_file`.
  """
  if bool(prompt) == bool(prompts_file):
    raise ValueError(
      "pass one of --prompt=TEXT and --prompts=FILE (CSV or TSV with a column"
      f" {PROMPT_COLUMN})"
    )
  if not prompts_file:
    # In a locale that is not UTF-8, Python has decoded it as something else.
    with contextlib.suppress(UnicodeError):
      prompt = os.fsencode(prompt).decode("utf-8")
    return from_prompt(prompt, image or None, mode)
  if image:
    raise ValueError(
      f"--image goes with --prompt; set {IMAGE_COLUMN} in {prompts_file}"
    )
  return from_file(prompts_file, mode)


def expand(
  requests: Iterable[Request],
  samples_per_prompt: int,
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
    samples_per_prompt: repetitions of a request, at least 1.
    seed: of the first repetition of those that have none of their own;
      repetition k has seed + k.
    height: pixels wished for without an image; only the ratio counts.
    width: pixels wished for without an image.
    area: pixels a frame of the variant.

  Returns:
    The requests with seed, size and stem `prompt_hash_HxW_seed`; those that ask
    for the very same clip (prompt, image, size and seed) once. The hash is of
    the prompt and the image's content, so a name depends on no other request
    and no two are alike, even where a file system ignores case.

  Raises:
    ValueError: no repetition, a size or area that is not positive or too long
      and narrow, or an image that cannot be read; every bad row is listed.
  """
  if samples_per_prompt < 1:
    raise ValueError(
      f"samples_per_prompt must be at least 1, got {samples_per_prompt}"
    )
  requests = list(requests)
  sizes = _sizes(requests, geometry.snap(height, width, area), area)
  return _named(
    dataclasses.replace(
      request, seed=(first + k) % SEEDS, size=size, notes=notes
    )
    for request, (size, notes) in zip(requests, sizes, strict=True)
    for first in [seed if request.seed is None else request.seed]
    for k in range(samples_per_prompt)
  )


def _named(requests: Iterable[Request]) -> list[Request]:
  """The requests with their stems, given seeds and sizes; each clip once."""
  digests: dict[storage.AnyPath | None, str | None] = {None: None}
  named: dict[str, Request] = {}
  for request in requests:
    image = request.image
    if image is not None and image not in digests:
      digests[image] = storage.sha256(image)
    content = json.dumps([request.prompt, digests[image]])
    digest = hashlib.sha256(content.encode()).hexdigest()[:_HASH_LENGTH]
    height, width = request.size
    name = prompts.file_stem(request.prompt)
    stem = f"{name}_{digest}_{height}x{width}_{request.seed}"
    named.setdefault(stem, dataclasses.replace(request, stem=stem))
  return list(named.values())


def _sizes(
  requests: Sequence[Request], default: tuple[int, int], area: int
) -> list[tuple[tuple[int, int], tuple[str, ...]]]:
  """Height and width of each clip, and notes; an image decides for itself."""
  known: dict[
    storage.AnyPath | None, tuple[tuple[int, int], tuple[str, ...]]
  ] = {None: (default, ())}
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
    listed = "\n  ".join(untrusted.shortened(problems))
    raise ValueError(f"unfit images:\n  {listed}")
  return [known[r.image] for r in requests]


def _request(
  prompt: str,
  image: str | os.PathLike[str] | None,
  mode: str,
  index: int,
  folders: Sequence[storage.AnyPath],
) -> Request:
  """A checked request."""
  if not prompts.clean(prompt):
    raise ValueError("the prompt is empty; write one, or drop the row")
  if mode == "i2v" and image is None:
    raise ValueError(
      f"no image; mode i2v needs one ({IMAGE_COLUMN}), mode auto does not"
    )
  if mode == "t2v" or image is None:
    return Request(prompt=prompt, image=None, index=index)
  given = storage.locate(image)
  places = [given]
  if isinstance(given, pathlib.Path) and not given.is_absolute():
    places = [folder / given for folder in folders]
  found = next((p for p in places if _is_file(p)), None)
  if found is None:
    absolute = dict.fromkeys(
      untrusted.printable(str(storage.absolute(p))) for p in places
    )
    folder = next((p for p in places if storage.exists(p)), None)
    if folder is not None:
      raise ValueError(
        f"the image: {untrusted.printable(str(folder))} is no regular file"
      )
    raise ValueError(
      f"the image is missing: {' or '.join(absolute)}; correct the path, or use"
      " mode t2v to ignore images"
    )
  return Request(prompt=prompt, image=found, index=index)


def _is_file(path: storage.AnyPath) -> bool:
  """Whether it is a file; ValueError if no file can have that name."""
  if not isinstance(path, pathlib.Path):
    try:
      return path.name in storage.sizes(path)
    except FileNotFoundError:
      return False
    except OSError as error:
      raise ValueError(f"the image cannot be opened: {error}") from error
  name = str(path)
  if "\0" in name:
    raise ValueError(
      f"the image's path holds a NUL character: {untrusted.printable(name)}"
    )
  try:
    return path.is_file()
  except OSError as error:
    length = (
      f" ({len(name)} characters)" if error.errno == errno.ENAMETOOLONG else ""
    )
    raise ValueError(
      f"the image cannot be opened: {untrusted.printable(name)}{length}:"
      f" {error.strerror}"
    ) from error
  except ValueError as error:
    raise ValueError(
      f"the image's path is no name of a file: {untrusted.printable(name)}"
    ) from error


def _seed(text: str) -> int | None:
  """The seed in a cell; None of an empty one."""
  if not text:
    return None
  digits = text.isascii() and text.isdigit() and len(text) <= 20
  if not (digits and int(text) < SEEDS):
    raise ValueError(
      f"expected a {SEED_COLUMN} from 0 to {SEEDS - 1}, got"
      f" {untrusted.printable(text, 40)!r}; leave the cell empty for that of"
      " the settings"
    )
  return int(text)
