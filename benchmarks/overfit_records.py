"""The generated clips as datasets of latents, for each stage its own."""

import pathlib

from benchmarks import overfit_codec
from benchmarks import overfit_data
from ovi_jax import geometry
from ovi_jax.data import builder
from ovi_jax.data import schema
from ovi_jax.modality import AV

# Dataset -> the set of clips it is made of. "sounds_a" has no video, and half
# of its sounds are cut short: audio pretraining has buckets of lengths.
SETS = {"sounds_a": 0, "clips_a": 0, "clips_b": 1}
SHORT = 93  # audio latents, 2.98 s
EMPTY = (-1, 0)  # see `overfit_data.text`


def frames(small: bool) -> int:
  """Frames of a clip."""
  return 13 if small else overfit_data.FRAMES


def length(place: int, clip: overfit_data.Clip, dataset: str) -> int:
  """Audio latents of a clip in a dataset."""
  whole = len(clip.log_mel) // geometry.MELS_PER_AUDIO_LATENT
  cut = dataset == "sounds_a" and place % 4 > 1
  return min(SHORT, 3 * whole // 5) if cut else whole


def write(path: pathlib.Path, small: bool, width: int) -> None:
  """Write the datasets that are not there yet, and the codec they are in.

  Args:
    path: folder of the datasets.
    small: shorter clips.
    width: of the text embeddings.
  """
  sets = [overfit_data.clips(n, frames(small)) for n in (0, 1)]
  codec = overfit_codec.Codec.load(path, [*sets[0], *sets[1]])
  for name, number in SETS.items():
    if (path / name).exists():
      continue
    builder.write(
      path / name,
      {
        "train": [
          _record(codec, clip, name, place, width)
          for place, clip in enumerate(sets[number])
        ]
      },
      geometry=schema.Geometry(text_dim=width),
      null_text=overfit_data.text(*EMPTY, width),
    )


def _record(
  codec: overfit_codec.Codec,
  clip: overfit_data.Clip,
  dataset: str,
  place: int,
  width: int,
) -> schema.Record:
  """A clip as latents, its caption as numbers."""
  audio_TC = codec.encode_audio(clip.log_mel)[: length(place, clip, dataset)]
  video_THWC = None
  if dataset != "sounds_a":
    video_THWC = codec.encode_video(clip.frames)
  return schema.Record(
    id=f"{dataset}-{place}",
    source="generated",
    captions=(clip.scene.caption,),
    latents=AV(video_THWC, audio_TC),
    text=(overfit_data.text(SETS[dataset], place, width),),
  )
