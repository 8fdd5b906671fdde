"""Sessions and votes: assignment, blinding, exactly-once storage."""

import collections
import sqlite3
import threading

import pytest

from ovi_jax.study import assignment
from ovi_jax.study import database
from ovi_jax.study import manifest
from tests.lib import study_clips

CHOICES = {"audio": "left", "video": "equal", "sync": "cannot_judge"}
ANSWER = database.Answer(choices=CHOICES, seconds=9.5, plays=(1, 2))


@pytest.fixture
def study():
  return study_clips.without_media(["a", "b", "c"], 4, items_per_session=12)


@pytest.fixture
def store(tmp_path, study):
  return database.Database(tmp_path / manifest.VOTES, study)


def join(store) -> str:
  rater = store.authenticate(store.join())
  store.start(rater, 5)
  return rater


def judge(store, rater, count=1000) -> list[database.Assignment]:
  """Answer the next items of a rater."""
  done = []
  while len(done) < count and (items := store.session(rater).open):
    store.answer(rater, items[0].id, ANSWER)
    done.append(items[0])
  return done


def test_a_session_has_all_kinds_and_repeats_exchange_the_sides(store, study):
  done = judge(store, join(store))
  kinds = collections.Counter(item.kind for item in done)
  assert kinds == {"real": 10, "gold": 1, "repeat": 1}
  assert done[0].kind != "gold"
  (repeat,) = [d for d in done if d.kind == "repeat"]
  # Gold items have numbers of their own.
  same = ("real", repeat.number)
  first = next(d for d in done if (d.kind, d.number) == same)
  assert repeat.position - first.position >= 3
  assert first.media(study) == repeat.media(study)[::-1]


def test_raters_before_consent_get_no_items(store):
  rater = store.authenticate(store.join())
  assert store.session(rater).open == ()
  store.start(rater, None)
  assert len(store.session(rater).open) == database.AHEAD


def test_the_least_judged_item_comes_next_and_sides_are_balanced(store):
  shown = [judge(store, join(store)) for _ in range(4)]
  counts = collections.Counter()
  balance = collections.Counter()
  for items in shown:
    for item in items:
      if item.kind == "real":
        counts[item.number] += 1
        balance[item.number] += 2 * item.flipped - 1
  # 12 items for 3 raters each: the fourth gets what is left.
  assert set(counts.values()) == {3} and len(counts) == 12
  assert all(abs(value) == 1 for value in balance.values())
  assert judge(store, join(store))[:1] == [] or all(
    item.kind != "real" for item in judge(store, join(store))
  )


def test_items_of_a_rater_who_left_are_given_to_others(store, study):
  rater = join(store)
  first = store.session(rater, now=1000.0)
  assert len(first.open) == database.AHEAD
  with store._transaction() as connection:
    soon = store._counts(connection, 1001.0)
    later = store._counts(connection, 1001.0 + database.LEASE)
  # Only real pairs are counted; a check item may be among the first ones.
  real = {item.number for item in first.open if item.kind == assignment.REAL}
  assert set(soon) == real and not later
  # The rater can come back all the same.
  assert store.session(rater, now=9e9).open == first.open
  store.answer(rater, first.open[0].id, ANSWER)


def test_an_answer_is_stored_once_however_often_it_is_sent(store):
  rater = join(store)
  item = store.session(rater).open[0]
  for _ in range(3):
    store.answer(rater, item.id, ANSWER)
  votes = store.votes()
  assert {v["question"]: v["choice"] for v in votes} == CHOICES
  assert len(votes) == 3
  other = database.Answer(
    choices=CHOICES | {"audio": "right"}, seconds=1, plays=(1, 1)
  )
  with pytest.raises(database.ConflictError, match="answered before"):
    store.answer(rater, item.id, other)
  assert store.votes() == votes


def test_an_answer_to_an_item_of_another_rater_is_refused(store):
  item = store.session(join(store)).open[0]
  with pytest.raises(database.ConflictError, match="of this session"):
    store.answer(join(store), item.id, ANSWER)


@pytest.mark.parametrize(
  "choices",
  [
    {},
    {"audio": "left"},
    CHOICES | {"more": "left"},
    CHOICES | {"audio": "up"},
  ],
)
def test_an_answer_with_other_questions_or_choices_is_refused(store, choices):
  rater = join(store)
  item = store.session(rater).open[0]
  wrong = database.Answer(choices=choices, seconds=1, plays=(1, 1))
  with pytest.raises(database.ConflictError, match="expected"):
    store.answer(rater, item.id, wrong)
  assert not store.votes()


def test_votes_cannot_be_changed_or_deleted(store, tmp_path):
  judge(store, join(store), 1)
  connection = sqlite3.connect(tmp_path / manifest.VOTES)
  for change in (
    "UPDATE votes SET choice = 'left'",
    "DELETE FROM votes",
    "DELETE FROM answers",
  ):
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
      connection.execute(change)
  connection.close()


def test_only_the_token_itself_is_accepted_and_it_is_not_stored(
  store, tmp_path
):
  token = store.join()
  rater, _, secret = token.partition(".")
  assert store.authenticate(token) == rater
  for wrong in ("", ".", rater, f"{rater}.", f"{rater}.x", f"x.{secret}", "\0"):
    assert store.authenticate(wrong) is None
  for path in tmp_path.iterdir():
    assert secret.encode() not in path.read_bytes()


def test_imported_raters_have_no_token(store):
  assert store.add_session("one", [], [], None)
  with store._connection() as connection:
    (rater,) = connection.execute("SELECT id FROM raters").fetchone()
  assert store.authenticate(f"{rater}.") is None


def test_servers_and_raters_at_once_keep_every_vote(store, tmp_path, study):
  """Two databases on one file, two raters on each, as two servers have."""
  stores = [store, database.Database(tmp_path / manifest.VOTES, study)] * 2
  raters = [join(each) for each in stores]
  done: dict[str, list] = {}

  def work(each, rater):
    done[rater] = judge(each, rater)

  threads = [
    threading.Thread(target=work, args=pair) for pair in zip(stores, raters)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  expected = sum(len(items) for items in done.values())
  assert set(done) == set(raters) and expected >= 36
  votes = store.votes()
  assert len(votes) == 3 * expected
  counts = collections.Counter(
    v["number"] for v in votes if v["kind"] == "real" if v["question"] == "sync"
  )
  assert max(counts.values()) == 3


def test_a_full_disk_loses_nothing_and_says_so(store):
  rater = join(store)
  items = judge(store, rater, 3)
  item = store.session(rater).open[0]
  original = store._connection

  def full():
    context = original()
    connection = context.__enter__()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    connection.execute("CREATE TEMP TABLE filler (x)")
    return _Held(context, connection)

  store._connection = full
  long = database.Answer(
    choices=dict.fromkeys(CHOICES, "left"), seconds=1, plays=(1, 1)
  )
  with pytest.raises(sqlite3.OperationalError, match="full"):
    for number in range(10_000):
      store.add_session(f"filler {number}", [], [], None)
  store._connection = original
  assert len(store.votes()) == 3 * len(items)
  store.answer(rater, item.id, long)
  assert len(store.votes()) == 3 * len(items) + 3


class _Held:
  """A context whose connection is open already."""

  def __init__(self, context, connection):
    self._context, self._connection = context, connection

  def __enter__(self):
    return self._connection

  def __exit__(self, *error):
    return self._context.__exit__(*error)


def test_every_request_to_a_database_that_was_replaced_is_refused(
  store, tmp_path
):
  other = study_clips.without_media(["a", "b"], 4)
  database.Database(tmp_path / manifest.VOTES, other, replace=True)
  for call in (
    store.count,
    store.join,
    store.access_code,
    store.votes,
    lambda: store.authenticate("a.b"),
    lambda: store.start("a", None),
    lambda: store.session("a"),
    lambda: store.answer("a", "b", ANSWER),
    lambda: store.add_session("a", [], [], None),
  ):
    with pytest.raises(database.ReplacedError, match="has votes of study"):
      call()


def test_a_database_with_raters_is_not_replaced(store, tmp_path):
  token = store.join()
  other = study_clips.without_media(["a", "b"], 4)
  with pytest.raises(database.ReplacedError, match="has votes of study"):
    database.Database(tmp_path / manifest.VOTES, other, replace=True)
  assert store.authenticate(token)


def test_a_database_of_another_study_is_refused(store, tmp_path):
  other = study_clips.without_media(["a", "b"], 4)
  with pytest.raises(ValueError, match="has votes of study"):
    database.Database(tmp_path / manifest.VOTES, other)


def test_a_file_that_is_no_database_is_refused(tmp_path, study):
  (tmp_path / "x").write_bytes(b"no database" * 100)
  with pytest.raises(ValueError, match="expected a database of votes"):
    database.Database(tmp_path / "x", study)
  with pytest.raises(OSError, match="unable to open"):
    database.Database(tmp_path / "no" / "x", study)


def test_plans_differ_between_raters_and_are_reproducible(study):
  plans = {assignment.plan(study, f"rater {i}") for i in range(20)}
  assert len(plans) > 5
  assert assignment.plan(study, "rater 1") == assignment.plan(study, "rater 1")
  for plan in plans:
    assert plan[0] == "real"
    assert "repeat" not in plan[: len(plan) // 2]


def test_sides_are_balanced_over_raters_and_cannot_be_computed_without_the_key(
  study,
):
  flips = [
    assignment.is_flipped(study, f"rater {r}", "gold", n)
    for r in range(100)
    for n in range(10)
  ]
  assert 430 < sum(flips) < 570


def test_gold_items_of_a_session_alternate_between_corruptions(study):
  order = assignment.gold(study, "rater")
  assert len({study.gold[n].kind for n in order[:3]}) == 3
