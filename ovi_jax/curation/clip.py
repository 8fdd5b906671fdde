"""What goes from stage to stage: a clip, or why it went no further.

A clip is first a whole file, then a window of one. Both forms are lines of
JSON on disk; media never travels with them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """A file, or a window of it.

  Attributes:
    id: of a file, the hash of its content; of a window, that of the file and
      the milliseconds it starts at. The same media has the same id anywhere.
    path: of the file, as the list of inputs names it.
    start: seconds from the file's beginning.
    seconds: length; of a file, what its header says.
    facts: what each stage found, name of the stage -> JSON values.
    scores: what was measured, by name; they end up in the record.
  """

  id: str
  path: str
  start: float = 0.0
  seconds: float = 0.0
  facts: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def with_facts(self, stage: str, scores: Any = (), **facts: Any) -> "Clip":
    """The clip with what a stage found.

    Args:
      stage: its name.
      scores: name -> number.
      **facts: JSON values.
    """
    return dataclasses.replace(
      self,
      facts={**self.facts, stage: facts},
      scores={**self.scores, **dict(scores)},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reject:
  """Why a clip went no further.

  Attributes:
    clip: as it came.
    stage: that refused it.
    reason: a few words, the same for all clips refused for it; reports count
      them.
    score: what was measured, where the reason is a bound.
    detail: of this clip alone; the traceback of a failure.
    failed: the stage could not do its work, so that nothing is known of the
      clip; too many of these fail a shard.
  """

  clip: Clip
  stage: str
  reason: str
  score: float | None = None
  detail: str = ""
  failed: bool = False
