"""The extractors of the package, by name."""

import functools
from collections.abc import Callable
from collections.abc import Mapping

from ovi_jax import config
from ovi_jax.evaluation import features
from ovi_jax.evaluation.extractors import clip_vision
from ovi_jax.evaluation.extractors import dino
from ovi_jax.evaluation.extractors import dnsmos
from ovi_jax.evaluation.extractors import niqe
from ovi_jax.evaluation.extractors import panns
from ovi_jax.evaluation.extractors import picture
from ovi_jax.evaluation.extractors import sound
from ovi_jax.evaluation.extractors import syncnet
from ovi_jax.evaluation.extractors import text
from ovi_jax.evaluation.extractors import vad
from ovi_jax.evaluation.extractors import vggish
from ovi_jax.evaluation.extractors import voice
from ovi_jax.evaluation.extractors import whisper
from ovi_jax.evaluation.extractors import yamnet

# Extractors without weights of the user, and those that take a path of weights.
FIXED: Mapping[str, Callable[[], features.Extractor]] = {
  "picture": picture.picture,
  "flow": picture.flow,
  "niqe": niqe.niqe,
  "sound": sound.sound,
  "text": text.text,
  "dnsmos": dnsmos.dnsmos,
  "vad": vad.vad,
}
WEIGHTED: Mapping[str, Callable[[str], features.Extractor]] = {
  "aesthetic": clip_vision.aesthetic,
  "clip_vision": clip_vision.clip_vision,
  "dino": dino.dino,
  **{name: functools.partial(panns.panns, name) for name in panns.FRONT_ENDS},
  "syncnet": syncnet.syncnet,
  "vggish": vggish.vggish,
  "voice": voice.voice,
  "whisper": whisper.whisper,
  "yamnet": yamnet.yamnet,
}


def make(weights: Mapping[str, str]) -> dict[str, features.Extractor]:
  """All extractors.

  Args:
    weights: paths by the name of the extractor.

  Raises:
    ValueError: an extractor is unknown or takes no weights, or its weights
      cannot be used.
  """
  for name in weights:
    if name not in WEIGHTED:
      raise ValueError(
        f"weights: extractor {name!r} is unknown"
        f"{config.nearest(name, WEIGHTED)}; those with weights are"
        f" {', '.join(WEIGHTED) or 'none'}"
      )
  made = {name: factory() for name, factory in FIXED.items()}
  return made | {
    name: factory(weights.get(name, "")) for name, factory in WEIGHTED.items()
  }
