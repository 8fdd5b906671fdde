"""The components that can be trained by themselves, and how.

A task is a frozen dataclass of `config` (the component's sizes), `dtype`
(compute dtype) and, with defaults, of what `config.task` names; see
`training.task`. It starts from the component's own random parameters, unless
it has a method `init(key)`, which gives those and, under `head`, what only
training needs and `assemble` leaves out.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax

from ovi_jax.models import architecture
from ovi_jax.models import audio_vae
from ovi_jax.models import umt5
from ovi_jax.models import vocoder as vocoders
from ovi_jax.models.video_vae import config as video_vae
from ovi_jax.training.objectives import audio_vae as sound
from ovi_jax.training.objectives import masked_text
from ovi_jax.training.objectives import video_vae as video
from ovi_jax.training.objectives import vocoder

HEAD = "head"  # parameters of a task that are not the component's


class Row(NamedTuple):
  """What is known of a component.

  Attributes:
    config_class: its config, with `from_release`.
    objective: how it is trained.
  """

  config_class: Any
  objective: Any


TABLE: Mapping[str, Row] = {
  "video_vae": Row(video_vae.VideoVAEConfig, video.VideoVAEObjective),
  "audio_vae": Row(audio_vae.AudioVAEConfig, sound.AudioVAEObjective),
  "vocoder": Row(vocoders.VocoderConfig, vocoder.VocoderObjective),
  "umt5": Row(umt5.UMT5Config, masked_text.MaskedTextObjective),
}


# Flag of `assemble` -> component.
PARTS: Mapping[str, str] = {
  "video": "video_vae",
  "audio": "audio_vae",
  "vocoder": "vocoder",
  "text": "umt5",
}


def init(component: str, task: Any, key: jax.Array) -> Mapping[str, Any]:
  """The parameters that training begins with, nested."""
  if hasattr(task, "init"):
    return task.init(key)
  return architecture.init(component, task.config, key)
