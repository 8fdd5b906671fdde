"""How far two sounds are apart: their spectra, at several resolutions.

Phases are not compared: a spectrogram does not hold them. Windows are short: to
a steady spectrogram a vocoder answers with what repeats from frame to frame,
multiples of 62.5 Hz, and a long window would count a tone that is a little off
as worse than none. float32 throughout, with finite gradients for
silence and for equal sounds.

Source: multi-resolution STFT loss of Parallel WaveGAN (arXiv 1910.11480),
section 2.2, each example for itself.
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.models import mel


class Resolution(NamedTuple):
  """A window of `size` samples every `hop`, which divides it."""

  size: int
  hop: int


RESOLUTIONS = (
  Resolution(128, 32),
  Resolution(256, 64),
  Resolution(512, 128),
)
# Of a full sine 1; added before the logarithm is taken. With less than this, 40
# dB below, a network that makes a tone, but no clean one yet, does worse than
# one that is silent, and stays silent (measured).
FLOOR = 1e-2
# Root mean square of a spectrum below which errors count as of one that loud.
_QUIET = 5e-3


class Distance(NamedTuple):
  """Of each example, 0 for equal sounds.

  Attributes:
    convergence: norm of the difference of the magnitudes over the norm of the
      reference's: what is loud.
    magnitude: mean difference of log magnitudes: what is not.
  """

  convergence: jax.Array
  magnitude: jax.Array


def magnitudes(wave_BA: jax.Array, resolution: Resolution) -> jax.Array:
  """Spectrum of a sound.

  Args:
    wave_BA: in [-1, 1], whole hops, more than a window.
    resolution: of the spectrum.

  Returns:
    spectrum_BTF, float32: 1 for a full sine, one frame a hop.

  Raises:
    ValueError: the sound is too short, or hops do not divide it.
  """
  size, hop = resolution
  samples = wave_BA.shape[1]
  if samples % hop or samples < size or size % hop or (size - hop) % 2:
    raise ValueError(
      f"spectrum: expected whole hops of {hop} samples, windows of {size} or"
      f" more, got {samples}; cut longer crops"
    )
  ends = ((0, 0), ((size - hop) // 2,) * 2)
  wave_BA = jnp.pad(wave_BA.astype(jnp.float32), ends, mode="reflect")
  hops_BTA = einops.rearrange(wave_BA, "b (t a) -> b t a", a=hop)
  overlap = size // hop
  frames = hops_BTA.shape[1] - overlap + 1
  windows_BTA = jnp.concatenate(
    [hops_BTA[:, i : i + frames] for i in range(overlap)], axis=-1
  )
  hann_A = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
  hann_A = (hann_A * 4 / size).astype(np.float32)
  spectrum = jnp.fft.rfft(windows_BTA * hann_A[None, None])
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  # The root has no gradient at zero.
  return jnp.sqrt(power + 1e-10)


def distance(
  ours_BA: jax.Array,
  theirs_BA: jax.Array,
  resolutions: tuple[Resolution, ...] = RESOLUTIONS,
) -> Distance:
  """Compare sounds: the mean over resolutions.

  Args:
    ours_BA: in [-1, 1]; gets the gradient.
    theirs_BA: the reference.
    resolutions: of the spectra.
  """
  parts = [
    _at(magnitudes(ours_BA, r), magnitudes(theirs_BA, r)) for r in resolutions
  ]
  return Distance(*(jnp.stack(part).mean(0) for part in zip(*parts)))


def _at(ours_BTF: jax.Array, theirs_BTF: jax.Array) -> Distance:
  """The distance at one resolution."""
  error_B = _root_mean_square(ours_BTF - theirs_BTF)
  loud_B = jnp.maximum(_root_mean_square(theirs_BTF), _QUIET)
  logs = (jnp.log(x + FLOOR) for x in (ours_BTF, theirs_BTF))
  return Distance(
    error_B / jax.lax.stop_gradient(loud_B),
    jnp.abs(jnp.subtract(*logs)).mean((1, 2)),
  )


def _root_mean_square(x_BTF: jax.Array) -> jax.Array:
  """Of each example; without gradient where it is zero."""
  square_B = jnp.square(x_BTF).mean((1, 2))
  zero = square_B == 0
  return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square_B)))


def mel_distance(
  config: mel.MelConfig,
  ours_BA: jax.Array,
  theirs_BA: jax.Array,
  floor: float = -1.5,
) -> jax.Array:
  """Mean difference of the log10 mels of sounds, each example's.

  Args:
    config: of the mels.
    ours_BA: in [-1, 1]; gets the gradient.
    theirs_BA: the reference.
    floor: log10 of what is added to magnitudes; a full sine has about 10.
  """
  mels = (
    jnp.log10(10 ** mel.log_mel(config, wave) + 10**floor)
    for wave in (ours_BA, theirs_BA)
  )
  return jnp.abs(jnp.subtract(*mels)).mean((1, 2))
