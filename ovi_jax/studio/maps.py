"""Attention maps of finished clips, drawn on demand over their frames.

They are computed from the saved latents, on the engine's thread, and written
where `sample.py --attention_maps` writes them.
"""

import json
import pathlib
import threading
from concurrent import futures

from ovi_jax.media import mp4
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import outputs
from ovi_jax.studio import engine as engines
from ovi_jax.studio import gallery as galleries
from ovi_jax.studio import repeats


def is_current(film: pathlib.Path, clip: pathlib.Path) -> bool:
  """Whether a film is a regular file that was written after its clip."""
  if not film.is_file() or film.is_symlink():
    return False
  return film.stat().st_mtime_ns >= clip.stat().st_mtime_ns


class Films:
  """Draws attention maps. May be called by any thread."""

  def __init__(self, engine: engines.Engine, gallery: galleries.Gallery):
    """Draw nothing yet.

    Args:
      engine: that loads the weights; the batch that it makes is waited for.
      gallery: of the engine's folder.
    """
    self._engine, self._gallery = engine, gallery
    self._lock = threading.Lock()
    # By name and version of the clip.
    self._drawing: dict[tuple[str, str], futures.Future[pathlib.Path]] = {}

  def film(self, clip: galleries.Clip) -> pathlib.Path:
    """The clip with what its sound attends to; drawn if it is not there.

    Callers that ask for the same clip meanwhile get the same film.

    Args:
      clip: of the gallery.

    Returns:
      The path of the film.

    Raises:
      requests.RequestError: the clip has not both modalities, is of several
        windows, its latents were not saved, it is of other weights or settings,
        its given files are gone, or it was replaced while it was drawn.
      jobs.StorageError: a file cannot be read or written.
    """
    key, own = (clip.name, clip.version), futures.Future[pathlib.Path]()
    with self._lock:
      drawing = self._drawing.setdefault(key, own)
    if drawing is not own:
      return drawing.result()
    try:
      with self._engine.planner.public_errors():
        own.set_result(self._draw(clip))
    except BaseException as error:
      own.set_exception(error)
      raise
    finally:
      with self._lock:
        del self._drawing[key]
    return own.result()

  def _draw(self, clip: galleries.Clip) -> pathlib.Path:
    """The film, see `film`; one call for each version of a clip at once."""
    path = self._engine.store.folder / clip.name
    found = pathlib.Path(attention_maps.files_of(path)[0])
    self._check_version(clip)
    if is_current(found, path):
      return found
    measured = _measure(self._engine, clip, path)
    frames_THWC, _, wave_A, _ = mp4.read(path)
    if wave_A is None:
      raise ValueError("this clip has no sound")
    with self._engine.kept_clips():
      self._check_version(clip)
      attention_maps.write(path, frames_THWC, wave_A, measured)
    return found

  def _check_version(self, clip: galleries.Clip) -> None:
    """ValueError if a clip is no longer what it was."""
    if self._gallery.find(clip.name).version != clip.version:
      raise ValueError("this clip was replaced meanwhile; try again")


def _measure(
  engine: engines.Engine, clip: galleries.Clip, path: pathlib.Path
) -> attention_maps.Maps:
  """The maps of a clip; ValueError if there are none."""
  if clip.recipe.get("generate") or clip.recipe.get("windows"):
    raise ValueError(
      "attention is between the towers of a clip of one window; this clip has"
      " one tower, or several windows"
    )
  latents = outputs.latents_of(path)
  if not latents.is_file():
    raise ValueError("the latents of this clip were not saved")
  request, folder = repeats.request_of(engine.store, clip)

  def measure(pipeline: engines.Pipeline) -> attention_maps.Maps:
    engine.apply_lora(request.lora)
    planned, _ = engine.planner.plan(request, folder)
    recipe = json.loads(json.dumps(engine.relative(planned.recipe)))
    try:
      outputs.is_complete(path, recipe)
    except ValueError as error:
      raise ValueError(
        "this clip was made with other weights or settings"
      ) from error
    assert not planned.windows and planned.generates == denoisers.BOTH
    channels = pipeline.components.channels
    try:
      read = noises.read(latents, noises.shapes(planned.clip, channels))
    except ValueError as error:
      raise ValueError("the saved latents do not fit this clip") from error
    return pipeline.maps(planned, read)

  return engine.call(measure)
