"""Face boxes from the outputs of MTCNN's networks."""

import numpy as np
import pytest

from ovi_jax.curation.faces import detector
from ovi_jax.curation.models import mtcnn
from tests.lib.curation import packages

pytest.importorskip("cv2", reason="pip install 'ovi_jax[curate]'")
SETTINGS = detector.Settings(input_size=128, min_face_size=24, batch_size=2)


def bright_share(x_BHWC: np.ndarray) -> np.ndarray:
  """How much of each picture is bright."""
  return (x_BHWC[..., 0] > 150).mean((1, 2))


def propose(x_BHWC):
  """Takes every bright window of 12 x 12 for a face, and moves nothing."""
  count = (x_BHWC.shape[1] - 12) // 2 + 1
  likely = np.zeros((len(x_BHWC), count, count), np.float32)
  for row in range(count):
    for column in range(count):
      window = x_BHWC[:, 2 * row :, 2 * column :][:, :12, :12]
      likely[:, row, column] = bright_share(window)
  return likely, np.zeros((*likely.shape, 4), np.float32)


def agree(x_BHWC):
  """Thinks as `propose`."""
  likely = bright_share(x_BHWC).astype(np.float32)
  return likely, np.zeros((len(likely), 4), np.float32)


FAKE = {
  mtcnn.PROPOSE: propose,
  mtcnn.REFINE: agree,
  mtcnn.OUTPUT: lambda x: (*agree(x), None),
}


def detect(frames_THWC: np.ndarray):
  return detector._detect(frames_THWC, FAKE, SETTINGS)


def bright(top: int, left: int, size: int, frames: int = 3) -> np.ndarray:
  """Dark pictures of 200 x 300 with a bright square in the middle one."""
  frames_THWC = np.zeros((frames, 200, 300, 3), np.uint8)
  frames_THWC[1, top : top + size, left : left + size] = 255
  return frames_THWC


@pytest.mark.parametrize("top, left, size", [(40, 60, 100), (100, 180, 90)])
def test_a_bright_region_is_detected(top, left, size):
  found = detect(bright(top, left, size))
  assert found[0] == [] and found[2] == []
  assert found[1]
  for face in found[1]:
    row, column, height, width = face.box
    assert top - 12 <= row and row + height <= top + size + 12
    assert left - 12 <= column and column + width <= left + size + 12
    assert face.score >= 0.9
  scores = [face.score for face in found[1]]
  assert scores == sorted(scores, reverse=True)


def test_overlapping_boxes_are_suppressed():
  boxes = np.array(
    [
      [0, 0, 99, 99, 0.8],
      [5, 0, 104, 99, 0.9],
      [200, 0, 299, 99, 0.7],
      [220, 20, 269, 69, 0.6],
    ]
  )
  assert detector._nms(boxes, 0.7) == [1, 2, 3]
  assert detector._nms(boxes, 0.7, over_smaller=True) == [1, 2]
  assert detector._nms(boxes[:0], 0.7) == []


def test_box_regression_is_relative_to_the_box_size():
  boxes = np.array([[10.0, 20.0, 29.0, 59.0]])
  moved = detector._regress(boxes, np.array([[0.1, 0.25, -0.1, 0.0]]))
  np.testing.assert_allclose(moved, [[12, 30, 27, 59]])
  np.testing.assert_allclose(detector._square(boxes), [[0, 20, 39, 59]])


def test_the_image_pyramid_ends_at_the_input_size_of_pnet():
  scales = SETTINGS.scales
  assert scales[0] == 12 / 24
  assert 128 * scales[-1] >= 12 > 128 * scales[-1] * 0.709
  np.testing.assert_allclose(np.divide(scales[1:], scales[:-1]), 0.709)


@pytest.fixture(scope="module")
def real():
  packages.need_mtcnn()
  return detector.load(detector.Settings(input_size=160, min_face_size=40))


def test_images_without_faces_have_no_detections(real):
  random = np.random.default_rng(0)
  frames_THWC = random.integers(0, 256, (2, 90, 160, 3), np.uint8)
  frames_THWC[0] = 128
  assert real(frames_THWC) == [[], []]
