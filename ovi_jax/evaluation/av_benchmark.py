"""Reads the caches of av-benchmark (hkchengrex/av-benchmark).

A cache is a folder of torch files, each a dict from the clip's name to a
tensor, or for PANNs to a dict of tensors. They are read without torch. CLAP's
and ImageBind's text and video features belong to the reference's folder there;
here they are features of the system, so that a clip's cosine is one of its own
features: pass both folders.
"""

import pathlib
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from ovi_jax.convert import reader
from ovi_jax.evaluation import imported

# File -> extractor and array; None for the names of the dict's own.
FILES: Mapping[str, tuple[str, str | None]] = {
  "pann_features.pth": ("panns_16k", None),
  "vggish_features.pth": ("vggish", "embedding"),
  "passt_features_embed.pth": ("passt", "embedding"),
  "passt_logits.pth": ("passt", "logits"),
  "clap_laion_audio.pth": ("clap", "audio"),
  "clap_laion_text.pth": ("clap", "text"),
  "imagebind_audio.pth": ("imagebind", "audio"),
  "imagebind_video.pth": ("imagebind", "video"),
}
_PANNS = {"2048": "embedding", "logits": "logits"}


def convert(
  caches: Sequence[pathlib.Path], out: pathlib.Path
) -> dict[str, int]:
  """Convert caches to a folder that `imported.read` reads.

  Args:
    caches: folders; if two have a file, the first one counts.
    out: folder to write.

  Returns:
    Number of clips by extractor.

  Raises:
    ValueError: a cache has none of the files, or one is damaged.
    OSError: the folder cannot be written.
  """
  tables: dict[str, dict[str, dict[str, np.ndarray]]] = {}
  for name, (extractor, array) in FILES.items():
    path = next((c / name for c in caches if (c / name).is_file()), None)
    if path is None:
      continue
    table = tables.setdefault(extractor, {})
    for clip, key, value in _tensors(path, array):
      table.setdefault(clip, {})[key] = value
  if not tables:
    folders = ", ".join(map(str, caches))
    raise ValueError(
      f"{folders}: expected a cache of av-benchmark with files such as"
      f" {', '.join(list(FILES)[:3])}, found none of them"
    )
  for extractor, table in tables.items():
    imported.write(out, extractor, table)
  return {extractor: len(table) for extractor, table in tables.items()}


def _tensors(
  path: pathlib.Path, array: str | None
) -> list[tuple[str, str, np.ndarray]]:
  """Clip, array and value of each tensor of a file."""
  tensors = reader.open_tensors(path)
  found = []
  for name in tensors.shapes:
    clip, key = name, array
    if key is None:
      clip, _, inner = name.rpartition(".")
      key = _PANNS.get(inner)
      if key is None:
        continue
    value = np.asarray(tensors.read(name), np.float32)
    if not np.isfinite(value).all():
      raise ValueError(f"{path}: {name} has values that are not finite")
    found.append((clip, key, value))
  return found
