"""Sounds of the world: knocks by material and speed, beeps, spoken vowels.

Every sound is a sum of sines, so it has no part above half the sample rate.
Formants: Peterson and Barney (1952), means for men; a high voice's are a tenth
higher. Everything is float64 here and float32 when it leaves `track`.
"""

from collections.abc import Iterable

import numpy as np

from ovi_jax.synthetic.world import scene

# Hz, share and seconds of decay to 1/e of a floor's modes.
_MODES = {
  "wood": ((245, 1.0, 0.055), (515, 0.8, 0.040), (930, 0.45, 0.022)),
  "metal": (
    (870, 0.7, 0.30),
    (1960, 0.8, 0.24),
    (3140, 0.6, 0.17),
    (4730, 0.4, 0.11),
  ),
  "rubber": ((78, 1.3, 0.11), (118, 0.9, 0.08), (170, 0.3, 0.045)),
}
# Hz; each a whole number of times in a frame of the mel, 256 samples.
BEEPS = {"low": 312.5, "middle": 625.0, "high": 1250.0}
FORMANTS = {
  "ah": ((730, 1.0), (1090, 0.7), (2440, 0.12)),
  "oh": ((460, 1.0), (800, 0.35), (2410, 0.03)),
  "ee": ((280, 1.0), (2290, 0.5), (3010, 0.35)),
}
_BANDWIDTH = 90.0  # Hz, of a formant
_HIGH_TRACT = 1.1  # a high voice's formants over a low one's
_ATTACK, _RELEASE = 0.008, 0.03  # seconds, of a beep
_OPENING, _CLOSING = 0.03, 0.06  # seconds, of a vowel
_LONGEST = 1.0  # seconds that a knock is followed
_PEAK = 0.6  # of a sound of strength 1


def track(events: Iterable[scene.Event], samples: int, rate: int) -> np.ndarray:
  """The sound of events.

  Args:
    events: in any order.
    samples: of the track.
    rate: samples a second.

  Returns:
    wave_A, float32 in [-1, 1]; what rings beyond the end is cut.
  """
  wave_A = np.zeros(samples)
  for event in events:
    start = round(event.seconds * rate)
    sound_A = sound(event, rate)[: max(0, samples - start)]
    wave_A[start : start + len(sound_A)] += sound_A
  return np.clip(wave_A, -1.0, 1.0).astype(np.float32)


def sound(event: scene.Event, rate: int) -> np.ndarray:
  """The sound of one event, from its beginning."""
  match event.kind:
    case "impact":
      made = _knock(event.sound, event.tone, rate)
    case "flash":
      made = _beep(BEEPS[event.sound], event.length, rate)
    case "mouth":
      made = _vowel(event.sound, event.tone, event.length, rate)
    case _:
      raise ValueError(
        f"event kind {event.kind!r} is unknown; expected impact, flash or mouth"
      )
  return made * (_PEAK * event.strength / np.abs(made).max())


def _knock(material: str, tone: float, rate: int) -> np.ndarray:
  seconds = np.arange(int(_LONGEST * rate)) / rate
  wave = np.zeros_like(seconds)
  for hz, share, decay in _MODES[material]:
    hz *= tone
    if hz < rate / 2:
      wave += (
        share * np.exp(-seconds / decay) * np.sin(2 * np.pi * hz * seconds)
      )
  return wave


def _beep(hz: float, length: float, rate: int) -> np.ndarray:
  seconds = np.arange(int(length * rate)) / rate
  phase = 2 * np.pi * hz * seconds
  tones = np.sin(phase) + 0.3 * np.sin(2 * phase) + 0.1 * np.sin(3 * phase)
  return tones * _swell(seconds, length, _ATTACK, _RELEASE)


def _vowel(name: str, voice: float, length: float, rate: int) -> np.ndarray:
  """Harmonics of a falling voice, each as loud as the formants let it be."""
  seconds = np.arange(int(length * rate)) / rate
  hz = voice * (1.06 - 0.12 * seconds / length)
  phase = 2 * np.pi * np.cumsum(hz) / rate
  tract = _HIGH_TRACT if voice > 160 else 1.0
  wave = np.zeros_like(seconds)
  for number in range(1, int(min(4000, rate / 2 - 400) / voice)):
    gain = sum(
      share / (1 + ((number * hz - f * tract) / _BANDWIDTH) ** 2)
      for f, share in FORMANTS[name]
    )
    wave += gain * number**-0.3 * np.sin(number * phase)
  return wave * _swell(seconds, length, _OPENING, _CLOSING)


def _swell(
  seconds: np.ndarray, length: float, attack: float, release: float
) -> np.ndarray:
  """From 0 to 1 and back to 0, without a click."""
  rise = np.clip(seconds / attack, 0, 1)
  fall = np.clip((length - seconds) / release, 0, 1)
  return np.sin(np.pi / 2 * np.minimum(rise, fall)) ** 2
