"""`AV(video, audio)`: one value a modality, `None` for an absent tower."""

from collections.abc import Callable
from typing import Any
from typing import Generic
from typing import NamedTuple
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


class AV(NamedTuple, Generic[T]):
  """A pytree of two leaves; an absent modality is `None`.

  `jax.tree.map` over pairs visits the modalities that are present, so code
  written for one array serves a video tower, an audio tower, or both.
  """

  video: T = None  # type: ignore[assignment]
  audio: T = None  # type: ignore[assignment]

  def present(self) -> dict[str, T]:
    """The values that are not `None`, by name, video first."""
    return {k: v for k, v in self._asdict().items() if v is not None}

  def map(self, function: Callable[[str, T], S]) -> "AV[S]":
    """`function(name, value)` of the values that are not `None`."""
    return AV(**{name: function(name, x) for name, x in self.present().items()})

  def other(self, name: str) -> Any:
    """The value of the other modality than `name`."""
    return self.audio if name == "video" else self.video
