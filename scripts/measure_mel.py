"""Print the mean and standard deviation of mel bins over some clips.

  python -m scripts.measure_mel --source=world:0

For `mel_mean` and `mel_std` of `configs/codec_audio.py`.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from absl import flags

from ovi_jax import cli
from ovi_jax.training.codecs import input as inputs
from ovi_jax.training.objectives import audio_vae

FLAGS = flags.FLAGS
_START = inputs.CropPosition(0.0, 0.0, 0.0)


def waves(source: inputs.Source, samples: int) -> Iterator[np.ndarray]:
  """The first `samples` of every clip whose sound is that long."""
  wanted = inputs.ClipSpec(samples=samples)
  for number in range(len(source)):
    crop = source.crop(number, wanted, _START)
    if crop is not None and crop.wave_A is not None:
      yield crop.wave_A


def main() -> None:
  source = inputs.open_source(FLAGS.source, FLAGS.split)
  some = itertools.islice(waves(source, FLAGS.samples), FLAGS.clips)
  mean, deviation = audio_vae.measure_mel(some)
  for name, figures in (("MEAN", mean), ("DEVIATION", deviation)):
    print(f"MEL_{name} = (")
    for row in np.array_split(figures, len(figures) // 8):
      print("  " + ", ".join(f"{figure:.4f}" for figure in row) + ",")
    print(")")


if __name__ == "__main__":
  flags.DEFINE_string("source", "world:0", "See `inputs.open_source`.")
  flags.DEFINE_string("split", "train", "Of a dataset.")
  flags.DEFINE_integer("clips", 500, "Sounds that are measured.")
  flags.DEFINE_integer("samples", 157 * 512, "Of each sound.")
  cli.run(main)
