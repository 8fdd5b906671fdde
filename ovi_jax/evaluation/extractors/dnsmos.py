"""DNSMOS: predicted mean opinion scores of speech (Reddy et al., 2021, 2022).

The networks and their polynomials are those of Microsoft's DNS Challenge, from
the package speechmos, of which only the two ONNX files are read; its code is
not used. The sound, mono at 16 kHz, is repeated to at least 9.01 s and scored
in windows of that length every second. Arrays: `sig`, `bak` and `ovrl` (P.835:
speech, background, overall) and `p808`; means over windows.
"""

import importlib.util
import pathlib
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.evaluation.extractors import onnx
from ovi_jax.evaluation.extractors import spectrum
from ovi_jax.media import container

RATE = 16_000
SECONDS = 9.01
_WINDOW = int(SECONDS * RATE)
# Mapping of raw outputs to opinion scores, highest power first.
POLYNOMIALS = {
  "sig": (-0.08397278, 1.22083953, 0.0052439),
  "bak": (-0.13166888, 1.60915514, -0.39604546),
  "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}
_FILES = ("sig_bak_ovr.onnx", "model_v8.onnx")
# A waveform, or a mel spectrogram, to raw scores.
Network = Callable[[np.ndarray], np.ndarray]


def dnsmos() -> features.Extractor:
  """The extractor; `missing` without speechmos or onnxruntime."""
  paths, missing = model_paths(), ""
  if paths is None:
    missing = "speechmos is missing: pip install -e '.[eval]'"
  elif importlib.util.find_spec("onnxruntime") is None:
    missing = "onnxruntime is missing: pip install -e '.[eval]'"
  return features.Extractor(
    name="dnsmos",
    version=2,
    needs=(clips.SOUND,),
    settings={"seconds": SECONDS},
    weights="+".join(map(container.digest, paths)) if paths else "",
    missing=missing,
    load=_load,
  )


def model_paths() -> tuple[pathlib.Path, pathlib.Path] | None:
  """The networks in the installed package, which is not imported."""
  found = importlib.util.find_spec("speechmos")
  if found is None or not found.origin:
    return None
  folder = pathlib.Path(found.origin).with_name("dnsmos_models")
  one, two = (folder / name for name in _FILES)
  return (one, two) if one.is_file() and two.is_file() else None


def _load() -> features.Compute:
  paths = model_paths()
  if paths is None:
    raise ValueError("DNSMOS needs speechmos: pip install -e '.[eval]'")
  primary, p808 = map(_session, paths)

  def compute(media: Sequence[clips.Media]) -> list[features.Arrays]:
    return [scores(each.mono(RATE), primary, p808) for each in media]

  return compute


def _session(path: pathlib.Path) -> Network:
  session = onnx.session(path, "DNSMOS")
  return lambda x: session.run(None, {"input_1": x})[0]


def scores(
  wave_A: np.ndarray, primary: Network, p808: Network
) -> features.Arrays:
  """Scores of a sound at 16 kHz; none of an empty one."""
  if not wave_A.size:
    return {}
  # Doubled, not repeated as often as is needed.
  while wave_A.size < _WINDOW:
    wave_A = np.concatenate([wave_A, wave_A])
  hops = int(wave_A.size // RATE - SECONDS) + 1
  found: list[dict[str, float]] = []
  for hop in range(hops):
    part_A = wave_A[hop * RATE : int((hop + SECONDS) * RATE)].astype(np.float32)
    if part_A.size < _WINDOW:
      continue
    raw = primary(part_A[None])[0]
    of_part = {
      name: float(np.polyval(powers, value))
      for (name, powers), value in zip(POLYNOMIALS.items(), raw, strict=True)
    }
    of_part["p808"] = float(p808(p808_input(part_A)[None]).item())
    found.append(of_part)
  return {
    name: np.float64(np.mean([each[name] for each in found]))
    for name in (*POLYNOMIALS, "p808")
  }


def p808_input(part_A: np.ndarray) -> np.ndarray:
  """The mel spectrogram [900, 120] that the P.808 network sees.

  Decibels below the maximum, at most 80, plus 40, over 40.
  """
  power_TM = spectrum.power_mel(
    part_A[:-160], RATE, fft_size=321, hop=160, bins=120
  )
  decibel_TM = 10 * np.log10(np.maximum(power_TM, 1e-10))
  decibel_TM -= decibel_TM.max()
  return ((np.maximum(decibel_TM, -80) + 40) / 40).astype(np.float32)
