"""Error texts: deterministic, with the root cause."""

import fsspec
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.engine import failures
from ovi_jax.curation.engine import shard
from ovi_jax.curation.stages import probe


def report_lines(function) -> list[str]:
  try:
    function()
  except Exception as error:  # reports must work for exceptions of any type
    return failures.format_error(error).splitlines()
  raise AssertionError("nothing was raised")


def test_the_root_cause_is_listed_first():
  def fails():
    try:
      raise KeyError("first")
    except KeyError as error:
      raise ValueError(f"second at {id(error):#018x}") from error

  lines = report_lines(fails)
  assert lines.index("KeyError: 'first'") < lines.index("raised from it:")
  assert lines[-1] == "ValueError: second at 0x…"
  assert lines[0].startswith("tests/curation/engine/failures_test.py:")


def test_each_error_of_an_exception_group_is_listed():
  def fails():
    both = [TypeError("one"), KeyError("other")]
    raise ExceptionGroup("of tasks", both)

  lines = report_lines(fails)
  assert lines[-4:] == [
    "sub-exception:",
    "TypeError: one",
    "sub-exception:",
    "KeyError: 'other'",
  ]


@pytest.fixture
def remote():
  """A file in a bucket that is no media."""
  system = fsspec.filesystem("memory")
  system.pipe_file("/failures/a.mp4", b"noise" * 100)
  yield "memory://failures/a.mp4"
  system.rm("/failures", recursive=True)


def test_names_of_temporary_copies_are_hidden(remote):
  texts = set()
  for _ in range(2):
    shard._cached_copy.cache_clear()
    clip = clips.Clip(id="1", path=remote)
    media, _ = shard.open_media(clip, lambda *_: b"")
    refused = probe.load(probe.Config())(clip, media)
    path = media.path
    assert isinstance(refused, clips.Reject) and path not in refused.detail

    def fails(path=path):
      raise OSError(f"cannot read {path}")

    texts.add((refused.detail, report_lines(fails)[-1]))
  assert len(texts) == 1, texts
