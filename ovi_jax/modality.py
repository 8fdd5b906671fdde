"""`AV(video, audio)`: one value a modality, `None` for an absent tower."""

from typing import Any
from typing import Generic
from typing import NamedTuple
from typing import TypeVar

T = TypeVar("T")


class AV(NamedTuple, Generic[T]):
  """A pair that is a pytree of two leaves; an absent tower is `None`.

  `jax.tree.map` over two or more pairs visits the modalities that are present,
  so code for one array serves a video tower, an audio tower, or both.
  """

  video: T = None  # type: ignore[assignment]
  audio: T = None  # type: ignore[assignment]

  def present(self) -> dict[str, T]:
    """The modalities that are there, by name, video first."""
    return {k: v for k, v in self._asdict().items() if v is not None}

  def other(self, name: str) -> Any:
    """The value of the modality that is not `name`."""
    return self.audio if name == "video" else self.video
