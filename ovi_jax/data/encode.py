"""Compute the latents and text embeddings of a dataset once, for training.

  python -m ovi_jax.data.encode --data=DIR --weights=DIR --out=DIR

Writes a new dataset, without mp4 and PCM unless --keep_media is given. After an
interruption, run the same command again. Hosts that share a disk can divide the
work: each runs the command with --process=I --num_processes=N, and the last to
finish completes the dataset. Before encoding, the fraction of unknown words and
the error of the codecs are measured on a few records and printed. Beyond a
limit the command stops, unless --force is given. If memory is short, encode in
two passes: captions (--modalities=text), then the media of that output
(--modalities=video,audio).
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from ovi_jax import cli
from ovi_jax import config as config_lib
from ovi_jax import console
from ovi_jax import files
from ovi_jax import storage
from ovi_jax.data import builder
from ovi_jax.data import encoding
from ovi_jax.data import features
from ovi_jax.data import quality
from ovi_jax.data import schema
from ovi_jax.data import shards
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import mesh as meshes

RECIPE = "encoding.json"
_MEASURED = f".{quality.FILE}"  # until the dataset is whole
_LIMITS = {  # help of the flags
  "max_unknown_words": "Maximum fraction of words that the tokenizer does not"
  " know, in [0, 1].",
  "min_codec_psnr": "Minimum PSNR of the video VAE, dB; 0: no limit.",
  "max_codec_mel_error": "Maximum log-mel error of audio VAE and vocoder, dB;"
  " 0: no limit.",
}
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """Settings of encoding a dataset.

  Attributes:
    data: dataset to read, see `builder`.
    weights: directory of converted weights with the encoders.
    out: dataset to write.
    modalities: of `encoding.MODALITIES`; others of a record are kept.
    keep_media: keep mp4 and PCM beside the latents.
    batch_size: clips per batch on each device.
    dtype: compute dtype; "auto" is bfloat16 on accelerators, float32 on CPUs.
    storage_dtype: dtype of the stored arrays, see `builder.write`.
    records_per_shard: records of a file; a crash repeats at most one shard.
    process: index of this process, from 0.
    num_processes: number of processes that divide the shards.
    limits: limits of unknown words and codec errors; `None` measures neither.
    force: encode even if a limit is exceeded.
  """

  data: storage.AnyPath
  weights: storage.AnyPath
  out: storage.AnyPath
  modalities: tuple[str, ...] = encoding.MODALITIES
  keep_media: bool = False
  batch_size: int = 1
  dtype: str = "auto"
  storage_dtype: str = "float16"
  records_per_shard: int = 64
  process: int = 0
  num_processes: int = 1
  limits: quality.Limits | None = None
  force: bool = False

  def __post_init__(self):
    config_lib.check_types(type(self), vars(self), "")
    problems = [
      f"modalities: expected some of {', '.join(encoding.MODALITIES)}, got"
      f" {name!r}"
      for name in self.modalities or ("",)
      if name not in encoding.MODALITIES
    ]
    problems += config_lib.below(
      self, 1, "batch_size", "records_per_shard", "num_processes"
    )
    for name, known in (
      ("dtype", config_lib.DTYPES),
      ("storage_dtype", tuple(features.DTYPES)),
    ):
      problems += config_lib.invalid_choice(name, getattr(self, name), known)
    if not 0 <= self.process < self.num_processes:
      problems.append(
        f"process {self.process} is out of range for {self.num_processes}"
        " processes (indices begin at 0)"
      )
    config_lib.check(problems, "")

  @property
  def folder(self) -> pathlib.Path:
    """The folder of finished shards of an unfinished dataset.

    It is beside `out`, or in the current folder for one in an object store.
    """
    if not isinstance(self.out, pathlib.Path):
      return pathlib.Path(f".{self.out.name}.encoding")
    return self.out.with_name(f".{self.out.name}.encoding")


def run(job: Job) -> bool:
  """Encode this process's shards.

  Args:
    job: what to do.

  Returns:
    Whether the dataset is whole; `False` if other processes have still to
    write shards.

  Raises:
    ValueError: dataset or weights are missing, damaged or do not fit, or
      something else stands under `out`; before weights are loaded. A record is
      damaged: what was encoded before it stays.
    OSError: the disk is full, or a folder is not writable.
  """
  splits = {n: builder.read(job.data, n) for n in builder.splits(job.data)}
  needs = tuple(encoding.COMPONENTS[part] for part in job.modalities)
  manifest = weights_dir.read(job.weights, needs=needs)
  recipe = _recipe(job, manifest)
  if storage.is_remote(job.out):
    storage.check_access(storage.path(job.out))
  if shards.is_published(job.out):
    _check_recipe(job.out, recipe, f"choose another place than {job.out}")
    builder.check(job.out)
    _log.info(f"already encoded: {job.out}")
    return True
  components = _components(job, manifest)
  measured = _measured(job, components, list(splits.values()))
  job.folder.mkdir(parents=True, exist_ok=True)
  _keep_recipe(job.folder, recipe)
  if measured is not None:
    measured.save(job.folder / _MEASURED)
  counts = {
    name: -(-len(split) // job.records_per_shard)
    for name, split in splits.items()
  }
  places = [(name, i) for name, count in counts.items() for i in range(count)]
  mine = [
    (name, i)
    for name, i in places[job.process :: job.num_processes]
    if not shards.is_written(job.folder, name, i, counts[name])
  ]
  sizes = _geometry(splits, manifest, job.modalities)
  null_SE = _null_text(job, components, splits)
  if mine:
    _encode(job, components, splits, mine, sizes)
  with _alone(job.folder / RECIPE) as there:
    if not there:
      return True
    left = [
      (name, i)
      for name, i in places
      if not shards.is_written(job.folder, name, i, counts[name])
    ]
    if left:
      _log.info(
        f"{len(left)} of {len(places)} shards are left to other processes"
      )
      return False
    shards.finish(job.folder, counts, sizes, null_SE)
    shards.publish(job.folder, job.out)
    shutil.rmtree(job.folder, ignore_errors=True)  # what was uploaded
    if measured is not None:
      measured.save(job.out / quality.FILE)
  _log.info(f"wrote {job.out}: {sum(map(len, splits.values()))} records")
  return True


def _components(
  job: Job, manifest: weights_dir.Manifest
) -> component_loader.Components:
  """The encoders' place: all devices of this process."""
  devices = jax.local_devices()
  return component_loader.Components(
    weights=job.weights,
    manifest=manifest,
    mesh=meshes.make(devices, fsdp=len(devices)),
    dtype=config_lib.resolve_dtype(job.dtype, cli.platform()),
  )


def _measured(
  job: Job,
  components: component_loader.Components,
  splits: list[builder.Split],
) -> quality.Quality | None:
  """Log unknown words and codec errors; ValueError beyond the limits.

  What an earlier start measured is read again, if it had the same recipe.
  """
  if job.limits is None:
    return None
  found = quality.Quality.read(job.folder / _MEASURED)
  if found is None:
    _log.info("measuring tokenizer and codecs on a few records …")
    present = components.manifest.digests
    parts = [p for p in ("video", "audio") if p in job.modalities]
    if "vocoder" not in present and "audio" in parts:
      parts.remove("audio")  # nothing makes sound of its mels
    found = quality.reconstruction(components, splits, parts)
    if "text" in job.modalities:
      covered = quality.coverage(
        components.tokenizer(),
        quality.captions_of(splits),
        components.text_length,
      )
      found = dataclasses.replace(found, coverage=covered)
  for line in found.lines():
    _log.info(line)
  found = dataclasses.replace(found, accepted=job.force)
  found.check(
    job.limits,
    "Use weights whose tokenizer and codecs suit the data"
    " (docs/how_to/train_codecs.md), or encode anyway with --force",
  )
  return found


def _geometry(
  splits: dict[str, builder.Split],
  manifest: weights_dir.Manifest,
  modalities: tuple[str, ...],
) -> schema.Geometry:
  """The geometry of the output dataset."""
  arch, sizes = manifest.architecture, next(iter(splits.values())).geometry
  made: dict[str, Any] = {}
  if "text" in modalities:
    made["text_dim"] = arch.umt5.dim
  if "video" in modalities:
    made["video_channels"] = arch.video_vae.z_dim
  if "audio" in modalities:
    made["audio_channels"] = arch.audio_vae.embed_dim
  return dataclasses.replace(sizes, **made)


def _null_text(
  job: Job,
  components: component_loader.Components,
  splits: dict[str, builder.Split],
) -> np.ndarray | None:
  """The empty prompt's embedding; encoded once, kept beside the shards."""
  if "text" not in job.modalities:
    kept = next(iter(splits.values())).null_text
    return kept if len(kept) else None
  path = job.folder / ".null_text.npy"
  if not path.exists():
    null_SE = encoders.TextEncoder.load(components).texts([""])[""]
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
      np.save(file, np.asarray(null_SE, np.float32))
  return np.load(path)


def _encode(
  job: Job,
  components: component_loader.Components,
  splits: dict[str, builder.Split],
  mine: list[tuple[str, int]],
  sizes: schema.Geometry,
) -> None:
  """Write the shards of this process, one after the other."""
  batch = job.batch_size * components.mesh.size
  encoder = encoding.RecordEncoder.load(components, job.modalities, batch)
  each = job.records_per_shard
  total = sum(min(each, len(splits[n]) - i * each) for n, i in mine)
  with console.progress(total=total, unit="clip", desc="encoding") as bar:
    for name, number in mine:
      split = splits[name]
      end = min((number + 1) * each, len(split))
      records = encoder([split[i] for i in range(number * each, end)])
      if not job.keep_media:
        records = [_without_media(record) for record in records]
      shards.write(job.folder, name, number, records, sizes, job.storage_dtype)
      bar.update(len(records))


def _without_media(record: schema.Record) -> schema.Record:
  """The record without the media that its latents stand for."""
  dropped: dict[str, Any] = {
    name: None
    for name, latents in record.latents._asdict().items()
    if latents is not None
  }
  return dataclasses.replace(record, **dropped)


def _recipe(job: Job, manifest: weights_dir.Manifest) -> dict[str, Any]:
  """The settings that determine the output dataset, as JSON."""
  digest = storage.sha256(job.data / builder.METADATA)
  needs = sorted(encoding.COMPONENTS[part] for part in job.modalities)
  return {
    "data": digest,
    "weights": {name: manifest.digests.get(name) for name in needs},
    "modalities": sorted(job.modalities),
    "keep_media": job.keep_media,
    "dtype": job.dtype,
    "storage_dtype": job.storage_dtype,
    "records_per_shard": job.records_per_shard,
  }


def _keep_recipe(folder: pathlib.Path, recipe: dict[str, Any]) -> None:
  """Say what the shards of a folder are; ValueError if they are others."""
  if (folder / RECIPE).exists():
    _check_recipe(folder, recipe, f"or remove {folder} to start again")
    return
  with files.atomic_path(folder / RECIPE) as temporary:
    temporary.write_text(json.dumps(recipe, indent=1))


def _check_recipe(
  folder: storage.AnyPath, recipe: dict[str, Any], advice: str
) -> None:
  """ValueError unless what is in the folder was made by this recipe."""
  try:
    found = dict(storage.read_json(folder / RECIPE))
  except (OSError, TypeError, ValueError) as error:
    raise ValueError(
      f"{folder} is there and was not made by this command ({error}); {advice}"
    ) from error
  different = [name for name in recipe if found.get(name) != recipe[name]]
  if different:
    raise ValueError(
      f"{folder} was encoded from other data or otherwise"
      f" ({', '.join(different)} differ); encode as before, {advice}"
    )


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[bool]:
  """Hold a lock on a file; False if another process made the dataset of it."""
  try:
    file = open(path)  # noqa: SIM115
  except FileNotFoundError:
    yield False
    return
  with file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield path.exists()


FLAGS = flags.FLAGS


def _define_flags() -> None:
  """The fields of `Job`."""
  flags.DEFINE_string("data", "", "Dataset to read.")
  flags.DEFINE_string("weights", "", "Directory of converted weights.")
  flags.DEFINE_string("out", "", "Dataset to write.")
  flags.DEFINE_list(
    "modalities", list(encoding.MODALITIES), "Modalities to encode."
  )
  flags.DEFINE_bool("keep_media", False, "Keep mp4 and PCM in the new dataset.")
  flags.DEFINE_integer("batch_size", 1, "Clips per batch on each device.")
  flags.DEFINE_string(
    "dtype", "auto", "Compute dtype: auto, float32, bfloat16."
  )
  flags.DEFINE_string(
    "storage_dtype",
    "float16",
    "Dtype of the stored arrays: float16, bfloat16.",
  )
  flags.DEFINE_integer(
    "records_per_shard", 64, "Records per file of the dataset."
  )
  for name, limit in dataclasses.asdict(quality.Limits()).items():
    flags.DEFINE_float(name, limit, _LIMITS[name])
  flags.DEFINE_bool("force", False, "Encode even if a limit is exceeded.")
  flags.DEFINE_integer("process", 0, "Index of this process, from 0.")
  flags.DEFINE_integer(
    "num_processes", 1, "Number of processes that divide the work."
  )


def main() -> None:
  cli.require_flags(FLAGS, data="DIR", weights="DIR", out="DIR")
  fields = {field.name for field in dataclasses.fields(Job)} - {"limits"}
  values: dict[str, Any] = {name: FLAGS[name].value for name in fields}
  limits: Any = {
    field.name: FLAGS[field.name].value
    for field in dataclasses.fields(quality.Limits)
  }
  values["limits"] = quality.Limits(**limits)
  values["weights"] = storage.locate(values["weights"])
  for name in ("data", "out"):
    values[name] = shards.locate(values[name])
  values["modalities"] = tuple(values["modalities"])
  if run(Job(**values)):
    train = cli.invocation("ovi-train")
    print(f"next: {train} with --config.data.sources=\"('{FLAGS.out}',)\"")


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
