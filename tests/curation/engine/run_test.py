"""Runs over small text files: resuming, settings, failures, ranges."""

import json
import pathlib
import tempfile
import time

import fsspec
import pytest

from ovi_jax.curation.engine import run
from ovi_jax.curation.engine import shard as shards
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import worker_pool
from tests.lib.curation import harness

# Short for what hangs; long for all else, also where others compute.
LIMITS = {"timeout": 120.0, "stage_timeouts": {"measure": 3.0}}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
  return harness.write_inputs(tmp_path_factory.mktemp("files") / "in")


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> pathlib.Path:
  """A run that nothing disturbed. Tests must not write here."""
  out = tmp_path_factory.mktemp("whole") / "out"
  harness.finish(harness.chosen(out, [files]))
  return out


def folders(out: pathlib.Path) -> dict[str, str]:
  """Stage -> its folder; the newest if there are more."""
  found = sorted(
    (p for p in out.glob("*-*") if p.is_dir()),
    key=lambda p: p.stat().st_mtime_ns,
  )
  return {path.name.rpartition("-")[0]: path.name for path in found}


def lines(out: pathlib.Path, stage: str, shard: int = 0) -> list:
  folder = str(out / folders(out)[stage])
  return list(
    shard_store.read(shard_store.ShardFiles(folder=folder, shard=shard))
  )


def only(out: pathlib.Path, stage: str, shard: int = 0):
  """The rejects of a stage, by the text of their clips."""
  return {
    line.clip.facts["split"]["text"]: line
    for line in lines(out, stage, shard)
    if not hasattr(line, "facts")
  }


def test_clips_pass_through_all_stages(whole, files):
  (records,) = whole.glob("write-*/records/all.txt")
  title, *kept = records.read_text().splitlines()
  wanted = {
    f"{line[::-1]}!"
    for path in files.iterdir()
    for line in path.read_text().splitlines()
    if line != "x"
  }
  assert title == "lines" and {line.partition(" ")[2] for line in kept} < wanted
  kinds = [line.split()[-1] for line in kept]
  assert kinds.count("eno!") == kinds.count("owt!") == 6
  # What is not named in the shares stays; what has too many goes.
  assert kinds.count("eerht!") == 4 and len(wanted) == 20
  for reject in only(whole, "measure").values():
    assert (reject.reason, reject.score) == ("too short", 1.0)
  first, *_ = lines(whole, "measure")
  # Stages see what they would see after a restart: JSON.
  assert first.facts["measure"]["came"] == "list"
  assert first.scores == {"length": 7.0} and first.start == 0


def test_a_bucket_gives_the_same_files_as_a_folder(whole, tmp_path):
  system = fsspec.filesystem("memory")
  inputs = harness.write_inputs(tmp_path / "in")
  for path in inputs.iterdir():
    system.pipe_file(f"/runs/in/{path.name}", path.read_bytes())
  chosen = harness.chosen("memory:///runs/out", ["memory:///runs/in"])
  # Of a run that made more files of other clips.
  end = f"/runs/out/{chosen.stages[-1].folder}/records"
  system.pipe_file(f"{end}/more.txt", b"stale")
  harness.finish(chosen)
  assert [name.rpartition("/")[2] for name in system.find(end)] == ["all.txt"]
  (made,) = whole.glob("write-*/records/all.txt")
  assert system.cat_file(f"{end}/all.txt") == made.read_bytes()
  wanted = {name.rpartition("/")[2] for name in harness.contents(whole)}
  names = {name.rpartition("/")[2] for name in system.find("/runs/out")}
  assert names == wanted


def test_completed_work_is_not_repeated(whole, files, tmp_path, monkeypatch):
  before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
  monkeypatch.setattr(worker_pool.WorkerPool, "_start", None)
  with pytest.raises(TypeError):  # were there anything to do
    run.run(harness.chosen(tmp_path / "new", [files]))
  assert run.run(harness.chosen(whole, [files])) == []
  assert run.run(harness.chosen(whole)) == []
  assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")}


def test_a_changed_setting_reruns_only_later_stages(files, tmp_path):
  out, seen = tmp_path / "out", tmp_path / "seen"
  harness.finish(harness.chosen(out, [files]))
  first = folders(out)
  times = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}

  # The balance sees another seed: no worker has to start.
  again = harness.chosen(out, [files], balance__seed=1)
  harness.finish(again)
  second = folders(out)
  changed = {name for name in first if first[name] != second[name]}
  assert changed == {"balance", "write"}

  # Another bound for lines; what files are cut into is read, not cut again.
  third = harness.chosen(
    out, [files], measure__least=1, measure__seen=str(seen)
  )
  harness.finish(third)
  changed = {name for name in first if first[name] != folders(out)[name]}
  assert changed == {"measure", "reverse", "balance", "write"}
  assert len(seen.read_text().splitlines()) == 25
  assert len(only(out, "measure")) == 0
  # A field that changes no outcome has no part in the key.
  seen.unlink()
  fourth = harness.chosen(out, [files], measure__least=1, measure__delay=0.5)
  harness.finish(fourth)
  # All that was there is as it was, and so it is taken up again.
  assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_deleted_shard_is_processed_again(whole, files, tmp_path):
  out, seen = tmp_path / "out", tmp_path / "seen"
  harness.finish(harness.chosen(out, [files]))
  wanted = harness.contents(out)
  found = folders(out)
  (out / found["measure"] / "shard-00001.artifacts.zip").unlink()
  (out / found["reverse"] / "shard-00002.done").unlink()
  assert harness.contents(out) != wanted
  again = harness.chosen(out, [files], measure__seen=str(seen))
  harness.finish(again)
  assert harness.contents(out) == wanted == harness.contents(whole)
  assert len(seen.read_text().splitlines()) == 10  # of one shard, two files


def test_damaged_files_are_named(files, tmp_path):
  out = tmp_path / "out"
  one = harness.chosen(out, [files], passes=harness.PASSES[:1])
  harness.finish(one)
  path = out / folders(out)["measure"] / "shard-00000.jsonl"
  path.write_bytes(path.read_bytes().replace(b"one", b"eno"))
  with pytest.raises(
    ValueError, match=r"measure-.*shard-00000.jsonl is damaged"
  ):
    harness.finish(harness.chosen(out, [files]))


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path, list[str]]:
  """A run over lines of which many fail, and its problems."""
  folder = tmp_path_factory.mktemp("bad")
  words = ["one fine", "raise it", "hang", "crash", "strange", "x"]
  words += ["two fine", "three unturnable", "one good", "four explosive"]
  inputs = harness.write_inputs(folder / "in")
  (inputs / "0.txt").write_text("\n".join(words) + "\n")
  (inputs / "1.txt").write_text("")
  chosen = harness.chosen(folder / "out", [inputs], num_workers=2, **LIMITS)
  problems = run.run(chosen)
  return inputs, folder / "out", problems


@pytest.mark.slow
def test_each_failure_is_a_named_reject(bad):
  _, out, problems = bad
  assert problems == []
  found = only(out, "measure")
  failed = {text: reject for text, reject in found.items() if reject.failed}
  assert set(found) - set(failed) == {"x"}
  reasons = {text: (r.reason, r.detail) for text, r in failed.items()}
  assert reasons["hang"] == ("timed out", "more than 3 s")
  assert reasons["crash"] == ("crashed", "signal 11")
  reason, detail = reasons["raise it"]
  assert reason == "failed: ValueError"
  assert detail.startswith("tests/lib/curation/text_stages/measure.py:")
  assert detail.endswith("ValueError: what is 'raise it'?")
  assert reasons["strange"][0] == "failed: TypeError"
  empty = [line for line in lines(out, "split") if not hasattr(line, "facts")]
  assert [r.reason for r in empty] == ["empty"]

  found = only(out, "reverse")
  assert set(found) == {"three unturnable", "four explosive"}
  # Of many that fail together, the one that fails alone.
  reject = found["three unturnable"]
  assert reject.detail.endswith("ValueError: one of 1 cannot be turned")
  assert found["four explosive"].detail == "signal 11"
  survivors = [c for c in lines(out, "reverse") if hasattr(c, "facts")]
  assert len(survivors) == 3
  # The other shards were not touched by it.
  assert not [r for r in only(out, "reverse", 1).values() if r.failed]


@pytest.mark.slow
def test_excluded_clips_stay_excluded(bad, tmp_path):
  inputs, out, _ = bad
  wanted = harness.contents(out)
  for mark in (*out.glob("measure-*/*.done"), *out.glob("reverse-*/*.done")):
    mark.unlink()
  # A second run skips clips that hang or crash: they are excluded.
  harness.finish(harness.chosen(out, [inputs]))
  assert harness.contents(out) == wanted


@pytest.mark.slow
def test_crashed_workers_leave_no_temporary_files(tmp_path, monkeypatch):
  inputs, temporary = tmp_path / "in", tmp_path / "temporary"
  inputs.mkdir()
  temporary.mkdir()
  (inputs / "0.txt").write_text("one a\none b\nlitter\n")
  monkeypatch.setenv("TMPDIR", str(temporary))
  monkeypatch.setattr(tempfile, "tempdir", None)
  chosen = harness.chosen(tmp_path / "out", [inputs])
  assert run.run(chosen) == []
  (reject,) = only(tmp_path / "out", "measure").values()
  assert reject.reason == "crashed"
  assert not list(temporary.rglob("*"))


@pytest.mark.slow
def test_failed_clips_are_retried_on_request(bad, tmp_path):
  inputs, out, _ = bad
  chosen = harness.chosen(out, [inputs], **LIMITS)
  wanted = harness.contents(out)
  (path,) = out.glob("measure-*/*.excluded")
  assert len(json.loads(path.read_text())["clips"]) == 2
  share = run.ShardSelection(only_pass="clips", retry_failed=True)
  seen = path.stat().st_mtime_ns
  assert run.run(chosen, share) == []
  assert path.stat().st_mtime_ns > seen and harness.contents(out) == wanted


def test_clips_excluded_beyond_the_failure_rate_are_retried_on_request(
  tmp_path,
):
  inputs = harness.write_inputs(tmp_path / "in", 1)
  (inputs / "0.txt").write_text("one fine\ntwo fine\n")
  out = tmp_path / "out"
  chosen = harness.chosen(out, [inputs], max_failure_rate=0.0)
  (cut,) = (n for n, s in enumerate(chosen.stages) if s.name == "split")
  once = run.ShardSelection(only_pass="clips")
  assert run.run(chosen, once, harness.inline) == []
  ids = [line.id for line in lines(out, "split")]
  # As a run leaves it that was too short of time for them.
  weighed = chosen.shard_files(cut + 1, 0)
  pathlib.Path(weighed.done).unlink()
  left = {each: ("timed out", "more than 3 s") for each in ids}
  shards.ExcludedClips(clips=left).write(weighed)
  (problem,) = run.run(chosen, once, harness.inline)
  assert "measure failed for 2 of 2 clips" in problem
  again = run.ShardSelection(only_pass="clips", retry_failed=True)
  assert run.run(chosen, again, harness.inline) == []
  assert len(lines(out, "measure")) == 2


def test_a_shard_fails_above_the_failure_rate_and_others_continue(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in")
  (inputs / "2.txt").write_text("raise a\nraise b\nraise c\none fine\n")
  out = tmp_path / "out"
  chosen = harness.chosen(out, [inputs], max_failure_rate=0.2)
  problems = run.run(chosen, executor=harness.inline)
  assert len(problems) == 2
  message = "clips, shard 1: measure failed for 3 of 9 clips, 2 are allowed"
  assert problems[0].startswith(message)
  assert "ValueError: what is 'raise a'?" in problems[0]
  assert problems[1].startswith(
    "end: needs all shards, but 1 of 3 are incomplete"
  )
  assert (out / folders(out)["measure"] / "shard-00001.failed").exists()
  assert not list(out.glob("measure-*/shard-00001.done"))
  assert not list(out.glob("write-*"))
  assert len(list(out.glob("reverse-*/*.done"))) == 2
  # With more allowed, the same files are enough.
  harness.finish(harness.chosen(out, [inputs], max_failure_rate=0.5))
  assert len(list(out.glob("reverse-*/*.done"))) == 3
  assert not list(out.glob("*/*.failed"))


def test_an_unavailable_backend_stops_the_pass(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in")
  (inputs / "0.txt").write_text("away\n")
  seen = tmp_path / "seen"
  chosen = harness.chosen(tmp_path / "out", [inputs], measure__seen=str(seen))
  problems = run.run(chosen, executor=harness.inline)
  assert problems[0] == "clips, shard 0: the backend is unavailable"
  # Nobody is refused for it, and the other shards are not tried in vain.
  assert not list((tmp_path / "out").glob("measure-*/*"))
  assert seen.read_text() == "away\n"
  (why,) = (tmp_path / "out").glob("*/*.failed")
  assert why.read_text() == "the backend is unavailable\n"
  (inputs / "0.txt").write_text("one back\n")
  harness.finish(chosen)
  assert not why.exists()


@pytest.mark.parametrize("word", ["full", "huge"])
def test_a_full_disk_or_memory_rejects_no_clip(tmp_path, word):
  inputs = harness.write_inputs(tmp_path / "in", 1)
  (inputs / "0.txt").write_text(f"one fine\n{word} one\n")
  chosen = harness.chosen(tmp_path / "out", [inputs])
  message = "out of disk or memory in measure, clip .*; free some and run again"
  with pytest.raises(OSError, match=message):
    run.run(chosen, executor=harness.inline)
  assert not list((tmp_path / "out").glob("measure-*/*"))


def test_batches_that_exceed_memory_are_split(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in", 1)
  (inputs / "0.txt").write_text("one a\none large\none b\none c\n")
  harness.finish(harness.chosen(tmp_path / "out", [inputs]))
  assert len(lines(tmp_path / "out", "reverse")) == 4
  assert not only(tmp_path / "out", "reverse")


def test_a_stage_timeout_covers_its_whole_batch(tmp_path):
  chosen = harness.chosen(tmp_path, ["in"], stage_timeouts={"reverse": 50.0})
  watched = worker_pool.WorkerPool(chosen, chosen.find_pass("together"), 1)
  worker = worker_pool._Worker(
    process=None, connection=None, lifeline=None, folder=""
  )
  began = time.monotonic()
  for stage, least, most in (("reverse", 50, 150), ("measure", 5120, 5220)):
    started = shards.STARTED, stage, tuple(map(str, range(256)))
    assert not list(watched._handle_message(worker, *started))
    assert least <= worker.deadline - began < most


def test_missing_requirements_are_reported_before_any_work(files, tmp_path):
  # Of a pass that would come later.
  lacking = harness.chosen(
    tmp_path / "out", [files], reverse__missing="/no/weights"
  )
  with pytest.raises(ValueError, match="no weights at /no/weights"):
    run.run(lacking)
  assert not list((tmp_path / "out").glob("split-*"))


def test_jobs_share_a_pass_by_ranges(whole, files, tmp_path):
  chosen = harness.chosen(tmp_path / "out", [files])

  def split(only: str, shards: str = "") -> list[str]:
    share = run.ShardSelection(only_pass=only, shards=shards)
    return run.run(chosen, share, harness.inline)

  for only in ("clips", "together"):
    assert split(only, "0:1") == []
  (problem,) = split("together")
  assert "the previous pass has not completed 2 shards: 1, 2" in problem
  (problem,) = split("even")
  assert "needs all shards, but 2 of 3 are incomplete" in problem
  assert split("clips", "1/2") == split("clips", "2:") == []
  harness.finish(chosen)
  assert harness.contents(tmp_path / "out") == harness.contents(whole)
  for only, some, message in (
    ("smell", "", "there is no pass 'smell'; choose from clips, together"),
    ("", "0:1", "only_pass=NAME"),
    ("even", "0:1", "needs all shards"),
    ("clips", "one", "expected A:B"),
    ("clips", "2/2", "expected I < N"),
  ):
    with pytest.raises(ValueError, match=message):
      split(only, some)


def test_appended_inputs_give_the_same_files_as_a_new_run(files, tmp_path):
  # A stage follows whose clips change in old shards: shares are of all.
  clips, together, even, end = harness.PASSES
  passes = (clips, even, together, end)
  inputs = harness.write_inputs(tmp_path / "in")
  out, fresh = tmp_path / "out", tmp_path / "fresh"
  settings = {"passes": passes, "shard_size": 1}
  harness.finish(harness.chosen(out, [inputs], **settings))
  before = {p: p.stat().st_mtime_ns for p in out.glob("measure-*/*")}
  first = harness.contents(out)
  (inputs / "9.txt").write_text("one more\n" * 9)
  harness.finish(harness.chosen(out, [inputs], append=True, **settings))
  harness.finish(harness.chosen(fresh, [inputs], **settings))
  assert harness.contents(out) == harness.contents(fresh)
  assert all(path.stat().st_mtime_ns == time for path, time in before.items())
  turned = [
    n for n in first if n.startswith("reverse-") and n.endswith("jsonl")
  ]
  after = harness.contents(out)
  assert any(first[name] != after[name] for name in turned)
