"""Training of a very small video codec in this process."""

import importlib

import jax
import ml_collections

from ovi_jax.checkpoint import reader
from ovi_jax.training import settings
from ovi_jax.training import trainer

TINY = {
  "model": {
    "dim": 2,
    "dec_dim": 2,
    "z_dim": 3,
    "dim_mult": (1, 1),
    "temporal_downsample": (True,),
    "latent_mean": (0.0,) * 3,
    "latent_std": (1.0,) * 3,
  },
  "data": {"num_frames": 5},
  "num_train_steps": 6,
  "batch_size": 2,
  "log_every": 2,
  "checkpoint_every": 2,
  "optimizer": {"warmup_steps": 2, "schedule": "constant"},
}


def config(**changes) -> ml_collections.ConfigDict:
  values = importlib.import_module("configs.codec_video").get_config("mini")
  with values.unlocked():
    values.update(TINY)
    values.update_from_flattened_dict(changes)
  return values


def train(values, path) -> bool:
  return trainer.train(settings.from_config(values), values.to_dict(), path)


def arrays(path, step=6):
  newest = path / trainer.CHECKPOINTS / str(step)
  found = reader.read_info(newest)
  names = [n for n in found.leaves if not n.startswith("key")]
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return reader.read(
    found,
    {
      n: jax.ShapeDtypeStruct(
        found.leaves[n].shape, found.leaves[n].dtype, sharding=place
      )
      for n in names
    },
  )
