"""Detects sounds of the synthetic world in audio: time and kind.

Each sound's spectrum in its first moments is held against those of all sounds
that the world makes, at all tones and voices; the nearest names it. float64.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ovi_jax.evaluation import onsets
from ovi_jax.synthetic.world import faces
from ovi_jax.synthetic.world import lamps
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import sounds

_FROM, _LONGEST = 0.005, 0.22  # seconds after a beginning that are heard
_SHORTEST = 0.03  # seconds that say anything
_LOW, _BANDS_AN_OCTAVE, _BANDS = 60.0, 6, 42  # Hz
_RANGE = 25.0  # dB below the loudest band that count
# Seconds from a beginning to where it is found: it swells up.
_LATE = {scene.BALL: -0.002, scene.LAMP: 0.003, scene.FACE: 0.015}
_TONES = np.arange(0.86, 1.24, 0.03)  # of knocks
_VOICES = {"low": range(100, 138, 4), "high": range(186, 252, 6)}  # Hz
_EVENTS = {scene.BALL: "impact", scene.LAMP: "flash", scene.FACE: "mouth"}


class Sound(NamedTuple):
  """A sound of the world.

  Attributes:
    kind: of `scene.KINDS`: what makes it.
    name: of `scene.MATERIALS`, `scene.PITCHES` or `scene.VOWELS`.
    voice: of `scene.VOICES` for a vowel, else `None`.
  """

  kind: str
  name: str
  voice: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectedSound:
  """A sound that was heard, and when it began."""

  seconds: float
  sound: Sound


def listen(
  wave_A: np.ndarray | None, rate: int, kind: str | None = None
) -> tuple[DetectedSound, ...]:
  """Hear what a clip sounds.

  Args:
    wave_A: mono, in [-1, 1]; `None` for a silent film.
    rate: samples a second.
    kind: of the scene, if that is to be known; else any sound may be heard.
  """
  if wave_A is None:
    return ()
  begins = onsets.times(wave_A, rate)
  ends = [*begins[1:], len(wave_A) / rate]
  found = []
  for begin, end in zip(begins, ends):
    sound = _nearest(_spectrum(wave_A, rate, begin, end), rate, kind)
    found.append(DetectedSound(seconds=begin - _LATE[sound.kind], sound=sound))
  return tuple(found)


def usual(detected: Iterable[DetectedSound]) -> Sound | None:
  """Kind, and material, pitch or voice, of most sounds; of a voice no vowel."""
  counts: collections.Counter[Sound] = collections.Counter()
  for each in detected:
    sound = each.sound
    if sound.kind == scene.FACE:
      sound = sound._replace(name="")
    counts[sound] += 1
  return max(counts, key=lambda sound: counts[sound], default=None)


def _spectrum(
  wave_A: np.ndarray, rate: int, begin: float, end: float
) -> np.ndarray:
  """Loudness by band of a sound, dB above what counts, of length 1."""
  end = max(min(end, begin + _LONGEST), begin + _SHORTEST)
  first = max(0, round((begin + _FROM) * rate))
  part_A = wave_A[first : round(end * rate)]
  size = int(rate // 4)
  fade = np.minimum(1, np.arange(len(part_A), 0, -1) / (0.02 * rate))
  power = np.abs(np.fft.rfft(part_A * fade, size)) ** 2
  edges = _LOW * 2 ** (np.arange(_BANDS + 1) / _BANDS_AN_OCTAVE)
  bins = np.searchsorted(np.fft.rfftfreq(size, 1 / rate), edges)
  band_B = np.array(
    [power[a : max(b, a + 1)].sum() for a, b in itertools.pairwise(bins)]
  )
  loud_B = 10 * np.log10(band_B / max(band_B.max(), 1e-12) + 1e-12)
  loud_B = np.maximum(loud_B + _RANGE, 0)
  return loud_B / max(np.linalg.norm(loud_B), 1e-12)


def _nearest(spectrum_B: np.ndarray, rate: int, kind: str | None) -> Sound:
  names, known_NB = _known(rate)
  like_N = known_NB @ spectrum_B
  if kind is not None:
    like_N = np.where([name.kind == kind for name in names], like_N, -1)
  return names[int(like_N.argmax())]


@functools.cache
def _known(rate: int) -> tuple[list[Sound], np.ndarray]:
  """All sounds of the world and their spectra [N, bands]."""
  names, spectra = [], []
  for sound, tone, length in _repertoire():
    event = scene.Event(
      seconds=0.0,
      kind=_EVENTS[sound.kind],
      row=0.5,
      column=0.5,
      sound=sound.name,
      length=length,
      tone=tone,
    )
    wave_A = sounds.sound(event, rate)
    begin = _LATE[sound.kind]
    names.append(sound)
    spectra.append(_spectrum(wave_A, rate, begin, len(wave_A) / rate))
  return names, np.stack(spectra)


def _repertoire():
  """Every sound with its tone and length in seconds."""
  for material in scene.MATERIALS:
    for tone in _TONES:
      yield Sound(scene.BALL, material), float(tone), 0.0
  for pitch in scene.PITCHES:
    yield Sound(scene.LAMP, pitch), 1.0, lamps.FLASH
  for vowel in scene.VOWELS:
    for voice, tones in _VOICES.items():
      for hz in tones:
        yield Sound(scene.FACE, vowel, voice), float(hz), faces.VOWEL
