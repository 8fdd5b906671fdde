"""What the codecs of a directory of weights lose, on clips of the world."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import decoders
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import mesh as meshes
from ovi_jax.synthetic.evaluation import codecs
from ovi_jax.synthetic.world import world

NEEDS = ("video_vae", "audio_vae", "vocoder")
VIDEO, AUDIO = "video PSNR, dB", "log-mel error of sounds, dB"


def losses(
  weights: storage.AnyPath, count: int, seed: int
) -> Mapping[str, codecs.Loss]:
  """Encode and decode whole clips, and measure what is lost.

  Args:
    weights: directory with the codecs, of square clips.
    count: of clips with picture and sound.
    seed: of the world that they are of.

  Raises:
    ValueError: the count is not positive, or the weights are missing, damaged,
      or of clips that are not square.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1 clip, got {count}")
  manifest = weights_dir.read(weights, needs=NEEDS)
  clip = manifest.architecture.clip
  if clip is None or clip.pixels[0] != clip.pixels[1]:
    raise ValueError(
      f"weights in {weights}: expected those of square clips, got"
      f" {clip.pixels if clip else 'none'}; the world draws no others"
    )
  components = component_loader.Components(
    weights=weights,
    manifest=manifest,
    mesh=meshes.make(jax.devices()[:1]),
    dtype=jnp.dtype("f4" if cli.platform() == "cpu" else "bfloat16"),
  )
  video = encoders.VideoEncoder.load(components)
  audio = encoders.AudioEncoder.load(components)
  decoder = decoders.Decoder.load(components)

  def pictures(frames_THWC: np.ndarray) -> np.ndarray:
    latents = video.encode(frames_THWC[None])
    return np.concatenate(list(decoder.frames(latents)))

  def sounds(wave_A: np.ndarray) -> np.ndarray:
    return decoder.wave(audio.encode(wave_A[None]))

  clips = world.World(
    seed=seed, size=clip.pixels[0], frames=clip.frames, complete=True
  )

  # A complete clip has both; only what is measured is rendered.
  frames: Any = (clips.clip(n, sound=False).frames_THWC for n in range(count))
  tracks: Any = (clips.clip(n, slice(0, 1)).wave_A for n in range(count))
  waves = (wave_A[: clip.samples].astype(np.float32) for wave_A in tracks)
  return {
    VIDEO: codecs.psnr_of(pictures, frames),
    AUDIO: codecs.log_mel_error_of(sounds, waves),
  }


def markdown(found: Mapping[str, codecs.Loss]) -> str:
  """The losses as a table."""
  lines = ["| codec | mean | worst clip | clips |", "|---|---|---|---|"]
  lines += [
    f"| {name} | {loss.mean:.2f} | {loss.worst:.2f} | {loss.clips} |"
    for name, loss in found.items()
  ]
  return "\n".join(lines) + "\n"
