"""Runs of `trainer.train` in this process, on a few random records."""

import importlib

import numpy as np

from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.training import settings
from ovi_jax.training import trainer

SIZES = schema.Geometry(text_dim=48)
CLIP, SOUND = (2, 4, 4), 6


def record(number: int, video: bool = True) -> schema.Record:
  """Random latents and a prompt, of a clip of five frames."""
  draw = np.random.default_rng(number)
  return schema.Record(
    id=f"clip-{number}",
    source="generated",
    captions=("a clip",),
    latents=AV(
      draw.standard_normal((*CLIP, 48)).astype("f2") if video else None,
      draw.standard_normal(
        (SOUND - (number % 3 if not video else 0), 20)
      ).astype("f2"),
    ),
    text=(draw.standard_normal((3, 48)).astype("f2"),),
  )


def config(name: str, source: str, **changes):
  """A stage's mini config, smaller still."""
  values = importlib.import_module(f"configs.{name}").get_config("mini")
  values.data.sources = (source,)
  values.data.video_buckets, values.data.audio_buckets = (CLIP,), (SOUND,)
  values.num_train_steps, values.batch_size, values.log_every = 4, 4, 2
  # Captions and codecs are random.
  values.data.max_unknown_words, values.data.min_codec_psnr = 1.0, 0.0
  values.optimizer.warmup_steps = 2
  values.mesh.fsdp = 1
  for tower in values.model.values():
    if tower is not None:
      tower.update(hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=48)
  with values.unlocked():
    values.update_from_flattened_dict(changes)
  return values


def run(values, path) -> bool:
  return trainer.train(settings.from_config(values), values.to_dict(), path)


# Changes of a fusion config: from random towers; from media and captions.
FROM_SCRATCH = {
  "init_from.video": "scratch",
  "init_from.audio": "scratch",
  "trainable": "all",
}
ON_THE_FLY = {"data.encode_on_the_fly": True, "data.text_source": "captions"}


def fusion_config(source, weights, **changes):
  """A config of fusion from random towers, with the codecs of `weights`."""
  changes = FROM_SCRATCH | {"pretrained": str(weights)} | changes
  return config("fusion", str(source), **changes)
