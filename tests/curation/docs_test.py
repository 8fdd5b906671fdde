"""Examples in the guides to curation work."""

import ast
import importlib.util
import pathlib
import re
import shlex
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest

from configs import curate
from ovi_jax.convert import mapping
from ovi_jax.curation import clip as clips
from ovi_jax.curation.engine import settings
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.models import syncnet
from ovi_jax.curation.models import syncnet_weights
from ovi_jax.media import container as containers
from tests.lib import doc_commands

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TEXT = "\n".join(
  (DOCS / name).read_text("utf-8")
  for name in (
    "how_to/curate.md",
    "how_to/curate_on_a_cluster.md",
    "how_to/add_a_curation_stage.md",
    "explanation/curation.md",
  )
)
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)


@pytest.fixture
def loud(monkeypatch) -> types.ModuleType:
  """The stage that the document adds."""
  (source,) = (block for block in BLOCKS if "VERSION" in block)
  module = types.ModuleType("mine_loudness")
  monkeypatch.setitem(sys.modules, "mine_loudness", module)
  exec(source, vars(module))
  return module


def test_the_example_stage_works(loud, monkeypatch):
  monkeypatch.setitem(sys.modules, "ovi_jax.curation.stages.loudness", loud)
  assert settings.default_config("loudness") == {"max_peak": 0.99}
  made = loud.load(loud.Config(max_peak=0.5))
  clip = clips.Clip(id="1", path="a.wav")
  quiet = types.SimpleNamespace(audio_A=np.array([0.25, -0.4], np.float32))
  found = made(clip, quiet)
  assert round(found.scores["peak"], 4) == 0.4
  assert shard_store.decode(shard_store.encode(found)) == found
  noise = types.SimpleNamespace(audio_A=np.array([0.1, -0.75], np.float32))
  reject = made(clip, noise)
  assert (reject.reason, reject.score) == ("too loud", 0.75)
  score, field = loud.THRESHOLDS[reject.reason]
  assert score in found.scores and hasattr(loud.Config(), field)


def test_the_documented_passes_are_those_of_the_config():
  rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (?:one )?process", TEXT, re.M)
  told = {name: set(re.findall(r"`(\w+)`", stages)) for name, stages in rows}
  assert told == {name: set(stages) for name, stages in curate.VIDEO}


def test_the_documented_modules_exist():
  texts = [path.read_text("utf-8") for path in doc_commands.pages()]
  found = set(re.findall(r"python -m (ovi_jax[\w.]*)", "\n".join(texts)))
  assert "ovi_jax.curation.sync.train" in found
  for name in found:
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    if spec.submodule_search_locations:
      assert importlib.util.find_spec(f"{name}.__main__"), name


def test_the_documented_flags_and_passes_exist():
  passes = {name for name, _ in (*curate.VIDEO, *curate.AUDIO)}
  assert set(re.findall(r"--only_pass=(\w+)", TEXT)) <= passes
  known = set(curate.get_config()) | {"inputs", "out"}
  assert set(re.findall(r"--config\.(\w+)", TEXT)) <= known


@pytest.mark.slow
def test_syncnet_weights_are_converted_and_evaluated_as_documented(tmp_path):
  config = syncnet.SyncNetConfig(
    lip_channels=(3, 8, 8, 8, 8, 16),
    audio_channels=(2, 6, 12, 8, 8, 16),
    hidden_dim=16,
  )
  keys = jax.random.split(jax.random.key(0), 200)
  shapes = mapping.flatten(syncnet.shapes(config))
  weights = {
    path: abs(0.02 * jax.random.normal(key, x.shape))
    for key, (path, x) in zip(keys, shapes.items())
  }
  syncnet_weights.export(tmp_path / "syncnet_v2.model", mapping.nest(weights))
  found = [
    command
    for kind, command in doc_commands.commands(DOCS / "how_to" / "curate.md")
    if any(re.search(p, command) for p in doc_commands.RUN_ALONE)
  ]
  assert len(found) == 2
  for command in found:
    doc_commands.run("bash", command, tmp_path)


def _documented() -> list[list[str]]:
  """Words of all commands of the document that run curation with a config."""
  text = TEXT.replace("\\\n", " ").replace("\n          ", " ")
  program = r"python -m ovi_jax\.curation(?:\.report)?"
  lines = re.findall(rf"{program} (--config[^`\n]*)", text)
  return [shlex.split(line) for line in lines]


def _own() -> Any:
  """The example of a custom config file in the guide, executed."""
  (source,) = (block for block in BLOCKS if "get_config" in block)
  found: dict[str, Any] = {}
  exec(source, found)
  return found["get_config"]()


def test_the_documented_settings_are_valid(monkeypatch):
  # Whatever weights they name are there.
  monkeypatch.setattr(containers, "given", lambda _, path: path)
  monkeypatch.setattr(containers, "digest", str)
  commands = _documented()
  assert len(commands) >= 5
  for words in commands:
    own = words[0] == "--config=mine.py"
    assert own or words[0] == "--config=configs/curate.py", words
    config = _own() if own else curate.get_config()
    config.out = config.out or "/data/run"
    config.stages.face_tracks.detector = "full_frame"
    for word in words[1:]:
      if word.startswith("--config."):
        name, _, value = word.removeprefix("--config.").partition("=")
        _set(config, name, value)
    settings.Settings.from_config(config)


def _set(config: Any, name: str, text: str) -> None:
  """As the flag of a field does."""
  *path, last = name.split(".")
  for each in path:
    config = config[each]
  assert last in config, name
  if isinstance(config[last], str):
    config[last] = text
  elif "$" not in text and "…" not in text:
    config[last] = type(config[last])(ast.literal_eval(text))
