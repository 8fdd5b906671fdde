"""What docs/curation.md shows is so."""

import importlib.util
import pathlib
import re
import sys
import types

import numpy as np
import pytest

from configs import curate
from ovi_jax.curation import clip as clips
from ovi_jax.curation.engine import settings
from ovi_jax.curation.engine import store

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "curation.md").read_text()


@pytest.fixture
def loud(monkeypatch) -> types.ModuleType:
  """The stage that the document adds."""
  (source,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
  module = types.ModuleType("mine_loud")
  monkeypatch.setitem(sys.modules, "mine_loud", module)
  exec(source, vars(module))
  return module


def test_the_stage_that_is_added_is_one(loud, monkeypatch):
  monkeypatch.setitem(sys.modules, "ovi_jax.curation.stages.loud", loud)
  assert settings.stage_fields("loud") == {"largest": 0.99}
  made = loud.load(loud.Config(largest=0.5))
  clip = clips.Clip(id="1", path="a.wav")
  quiet = types.SimpleNamespace(audio_A=np.array([0.25, -0.4], np.float32))
  found = made(clip, quiet)
  assert round(found.scores["peak"], 4) == 0.4
  assert store.decode(store.encode(found)) == found
  noise = types.SimpleNamespace(audio_A=np.array([0.1, -0.75], np.float32))
  reject = made(clip, noise)
  assert (reject.reason, reject.score) == ("too loud", 0.75)
  score, field = loud.BOUNDS[reject.reason]
  assert score in found.scores and hasattr(loud.Config(), field)


def test_the_passes_are_those_of_the_config():
  rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (?:one )?process", TEXT, re.M)
  told = {name: set(re.findall(r"`(\w+)`", stages)) for name, stages in rows}
  assert told == {name: set(stages) for name, stages in curate.VIDEO}


def test_its_commands_are_there():
  texts = [path.read_text() for path in (ROOT / "docs").glob("*.md")]
  found = set(re.findall(r"python -m (ovi_jax[\w.]*)", "\n".join(texts)))
  assert "ovi_jax.curation.sync.train" in found
  for name in found:
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    if spec.submodule_search_locations:
      assert importlib.util.find_spec(f"{name}.__main__"), name


def test_flags_and_passes_of_its_commands_are_there():
  passes = {name for name, _ in (*curate.VIDEO, *curate.SOUNDS)}
  assert set(re.findall(r"--only_pass=(\w+)", TEXT)) <= passes
  known = set(curate.get_config()) | {"inputs", "out"}
  assert set(re.findall(r"--config\.(\w+)", TEXT)) <= known
