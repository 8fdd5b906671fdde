"""What a clip should say. Array: `speech`, text; "" if none is asked for."""

import numpy as np

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features


def text() -> features.Extractor:
  """The speech of the prompt; see `clips.Clip.speech`."""
  return features.Extractor(
    name="text",
    version=1,
    needs=(clips.TEXT,),
    load=lambda: (
      lambda media: [
        {"speech": np.array(each.source.clip.speech)} for each in media
      ]
    ),
  )
