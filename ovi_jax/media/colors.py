"""Decoded frames and pictures as uint8 RGB in the colours of SDR video.

Standard range: the matrix is the one that the stream names; where it names
none, BT.709 from 720 rows on and BT.601 below, as players do.

High dynamic range (PQ or HLG, BT.2020): to light relative to reference white
(203 cd/m² of ITU-R BT.2408; HLG on a display of 1000 cd/m², gamma 1.2),
BT.2020 to BT.709 primaries, then the brightest channel is compressed by
Reinhard's extended curve so that 1000 cd/m² becomes white, hue kept, and
BT.709's transfer. A fixed curve, the same for every clip: no frame looks at
another. (ITU-R BT.2100, tables 4 and 5.)

Numbers: light is float32.
"""

import functools
from typing import Any

import numpy as np
from av.video import reformatter

# Codes of ISO/IEC 23091-2, as streams carry them.
PQ, HLG = 16, 18
TRANSFERS = {
  1: "bt709",
  2: "unspecified",
  4: "gamma22",
  5: "gamma28",
  6: "bt601",
  7: "smpte240m",
  11: "iec61966-2-4",
  12: "bt1361",
  13: "srgb",
  14: "bt2020-10",
  15: "bt2020-12",
  PQ: "pq",
  HLG: "hlg",
}
_UNSPECIFIED = 2
_PRIMARIES_709, _PRIMARIES_2020, _PRIMARIES_P3 = 1, 9, 12
_MATRICES = {
  0: reformatter.Colorspace.ITU709,  # RGB: no matrix is used
  1: reformatter.Colorspace.ITU709,
  4: reformatter.Colorspace.FCC,
  5: reformatter.Colorspace.ITU601,
  6: reformatter.Colorspace.ITU601,
  7: reformatter.Colorspace.SMPTE240M,
  9: reformatter.Colorspace.BT2020,
  10: reformatter.Colorspace.BT2020,
}
_HD_ROWS = 720

_WHITE = 203.0  # cd/m² of diffuse white
_PEAK = 1000.0  # cd/m² that become the white of SDR
_TO_709 = np.array(
  [
    [1.660491, -0.587641, -0.072850],
    [-0.124550, 1.132900, -0.008349],
    [-0.018151, -0.100579, 1.118730],
  ],
  np.float32,
)
_P3_TO_709 = np.array(
  [
    [1.224940, -0.224940, 0.0],
    [-0.042057, 1.042057, 0.0],
    [-0.019638, -0.078636, 1.098274],
  ],
  np.float32,
)
_PRIMARIES_TO_709 = {
  _PRIMARIES_709: np.eye(3, dtype=np.float32),
  _PRIMARIES_2020: _TO_709,
  _PRIMARIES_P3: _P3_TO_709,
}
_LIKE_SRGB = (1, 6, 13, 14, 15)  # transfers that displays show as sRGB's
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)


def unsupported(frame: Any) -> str:
  """Color properties of a frame that are not supported; empty if none."""
  if frame.color_trc not in TRANSFERS:
    return f"transfer {int(frame.color_trc)}"
  if frame.colorspace not in {*_MATRICES, _UNSPECIFIED}:
    return f"matrix {int(frame.colorspace)}"
  if not (frame.format.is_rgb or frame.format.name.startswith(_PLANAR)):
    return f"pixels {frame.format.name}"
  return ""


# Luma and chroma, or luma alone, in any depth; not XYZ, Bayer, palettes.
_PLANAR = ("yuv", "nv", "p0", "p2", "p4", "y2", "uyvy", "ayuv", "gray", "ya")


def to_rgb(frame: Any, rows: int, columns: int, bicubic: bool) -> np.ndarray:
  """A frame in SDR.

  Args:
    frame: PyAV's.
    rows: of the result, before it is turned.
    columns: likewise.
    bicubic: how it is resized; else by area.

  Returns:
    frame_HWC, uint8 RGB.
  """
  matrix = _MATRICES.get(frame.colorspace)
  if matrix is None:
    large = frame.height >= _HD_ROWS
    matrix = (
      reformatter.Colorspace.ITU709 if large else reformatter.Colorspace.ITU601
    )
  hdr = frame.color_trc in (PQ, HLG)
  resized = frame.reformat(
    width=columns,
    height=rows,
    format="rgb48le" if hdr else "rgb24",
    src_colorspace=matrix,
    interpolation=(
      reformatter.Interpolation.BICUBIC
      if bicubic
      else reformatter.Interpolation.AREA
    ),
  )
  array_HWC = resized.to_ndarray()
  return _tone_mapped(array_HWC, frame.color_trc) if hdr else array_HWC


def known(primaries: int, transfer: int) -> bool:
  """Whether `from_code_points` knows these codes."""
  if transfer in (PQ, HLG):
    return primaries == _PRIMARIES_2020
  return transfer in _LIKE_SRGB and primaries in _PRIMARIES_TO_709


def from_code_points(
  signal_HWC: np.ndarray, primaries: int, transfer: int
) -> np.ndarray:
  """A picture in sRGB.

  Args:
    signal_HWC: uint16 RGB, full range.
    primaries: code of ISO/IEC 23091-2; see `known`.
    transfer: likewise.

  Returns:
    uint8 RGB.
  """
  if transfer in (PQ, HLG):
    return _tone_mapped(signal_HWC, transfer)
  signal_HWC = signal_HWC.astype(np.float32) / 65_535
  if primaries != _PRIMARIES_709:
    light_HWC = np.where(
      signal_HWC <= 0.04045,
      signal_HWC / 12.92,
      ((signal_HWC + 0.055) / 1.055) ** 2.4,
    )
    light_HWC = np.clip(light_HWC @ _PRIMARIES_TO_709[primaries].T, 0, 1)
    signal_HWC = np.where(
      light_HWC <= 0.0031308,
      light_HWC * 12.92,
      1.055 * light_HWC ** (1 / 2.4) - 0.055,
    )
  return np.rint(signal_HWC * 255).astype(np.uint8)


def _tone_mapped(signal_HWC: np.ndarray, transfer: int) -> np.ndarray:
  """uint8 SDR of a uint16 signal in PQ or HLG."""
  light_HWC = _light(transfer)[signal_HWC]
  if transfer == HLG:
    # The display's gamma, on luminance so that hues stay.
    scene_HW1 = (light_HWC @ _LUMA_2020)[..., None]
    light_HWC = light_HWC * np.power(np.maximum(scene_HW1, 1e-6), 0.2)
    light_HWC *= np.float32(_PEAK)
  light_HWC = light_HWC / np.float32(_WHITE) @ _TO_709.T
  light_HWC = np.maximum(light_HWC, 0)
  brightest_HW1 = light_HWC.max(-1, keepdims=True)
  peak = np.float32(_PEAK / _WHITE)
  light_HWC *= (1 + brightest_HW1 / peak**2) / (1 + brightest_HW1)
  return _encoded()[np.rint(np.clip(light_HWC, 0, 1) * 65_535).astype(int)]


@functools.cache
def _light(transfer: int) -> np.ndarray:
  """Light of each 16-bit signal: cd/m² of PQ, of HLG the scene's in [0, 1]."""
  signal = np.linspace(0, 1, 65_536)
  if transfer == PQ:
    m1, m2 = 2610 / 16_384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = signal ** (1 / m2)
    light = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
  else:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(
      signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12
    )
  return light.astype(np.float32)


@functools.cache
def _encoded() -> np.ndarray:
  """uint8 of BT.709 for each of 65536 steps of light in [0, 1]."""
  light = np.linspace(0, 1, 65_536)
  signal = np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)
  return np.rint(signal * 255).astype(np.uint8)
