"""A training step compiled ahead of time: `train.py --aot=v5p:4x4x4`.

The program is that of `loop.compile_step` with the same config; state and batch
are shapes. Neither data nor initial parameters are needed.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import cli
from ovi_jax import flag_profiles
from ovi_jax import flops
from ovi_jax import storage
from ovi_jax.aot import report
from ovi_jax.aot import topology
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import quantized
from ovi_jax.models import remat as remats
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import sharding_rules
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import step as steps
from ovi_jax.training import task as tasks


def run(
  name: str,
  settings: settings_lib.Settings | settings_lib.CodecSettings,
  out: storage.AnyPath,
  flags_profile: str = flag_profiles.NONE,
  quantize: str = "",
) -> bool:
  """Compile the step of each bucket, log and write the reports.

  Args:
    name: of the topology.
    settings: of the run, of towers.
    out: directory for the reports.
    flags_profile: compiler flags that were applied, see `flag_profiles`.
    quantize: a key of `quantized.DTYPES`: assume 8-bit kernels for the base of
      a LoRA, if `init_from` names no local weights; empty for none.

  Returns:
    Whether all fit.

  Raises:
    ValueError: the topology or the settings are invalid, or are of a codec; or
      `quantize` is given without a LoRA, or with local weights.
  """
  if not isinstance(settings, settings_lib.Settings):
    raise ValueError(
      "--aot supports the stages of the towers only (audio_pretrain,"
      " audio_finetune, video_pretrain, fusion, fine_tune, lora), got the"
      f" config of the codec {settings.component}; remove --aot"
    )
  if quantize and not settings.is_lora:
    raise ValueError(
      "--aot_quantize is for the base of a LoRA, since 8-bit weights cannot be"
      " trained; set --config.trainable=lora, or remove it"
    )
  there = [
    path
    for path in filter(None, settings.init_from)
    if storage.exists(storage.locate(path) / weights_dir.MANIFEST)
  ]
  if quantize and there:
    raise ValueError(
      f"--aot_quantize={quantize} is for a base without local weights, but"
      f" {there[0]} has weights, whose dtypes are used; remove --aot_quantize"
    )
  dtype = quantized.DTYPES.get(quantize)
  devices, job = topology.devices(name), flag_profiles.TRAIN
  flag_profiles.check_device(flags_profile, job, devices[0].device_kind)
  flags = flag_profiles.flags_of(flags_profile, job)
  mesh = tasks.make(settings).make_mesh(devices)
  reports = (
    step(settings, bucket.video, bucket.audio, mesh, flags, dtype)
    for bucket in settings.data.buckets
  )
  kind = "lora" if settings.is_lora else ""
  named = "_".join(filter(None, ("train", name, kind, quantize)))
  return report.publish(out, named, reports)


def step(
  settings: settings_lib.Settings,
  video: tuple[int, int, int] | None,
  audio: int | None,
  mesh: jax.sharding.Mesh,
  flags: Mapping[str, str],
  quantize: np.dtype | None = None,
) -> report.Report:
  """Report on the step of one bucket.

  Args:
    settings: of the run.
    video: latent frames, rows and columns.
    audio: latents in time.
    mesh: of the devices to compile for.
    flags: of the compiler, as they are in the environment.
    quantize: dtype of the 8-bit kernels that are assumed for a LoRA's base.
  """
  with jax.set_mesh(mesh):
    task = tasks.make(settings, quantize)
    step_config, state = task.step_config, task.target_state(mesh)
    batch = batch_of(settings, video, audio, mesh)
    width = next(iter(settings.model.present().values())).text_dim
    null_SE = sharding_rules.abstract(
      (1, width), sharding_rules.replicated(mesh)
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    remat = remats.resolve(settings.remat, cli.target())
    program = steps.jit_train_step(shardings, mesh)
    lowered = program.lower(step_config, state, batch, null_SE)
  tokens = batch.latents.map(
    lambda name, x: math.prod(getattr(settings.model, name).grid(x.shape))
  )
  work = flops.forward(settings.model, tokens).training(settings.attention_only)
  return report.compile_and_report(
    f"training step of {settings.batch_size} clips in"
    f" {settings.grad_accum_steps} microbatches,"
    f" remat {remat}",
    lowered,
    (state, batch, null_SE),
    mesh,
    settings.batch_size * work,
    flags,
  )


def batch_of(
  settings: settings_lib.Settings,
  video: tuple[int, int, int] | None,
  audio: int | None,
  mesh: jax.sharding.Mesh,
) -> schema.Batch:
  """Abstract batch as the loader gives it, sharded over the mesh."""
  rows, size = sharding_rules.batch_sharding(mesh), settings.batch_size
  towers = settings.model
  grids: AV[Any] = AV(video=video, audio=(audio,))
  latents, lengths, text = {}, {}, {}
  for name, tower in towers.present().items():
    grid = getattr(grids, name)
    latents[name] = sharding_rules.abstract((size, *grid, tower.channels), rows)
    lengths[name] = sharding_rules.abstract((size,), rows, jnp.int32)
    text[name] = sharding_rules.abstract(
      (size, settings.data.max_text_len, tower.text_dim), rows
    )
  return schema.Batch(AV(**latents), AV(**lengths), AV(**text), None)
