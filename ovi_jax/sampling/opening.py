"""Weights opened for sampling: checked, with devices, LoRAs and settings.

Nothing is loaded but LoRAs.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from ovi_jax import cli
from ovi_jax import config as config_lib
from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.attention import attention
from ovi_jax.attention import context
from ovi_jax.lora import apply as lora_lib
from ovi_jax.modality import AV
from ovi_jax.pretrained import weights as weights_lib
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sharding import mesh as meshes


def resolve_settings(
  config: ml_collections.ConfigDict,
  weights: str | os.PathLike[str],
  lora: str = "",
) -> settings_lib.Settings:
  """The settings of a config and, where it leaves them open, of the weights.

  Args:
    config: of `configs/sample.py`.
    weights: directory of weights.
    lora: files and strengths, see `lora.apply.parse`; what they recommend
      replaces what the weights do.

  Raises:
    ValueError: there are no weights, a LoRA is missing, or the settings make no
      sense.
  """
  variant: Any = config.get("variant", "")
  manifest = weights_dir.manifest_of(weights, variant)
  advised = settings_lib.recommended_of(manifest)
  advised |= lora_lib.recommended_of(lora)
  return settings_lib.Settings.from_config(config, advised)


def recommended_of(
  components: denoisers.SamplingComponents,
) -> dict[str, Any]:
  """What the weights and the LoRAs on them recommend."""
  loras = ((x.adapter.metadata, x.strength) for x in components.loras)
  advised = settings_lib.recommended_of(components.manifest)
  return advised | lora_lib.recommended(loras)


def open_components(
  weights: storage.AnyPath,
  settings: settings_lib.Settings,
  lora: str = "",
  generate: str = denoisers.BOTH,
) -> denoisers.SamplingComponents:
  """Check weights, devices, dtype and attention; load LoRAs, but no weights.

  Args:
    weights: their directory.
    settings: of the run.
    lora: files and strengths, see `lora.apply.parse`.
    generate: a key of `denoiser.NEEDS`: video with sound, or one alone.

  Raises:
    ValueError: the weights cannot make what is asked for, the mesh cannot be,
      or a LoRA does not fit.
  """
  problems = config_lib.invalid_choice("generate", generate, denoisers.NEEDS)
  config_lib.check(problems, "")
  both = generate == denoisers.BOTH
  names = _towers(generate)
  found = weights_dir.manifest_of(weights, settings.variant)
  towers = found.architecture.fusion.present()
  if missing := [name for name in names if name not in towers]:
    have = ", ".join(towers)
    raise ValueError(
      f"weights in {weights} have only the tower {have};"
      + (" a video with sound needs both;" if both else "")
      + (
        f" generate={have} makes" if both else f" there is none of {missing[0]}"
      )
      + (f" {have} alone" if both else "")
    )
  needs = denoisers.NEEDS[generate]
  manifest = _with_towers(
    weights_dir.read(weights, settings.variant, needs), names
  )
  shared = settings.shard_clips_over_hosts
  devices = jax.devices() if shared else jax.local_devices()
  opened = components_of(weights, manifest, settings, devices, cli.platform())
  return with_loras(opened, lora)


def _towers(generate: str) -> tuple[str, ...]:
  """The towers that a key of `denoiser.NEEDS` takes."""
  return AV._fields if generate == denoisers.BOTH else (generate,)


def _with_towers(
  manifest: weights_dir.Manifest, names: Sequence[str]
) -> weights_dir.Manifest:
  """The manifest of some of the towers."""
  sizes = {name: manifest.sizes["fusion"][name] for name in names}
  return dataclasses.replace(
    manifest, sizes={**manifest.sizes, "fusion": sizes}
  )


def restricted(
  components: denoisers.SamplingComponents, generate: str
) -> denoisers.SamplingComponents:
  """The components for one tower of weights with both.

  Args:
    components: of the weights.
    generate: a key of `denoiser.NEEDS`.

  Raises:
    ValueError: it is unknown, or the components are not of this tower.
  """
  if generate == components.generates:
    return components
  problems = config_lib.invalid_choice("generate", generate, denoisers.NEEDS)
  config_lib.check(problems, "")
  if components.generates != denoisers.BOTH:
    raise ValueError(
      f"generate: the weights are opened for {components.generates} alone, got"
      f" {generate}"
    )
  manifest = _with_towers(components.manifest, _towers(generate))
  return dataclasses.replace(components, manifest=manifest)


def with_loras(
  components: denoisers.SamplingComponents, lora: str
) -> denoisers.SamplingComponents:
  """The components with other LoRAs.

  Args:
    components: of the weights.
    lora: files and strengths, see `lora.apply.parse`; empty for none.

  Raises:
    ValueError: a file is missing or damaged, or does not fit the weights.
  """
  loras = lora_lib.load(lora, components.arch.fusion, components.manifest)
  if loras:
    file = weights_dir.component_file(components.weights, "fusion")
    lora_lib.check_dtypes(loras, weights_lib.shapes(file))
  return dataclasses.replace(components, loras=loras)


def components_of(
  weights: storage.AnyPath,
  manifest: weights_dir.Manifest,
  settings: settings_lib.Settings,
  devices: Sequence[Any],
  platform: str,
) -> denoisers.SamplingComponents:
  """What a run on some devices, which need not be at hand, is made of.

  Args:
    weights: their directory.
    manifest: of the weights.
    settings: of the run.
    devices: to compute on.
    platform: theirs, see `cli.platform`.

  Raises:
    ValueError: the mesh or the attention cannot be.
  """
  tower = next(iter(manifest.architecture.fusion.present().values()))
  dtype = config_lib.resolve_dtype(settings.dtype, platform)
  return denoisers.SamplingComponents(
    weights=weights,
    manifest=manifest,
    mesh=make_mesh(settings, devices, tower.num_heads),
    context_parallelism=settings.context_parallelism,
    dtype=dtype,
    backend=attention.resolve(
      settings.attention, platform, dtype, tower.head_dim
    ),
  )


def clip_size(
  settings: settings_lib.Settings, manifest: weights_dir.Manifest
) -> tuple[int, int]:
  """Height and width of clips without an image; only the ratio counts."""
  clip, size = manifest.architecture.clip, (settings.height, settings.width)
  if clip is not None and size == geometry.DEFAULT_SIZE:
    return clip.pixels
  return size


def make_mesh(
  settings: settings_lib.Settings, devices: Sequence[Any], heads: int
) -> jax.sharding.Mesh:
  """The mesh that the settings ask for, or one that suits the devices.

  Raises:
    ValueError: it does not multiply to the devices, or cannot divide heads.
  """
  if not any(settings.mesh.values()):
    return meshes.for_sampling(devices, heads)
  sizes = meshes.resolve_sizes(settings.mesh, len(devices))
  mesh = meshes.make(devices, **sizes)
  context.check(mesh.shape, heads, settings.context_parallelism)
  return mesh
