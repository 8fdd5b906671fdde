"""Other names of the same tensors.

Tools that repack a model rename its tensors. A `Dialect` lists such names as
patterns beside the release's, one line a kind of tensor, so that a table of
rows needs the release's names only.
"""

import dataclasses
import functools
import re

# Pattern of a placeholder by its name; any other stands for one name.
_PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "rest": r".+"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
  """Names of one tool.

  Attributes:
    name: of the tool, for messages.
    patterns: (the release's name, the tool's name). `{i}` and `{j}` stand for
      numbers, `{rest}` for anything, any other placeholder for what lies
      between two dots.
    ignored: patterns of tensors in the tool's files that belong to no model
      of ours.
  """

  name: str
  patterns: tuple[tuple[str, str], ...]
  ignored: tuple[str, ...] = ()

  def names(self, name: str) -> list[str]:
    """The tool's names of the release's tensor `name`; usually one or none."""
    return [
      theirs.format(**match.groupdict())
      for ours, theirs in self.patterns
      if (match := compiled(ours).fullmatch(name))
    ]

  def ignores(self, name: str) -> bool:
    """Whether the tool's tensor `name` belongs to no model of ours."""
    return any(compiled(pattern).fullmatch(name) for pattern in self.ignored)


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
  """The regular expression of a pattern."""
  parts = re.split(r"\{(\w+)\}", pattern)
  return re.compile(
    "".join(
      f"(?P<{part}>{_PLACEHOLDERS.get(part, '[^.]+')})"
      if position % 2
      else re.escape(part)
      for position, part in enumerate(parts)
    )
  )
