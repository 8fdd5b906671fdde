"""Validation of settings, and what stage keys depend on."""

import dataclasses
import pickle

import pytest

from configs import curate
from ovi_jax.curation.engine import settings
from ovi_jax.curation.models import mtcnn
from tests.lib.curation import harness


def keys(**fields) -> dict[str, str]:
  chosen = harness.chosen("out", ["in"], **fields)
  return {stage.name: stage.key for stage in chosen.stages}


def changed(before: dict[str, str], **fields) -> set[str]:
  after = keys(**fields)
  return {name for name in before if before[name] != after[name]}


def test_a_key_depends_on_its_config_and_on_the_keys_before():
  before = keys()
  assert len(set(before.values())) == 5
  assert changed(before, split__lines=7) == set(before)
  assert changed(before, measure__least=4) == set(before) - {"split"}
  assert changed(before, write__title="t") == {"write"}
  # The value that is there already, and what changes no outcome.
  assert (
    changed(before, split__lines=100, measure__seen="log", timeout=3.0) == set()
  )


def test_a_version_is_part_of_the_key(monkeypatch):
  before = keys()
  monkeypatch.setattr(f"{harness.STAGES}.reverse.VERSION", 2)
  assert changed(before) == {"reverse", "balance", "write"}


def test_skipped_stages_leave_no_gap():
  chosen = harness.chosen("out", ["in"], skip=("balance", "split"))
  assert [part.name for part in chosen.passes] == ["clips", "together", "end"]
  assert [part.first_stage for part in chosen.passes] == [0, 1, 2]
  assert chosen.shard_files(-1, 3).lines == "out/inputs/shard-00003.jsonl"
  key = chosen.stages[1].key
  assert (
    chosen.shard_files(1, 12).artifacts
    == f"out/reverse-{key}/shard-00012.artifacts.zip"
  )


def test_settings_can_be_pickled():
  chosen = harness.chosen("out", ["in"], stage_timeouts={"measure": 3.0})
  assert pickle.loads(pickle.dumps(chosen)) == chosen
  assert chosen.time_limit("measure") == 3 and chosen.time_limit("split") == 20
  # A configured time-out holds for a whole batch; the default is per clip.
  assert chosen.time_limit("measure", 256) == 3
  assert chosen.time_limit("split", 256) == 20 * 256
  assert chosen.num_processes(chosen.find_pass("clips")) == 1
  many = harness.chosen("out", ["in"], num_workers=5)
  assert many.num_processes(many.find_pass("clips")) == 5
  assert many.num_processes(many.find_pass("together")) == 1


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"out": ""}, "out: give --config.out=DIR"),
    ({"shard_size": 0}, "shard_size must be at least 1, got 0"),
    (
      {"max_failure_rate": 1.5},
      r"max_failure_rate: expected a fraction in \[0, 1\], got 1.5",
    ),
    ({"timeout": 0.0}, "expected seconds above 0"),
    (
      {"stage_timeouts": {"smell": 1.0}},
      "no stage smell; known are split, measure",
    ),
    ({"num_workers": -1}, "num_workers must be 0"),
    (
      {"measure__most": 3},
      "stages.measure: unknown most; known are least, seen",
    ),
    ({"measure__least": -1}, "measure.least must not be negative, got -1"),
    ({"skip": ("smell",)}, "skip: unknown smell; known are split"),
    ({"smell": 1}, "config: unknown smell; known are inputs, out"),
    (
      {
        "passes": (
          ("a", (f"{harness.STAGES}.split", f"{harness.STAGES}.reverse")),
        )
      },
      "reverse processes many clips at once and must be the only stage",
    ),
    ({"passes": (("a", ("balance",)), ("b", ("balance",)))}, "must be unique"),
    (
      {"passes": (("a", ("smell",)),)},
      "no stage ovi_jax.curation.stages.smell",
    ),
    ({"passes": ()}, "passes: expected at least one stage"),
  ],
)
def test_invalid_settings_are_explained(fields, message):
  with pytest.raises(ValueError, match=message):
    out = fields.pop("out", "out")
    harness.chosen(out, ["in"], **fields)


def test_a_missing_field_is_named():
  config = harness.config("out", ["in"])
  del config.max_failure_rate
  with pytest.raises(ValueError, match="config: missing max_failure_rate"):
    settings.Settings.from_config(config)


@pytest.mark.parametrize("kind", curate.KINDS)
def test_the_config_has_all_fields_of_its_stages(kind):
  config = curate.get_config(kind)
  config.out, config.stages.captions.model = "out", "m"
  if "face_tracks" in config.stages:
    config.stages.face_tracks.detector = (
      "full_frame"  # without a detector's weights
    )
  chosen = settings.Settings.from_config(config)
  assert chosen.inputs == ()
  names = [stage.name for stage in chosen.stages]
  assert names[:2] == ["probe", "dedup"] and names[-1] == "pack"
  for stage in chosen.stages:
    fields = {field.name for field in dataclasses.fields(stage.config)}
    assert set(config.stages[stage.name]) == fields
    assert {field for _, field in stage.thresholds.values()} <= fields


def test_an_invalid_stage_is_named():
  config = curate.get_config("audio")
  config.out, config.stages.captions.url = "out", "ftp://host"
  with pytest.raises(ValueError, match=r"^config\.stages\.captions: url: "):
    settings.Settings.from_config(config)


def test_an_unknown_config_kind_lists_the_known_ones():
  with pytest.raises(ValueError, match="'large' is unknown; use one of :mini"):
    curate.get_config("large")


def test_all_missing_requirements_are_listed_before_any_work(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(mtcnn, "_PACKAGE", "no_such_package")
  config = curate.get_config()
  config.inputs, config.out = (str(tmp_path),), str(tmp_path / "out")
  with pytest.raises(ValueError) as raised:
    settings.Settings.from_config(config)
  message = str(raised.value)
  for words in (
    "pip install --no-deps facenet-pytorch",
    "--config.stages.av_sync.weights=FILE",
    "--config.skip=\"('face_tracks', 'av_sync', 'balance')\"",
    "--config.stages.captions.captions_file=FILE.csv",
    "3 problems",
  ):
    assert words in message
  assert not (tmp_path / "out").exists()


def test_requirements_of_skipped_stages_are_ignored(tmp_path):
  (tmp_path / "own.csv").write_text("path,caption\na.mp4,One.\n")
  config = curate.get_config()
  config.inputs, config.out = (str(tmp_path),), str(tmp_path / "out")
  config.skip = ("face_tracks", "av_sync", "balance")
  config.stages.captions.captions_file = str(tmp_path / "own.csv")
  chosen = settings.Settings.from_config(config)
  assert not [
    problem for s in chosen.stages for problem in s.missing_requirements()
  ]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"shard_size": True}, "config.shard_size must be a whole number"),
    (
      {"stage_timeouts": {"split": True}},
      "config.stage_timeouts.split must be a number",
    ),
    (
      {"split__lines": True},
      "config.stages.split.lines must be a whole number",
    ),
    ({"append": 1}, "config.append must be True or False"),
  ],
)
def test_booleans_are_not_numbers(change, message):
  with pytest.raises(ValueError, match=message):
    harness.chosen("out", ["in"], **change)
