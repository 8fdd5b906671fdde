"""Jobs in SQLite: order, restarts, ends."""

import sqlite3

import pytest

from ovi_jax.studio import jobs


def request(**changes) -> jobs.ClipRequest:
  return jobs.ClipRequest(
    prompt="A ball.", settings={"seed": 1}, given={}, **changes
  )


def add(store, key="one") -> str:
  return store.add(
    jobs.new_id(),
    request(),
    batch_key=key,
    num_steps=4,
    height=64,
    width=64,
    seconds=5.0,
  ).id


@pytest.fixture
def store(tmp_path):
  with_jobs = jobs.JobStore(tmp_path)
  yield with_jobs
  with_jobs.close()


def reopened(store):
  store.close()
  store.__init__(store.folder)
  return store


def statuses(store):
  return [job.status for job in store.query(newest_first=False)]


def test_jobs_are_taken_in_order_and_know_their_places(store):
  first, second = add(store), add(store)
  assert [store.get(x).position for x in (first, second)] == [1, 2]
  assert store.steps_ahead(second) == 4
  (taken,) = store.take()
  assert taken.id == first and taken.status == jobs.RUNNING
  assert store.get(first) == taken
  assert store.get(second).position == 1
  assert store.get(first).request == request()


def test_a_batch_has_jobs_of_one_key_and_a_power_of_two(store):
  keys = ["a", "a", "b", "a", "a"]
  ids = [add(store, key) for key in keys]
  assert [job.id for job in store.take(3)] == ids[:2]
  assert [job.id for job in store.take(3)] == [ids[2]]
  assert [job.id for job in store.take(8)] == ids[3:]
  assert store.take(8) == []


def test_interrupted_jobs_are_queued_again_in_their_place_and_run_alone(store):
  first, second = add(store), add(store)
  assert len(store.take(2)) == 2
  store = reopened(store)
  assert statuses(store) == [jobs.QUEUED] * 2
  assert [job.id for job in store.take(2)] == [first]
  assert [job.id for job in store.take(2)] == [second]


def test_a_job_that_ends_the_process_again_and_again_fails_with_a_reason(store):
  id = add(store)
  for _ in range(jobs.MAX_ATTEMPTS):
    assert store.get(id).status == jobs.QUEUED
    store.take()
    store = reopened(store)
  found = store.get(id)
  assert found.status == jobs.FAILED and found.ended
  assert found.error == "interrupted 3 times while it was made"
  assert store.take() == []


def test_jobs_that_are_put_back_have_not_been_attempted(store):
  id = add(store)
  for _ in range(2 * jobs.MAX_ATTEMPTS):
    store.take()
    store.put_back(id)
  assert statuses(reopened(store)) == [jobs.QUEUED]


def test_a_job_ends_once(store):
  id = add(store)
  store.take()
  assert store.finish(id, "a.mp4", owns_clip=True)
  assert not store.fail(id, "late") and not store.cancel(id)
  assert not store.finish(id, "b.mp4", owns_clip=True)
  found = store.get(id)
  assert (found.status, found.clip, found.error) == ("finished", "a.mp4", None)
  assert found.step == found.num_steps == 4
  path = store.folder / jobs.FOLDER / "jobs.sqlite"
  store.close()
  connection = sqlite3.connect(path)
  with pytest.raises(sqlite3.IntegrityError, match="the job has ended"):
    connection.execute("UPDATE jobs SET status = 'queued'")
  connection.close()
  assert statuses(reopened(store)) == ["finished"]


def test_a_cancelled_job_is_not_taken_or_finished(store):
  first, second = add(store), add(store)
  assert store.cancel(first)
  (taken,) = store.take()
  assert taken.id == second
  assert store.cancel(second)
  assert not store.finish(second, "a.mp4", owns_clip=True)
  assert statuses(store) == ["cancelled"] * 2


def test_a_clip_is_deleted_with_the_last_job_that_has_it(store):
  ids = [add(store) for _ in range(3)]
  store.take(1), store.take(1), store.take(1)
  for id, owns in zip(ids, (True, False, False)):
    store.finish(id, "a.mp4", owns_clip=owns)
  assert [store.delete(id) for id in ids] == [None, None, "a.mp4"]
  other = add(store)
  store.take()
  store.finish(other, "made_by_sample.mp4", owns_clip=False)
  assert store.delete(other) is None
  with pytest.raises(jobs.UnknownJobError):
    store.get(other)
  running = add(store)
  store.take()
  with pytest.raises(ValueError, match="running; cancel it first"):
    store.delete(running)


def test_given_files_of_no_job_are_removed(store):
  id = add(store)
  for name in (id, "rest"):
    folder = store.given_folder(name)
    folder.mkdir(parents=True)
    (folder / "image").touch()
  store = reopened(store)
  assert [x.name for x in store.given_folder(id).parent.iterdir()] == [id]
  store.cancel(id)
  store.delete(id)
  assert not store.given_folder(id).exists()


def test_lists_have_pages_in_either_order(store):
  ids = [add(store) for _ in range(5)]
  assert [x.id for x in store.query(limit=2)] == ids[:2:-1]
  assert [x.id for x in store.query(limit=9, after=ids[2])] == ids[1::-1]
  found = store.query(after=ids[2], newest_first=False)
  assert [(x.id, x.position) for x in found] == [(ids[3], 4), (ids[4], 5)]
  assert store.query(statuses=(jobs.FAILED,)) == []
  assert store.count(jobs.QUEUED, jobs.FAILED) == 5
  with pytest.raises(jobs.UnknownJobError):
    store.query(after="video_0")


def test_a_folder_is_open_once(store):
  with pytest.raises(OSError, match="another process has it open"):
    jobs.JobStore(store.folder)
  add(store)  # the first one goes on


def test_other_databases_are_refused(tmp_path):
  path = tmp_path / jobs.FOLDER / "jobs.sqlite"
  path.parent.mkdir()
  path.write_text("not a database, but as long as the header of one is " * 9)
  with pytest.raises(ValueError, match=r"expected a database of jobs: .* move"):
    jobs.JobStore(tmp_path)
  path.unlink()
  jobs.JobStore(tmp_path).close()
  with sqlite3.connect(path) as connection:
    connection.execute("PRAGMA user_version=9")
  connection.close()
  with pytest.raises(ValueError, match="version 9, expected 1; use another"):
    jobs.JobStore(tmp_path)
  with pytest.raises(ValueError, match="expected a local path"):
    jobs.JobStore("gs://bucket/samples")


def test_a_full_disk_is_an_error_of_storage(store, monkeypatch):
  store._connection.execute("PRAGMA max_page_count=1")
  with pytest.raises(jobs.StorageError, match="cannot be stored: .* full"):
    for _ in range(1000):
      add(store)
  assert not store._connection.in_transaction
