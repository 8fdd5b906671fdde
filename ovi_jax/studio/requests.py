"""Requests of clients: checked whole, their files copied, their clips planned.

All messages are safe to show to a user: one line, and no path of this machine.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import BinaryIO
from typing import Protocol

import jax

from ovi_jax import config as config_lib
from ovi_jax import geometry
from ovi_jax import untrusted
from ovi_jax.media import images
from ovi_jax.media import probe
from ovi_jax.modality import AV
from ovi_jax.sampling import conditions
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import opening
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.studio import adapters as adapters_lib
from ovi_jax.studio import jobs

# Fields of `configs/sample.py` that a request may set.
SETTINGS = (
  "height",
  "width",
  "seed",
  "num_steps",
  "solver",
  "flow_shift",
  "guidance_scale",
  "slg_layer",
  "negative_prompt",
  "conditioning",
  "voice_guidance_scale",
)
FILES = ("image", *conditions.FILES)  # that are given
GIVEN = (*FILES, "trim", "keep", "keep_audio_until")
_PICTURES = ("image", "last_image")
_SOUNDS = ("audio", "voice")  # files that need no picture
_CHUNK = 1 << 20
_MAX_MESSAGE = 1000  # characters
# Absolute paths of POSIX and Windows; their last part stays.
_PATH = re.compile(
  r"(?<![\w.])(?:[A-Za-z]:)?(?:[\\/][^\\/\s:;,'\"]+){2,}[\\/]?"
)

# A file that is given: its path, or an open file, read from its beginning.
Source = str | os.PathLike[str] | BinaryIO


class RequestError(ValueError):
  """A request that cannot be fulfilled; one line, without paths."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Bounds of what is accepted.

  Attributes:
    file_bytes: of each given file.
    pixels: of a given picture, or of a frame of a given video.
    seconds: of given video or sound, and of a clip.
    prompt_length: characters.
    queued: jobs that wait.
  """

  file_bytes: int = 64 << 20
  pixels: int = 50_000_000
  seconds: float = 300.0
  prompt_length: int = 10_000
  queued: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
  """A request that can be fulfilled.

  Attributes:
    request: with names of copied files.
    facts: of its job, see `jobs.JobStore.add`.
  """

  request: jobs.ClipRequest
  facts: Mapping[str, Any]


class Weights(Protocol):
  """What checks need of a `sampling.pipeline.Pipeline`."""

  @property
  def components(self) -> denoisers.SamplingComponents: ...


class Planner:
  """Checks requests and plans clips. May be called by any thread."""

  def __init__(
    self,
    weights: Weights,
    store: jobs.JobStore,
    *,
    batch_size: int,
    limits: Limits,
    adapters: adapters_lib.Adapters,
  ):
    """Read nothing yet.

    Args:
      weights: that clips are made with; their LoRAs may change.
      store: whose folder has the clips and the given files.
      batch_size: clips that are made at once, at most.
      limits: of requests.
      adapters: LoRA files that clients may ask for.
    """
    self._weights, self._store = weights, store
    self._batch_size, self._limits = batch_size, limits
    self._adapters = adapters
    self._validating = threading.Lock()  # decoded pictures are large

  @contextlib.contextmanager
  def checked(
    self, id: str, request: jobs.ClipRequest, *, new_lora: bool
  ) -> Iterator[Checked]:
    """Check a request whose job is stored in the block.

    Its files are copied; they are removed again if the block fails.

    Args:
      id: of the job.
      request: as it was asked for; its files are a `Source` each.
      new_lora: whether its LoRAs have to be checked, too.

    Raises:
      RequestError: something about the request is wrong.
      jobs.StorageError: files cannot be copied.
    """
    settings = dict(request.settings)
    for name in ("guidance_scale", "negative_prompt"):
      if isinstance(settings.get(name), AV):
        settings[name] = settings[name].present()
    folder = self._store.given_folder(id)
    with self.public_errors(), contextlib.ExitStack() as stack:
      _check_names("settings", settings, SETTINGS)
      _check_names("given", request.given, GIVEN)
      if len(request.prompt) > self._limits.prompt_length:
        raise ValueError(
          f"expected a prompt of at most {self._limits.prompt_length}"
          f" characters, got {len(request.prompt)}"
        )
      longest = self._limits.seconds
      if request.seconds is not None and not request.seconds <= longest:
        raise ValueError(
          f"seconds: expected at most {longest:g}, got {request.seconds:g}"
        )
      stack.callback(shutil.rmtree, folder, ignore_errors=True)
      given = self._copy(request.given, folder)
      with self._validating:
        self._check_files(given, folder)
        if new_lora:
          opening.with_loras(self._weights.components, request.lora)
        request = dataclasses.replace(request, settings=settings, given=given)
        planned, chosen = self.plan(request, folder)
      height, width = planned.clip.pixels
      facts = {
        "batch_key": _batch_key(request, planned),
        "num_steps": chosen.num_steps * planned.num_windows,
        "height": height,
        "width": width,
        "seconds": _seconds(planned),
      }
      yield Checked(request=request, facts=facts)
      stack.pop_all()

  def _copy(
    self, given: Mapping[str, Any], folder: pathlib.Path
  ) -> dict[str, Any]:
    """Copy given files into a folder; their names there take their places."""
    copied = dict(given)
    if "keep" in given:
      copied["keep"] = [list(x) for x in conditions.intervals(given["keep"])]
    if "trim" in given:
      copied["trim"] = _trims(given["trim"], given)
    for name in FILES:
      if name in given:
        folder.mkdir(parents=True, exist_ok=True)
        limit = self._limits.file_bytes
        _copy_file(name, given[name], folder / name, limit)
        copied[name] = name
    return copied

  def _check_files(
    self, given: Mapping[str, Any], folder: pathlib.Path
  ) -> None:
    """ValueError if a given file is larger than allowed, by its header."""
    for name in given.keys() & set(FILES):
      path, area = folder / name, 0
      try:
        if name in _PICTURES:
          rows, columns = images.stored_size(path)
          area = rows * columns
        else:
          facts = probe.read(path, video=name not in _SOUNDS)
          area = facts.width * facts.height
          seconds = max(facts.duration, probe.seconds(path))
          if not seconds <= self._limits.seconds:
            raise ValueError(
              f"expected at most {self._limits.seconds:g} seconds, found"
              f" {seconds:.0f}; cut it"
            )
      except ValueError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{name}: {said}") from error
      if area > self._limits.pixels:
        raise ValueError(
          f"{name}: expected at most {self._limits.pixels} pixels, found"
          f" {area}; make it smaller"
        )

  def plan(
    self, request: jobs.ClipRequest, folder: pathlib.Path
  ) -> tuple[planning.Job, settings_lib.Settings]:
    """The clip that a request asks for; reads given files.

    Args:
      request: whose LoRAs are those of the weights, or are not recorded yet.
      folder: of its given files.

    Raises:
      ValueError: the request cannot be fulfilled.
    """
    components = opening.restricted(self._weights.components, request.generate)
    chosen = settings_lib.Settings.from_overrides(
      {**request.settings, "batch_size": self._batch_size},
      opening.recommended_of(components),
    )
    given = {
      name: folder / value if name in FILES else value
      for name, value in request.given.items()
    }
    for name, span in given.pop("trim", {}).items():
      given[name] = conditions.with_span(given[name], span)
    asked = requests_lib.from_prompt(
      request.prompt,
      given.pop("image", None),
      chosen.mode,
      request.seconds,
      **given,
    )
    (planned,), _ = planning.plan(
      asked, chosen, components, self._store.folder, ""
    )
    return planned, chosen

  @contextlib.contextmanager
  def public_errors(self) -> Iterator[None]:
    """Errors of requests in one line, without paths of this machine."""
    try:
      yield
    except RequestError:
      raise
    except ValueError as error:
      raise RequestError(self.public_message(error)) from error
    except OSError as error:
      raise jobs.StorageError(self.public_message(error)) from error

  def public_message(self, error: Exception) -> str:
    """What an error says, in one line, without paths of this machine."""
    if isinstance(error, OSError):
      return untrusted.printable(error.strerror or type(error).__name__)
    given = self._store.folder / jobs.FOLDER / "given"
    said = re.sub(
      rf"{re.escape(str(given))}[\\/]\w+[\\/]",
      "",
      str(error).replace("\n", " "),
    )
    weights = self._weights.components.weights
    roots = (weights, self._store.folder, self._adapters.folder)
    for root in map(str, filter(None, roots)):
      said = said.replace(root + os.sep, "")
      if os.sep in root:  # others, such as `samples`, are words, too
        said = said.replace(root, "…")
    said = _PATH.sub(lambda m: re.split(r"[\\/]", m[0].rstrip("\\/"))[-1], said)
    return untrusted.printable(" ".join(said.split()), _MAX_MESSAGE)


def _check_names(
  what: str, values: Mapping[str, Any], known: Sequence[str]
) -> None:
  """ValueError if a name is unknown."""
  if strange := sorted(values.keys() - set(known)):
    near = config_lib.nearest(strange[0], known)
    raise ValueError(
      f"{what}: {strange[0]!r:.60} is unknown{near}; known are"
      f" {', '.join(known)}"
    )


def _trims(
  trim: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, list[float]]:
  """Start and end in seconds of given files by their names."""
  found = {}
  for name, value in trim.items():
    if name not in conditions.TRIMMED:
      raise ValueError(
        f"trim: {name!r:.60} is unknown; known are"
        f" {', '.join(conditions.TRIMMED)}"
      )
    if name not in given:
      raise ValueError(f"trim: there is no {name}; give it, too")
    is_text = isinstance(value, str)
    spans = conditions.intervals(value if is_text else [value], "trim")
    if len(spans) != 1:
      raise ValueError(f"trim: expected one interval of {name}, such as 1.5-4")
    found[name] = list(spans[0])
  return found


def _copy_file(
  name: str, source: Source, target: pathlib.Path, limit: int
) -> None:
  """Copy a given file.

  Raises:
    ValueError: there is none, it is no regular file, or larger than the limit.
  """
  try:
    with contextlib.ExitStack() as stack:
      if isinstance(source, (str, os.PathLike)):
        if kind := untrusted.irregular(source):
          raise ValueError(f"{name}: expected a regular file, found {kind}")
        file = stack.enter_context(open(source, "rb"))
      else:
        source.seek(0)
        file = source
      written, left = stack.enter_context(target.open("wb")), limit
      while part := file.read(min(_CHUNK, left + 1)):
        left -= len(part)
        if left < 0:
          raise ValueError(
            f"{name}: expected a file of at most {limit / 2**20:g} MiB, found a"
            " larger one"
          )
        written.write(part)
  except FileNotFoundError as error:
    raise ValueError(f"{name}: there is no such file") from error


def _seconds(planned: planning.Job) -> float:
  """Length of a clip, with what is shown of an extended file before it."""
  before = planned.extended.start if planned.extended else 0.0
  return before + planned.frames / geometry.FPS


def _batch_key(request: jobs.ClipRequest, planned: planning.Job) -> str:
  """Equal for requests that can be made in one batch."""
  settings = {n: v for n, v in request.settings.items() if n != "seed"}
  parts = conditions.split(planned.given, planned.conditioning)
  kinds = str(jax.tree.structure(parts))
  return json.dumps(
    [
      settings,
      request.lora,
      request.generate,
      str(planned.clip),
      kinds,
      planned.voice_latents,
    ],
    sort_keys=True,
  )
