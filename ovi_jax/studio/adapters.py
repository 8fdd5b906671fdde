"""LoRA files that requests may use: those of one folder, by their names."""

import pathlib

from ovi_jax import files
from ovi_jax import untrusted
from ovi_jax.lora import apply as lora_lib

SUFFIX = ".safetensors"
MAX_LORAS = 8  # of a request
MAX_TEXT = 2000  # characters


class Adapters:
  """The LoRA files of a folder; they may change while it is served."""

  def __init__(self, folder: pathlib.Path | None = None):
    """Args:
    folder: of the files; `None` for none.

    Raises:
      ValueError: there is no such folder.
    """
    self.folder = folder
    if folder is not None and not folder.is_dir():
      raise ValueError(f"loras: expected a folder of LoRA files, got {folder}")

  def names(self) -> list[str]:
    """Names of the files that can be asked for."""
    if self.folder is None:
      return []
    return sorted(
      name
      for name in files.regular_sizes(self.folder)
      if name.endswith(SUFFIX)
      and name.isprintable()
      and not name.startswith(".")
      and not set(name) & set(",:")
    )

  def resolve(self, text: str) -> str:
    """LoRAs by their paths, see `lora.apply.parse`.

    Args:
      text: the same with names of files of the folder.

    Raises:
      ValueError: a name is unknown, a strength is out of range, or there are
        too many.
    """
    if len(text) > MAX_TEXT:
      raise ValueError(f"expected at most {MAX_TEXT} characters")
    chosen = lora_lib.parse(text)
    if len(chosen) > MAX_LORAS:
      raise ValueError(f"expected at most {MAX_LORAS} LoRAs, got {len(chosen)}")
    known = self.names()
    found = []
    for name, strength in chosen:
      if self.folder is None or name not in known:
        shown = ", ".join(untrusted.shortened(known)) or "none"
        raise ValueError(
          f"the LoRA {untrusted.printable(name)!r} is unknown; the server has"
          f" {shown}"
        )
      path = self.folder / name
      found.append(f"{path}:{strength.video!r}/{strength.audio!r}")
    return ",".join(found)
