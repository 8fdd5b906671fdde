"""Export a trained run to a directory of weights that `sample.py` reads.

  python -m ovi_jax.training.export --workdir=RUN --pretrained=DIR --out=DIR

Text encoder, codecs and tokenizer are those of `--pretrained` (by default, the
run's own). They are linked, not copied, where the disk allows it. The towers
are those of a checkpoint: by default the newest, with EMA parameters.
Recommended sampling settings are inherited from the weights that the run
started from; a run with given latents, or one that started from such a run,
recommends to show them clean. `convert_torch_weights.py --export` converts the
result to the original's files.

  python -m ovi_jax.training.export --workdir=RUN --out=FILE.safetensors

writes the LoRA of a run that trained one; `ovi_jax.lora.merge` merges it into
weights.
"""

import dataclasses
import hashlib
import json
import os
import shlex
import types
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags

import ovi_jax
from ovi_jax import cli
from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import workdir as workdirs
from ovi_jax.data import settings as data_settings
from ovi_jax.lora import adapter as adapters
from ovi_jax.lora import files as lora_files
from ovi_jax.lora import names as lora_names
from ovi_jax.models import architecture
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import conditions as sampling_conditions
from ovi_jax.sampling import settings as sampling_settings
from ovi_jax.training import init_from
from ovi_jax.training import param_filter
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import trainer

_AT_ONCE = 2**30  # bytes of parameters in memory
NO_ADVICE: Mapping[str, Any] = types.MappingProxyType({})
_VOICE_SCALE = "voice_guidance_scale"
_LONGEST_CHAIN = 32  # runs, each started from the one before


def export(
  workdir: str | os.PathLike[str],
  out: str | os.PathLike[str],
  pretrained: str | os.PathLike[str] | None = None,
  step: int | None = None,
  ema: bool = True,
  dtype: Any = jnp.float32,
  sampling: Mapping[str, Any] | None = None,
) -> weights_dir.Manifest:
  """Write the weights of a run.

  Args:
    workdir: of the run.
    out: directory to write; must not hold weights yet.
    pretrained: directory of converted weights with text encoder, codecs and
      tokenizer; by default, the run's own.
    step: of the checkpoint; `None` for the newest.
    ema: export the EMA parameters, if the run has an EMA.
    dtype: that the towers are stored in.
    sampling: settings that suit the weights, see `sampling.settings.advice`;
      fields that are left out are inherited, see `inherited_advice`.

  Returns:
    The manifest, also written to `out`.

  Raises:
    ValueError: no such run or checkpoint, it is damaged, or the pretrained
      components are missing or do not fit the model; before anything is
      written.
    OSError: the disk is full, or not writable.
  """
  workdirs.check_scheme(workdir, "workdir")
  workdir, out = storage.locate(workdir), storage.locate(out)
  if storage.is_remote(out):
    storage.check_access(storage.path(out))
  if storage.exists(out / weights_dir.MANIFEST):
    raise ValueError(f"{out} holds weights already; choose another --out")
  config = ml_collections.ConfigDict(workdirs.read_config(workdir))
  settings = settings_lib.Settings.from_config(config)
  if settings.is_lora:
    raise ValueError(
      f"{workdir} is the run of a LoRA; export it with --out=FILE.safetensors,"
      " and merge it into the weights with python -m ovi_jax.lora.merge"
    )
  rest = storage.locate(pretrained or settings.pretrained)
  if not str(rest).strip("."):
    raise ValueError(
      "--pretrained=DIR is needed: converted weights whose text encoder and"
      " codecs go with the towers; the run names none"
    )
  kept = weights_dir.read(rest, needs=())
  needs = tuple(c for c in kept.architecture.components if c != "fusion")
  kept = weights_dir.read(rest, needs=needs)
  advised = _checked_advice(
    {
      **inherited_advice(workdir, kept.sampling),
      **(sampling or {}),
    },
    sampling or {},
    settings,
  )
  manifest = _sizes(settings, kept)
  if problems := manifest.architecture.misfits:
    raise ValueError(
      f"the components in {rest} do not fit the model: {'; '.join(problems)}"
    )
  source = _checkpoint(workdir, step, ema)
  shapes = param_filter.flat(
    architecture.parameter_shapes("fusion", settings.model)
  )
  plan = init_from.plan(
    {p: jax.ShapeDtypeStruct(x.shape, dtype) for p, x in shapes.items()},
    [source],
  )
  out.mkdir(parents=True, exist_ok=True)
  weights_dir.link(rest, out, needs)
  digests = {n: d for n, d in kept.digests.items() if n != "fusion"}
  digests["fusion"] = _write(out, plan)
  manifest = dataclasses.replace(manifest, digests=digests, sampling=advised)
  manifest.save(out)
  return manifest


def export_lora(
  workdir: str | os.PathLike[str],
  out: str | os.PathLike[str],
  step: int | None = None,
  ema: bool = True,
  style: str = lora_names.COMFYUI,
  dtype: Any = jnp.float32,
  trigger_words: str = "",
) -> None:
  """Write the LoRA of a run.

  Args:
    workdir: of the run.
    out: the file to write, .safetensors.
    step: of the checkpoint; `None` for the newest.
    ema: export the EMA parameters, if the run has an EMA.
    style: format, one of `lora.names.FORMATS`.
    dtype: of the factors.
    trigger_words: words for prompts, kept in the metadata.

  Raises:
    ValueError: it is not the run of a LoRA, there is no such checkpoint, it is
      damaged, or the format has no names for its layers.
    OSError: the file cannot be written.
  """
  workdirs.check_scheme(workdir, "workdir")
  workdir = storage.locate(workdir)
  values = workdirs.read_config(workdir)
  settings = settings_lib.Settings.from_config(
    ml_collections.ConfigDict(values)
  )
  if not settings.is_lora:
    raise ValueError(
      f"{workdir} is not the run of a LoRA (trainable={settings.trainable!r});"
      " export its weights with --out=DIR"
    )
  path = storage.locate(_checkpoint(workdir, step, ema).path)
  if not reader.is_step(path.name):
    path = path / str(reader.steps(path)[0])
  found = reader.read_info(path)
  reader.verify(found)
  factors = _factors(found, ema)
  lora = settings.lora
  text = {
    lora_files.BASE_KEY: str(found.metadata.get(trainer.BASE, "")),
    "ovi_jax.rank": str(lora.rank),
    "ovi_jax.alpha": str(lora.alpha),
    "ovi_jax.targets": lora.targets,
    "ovi_jax.step": str(found.step),
    "ovi_jax.version": ovi_jax.__version__,
    "ovi_jax.config": json.dumps(values, sort_keys=True),
    "trigger_words": trigger_words,
  }
  if advised := _conditioning(values):
    text[lora_files.CONDITIONING_KEY] = advised["conditioning"]
  made = adapters.from_factors(factors, lora.alpha, text).astype(dtype)
  lora_files.write(out, made, settings.model, style)


def _factors(found: reader.CheckpointInfo, ema: bool) -> dict[str, np.ndarray]:
  """The trained factors of a checkpoint, by path."""
  branches = ["trained_params", *(["ema_params"] if ema else [])]
  names: dict[str, str] = {}
  for branch in branches:
    head = f"{branch}/"
    names |= {
      p.removeprefix(head): p for p in found.leaves if p.startswith(head)
    }
  arrays = reader.read(
    found,
    {p: np.zeros(found.leaves[p].shape, np.float32) for p in names.values()},
  )
  return {path: arrays[name] for path, name in names.items()}


def _checkpoint(
  workdir: storage.AnyPath, step: int | None, ema: bool
) -> init_from.Source:
  """The parameters of a run's checkpoint; the newest if `step` is `None`."""
  path = workdir / trainer.CHECKPOINTS
  known = reader.steps(path)
  if not known or (step is not None and step not in known):
    raise ValueError(
      f"{path} has checkpoints of the steps {known}, expected"
      f" {'one' if step is None else step}"
    )
  return init_from.Source(
    path=str(path if step is None else path / str(step)),
    include=(".*",),
    use_ema=ema,
  )


def inherited_advice(
  workdir: storage.AnyPath, default: Mapping[str, Any] = NO_ADVICE
) -> dict[str, Any]:
  """The sampling advice that a run's towers got from weights and training.

  Runs that started from other runs are followed. Advice that follows from the
  settings of a run replaces that of what it started from, except a scale of the
  reference voice that the weights advise.

  Args:
    workdir: of the run.
    default: advice instead of that of the first weights, if the towers are
      random, the weights advise nothing, or a source is no longer there.
  """
  trained: dict[str, Any] = {}
  for _ in range(_LONGEST_CHAIN):
    try:
      values = workdirs.read_config(workdir)
    except ValueError:
      break
    trained = _conditioning(values) | trained
    # The video tower's, where there are two of different origin.
    sources = [str(path) for path in values["init_from"].values() if path]
    source = storage.locate(sources[0] if sources else settings_lib.SCRATCH)
    if (source / weights_dir.MANIFEST).is_file():
      advised = weights_dir.manifest_of(source).sampling
      return _with_training(advised or default, trained)
    # A run, the folder of its checkpoints, or one of these.
    folders = (source, *list(source.parents)[:2])
    runs = [path for path in folders if (path / workdirs.CONFIG).is_file()]
    if not runs:
      break
    workdir = runs[0]
  return _with_training(default, trained)


def _with_training(
  advised: Mapping[str, Any], trained: Mapping[str, Any]
) -> dict[str, Any]:
  """The advice of weights and that of runs that started from them.

  A scale of the reference voice that the weights advise was chosen for them; a
  run only says that there is one.
  """
  kept = {_VOICE_SCALE} & set(advised)
  return {**advised, **{k: v for k, v in trained.items() if k not in kept}}


def _conditioning(config: Mapping[str, Any]) -> dict[str, Any]:
  """Given latents are shown clean to towers that were trained with them.

  A scale of the reference voice says that they were trained with one.

  Args:
    config: of a run; one that is no longer valid advises nothing.
  """
  try:
    settings = settings_lib.Settings.from_config(
      ml_collections.ConfigDict(dict(config))
    )
  except ValueError:
    return {}
  conditions = settings.objective.conditions
  if not conditions.more_than_first_frames:
    return {}
  advice: dict[str, Any] = {"conditioning": sampling_conditions.CLEAN}
  if conditions.audio.reference_prob:
    advice[_VOICE_SCALE] = 1.0
  return advice


def _checked_advice(
  advised: dict[str, Any],
  asked: Mapping[str, Any],
  settings: settings_lib.Settings,
) -> dict[str, Any]:
  """Advice without a block to skip that the towers do not have.

  Raises:
    ValueError: a field is unknown, its value cannot be, or such a block is
      asked for.
  """
  slg_layer = sampling_settings.recommended(advised)["slg_layer"]
  blocks = sampling_settings.num_layers(settings.model)
  if slg_layer < blocks:
    return advised
  if "slg_layer" in asked:
    raise ValueError(
      f"--sampling: slg_layer {slg_layer} does not exist, the towers have"
      f" blocks 0 to {blocks - 1}; use one of them, or 0 to skip none"
    )
  return advised | {"slg_layer": 0}


def _sizes(
  settings: settings_lib.Settings, kept: weights_dir.Manifest
) -> weights_dir.Manifest:
  """The manifest of the towers of a run among kept components."""
  towers = settings.model.present()
  sizes = dict(kept.sizes) | {
    "fusion": {name: tower.to_release() for name, tower in towers.items()}
  }
  bucket, variant = settings.data.buckets[0], kept.variant
  sizes["latents"] = _latents(bucket)
  if bucket.video is not None and bucket.audio is not None:
    T = bucket.video[0]
    if variant is not None:
      known = geometry.variant(variant)
      clip = (known.latent_frames, known.audio_latents)
      same = settings.model == kept.architecture.fusion
      # Another length or shape is another model than the released one.
      if not same or clip != (T, bucket.audio):
        variant = None
  return weights_dir.Manifest(
    variant=variant, sizes=sizes, digests={}, version=ovi_jax.__version__
  )


def _latents(bucket: data_settings.Bucket) -> dict[str, int]:
  """Default sizes of clips; those of a missing modality last as long."""
  rate = geometry.AUDIO_LATENT_RATE
  A, video = bucket.audio, bucket.video
  if video is None:
    assert A is not None, "a bucket has one of them"
    T = sampling_conditions.nearest_latent_frames(A / rate)
    video = T, geometry.PATCH, geometry.PATCH
  T, H, W = video
  if A is None:
    frames = 1 + geometry.VIDEO_STRIDES[0] * (T - 1)
    A = max(1, int(frames / geometry.FPS * rate))
  return {"T": T, "H": H, "W": W, "A": A}


def _write(out: storage.AnyPath, plan: init_from.Plan) -> str:
  """Write the towers, a part at a time; returns their digest."""
  digest = hashlib.sha256()
  (source, paths), place = plan.parts[0], jax.local_devices()[0]
  sharding = jax.sharding.SingleDeviceSharding(place)
  targets = {
    p: jax.ShapeDtypeStruct(
      plan.shapes[p].shape, plan.shapes[p].dtype, sharding=sharding
    )
    for p in paths
  }
  file = weights_dir.component_file(out, "fusion")
  with weights.Writer(file, plan.shapes) as writer:
    for part in _parts(targets):
      for path, array in sorted(source.read(part).items()):
        writer.write(path, None, array)
        digest.update(path.encode() + jax.device_get(array).tobytes())
    writer.metadata["digest"] = digest.hexdigest()
  return digest.hexdigest()


def _parts(targets: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """The parameters in groups that fit the memory, sorted."""
  part: dict[str, Any] = {}
  size = 0
  for path in sorted(targets):
    target = targets[path]
    bytes_ = target.size * target.dtype.itemsize
    if part and size + bytes_ > _AT_ONCE:
      yield part
      part, size = {}, 0
    part[path], size = target, size + bytes_
  yield part


def _advice(text: str) -> dict[str, Any]:
  """Advice from the JSON of a flag."""
  try:
    found = json.loads(text or "{}")
  except ValueError as error:
    raise ValueError(f"--sampling={text} is not JSON: {error}") from error
  if not isinstance(found, dict):
    raise ValueError(f"--sampling: expected an object, got {text}")
  return found


FLAGS = flags.FLAGS


def main() -> None:
  cli.require_flags(FLAGS, workdir="DIR", out="DIR")
  if FLAGS.out.endswith(".safetensors"):
    export_lora(
      FLAGS.workdir,
      FLAGS.out,
      FLAGS.step,
      FLAGS.ema,
      FLAGS.format,
      jnp.dtype(FLAGS.dtype),
      FLAGS.trigger_words,
    )
    print(f"wrote {FLAGS.out}")
    return
  export(
    FLAGS.workdir,
    FLAGS.out,
    FLAGS.pretrained or None,
    FLAGS.step,
    FLAGS.ema,
    jnp.dtype(FLAGS.dtype),
    _advice(FLAGS.sampling),
  )
  print(f"wrote {FLAGS.out}; next:")
  quoted = shlex.quote(FLAGS.out)
  sample = cli.invocation("ovi-sample")
  print(f'  {sample} --weights={quoted} --prompt="…"')


if __name__ == "__main__":
  flags.DEFINE_string("workdir", "", "Directory of the run.")
  flags.DEFINE_string("out", "", "Output directory, without weights yet.")
  flags.DEFINE_string(
    "pretrained",
    "",
    "Weights with text encoder and codecs; default: those of the run.",
  )
  flags.DEFINE_integer("step", None, "Checkpoint; by default the newest.")
  flags.DEFINE_bool("ema", True, "Export the EMA parameters.")
  flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "Stored dtype of the towers."
  )
  flags.DEFINE_enum(
    "format", lora_names.COMFYUI, lora_names.FORMATS, "Format of a LoRA."
  )
  flags.DEFINE_string("trigger_words", "", "Kept in the metadata of a LoRA.")
  flags.DEFINE_string("sampling", "", "Recommended settings, as JSON.")
  cli.run(main)
