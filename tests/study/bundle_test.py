"""The static bundle: what is public, and codes that come back."""

import base64
import collections
import json

import pytest

from ovi_jax.study import bundle
from ovi_jax.study import database
from ovi_jax.study import manifest
from tests.lib import study_clips


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bundle")
  out, study = study_clips.make(
    folder, ["ourmodel", "baseline"], 6, items_per_session=6, raters_per_item=2
  )
  public = folder / "public"
  return out, study, public, bundle.write(out, study, public)


@pytest.fixture
def folder(made, tmp_path):
  """The study without votes."""
  out, _, _, _ = made
  for name in (manifest.FILE, bundle.FILE):
    (tmp_path / name).write_bytes((out / name).read_bytes())
  return tmp_path


def code(study, number=0, answers=None, run="0" * 16, headphones=4, name=None):
  values = [name or study.hash, number, run, headphones, answers]
  text = json.dumps(values, separators=(",", ":"))
  encoded = base64.b64encode(text.encode(), b"-_").decode()
  return f"{encoded}.{bundle.checksum(text)}"


def write_codes(folder, *codes):
  path = folder / "codes.csv"
  lines = ["worker,code", *(f"w{i},{c}" for i, c in enumerate(codes))]
  path.write_text("\n".join(lines) + "\n")
  return path


def test_sessions_judge_every_item_as_often_as_wanted_with_balanced_sides():
  study = study_clips.without_media(["a", "b", "c"], 10)
  found = bundle.sessions(study, 100)
  counts, balance = collections.Counter(), collections.Counter()
  for items in found:
    real = [i for i in items if i.kind == "real"]
    assert len({i.number for i in real}) == len(real)
    for item in real:
      counts[item.number] += 1
      balance[item.number] += 2 * item.flipped - 1
  assert set(counts.values()) == {3} and len(counts) == 30
  assert set(balance.values()) <= {-1, 1}
  assert all(any(i.kind == "gold" for i in items) for items in found[:3])


def test_public_files_contain_no_system_and_no_kind_of_item(made):
  _, study, public, number = made
  names = {str(p.relative_to(public)) for p in public.rglob("*") if p.is_file()}
  assert {"index.html", "page.js", "page.css", "sessions.json"} < names
  listed = json.loads((public / "sessions.json").read_text())
  assert len(listed["sessions"]) == number >= 3
  text = (public / "sessions.json").read_text() + "".join(names)
  for secret in ("ourmodel", "baseline", study.key, "gold", "repeat", "clip_"):
    assert secret not in text
  times = {p.stat().st_mtime_ns for p in (public / "media").iterdir()}
  assert len(times) == 1
  media = {path for s in listed["sessions"] for p in s for path in p[:2]}
  assert media <= names
  assert 'data-mode="bundle"' in (public / "index.html").read_text()


def test_a_code_of_the_page_is_stored_once(made, folder):
  _, study, public, _ = made
  listed = json.loads((public / "sessions.json").read_text())["sessions"][1]
  # The letters of audio, video and sync.
  answers = [["lre", 12, 1, 2] for _ in listed]
  path = write_codes(
    folder, code(study, 1, answers), "", code(study, 1, answers)
  )
  assert bundle.import_sessions(folder, path) == (1, 1, ())
  assert bundle.import_sessions(folder, path) == (0, 2, ())
  votes = database.Database(folder / manifest.VOTES, study).votes()
  assert len(votes) == 3 * len(listed)
  assert {v["question"]: v["choice"] for v in votes} == {
    "audio": "left",
    "video": "right",
    "sync": "equal",
  }
  for vote, (left, right, _) in zip(votes[::3], listed):
    item = database.Assignment(
      id="",
      position=0,
      kind=vote["kind"],
      number=vote["number"],
      flipped=bool(vote["flipped"]),
    )
    assert item.media(study) == (left[6:], right[6:])


def test_codes_that_cannot_be_read_do_not_keep_others_out(made, folder):
  _, study, _, number = made
  fine = [["lll", 5, 1, 1]]
  good = code(study, 0, fine)
  bad = {
    "x": "expected a code",
    good[:-1]: "not copied completely",
    good[3:]: "expected a code|not copied",
    code(study, 0, fine, name="0" * 12): "of another study",
    code(study, number, fine): "of no session",
    code(study, -1, fine): "of no session",
    code(study, True, fine): "of no session",
    code(study, 0, []): "answers",
    code(study, 0, fine * 100): "answers",
    code(study, 0, [["lxl", 5, 1, 1]]): "malformed",
    code(study, 0, [["ll", 5, 1, 1]]): "malformed",
    code(study, 0, [["lll", -5, 1, 1]]): "malformed",
    code(study, 0, [["lll", 5, 1]]): "malformed",
    code(study, 0, [[[], 5, 1, 1]]): "malformed",
    code(study, 0, fine, headphones=99): "sound check",
    code(study, 0, fine, run="'; DROP TABLE votes"): "expected a code",
    "A" * 70_000: "too long",
  }
  path = write_codes(folder, *bad, good)
  found = bundle.import_sessions(folder, path)
  assert found.new == 1 and len(found.problems) == len(bad)
  for number, (problem, message) in enumerate(
    zip(found.problems, bad.values())
  ):
    assert problem.startswith(f"row {number + 1} ")
    assert any(part in problem for part in message.split("|")), problem


def test_a_bundle_is_not_written_where_private_or_other_files_are(
  made, tmp_path
):
  out, study, _, _ = made
  with pytest.raises(ValueError, match="must not be published"):
    bundle.write(out, study, out / "public")
  (tmp_path / "thesis.txt").write_text("")
  with pytest.raises(ValueError, match="has other files, such as thesis.txt"):
    bundle.write(out, study, tmp_path)


@pytest.mark.parametrize("text", ['{"texts": {"id": "0123"}}', "[]", "{"])
def test_a_bundle_of_another_study_is_not_replaced(made, tmp_path, text):
  out, study, public, number = made
  (tmp_path / "sessions.json").write_text(text)
  with pytest.raises(ValueError, match=f"is not of study {study.hash}"):
    bundle.write(out, study, tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["sessions.json"]
  assert bundle.write(out, study, public) == number


def test_a_missing_or_damaged_list_of_sessions_is_named(folder):
  path = write_codes(folder, "x")
  private = json.loads((folder / bundle.FILE).read_text())
  for change, message in (
    ({"study": "other"}, "is of another study"),
    ({"sessions": 3}, "is damaged"),
    ({"sessions": [[[0, "real", 10**6, 0]]]}, "is not of the study"),
    ({"sessions": [[[0, "dream", 0, 0]]]}, "is damaged"),
  ):
    (folder / bundle.FILE).write_text(json.dumps(private | change))
    with pytest.raises(ValueError, match=message):
      bundle.import_sessions(folder, path)
  (folder / bundle.FILE).unlink()
  with pytest.raises(ValueError, match="make --bundle"):
    bundle.import_sessions(folder, path)
