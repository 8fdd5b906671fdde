"""Combine trained codecs into a directory of weights, as all commands read it.

  python -m ovi_jax.training.codecs.assemble --video=RUN --audio=RUN
    --vocoder=RUN --text=RUN --out=DIR
  python -m ovi_jax.training.codecs.assemble --video=RUN --base=WEIGHTS
    --out=DIR

Takes the EMA parameters of the newest checkpoints; any of the four runs may be
omitted. With --base, the runs' components replace those of a directory of
weights, and all others are linked. A run with `trainable=decoder` does not
change latents, so the towers stay valid; other encoders need towers that are
trained again, and the command says so.
The mean and standard deviation per channel of video latents are measured and
stored in the manifest; encoder and decoder apply them. Audio latents have no
such statistics: a gain in the last layer of the encoder scales them to unit
standard deviation (`scaled`). The towers' sizes come from a stage's config,
except those that follow from the components.
"""

import dataclasses
import hashlib
import itertools
import logging
import pathlib
import shutil
from collections.abc import Iterable
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
from ovi_jax import config_files
from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.checkpoint import workdir as workdirs
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models.video_vae import codec
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.training import init_from
from ovi_jax.training import param_filter
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import trainer
from ovi_jax.training.codecs import input as inputs
from ovi_jax.training.objectives import masked_text

_log = logging.getLogger(__name__)
# Flag -> the component that the run has trained.
RUNS = {codec.flag: name for name, codec in settings_lib.CODECS.items()}
# Component -> its name in a manifest's sizes.
_SECTIONS = {"vocoder": "bigvgan", "umt5": "t5"}
# A channel that says next to nothing is not blown up: of the mean deviation.
_LEAST = 0.05
_GAIN = "encoder/head/gain"
_TRIES = 10  # clips looked at for each that is measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """What the towers are to make, and codecs are measured on.

  Attributes:
    towers: sizes.
    latents: a video's T, H, W; `None` without that tower.
    audio: latents of a sound; likewise.
    source: clips to measure, see `inputs.open_source`.
    count: how many of them.
  """

  towers: AV[Any]
  latents: tuple[int, int, int] | None
  audio: int | None
  source: str = f"{inputs.WORLD}:1"
  count: int = 32

  @classmethod
  def from_config(
    cls, config: ml_collections.ConfigDict, source: str, count: int
  ) -> "Clip":
    """From a stage's config.

    Raises:
      ValueError: the config has no towers, or their sizes cannot be.
    """
    values = config.to_dict()
    if "model" not in values or "component" in values or count < 1:
      raise ValueError(
        "--towers: expected a stage's config such as configs/fusion.py:mini,"
        f" and --clips of 1 or more, got {count}"
      )
    towers = settings_lib.build_pair(
      values.pop("model"), "model", settings_lib.build_tower
    )
    data = values["data"]
    return cls(
      towers=towers,
      latents=tuple(data["video_buckets"][0]) if towers.video else None,
      audio=data["audio_buckets"][0] if towers.audio else None,
      source=source,
      count=count,
    )

  @classmethod
  def from_weights(cls, base: pathlib.Path, source: str, count: int) -> "Clip":
    """Of the towers and the clips of a directory of weights."""
    if count < 1:
      raise ValueError(f"--clips must be 1 or more, got {count}")
    manifest = weights_dir.manifest_of(base)
    towers, variant = manifest.architecture.fusion, manifest.geometry
    clip = manifest.architecture.clip
    size = (variant.latent_frames, 2, 2)  # only its length is read
    if clip is not None:
      size = clip.latent_frames, clip.latent_height, clip.latent_width
    return cls(
      towers=towers,
      latents=size if towers.video else None,
      audio=variant.audio_latents if towers.audio else None,
      source=source,
      count=count,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """A component as a run left it.

  Attributes:
    settings: of the run.
    sizes: in the original's form, as the run's config has them.
    params: path -> float32 array.
  """

  settings: settings_lib.CodecSettings
  sizes: Mapping[str, Any]
  params: Mapping[str, Any]

  @property
  def config(self) -> Any:
    return self.settings.model


def assemble(
  runs: Mapping[str, pathlib.Path],
  out: pathlib.Path,
  clip: Clip,
  dtype: Any = None,
  base: pathlib.Path | None = None,
) -> weights_dir.Manifest:
  """Write a directory of components.

  Args:
    runs: some of `RUNS`, to directories of runs.
    out: directory to write; must not hold weights yet.
    clip: sizes of the towers, and what is measured.
    dtype: that parameters are stored in; `None` for that of the base, or
      float32 without one.
    base: directory of weights that everything else is taken from.

  Returns:
    The manifest, also written to `out`.

  Raises:
    ValueError: a run is missing, damaged or of another component, or the
      components do not fit each other; before anything is written.
    OSError: the disk is full, or not writable.
  """
  if (out / weights_dir.MANIFEST).exists():
    raise ValueError(f"{out} holds weights already; choose another --out")
  if not runs:
    raise ValueError(f"pass at least one run: {', '.join(RUNS)}")
  found = {RUNS[name]: opened(RUNS[name], run) for name, run in runs.items()}
  kept = None if base is None else _whole(base)
  tokenizer = None
  if "umt5" in found:
    tokenizer = storage.local(found["umt5"].settings.data.tokenizer)
    if not tokenizer.is_file():
      raise ValueError(f"the text run's tokenizer {tokenizer} is no file")
  if base is not None and _decoder_alone(found):
    found["video_vae"] = _with_encoder_of(found["video_vae"], base)
  elif "video_vae" in found:
    found["video_vae"] = measured(found["video_vae"], clip)
  if "audio_vae" in found:
    found["audio_vae"] = scaled(found["audio_vae"], clip)
  manifest = _manifest(found, clip, base, kept)
  out.mkdir(parents=True, exist_ok=True)
  if base is not None:
    others = [c for c in manifest.architecture.components if c not in found]
    weights_dir.link(base, out, others)
  digests = dict(manifest.digests)
  for component, part in found.items():
    stored = dtype or _stored_dtype(base, component)
    digests[component] = write(out, component, part.params, stored)
  if tokenizer is not None:
    for name in weights_dir.TOKENIZER_FILES:  # links to those of the base
      (out / name).unlink(missing_ok=True)
    shutil.copyfile(tokenizer, out / weights_dir.TOKENIZER)
    digests["tokenizer"] = weights_dir.digest_of(out / weights_dir.TOKENIZER)
  manifest = dataclasses.replace(manifest, digests=digests)
  manifest.save(out)
  for line in _towers_to_train(found, digests):
    _log.info(line)
  return weights_dir.read(out, needs=tuple(found))


def _manifest(
  found: Mapping[str, Trained],
  clip: Clip,
  base: pathlib.Path | None,
  kept: weights_dir.Manifest | None,
) -> weights_dir.Manifest:
  """The manifest to write; the runs' digests are still missing.

  Args:
    found: the trained components.
    clip: sizes of the towers.
    base: weights that the components are added to; `None` for none.
    kept: their manifest.

  Raises:
    ValueError: the components do not fit each other, or the base.
  """
  if kept is None:
    manifest = weights_dir.Manifest(
      variant=None,
      sizes=_sizes(found, clip),
      digests={},
      version=ovi_jax.__version__,
    )
  else:
    sizes = {**kept.sizes, **_sections(found)}
    manifest = dataclasses.replace(
      kept, sizes=sizes, version=ovi_jax.__version__
    )
  if problems := manifest.architecture.misfits:
    raise ValueError(
      f"the runs do not fit {base or 'each other'}: {'; '.join(problems)}"
    )
  return manifest


def _whole(base: pathlib.Path) -> weights_dir.Manifest:
  """The manifest of weights, all of whose components are there."""
  manifest = weights_dir.manifest_of(base)
  present = manifest.architecture.components
  needs = tuple(c for c in present if c in manifest.digests)
  return weights_dir.read(base, needs=needs)


def _stored_dtype(base: pathlib.Path | None, component: str) -> Any:
  """What a component is stored in by default."""
  if base is None or not weights_dir.component_file(base, component).is_file():
    return jnp.float32
  shapes = weights.shapes(weights_dir.component_file(base, component))
  found = {shape.dtype for shape in shapes.values()}
  return found.pop() if len(found) == 1 else jnp.float32


def _decoder_alone(found: Mapping[str, Trained]) -> bool:
  """Whether a run trained the video's decoder, its encoder frozen."""
  video = found.get("video_vae")
  return video is not None and video.settings.trainable == param_filter.DECODER


def _with_encoder_of(video: Trained, base: pathlib.Path) -> Trained:
  """A trained decoder beside the encoder, and its sizes, of the weights.

  Raises:
    ValueError: the run did not begin with these weights.
  """
  file = weights_dir.component_file(base, "video_vae")
  shapes, read = weights.shapes(file), weights.slices(file)
  different = []
  for path in sorted(video.params.keys() | shapes.keys()):
    ours, theirs = video.params.get(path), shapes.get(path)
    if ours is None or theirs is None or ours.shape != theirs.shape:
      different.append(path)
    elif not path.startswith("decoder/"):
      stored = np.asarray(ours).astype(theirs.dtype)
      if not np.array_equal(stored, np.asarray(read(path, None))):
        different.append(path)
  if different:
    raise ValueError(
      "the run of the video's decoder did not begin with the weights in"
      f" {base}: they differ in {', '.join(different[:3])} and {len(different)}"
      " parameters in all"
    )
  sizes = weights_dir.manifest_of(base).sizes["video_vae"]
  return dataclasses.replace(video, sizes=sizes)


def _towers_to_train(
  found: Mapping[str, Trained], digests: Mapping[str, str]
) -> list[str]:
  """What of the base's towers does not know the new components."""
  if "fusion" not in digests:
    return []
  changed = [c for c in ("video_vae", "audio_vae", "umt5") if c in found]
  if _decoder_alone(found):
    changed.remove("video_vae")
  return [
    f"note: the towers were trained with another {component}; train them on"
    " from these weights before sampling (--config=fine_tune:WEIGHTS)"
    for component in changed
  ]


def opened(component: str, run: pathlib.Path) -> Trained:
  """Read a component's EMA parameters from a run.

  Raises:
    ValueError: there is no such run, it trained something else, or it has no
      checkpoint that is whole.
  """
  values = workdirs.read_config(run)
  if values.get("component") != component:
    raise ValueError(
      f"{run} trained {values.get('component', 'towers')!r}, expected"
      f" {component!r}"
    )
  config = ml_collections.ConfigDict(values)
  settings = settings_lib.CodecSettings.from_config(config)
  shapes = param_filter.flat(
    architecture.parameter_shapes(component, settings.model)
  )
  source = init_from.Source(
    path=str(run / trainer.CHECKPOINTS),
    include=(".*",),
    exclude=(rf"{masked_text.HEAD}/.*",),
  )
  plan = init_from.plan(
    {p: jax.ShapeDtypeStruct(x.shape, jnp.float32) for p, x in shapes.items()},
    [source],
  )
  place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  params = init_from.load(plan, lambda _: {}, 0, place)
  objective = settings.make_objective("cpu")
  if hasattr(objective, "exported"):
    params = param_filter.flat(objective.exported(param_filter.nested(params)))
  return Trained(settings=settings, sizes=values["model"], params=params)


def measured(video: Trained, clip: Clip) -> Trained:
  """The video autoencoder with the mean and deviation of its latents."""
  if clip.latents is None:
    raise ValueError("--towers has no video tower; use a config that has one")
  frames = 1 + geometry.VIDEO_STRIDES[0] * (clip.latents[0] - 1)
  encode = jax.jit(codec.encode_whole, static_argnums=0)
  params = param_filter.nested(video.params)

  def latents() -> Iterator[np.ndarray]:
    for crop in _crops(clip, inputs.ClipSpec(frames=frames)):
      frames_BTHWC = jnp.asarray(crop.frames_THWC)[None]
      mean_BTHWC, _ = encode(video.config, params, frames_BTHWC)
      yield np.asarray(mean_BTHWC)

  mean_C, deviation_C = statistics(latents())
  least = _LEAST * np.sqrt(np.square(deviation_C).mean())
  figures = {
    "latent_mean": mean_C.round(4).tolist(),
    "latent_std": np.maximum(deviation_C, least).round(4).tolist(),
  }
  return dataclasses.replace(video, sizes={**video.sizes, **figures})


def scaled(audio: Trained, clip: Clip) -> Trained:
  """The audio VAE with latents of unit deviation, all channels together.

  One scale for all is the gain of the encoder's last layer, which files of the
  original's have too; the decoder divides by the size of what it is given
  before anything else (to 1e-4), and stays as it is.
  """
  if clip.audio is None:
    raise ValueError("--towers has no audio tower; use a config that has one")
  samples = clip.audio * geometry.SAMPLES_PER_AUDIO_LATENT
  encoder = param_filter.nested(audio.params)

  def latents() -> Iterator[np.ndarray]:
    for crop in _crops(clip, inputs.ClipSpec(samples=samples)):
      wave_BA = jnp.asarray(crop.wave_A)[None]
      yield np.asarray(encoders.encode_audio(audio.config, encoder, wave_BA))

  _, deviation_C = statistics(latents())
  scale = 1 / float(np.sqrt(np.square(deviation_C).mean()))
  gain = (1 + audio.params[_GAIN]) * scale - 1
  return dataclasses.replace(audio, params={**audio.params, _GAIN: gain})


def statistics(latents: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation of every channel (the last axis), float64.

  Raises:
    ValueError: they are not finite, or constant.
  """
  count, total, square = 0, np.zeros(()), np.zeros(())
  for array in latents:
    rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
    count += len(rows)
    total = total + rows.sum(0)
    square = square + np.square(rows).sum(0)
  mean_C = total / count
  deviation_C = np.sqrt(np.maximum(square / count - np.square(mean_C), 0))
  if not (np.isfinite(deviation_C).all() and deviation_C.any()):
    raise ValueError(
      "latents are constant or not finite: the encoder collapsed; train again"
      " with a lower learning rate"
    )
  return mean_C, deviation_C


def _crops(clip: Clip, wanted: inputs.ClipSpec) -> Iterator[inputs.Crop]:
  """The first clips of the source that have what is wanted, whole."""
  source, start = (
    inputs.open_source(clip.source, "test"),
    inputs.CropPosition(0, 0, 0),
  )
  some = range(min(len(source), _TRIES * clip.count))
  found = (source.crop(n, wanted, start) for n in some)
  whole = list(itertools.islice(filter(None, found), clip.count))
  if not whole:
    raise ValueError(
      f"no clip of {clip.source} has all of {wanted}; name another --measure"
    )
  return iter(whole)


def _sizes(found: Mapping[str, Trained], clip: Clip) -> dict[str, Any]:
  """The manifest's sizes; towers read what the components give."""
  sizes: dict[str, Any] = _sections(found)
  towers = {}
  channels = {
    "video": ("video_vae", "z_dim"),
    "audio": ("audio_vae", "embed_dim"),
  }
  for name, tower in clip.towers.present().items():
    component, field = channels[name]
    follows = {}
    if component in found:
      follows["channels"] = getattr(found[component].config, field)
    if "umt5" in found:
      follows["text_dim"] = found["umt5"].config.dim
    towers[name] = dataclasses.replace(tower, **follows).to_release()
  sizes["fusion"] = towers
  if clip.latents and clip.audio:
    sizes["latents"] = dict(zip("THWA", (*clip.latents, clip.audio)))
  return sizes


def _sections(found: Mapping[str, Trained]) -> dict[str, Any]:
  """Sizes of the components as a manifest has them."""
  return {
    _SECTIONS.get(component, component): dict(part.sizes)
    for component, part in found.items()
  }


def write(
  out: pathlib.Path, component: str, params: Mapping[str, Any], dtype: Any
) -> str:
  """Write a component's file into a directory; returns its digest."""
  arrays = {
    path: np.asarray(params[path]).astype(dtype) for path in sorted(params)
  }
  digest = hashlib.sha256()
  shapes = {
    p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in arrays.items()
  }
  file = weights_dir.component_file(out, component)
  with weights.Writer(file, shapes) as writer:
    for path, array in arrays.items():
      writer.write(path, None, array)
      digest.update(path.encode() + array.tobytes())
    writer.metadata["digest"] = digest.hexdigest()
  return digest.hexdigest()


def main() -> None:
  given = flags.FLAGS
  if not given.out or given.towers is None:
    raise ValueError("--out=DIR and --towers=configs/STAGE.py are needed")
  paths = {name: str(given[name].value or "") for name in RUNS}
  runs = {name: storage.local(p) for name, p in paths.items() if p}
  base = storage.local(given.base) if given.base else None
  if base is None:
    clip = Clip.from_config(given.towers, given.measure, given.clips)
  else:
    clip = Clip.from_weights(base, given.measure, given.clips)
  dtype = jnp.dtype(given.dtype) if given.dtype else None
  manifest = assemble(runs, storage.local(given.out), clip, dtype, base)
  print(f"wrote {', '.join(sorted(manifest.digests))} to {given.out}")


if __name__ == "__main__":
  for name, component in RUNS.items():
    flags.DEFINE_string(name, "", f"Run of {component}.")
  flags.DEFINE_string("base", "", "Weights whose components are replaced.")
  flags.DEFINE_string("out", "", "Directory to write.")
  flags.DEFINE_string(
    "measure", Clip.source, "Clips whose latents are measured."
  )
  flags.DEFINE_integer("clips", Clip.count, "How many of them.")
  flags.DEFINE_enum(
    "dtype",
    None,
    ("float32", "bfloat16"),
    "That weights are stored in; that of the base, or float32, if none.",
  )
  config_files.define("towers", "fusion:mini")
  cli.run(main)
