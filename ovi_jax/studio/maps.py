"""Attention maps of finished clips, drawn on demand over their frames.

They are computed from the saved latents, on the engine's thread, and written
where `sample.py --attention_maps` writes them.
"""

import json
import pathlib

from ovi_jax.media import mp4
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import outputs
from ovi_jax.studio import engine as engines
from ovi_jax.studio import gallery as galleries
from ovi_jax.studio import repeats


def film(engine: engines.Engine, clip: galleries.Clip) -> pathlib.Path:
  """The clip with what its sound attends to; drawn if it is not there.

  Args:
    engine: that loads the weights; the batch that it makes is waited for.
    clip: of its folder.

  Returns:
    The path of the film.

  Raises:
    ValueError: the clip has not both modalities, is of several windows, its
      latents were not saved, or it is of other weights or settings.
  """
  path = engine.store.folder / clip.name
  found = pathlib.Path(attention_maps.files_of(path)[0])
  if found.is_file() and not found.is_symlink():
    return found
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

  measured = engine.call(measure)
  frames_THWC, _, wave_A, _ = mp4.read(path)
  if wave_A is None:
    raise ValueError("this clip has no sound")
  attention_maps.write(path, frames_THWC, wave_A, measured)
  return found
