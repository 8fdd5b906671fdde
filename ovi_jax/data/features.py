"""Serialization of records: the features of a tf.train.Example.

  id, source      text
  captions        list of text
  facts           JSON: version, dtype, shapes, fps, frames, height, width,
                  scores, has_video, has_audio
  video, audio    mp4 bytes; PCM, int16 little-endian mono at 16 kHz; may be
                  empty
  video_latents, audio_latents, text
                  arrays, little-endian float16 or bfloat16; the embeddings of
                  all captions follow each other in `text`

Arrays are read in the dtype they are stored in; batches are float32. `parse`
reads the example itself: a dataset's `features.json` names Python classes, and
tfds would import their modules.
"""

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format
from google.protobuf import message
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.data import schema
from ovi_jax.modality import AV

DTYPES = {
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_BYTES = ("video", "audio", "video_latents", "audio_latents", "text")
_PROTOS: Any = tf_example_pb2  # made when it is imported; unknown to checkers
_CAPTIONS = "captions"  # the one feature that is a sequence
_LARGEST = 2**31  # of a size in `facts`


def features() -> tfds.features.FeaturesDict:
  """The features of a record, for tfds."""
  raw = tfds.features.Tensor(shape=(), dtype=np.object_)
  text = tfds.features.Text()
  return tfds.features.FeaturesDict(
    {
      "id": text,
      "source": text,
      _CAPTIONS: tfds.features.Sequence(text),
      "facts": text,
      **dict.fromkeys(_BYTES, raw),
    }
  )


def encode(
  record: schema.Record, sizes: schema.Geometry, dtype: str = "float16"
) -> dict[str, Any]:
  """Turn a record into the features that `builder` writes.

  Args:
    record: checked here.
    sizes: of the dataset.
    dtype: that arrays are stored in; "float16" or "bfloat16".

  Returns:
    One value for each of `features()`.

  Raises:
    ValueError: the record breaks the contract, a number is too large for
      float16, or the type is unknown.
  """
  schema.check(record, sizes)
  if dtype not in DTYPES:
    raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {dtype!r}")
  facts = {
    "version": schema.VERSION,
    "dtype": dtype,
    "scores": dict(record.scores),
    "fps": record.fps,
    "frames": record.frames or _frames(record),
    "height": record.height or record.sizes.video[1] * sizes.video_strides[1],
    "width": record.width or record.sizes.video[2] * sizes.video_strides[2],
    "video_shape": _shape(record.latents.video),
    "audio_shape": _shape(record.latents.audio),
    "text_shapes": [_shape(array_SE) for array_SE in record.text],
    "has_video": record.video is not None,
    "has_audio": record.audio is not None,
  }
  return {
    "id": record.id,
    "source": record.source,
    "captions": list(record.captions),
    "facts": json.dumps(facts),
    "video": record.video or b"",
    "audio": record.audio or b"",
    "video_latents": _bytes(record.latents.video, dtype, record.id),
    "audio_latents": _bytes(record.latents.audio, dtype, record.id),
    "text": b"".join(_bytes(t, dtype, record.id) for t in record.text),
  }


def serialize(encoded: Mapping[str, Any]) -> bytes:
  """Serialize what `encode` returned.

  The same values give the same bytes; tfds itself orders features differently
  in each process.

  Args:
    encoded: a value for each feature.

  Returns:
    Bytes of a tf.train.Example.
  """
  described, serializer = _serializer()
  example: Any = serializer.get_tf_example(described.encode_example(encoded))
  return example.SerializeToString(deterministic=True)


@functools.cache
def _serializer() -> tuple[Any, Any]:
  """The features, and what makes a proto of them."""
  described = features()
  information: Any = described.get_serialized_info()
  return described, example_serializer.ExampleSerializer(information)


def _frames(record: schema.Record) -> int:
  """Frames that the video latents stand for; 0 without any."""
  T = record.sizes.video[0]
  return 1 + geometry.VIDEO_STRIDES[0] * (T - 1) if T else 0


def _shape(array: np.ndarray | None) -> list[int] | None:
  """The shape as JSON writes it."""
  return None if array is None else list(array.shape)


def _bytes(array: np.ndarray | None, dtype: str, name: str) -> bytes:
  """The array as little-endian numbers of the type; ValueError at overflow."""
  if array is None:
    return b""
  with np.errstate(over="ignore"):
    stored = np.ascontiguousarray(array).astype(DTYPES[dtype])
  if not np.isfinite(stored.astype(np.float32)).all():
    raise ValueError(
      f"record {name!r}: a number is too large for {dtype}, expected at most"
      f" {ml_dtypes.finfo(DTYPES[dtype]).max}; store it as bfloat16"
    )
  return stored.view("<u2").astype("<u2").tobytes()


def check_description(path: storage.AnyPath) -> None:
  """Compare the features that a dataset describes with ours.

  The file is read as data: no class that it names is looked up.

  Args:
    path: of `features.json`.

  Raises:
    ValueError: it is no JSON, or describes other features.
  """
  found = storage.read_json(path)
  ours = json_format.MessageToDict(features().to_proto())
  if _classes(found) != _classes(ours):
    raise ValueError(
      f"{path} describes other features than those of a record; write the"
      " dataset with ovi_jax.data.builder.write"
    )


def _classes(described: Any) -> dict[str, Any] | None:
  """The class that a features.json gives each feature; None if it is none."""
  try:
    listed = described["featuresDict"]["features"].items()
    classes = {name: each["pythonClassName"] for name, each in listed}
    return {**classes, "": described["pythonClassName"]}
  except (AttributeError, KeyError, TypeError):
    return None


def parse(example: bytes) -> dict[str, Any]:
  """Read the features of a serialized record.

  Args:
    example: bytes of a tf.train.Example.

  Returns:
    What `decode` takes: bytes by name, of "captions" a list.

  Raises:
    ValueError: it is no tf.train.Example, or lacks a feature.
  """
  try:
    stored = _PROTOS.Example.FromString(example).features.feature
  except message.DecodeError as error:
    raise ValueError(f"expected a tf.train.Example: {error}") from error
  found: dict[str, Any] = {}
  for name in ("id", "source", "facts", *_BYTES):
    values = stored[name].bytes_list.value if name in stored else ()
    if len(values) != 1:
      raise ValueError(f"feature {name!r}: expected one byte string")
    found[name] = values[0]
  # Looking up a name that is absent would add it.
  captions = stored[_CAPTIONS].bytes_list.value if _CAPTIONS in stored else ()
  return {**found, _CAPTIONS: list(captions)}


def decode(raw: Mapping[str, Any]) -> schema.Record:
  """Deserialize a record.

  Args:
    raw: features, as `parse` returns them.

  Returns:
    The record; its arrays are read-only views.

  Raises:
    ValueError: the version of the record is not supported, facts have a wrong
      type, or the bytes of an array do not fill its shape.
  """
  name = raw["id"].decode()
  facts = untrusted.parse_json(raw["facts"])
  _check_facts(facts)
  schema.check_version(facts["version"], f"record {name!r}")
  stored = DTYPES[facts["dtype"]]
  texts, start = [], 0
  for shape in facts["text_shapes"]:
    end = start + math.prod(shape) * stored.itemsize
    part = raw["text"][start:end]
    texts.append(_array(part, shape, stored, f"record {name!r}: text"))
    start = end
  video, audio = (
    _array(
      raw[f"{key}_latents"],
      facts[f"{key}_shape"],
      stored,
      f"record {name!r}: {key} latents",
    )
    for key in AV._fields
  )
  return schema.Record(
    id=name,
    source=raw["source"].decode(),
    captions=tuple(caption.decode() for caption in raw["captions"]),
    video=raw["video"] if facts["has_video"] else None,
    audio=raw["audio"] if facts["has_audio"] else None,
    latents=AV(video=video, audio=audio),
    text=tuple(texts),
    scores=facts["scores"],
    fps=facts["fps"],
    frames=facts["frames"],
    height=facts["height"],
    width=facts["width"],
  )


def _check_facts(facts: Any) -> None:
  """ValueError that names the facts that are missing or of another type."""
  if not isinstance(facts, dict):
    raise ValueError(f"facts: expected an object, found {facts!r:.40}")
  valid = {
    "version": isinstance(facts.get("version"), str),
    "dtype": facts.get("dtype") in tuple(DTYPES),
    "fps": _is_number(facts.get("fps")) and facts["fps"] > 0,
    "scores": isinstance(facts.get("scores"), dict)
    and all(map(_is_number, facts["scores"].values())),
    "text_shapes": isinstance(facts.get("text_shapes"), list)
    and all(_is_shape(shape, 2) for shape in facts["text_shapes"]),
    **{k: _is_size(facts.get(k)) for k in ("frames", "height", "width")},
    **{
      f"{k}_shape": f"{k}_shape" in facts
      and (facts[f"{k}_shape"] is None or _is_shape(facts[f"{k}_shape"], axes))
      for k, axes in (("video", 4), ("audio", 2))
    },
    **{k: isinstance(facts.get(k), bool) for k in ("has_video", "has_audio")},
  }
  if wrong := [name for name, is_valid in valid.items() if not is_valid]:
    listed = ", ".join(f"{n} {facts.get(n)!r:.60}" for n in wrong)
    raise ValueError(f"facts: missing or of a wrong type: {listed}")


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
  """Whether a value of JSON is a count of frames, pixels or rows."""
  return type(value) is int and 0 <= value < _LARGEST


def _is_shape(value: Any, axes: int) -> bool:
  return (
    isinstance(value, list) and len(value) == axes and all(map(_is_size, value))
  )


def _array(
  stored: bytes, shape: list[int] | None, dtype: np.dtype, where: str
) -> Any:
  """The array of little-endian bytes, read only, or None without a shape."""
  if shape is None:
    return None
  wanted = math.prod(shape) * dtype.itemsize
  if len(stored) != wanted:
    raise ValueError(
      f"{where}: expected {wanted} bytes for {shape}, got {len(stored)}; the"
      " record is damaged, write the dataset again"
    )
  return np.frombuffer(stored, "<u2").view(dtype).reshape(shape)
