"""The data passed between stages: a clip, or its reject.

A clip is first a whole file, then a window of it. Both classes are stored as
lines of JSON, without media.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """A file, or a window of it.

  Attributes:
    id: for a file, the hash of its content; for a window, that of the file and
      its start in milliseconds. The same media always has the same id.
    path: path of the file, as given by the inputs.
    start: start in the file, seconds.
    seconds: length; for a file, the duration in its header.
    facts: stage -> JSON values found by the stage.
    scores: name -> measured number; copied to the record.
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
    """The clip with the results of a stage.

    Args:
      stage: name of the stage.
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
  """A rejected clip.

  Attributes:
    clip: the clip as the stage received it.
    stage: name of the stage.
    reason: a few words, the same for all clips rejected for it.
    score: the measured value, if it missed a threshold.
    detail: details of this clip, such as a traceback.
    failed: the stage failed, so the clip was not judged; too many failures fail
      the shard.
  """

  clip: Clip
  stage: str
  reason: str
  score: float | None = None
  detail: str = ""
  failed: bool = False
