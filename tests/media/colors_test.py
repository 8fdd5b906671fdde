"""Tone mapping of high dynamic range."""

import math

import numpy as np
import pytest

from ovi_jax.media import colors
from ovi_jax.media import decode
from tests.lib import media_files

BT2020 = 9


def pq(light):
  """Signal of light in cd/m², by the formula of BT.2100."""
  m1, m2 = 0.1593017578125, 78.84375
  c1, c2, c3 = 0.8359375, 18.8515625, 18.6875
  y = (light / 10_000) ** m1
  return ((c1 + c2 * y) / (1 + c3 * y)) ** m2


def hlg(light):
  """Signal of the scene's light in [0, 1]."""
  if light <= 1 / 12:
    return math.sqrt(3 * light)
  return 0.17883277 * math.log(12 * light - 0.28466892) + 0.55991073


def sdr(light):
  """Level of grey light in cd/m²."""
  x, peak = light / 203, 1000 / 203
  mapped = min(1.0, x * (1 + x / peak**2) / (1 + x))
  if mapped < 0.018:
    return 255 * 4.5 * mapped
  return 255 * (1.099 * mapped**0.45 - 0.099)


def film(path, signal, transfer):
  """Two grey frames of a signal in [0, 1], ten bits, limited range."""
  luma = round(64 + 876 * signal)
  planes = np.full((48, 32), 512, np.uint16)
  planes[:32] = luma
  return media_files.write(
    path,
    [planes] * 2,
    media_files.even(2),
    codec="ffv1",
    pixels="yuv420p10le",
    transfer=transfer,
    matrix=BT2020,
    source="yuv420p10le",
  )


@pytest.mark.parametrize(
  "light", [0.0, 1.0, 20.0, 203.0, 600.0, 1000.0, 4000.0]
)
def test_pq_is_tone_mapped(tmp_path, light):
  path = film(tmp_path / "pq.mkv", pq(light), colors.PQ)
  frame_HWC = decode.video(path, 0, 1 / 24)[0]
  assert frame_HWC.dtype == np.uint8 and frame_HWC.shape == (32, 32, 3)
  np.testing.assert_allclose(frame_HWC, sdr(light), atol=2)


@pytest.mark.parametrize("scene", [0.0, 0.02, 0.1, 0.265, 0.6, 1.0])
def test_hlg_is_tone_mapped(tmp_path, scene):
  path = film(tmp_path / "hlg.mkv", hlg(scene), colors.HLG)
  frame_HWC = decode.video(path, 0, 1 / 24)[0]
  np.testing.assert_allclose(frame_HWC, sdr(1000 * scene**1.2), atol=2)


def test_standard_dynamic_range_is_unchanged(tmp_path):
  path = film(tmp_path / "sdr.mkv", 0.5, 1)
  frame_HWC = decode.video(path, 0, 1 / 24)[0]
  np.testing.assert_allclose(frame_HWC, 127.5, atol=1.5)


def test_untagged_colour_spaces_follow_the_frame_size(tmp_path):
  red = np.zeros((32, 32, 3), np.uint8) + np.array([200, 40, 40], np.uint8)
  # swscale writes BT.601 by default: small frames round-trip.
  path = media_files.write(tmp_path / "red.mp4", [red] * 2, media_files.even(2))
  np.testing.assert_allclose(decode.video(path, 0, 1 / 24)[0], red, atol=6)
  # The same numbers in a large frame are BT.709, so another red.
  large = np.broadcast_to(red[:1, :1], (720, 32, 3)).copy()
  path = media_files.write(
    tmp_path / "hd.mp4", [large] * 2, media_files.even(2)
  )
  shown = decode.video(path, 0, 1 / 24)[0].mean((0, 1))
  assert np.abs(shown - red[0, 0]).max() > 10
