"""How long clips are, in how many windows, and what is said about it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ovi_jax import geometry
from ovi_jax.modality import AV
from ovi_jax.sampling import conditions
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import windows as windows_lib


def generated_only(masks: AV[Any], generate: str) -> AV[Any]:
  """The masks of what is generated, see `denoiser.NEEDS`."""
  if generate == denoisers.BOTH:
    return masks
  return AV(**{generate: getattr(masks, generate)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
  """How long a clip is and how it is made.

  Attributes:
    clip: sizes of it, or of each of its windows.
    latent_frames: of all of it; with an extended file, from its end on.
    windows: of a clip that is made in windows.
    extended: the end of an extended file.
    prompts: one, or one for each window.
  """

  clip: geometry.Clip
  latent_frames: int
  windows: tuple[windows_lib.Window, ...] = ()
  extended: conditions.Extended | None = None
  prompts: tuple[str, ...]


def plan(
  requests: Sequence[requests_lib.Request],
  variant: geometry.Variant,
  settings: settings_lib.Settings,
  generate: str,
) -> list[Length]:
  """Lengths of all clips; ValueError lists what cannot be made."""
  window = window_latent_frames(settings, variant)
  lengths, problems = [], []
  for request in requests:
    try:
      overlap = settings.window_overlap
      lengths.append(_length(request, variant, window, overlap, generate))
    except ValueError as error:
      problems.append(f"{request.place}{error}")
  requests_lib.check_problems(
    "clips that cannot be generated", requests, problems
  )
  return lengths


def window_latent_frames(
  settings: settings_lib.Settings, variant: geometry.Variant
) -> int:
  """Latent frames that are denoised at once, at most."""
  if settings.window_seconds:
    return conditions.nearest_latent_frames(settings.window_seconds)
  return variant.latent_frames


def _length(
  request: requests_lib.Request,
  variant: geometry.Variant,
  window: int,
  overlap: int,
  generate: str,
) -> Length:
  """The length of a clip.

  Args:
    request: of it.
    variant: of the weights.
    window: latent frames of a window.
    overlap: that windows have in common, at least.
    generate: a key of `denoiser.NEEDS`.
  """
  given, asked, extended = request.given, None, None
  if request.seconds is not None:
    asked = conditions.nearest_latent_frames(request.seconds)
  if given.extend is not None:
    offset = given.span("extend")[0]
    extended = conditions.extended(
      request.media_seconds or 0.0, overlap, offset
    )
    new = window - extended.latent_frames if asked is None else asked - 1
    # As many windows, and no longer ones than are needed.
    asked = extended.latent_frames + new
  frames = asked
  if extended is None and request.media_seconds is not None:
    frames = conditions.latent_frames(
      request.media_seconds, asked or variant.latent_frames
    )
  frames = frames or variant.latent_frames
  windows: tuple[windows_lib.Window, ...] = ()
  if extended is not None or frames > window:
    _check_windows(request, frames, window, generate)
    clip = variant.clip(*request.size, min(window, frames))
    start = 0 if extended is None else extended.latent_frames
    windows = windows_lib.plan(frames, clip, overlap, start)
  else:
    clip = variant.clip(*request.size, frames)
    masks = generated_only(request.masks(clip), generate)
    towers = 2 if generate == denoisers.BOTH else 1
    conditions.check_masks(given, masks, request.sound, clip, towers)
  texts = (request.prompt,)
  if request.seconds is not None or extended is not None:
    texts = windows_lib.split_prompt(request.prompt)
  if len(texts) not in (1, count := len(windows) or 1):
    raise ValueError(
      f"{len(texts)} prompts between {windows_lib.SEPARATOR!r} for a clip of"
      f" {count} window{'s' if count > 1 else ''}; write one for each window,"
      " or one for all"
    )
  return Length(
    clip=clip,
    latent_frames=frames,
    windows=windows,
    extended=extended,
    prompts=texts,
  )


def _check_windows(
  request: requests_lib.Request, frames: int, window: int, generate: str
) -> None:
  """ValueError if a clip of several windows is too long, or given too much."""
  longest = windows_lib.seconds_of(window)
  if frames > windows_lib.MAX_LATENT_FRAMES:
    most = windows_lib.seconds_of(windows_lib.MAX_LATENT_FRAMES)
    raise ValueError(
      f"seconds must be at most {most:.0f}; extend continues a finished clip"
    )
  names = [n for n in request.given.media if n != "extend"]
  names += [] if generate == denoisers.BOTH else [f"generate={generate}"]
  if names:
    raise ValueError(
      f"{names[0]} cannot be used with a clip of several windows; give at most"
      f" {longest:.2f} seconds, or raise window_seconds"
    )


def notes_of(
  request: requests_lib.Request, length: Length, variant: geometry.Variant
) -> tuple[str, ...]:
  """What a clip has more or less of than was asked for, or trained."""
  clip, notes = length.clip, ()
  if clip.latent_frames > variant.latent_frames:
    trained = windows_lib.seconds_of(variant.latent_frames)
    seconds = windows_lib.seconds_of(clip.latent_frames)
    notes += (
      f"the window of {seconds:.2f} s is longer than the {trained:.2f} s of"
      " training; quality may be lower",
    )
  if len(length.windows) > 1:
    notes += (f"the clip is generated in {len(length.windows)} windows",)
  if length.extended is not None:
    return notes
  return notes + _media_notes(request, length, variant)


def _media_notes(
  request: requests_lib.Request, length: Length, variant: geometry.Variant
) -> tuple[str, ...]:
  """What a clip has more or less of than the files it is made from."""
  media = request.media_seconds
  seconds = windows_lib.seconds_of(length.latent_frames)
  wanted = variant.latent_frames
  if request.seconds is not None:
    wanted = conditions.nearest_latent_frames(request.seconds)
  if media is None:
    if abs(seconds - (request.seconds or seconds)) > 1.5 / geometry.FPS:
      return (f"the clip lasts {seconds:.2f} s: lengths are 1 + 4·k frames",)
    return ()
  files = " and ".join(request.given.media)
  if length.latent_frames == wanted:
    if media > seconds + 1 / geometry.FPS:
      return (f"the first {seconds:.2f} of {media:.2f} s are used",)
    if media < seconds - 1 / geometry.FPS:
      return (
        f"{files}: {media:.2f} of {seconds:.2f} s, the last frame is"
        " repeated and silence appended",
      )
    return ()
  return (
    f"the clip lasts {seconds:.2f} s, the length of {files} rounded down to"
    " 1 + 4·k frames",
  )


def sound_notes(
  request: requests_lib.Request, clip: geometry.Clip
) -> tuple[str, ...]:
  """What is generated because the given sound begins late or ends early."""
  (start, end), given = request.sound, request.given
  if not 0 < end < math.inf:
    return ()
  name = "video" if given.audio is None else "audio"

  def lost(sound: conditions.Interval) -> bool:
    """Whether less is given than without the other end of the track."""
    found, wanted = (
      dataclasses.replace(request, sound=interval).masks(clip).audio
      for interval in (sound, conditions.ANY)
    )
    return wanted is not None and (found is None or (found != wanted).any())

  notes = ()
  if lost((start, math.inf)):
    notes += (
      f"{name}: its sound begins at {start:.2f} s, the sound before it is"
      " generated",
    )
  if lost((0.0, end)):
    notes += (
      f"{name}: its sound ends at {end:.2f} s, the sound after it is generated",
    )
  return notes
