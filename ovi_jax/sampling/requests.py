"""What to generate: prompts and given files, checked before weights are loaded.

A prompt given directly, or a CSV or TSV file with a header: `text_prompt` and,
if wanted, `image_path`, `seed`, `seconds` and the columns of `COLUMNS`.
(`validate_and_process_user_prompt` and `inference.py` of the original.)
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax import config as config_lib
from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax import storage
from ovi_jax import tables
from ovi_jax import untrusted
from ovi_jax.media import fitting
from ovi_jax.media import images
from ovi_jax.modality import AV
from ovi_jax.sampling import conditions
from ovi_jax.sampling import given_media

# auto: image-to-video where a row has an image; t2v: images are ignored;
# i2v: every row must have one.
MODES = ("auto", "t2v", "i2v")
PROMPT_COLUMN, IMAGE_COLUMN = "text_prompt", "image_path"
SEED_COLUMN = "seed"
# Column of each field of `conditions.Conditions`.
COLUMNS = {
  "last_image": "last_image_path",
  "video": "video_path",
  "audio": "audio_path",
  "extend": "extend_path",
  "keep": "keep",
  "keep_audio_until": "keep_audio_until",
  "voice": "voice_path",
}
SECONDS_COLUMN = "seconds"
SEEDS = 2**32
_HASH_LENGTH = 10  # hexadecimal digits of a name
_NOTED_CUT = 0.05  # fraction of a picture that is cut without a note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One clip to generate.

  Attributes:
    prompt: as the user wrote it.
    image: picture of the first frame, or None for text-to-video.
    given: further files that are given.
    index: row of the input, from 1; 0 for a prompt that is alone.
    seed: of the noise; `None` for the settings', which `expand` fills in.
    seconds: of the clip, or of what is generated behind an extended one; `None`
      for the length of the given media, or of the weights.
    size: height and width of the clip in pixels; set by `expand`.
    media_seconds: length of the given media; `None` without media; set by
      `expand`.
    sound: where the given file has sound, see `given_media.Found`; set by
      `expand`.
    voice: the part of the file that is the reference voice; set by `expand`.
    notes: to show the user, on how files were read; set by `expand`.
    stem: name of the output without its ending; set by `expand`.
    first_frame: what `image` was generated from, see `first_frames`.
    generate: "both", or "video" or "audio" alone.
  """

  prompt: str
  image: storage.AnyPath | None
  given: conditions.Conditions = dataclasses.field(
    default_factory=conditions.Conditions
  )
  index: int = 0
  seed: int | None = None
  seconds: float | None = None
  size: tuple[int, int] = (0, 0)
  media_seconds: float | None = None
  sound: conditions.Interval = conditions.ANY
  voice: conditions.Voice | None = None
  notes: tuple[str, ...] = ()
  stem: str = ""
  first_frame: Mapping[str, Any] | None = None
  generate: str = "both"

  def __post_init__(self):
    if problem := prompts.unreadable(self.prompt):
      raise ValueError(f"the prompt {problem}")
    self.given.check(self.image is not None)
    if self.seconds is not None and not self.seconds >= conditions.MIN_SECONDS:
      raise ValueError(
        f"seconds must be at least {conditions.MIN_SECONDS:.2f}, got"
        f" {self.seconds:g}"
      )

  @property
  def place(self) -> str:
    """The row, to begin a message with; empty for a prompt that is alone."""
    return f"row {self.index}: " if self.index else ""

  def masks(self, clip: geometry.Clip) -> AV[np.ndarray]:
    """The latents in time that are given, see `conditions.masks`."""
    return conditions.masks(
      self.given, self.image is not None, self.sound, clip
    )


def from_prompt(
  prompt: str,
  image: str | os.PathLike[str] | None = None,
  mode: str = "auto",
  seconds: float | None = None,
  **given: Any,
) -> list[Request]:
  """Make the request of one prompt.

  Args:
    prompt: description of video and audio; one for each window of a long clip
      with `|` between them, see `windows.split_prompt`.
    image: picture of the first frame.
    mode: one of `MODES`.
    seconds: length of the clip, see `Request`.
    **given: fields of `conditions.Conditions`; `None` for those not given.
      `keep` is a text such as "0-2,4-5", or pairs of seconds.

  Returns:
    A list of one request.

  Raises:
    ValueError: the mode is unknown, the prompt empty, a file missing, or what
      is given cannot be combined.
  """
  config_lib.check(config_lib.invalid_choice("mode", mode, MODES), "")
  given["seconds"] = seconds
  return [_request(prompt, image, mode, 0, [pathlib.Path()], given)]


def from_file(
  path: str | os.PathLike[str], mode: str = "auto"
) -> list[Request]:
  """Read requests from a CSV or TSV file.

  Args:
    path: a table (see `tables`) with a header: `text_prompt` and, optionally,
      `image_path`, `seed`, `seconds` and those of `COLUMNS`; other columns are
      ignored.
      Relative paths start at the current folder or, failing that, at the
      file's.
    mode: one of `MODES`.

  Returns:
    A request for each row.

  Raises:
    ValueError: the mode is unknown, or the file is missing, empty, malformed,
      lacks the prompt column, or has rows without a prompt, with a missing
      file, an invalid seed, or files that cannot be combined. Lists the first
      ten of these rows.
  """
  config_lib.check(config_lib.invalid_choice("mode", mode, MODES), "")
  path = storage.locate(path)
  folders = [pathlib.Path(), path.parent]

  def parse(row: tables.Row) -> Request:
    image = row.cells[IMAGE_COLUMN].strip()
    given: dict[str, Any] = {
      name: row.cells[column].strip() or None
      for name, column in COLUMNS.items()
    }
    for name in ("keep_audio_until", SECONDS_COLUMN):
      text = row.cells[COLUMNS.get(name, name)]
      given[name] = conditions.parse_seconds(name, text)
    request = _request(
      row.cells[PROMPT_COLUMN], image or None, mode, row.number, folders, given
    )
    seed = _seed(row.cells[SEED_COLUMN].strip())
    return dataclasses.replace(request, seed=seed)

  rows = tables.read_table(
    path,
    required=(PROMPT_COLUMN,),
    optional=(IMAGE_COLUMN, SEED_COLUMN, SECONDS_COLUMN, *COLUMNS.values()),
  )
  return tables.parse_rows(path, rows, parse)


def from_flags(
  prompt: str, prompts_file: str, image: str, mode: str, **given: Any
) -> list[Request]:
  """The requests of a command line; an empty argument was not given.

  Args:
    prompt: as of `from_prompt`.
    prompts_file: as of `from_file`.
    image: as of `from_prompt`.
    mode: one of `MODES`.
    **given: as of `from_prompt`.

  Returns:
    The requests.

  Raises:
    ValueError: neither or both of `prompt` and `prompts_file` are given, an
      image or another file is given with a table, or as `from_prompt` and
      `from_file`.
  """
  given = {n: v for n, v in given.items() if v is not None and v != ""}
  if bool(prompt) == bool(prompts_file):
    raise ValueError(
      "pass one of --prompt=TEXT and --prompts=FILE (CSV or TSV with a column"
      f" {PROMPT_COLUMN})"
    )
  if not prompts_file:
    # In a locale that is not UTF-8, Python has decoded it as something else.
    with contextlib.suppress(UnicodeError):
      prompt = os.fsencode(prompt).decode("utf-8")
    return from_prompt(prompt, image or None, mode, **given)
  columns = {"image": IMAGE_COLUMN, "seconds": SECONDS_COLUMN} | COLUMNS
  if named := [*(["image"] if image else []), *given]:
    raise ValueError(
      f"--{named[0]} needs --prompt; for a table, set the column"
      f" {columns[named[0]]} in {prompts_file}"
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
  latent_frames: int = 0,
) -> list[Request]:
  """Repeat requests with new seeds, and settle sizes and output names.

  Reads every image and the headers of every other file once, so a broken one
  is found here.

  Args:
    requests: from `from_prompt` or `from_file`.
    samples_per_prompt: repetitions of a request, at least 1.
    seed: of the first repetition of those that have none of their own;
      repetition k has seed + k.
    height: pixels wished for without a picture; only the ratio counts.
    width: pixels wished for without a picture.
    area: pixels a frame of the variant.
    latent_frames: of clips of the variant.

  Returns:
    The requests with seed, size and stem `prompt_hash_HxW_seed`; those that ask
    for the very same clip (prompt, files, size, length and seed) once. The hash
    is of the prompt, the content of all files and a length that is not the
    variant's, so a name depends on no other request and no two are alike, even
    where a file system ignores case.

  Raises:
    ValueError: no repetition, a size or area that is not positive or too long
      and narrow, or a file that cannot be read; every bad row is listed.
  """
  if samples_per_prompt < 1:
    raise ValueError(
      f"samples_per_prompt must be at least 1, got {samples_per_prompt}"
    )
  requests = list(requests)
  found = _inspected(requests, geometry.snap(height, width, area), area)
  return _named(
    (
      dataclasses.replace(request, seed=(first + k) % SEEDS)
      for request in found
      for first in [seed if request.seed is None else request.seed]
      for k in range(samples_per_prompt)
    ),
    latent_frames,
  )


def _named(requests: Iterable[Request], latent_frames: int) -> list[Request]:
  """The requests with their stems, given seeds and sizes; each clip once."""
  sha256 = functools.cache(storage.sha256)
  named: dict[str, Request] = {}
  for request in requests:
    image = request.image
    parts: list[Any] = [request.prompt, image and sha256(image)]
    if given := request.given.metadata(sha256):
      # Not where files are, as elsewhere.
      for name in request.given.files:
        content = {k: v for k, v in given[name].items() if k != "path"}
        given[name] = content if len(content) > 1 else content["sha256"]
      parts.append(given)
    if request.seconds is not None:
      asked = conditions.nearest_latent_frames(request.seconds)
      if asked != latent_frames or request.given.extend is not None:
        parts.append({"latent_frames": asked})
    if request.generate != "both":
      parts.append({"generate": request.generate})
    content = json.dumps(parts)
    digest = hashlib.sha256(content.encode()).hexdigest()[:_HASH_LENGTH]
    height, width = request.size
    name = prompts.file_stem(request.prompt)
    stem = f"{name}_{digest}_{height}x{width}_{request.seed}"
    named.setdefault(stem, dataclasses.replace(request, stem=stem))
  return list(named.values())


def _inspected(
  requests: Sequence[Request], default: tuple[int, int], area: int
) -> list[Request]:
  """The requests with sizes, lengths and notes, by their files.

  The first picture decides the size: that of the first frame, else of the
  video, else of the last frame.
  """
  picture = functools.cache(_picture)
  inspect = functools.cache(given_media.inspect)
  made, problems = [], []
  for request in requests:
    given, size = request.given, default
    try:
      found, notes = inspect(given), ()
      if found.size is not None:
        size = geometry.snap(*found.size, area)
        name = "video" if given.extend is None else "extend"
        notes += _cut(name, found.size, size)
      pictures = {"image": request.image, "last_image": given.last_image}
      for name, path in reversed(pictures.items()):
        if path is not None:
          shape, said = picture(path)
          size = geometry.image_size(*shape, area)
          notes += tuple(f"{name}: {n}" for n in said)
      if given.last_image is not None:
        notes += _cut("last_image", picture(given.last_image)[0], size)
    except ValueError as error:
      problems.append(f"{request.place}{error}")
      continue
    made.append(
      dataclasses.replace(
        request,
        size=size,
        media_seconds=found.seconds,
        sound=found.sound,
        voice=found.voice,
        notes=found.notes + notes,
      )
    )
  check_problems("files that cannot be used", requests, problems)
  return made


def check_problems(
  heading: str, requests: Sequence[Request], problems: Sequence[str]
) -> None:
  """ValueError with the heading and the problems, if there are any.

  Args:
    heading: what the problems have in common.
    requests: all of the input; for a prompt that is alone, the heading is left
      out.
    problems: each begins with `Request.place`; equal ones are listed once.
  """
  listed = untrusted.shortened(list(dict.fromkeys(problems)))
  if listed and any(request.index for request in requests):
    listed = [f"{heading}:", *listed]
  if listed:
    raise ValueError("\n  ".join(listed))


def _picture(
  path: storage.AnyPath,
) -> tuple[tuple[int, int], tuple[str, ...]]:
  """Rows and columns of a picture, and notes on how it was read."""
  image_HWC, notes = images.read_image(path)
  return image_HWC.shape[:2], notes


def _cut(
  name: str, found: tuple[int, int], size: tuple[int, int]
) -> tuple[str, ...]:
  """A note on what a picture loses when it is fitted to a clip's size."""
  how = fitting.crop(*found, *size)
  lost = 1 - size[0] * size[1] / (how.resized[0] * how.resized[1])
  if lost < _NOTED_CUT:
    return ()
  return (
    f"{name}: its middle is used, {lost:.0%} of each {found[0]}x{found[1]}"
    f" picture is cut to fit {size[0]}x{size[1]}",
  )


def _request(
  prompt: str,
  image: str | os.PathLike[str] | None,
  mode: str,
  index: int,
  folders: Sequence[storage.AnyPath],
  given: Mapping[str, Any],
) -> Request:
  """A checked request."""
  if problem := prompts.unreadable(prompt):
    raise ValueError(f"the prompt {problem}")
  if not prompts.clean(prompt):
    raise ValueError("the prompt is empty; write one, or drop the row")
  if mode == "i2v" and image is None:
    raise ValueError(
      "mode i2v needs an image: give one (--image, or the column"
      f" {IMAGE_COLUMN} of a table), or set --config.mode=auto"
    )
  known = [field.name for field in dataclasses.fields(conditions.Conditions)]
  known.remove("spans")  # they come with the files
  known.append(SECONDS_COLUMN)
  if strange := sorted(given.keys() - set(known)):
    near = config_lib.nearest(strange[0], known)
    raise ValueError(f"{strange[0]} is unknown{near}")
  fields: dict[str, Any] = {n: v for n, v in given.items() if v is not None}
  length = fields.pop(SECONDS_COLUMN, None)
  if length is not None:
    length = conditions.seconds(SECONDS_COLUMN, length)
  if "keep" in fields:
    fields["keep"] = conditions.intervals(fields["keep"])
  until = "keep_audio_until"
  if until in fields:
    fields[until] = conditions.seconds(until, fields[until])
  if mode == "t2v":
    image = None
    fields.pop("last_image", None)
  spans = {}
  for name in conditions.FILES:
    if name in fields:
      is_path = isinstance(fields[name], str | os.PathLike)
      trimmed = name in conditions.TRIMMED and is_path
      if trimmed:
        fields[name], span = _split_span(name, fields[name])
        spans |= {name: span} if span != conditions.ANY else {}
      said = {"last_image": "last image", "extend": "file to extend"}
      what = said.get(name, name)
      try:
        fields[name] = _find(fields[name], what, folders)
      except ValueError as error:
        if trimmed and (problem := conditions.unread_part(fields[name])):
          raise ValueError(f"{name}: {problem}") from error
        raise
  return Request(
    prompt=prompt,
    image=None if image is None else _find(image, "image", folders),
    given=conditions.Conditions(**fields, spans=tuple(spans.items())),
    seconds=length,
    index=index,
  )


def _split_span(
  name: str, path: str | os.PathLike[str]
) -> tuple[str | os.PathLike[str], conditions.Interval]:
  """`conditions.split_span`; an error names the file."""
  try:
    return conditions.split_span(path)
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error


def _find(
  path: str | os.PathLike[str], what: str, folders: Sequence[storage.AnyPath]
) -> storage.AnyPath:
  """The path of a given file; ValueError if there is none."""
  try:
    storage.locate(path)
  except ValueError as error:
    raise ValueError(f"the {what}: {error}") from error
  given = storage.locate(files.with_home(os.fspath(path)))
  places, others = [given], []
  if isinstance(given, pathlib.Path):
    # An absolute path stays what it is below any folder.
    places = list(dict.fromkeys(folder / given for folder in folders))
    _, *readings = files.readings(os.fspath(path))
    others = [folder / other for other in readings for folder in folders]
  each = (_file(p, what) for p in (*places, *others))
  found = next(filter(None, each), None)
  if found is None:
    absolute = dict.fromkeys(
      untrusted.printable(str(storage.absolute(p))) for p in places
    )
    folder = next((p for p in places if storage.exists(p)), None)
    if folder is not None:
      raise ValueError(
        f"the {what}: {untrusted.printable(str(folder))} is a folder or a"
        " device, not a file"
      )
    ignore = (
      ", or set --config.mode=t2v to ignore images" if "image" in what else ""
    )
    raise ValueError(
      f"the {what} is missing: {' or '.join(absolute)}; correct the path"
      f"{ignore}"
    )
  return found


def _file(path: storage.AnyPath, what: str) -> storage.AnyPath | None:
  """The file that a path names; ValueError if no file can have that name."""
  if not isinstance(path, pathlib.Path):
    try:
      return path if path.name in storage.sizes(path) else None
    except FileNotFoundError:
      return None
    except OSError as error:
      raise ValueError(f"the {what} cannot be opened: {error}") from error
  name = str(path)
  if "\0" in name:
    raise ValueError(
      f"the {what}'s path holds a NUL character: {untrusted.printable(name)}"
    )
  try:
    found = files.find(path)
    return found if found is not None and found.is_file() else None
  except OSError as error:
    length = (
      f" ({len(name)} characters)" if error.errno == errno.ENAMETOOLONG else ""
    )
    raise ValueError(
      f"the {what} cannot be opened: {untrusted.printable(name)}{length}:"
      f" {error.strerror}"
    ) from error
  except ValueError as error:
    raise ValueError(
      f"the {what}'s path is no name of a file: {untrusted.printable(name)}"
    ) from error


def _seed(text: str) -> int | None:
  """The seed in a cell; None of an empty one."""
  if not text:
    return None
  # Programs that have no whole numbers beside empty cells write 7 as 7.0.
  text = re.sub(r"^(\d+)\.0+$", r"\1", text)
  digits = text.isascii() and text.isdigit() and len(text) <= 20
  if not (digits and int(text) < SEEDS):
    raise ValueError(
      f"expected a {SEED_COLUMN} from 0 to {SEEDS - 1}, got"
      f" {untrusted.printable(text, 40)!r}; leave the cell empty for that of"
      " the settings"
    )
  return int(text)
