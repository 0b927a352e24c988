"""Topics: what is kept and what is forgotten, against a list; full disks, damage, lost files."""

import os
import random
import re
import resource
import sqlite3
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.streams import topic as topic_lib
from gr4ad_jax.streams.topic import Change, Topic
from tests.streams import topics

RETAINED = 5
STEPS = ["compact", "reopen"]
CHANGE = st.builds(Change, st.sampled_from("abcd"), st.binary(max_size=20), st.booleans())


def kept(log):
  """[(offset, change)] that stay of all that was ever appended."""
  found = []
  for offset, change in log:
    later = [other for at, other in log if at > offset and other.key == change.key]
    recent = offset > len(log) - RETAINED
    if not later or (recent and not any(other.forget for other in later)):
      found.append((offset, change.key, change.payload))
  return found


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.lists(CHANGE, max_size=4) | st.sampled_from(STEPS), max_size=12))
def test_a_topic_keeps_states_and_the_latest_changes(tmp_path_factory, steps):
  folder = tmp_path_factory.mktemp("topic")
  first = [Change("a", b"1"), Change("b", b"2")]
  topic, log = topics.made(folder, first, RETAINED), list(enumerate(first, start=1))
  for step in steps:
    topic._connection.execute("PRAGMA synchronous=OFF")  # for speed
    if step == "compact":
      topic.compact()
    elif step == "reopen":
      topic.close()
      topic = Topic(str(folder / "t.sqlite"), "t", RETAINED)
    else:
      topic.append(step)
      log += enumerate(step, start=len(log) + 1)
    assert topic.records() == kept(log)
    assert topic.records(after=3) == [record for record in kept(log) if record[0] > 3]
    latest = {change.key: (offset, change.key, change.payload) for offset, change in log}
    assert topic.states() == sorted(latest.values())
  assert topic.notes == {"of": "tests"}
  topic.close()
  assert os.listdir(folder) == ["t.sqlite"]


def test_every_commit_is_synced(tmp_path):
  topic = topics.made(tmp_path)
  ask = topic._connection.execute
  assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
  assert ask("PRAGMA synchronous").fetchone() == (
    2,
  )  # FULL: NORMAL syncs the log only when it is moved into the file
  topic.close()


def test_a_batch_is_one_transaction(tmp_path):
  topic, said = topics.made(tmp_path), []
  topic._connection.set_trace_callback(said.append)
  topic.append([topics.change(n) for n in range(9)])
  assert said.count("COMMIT") == said.count("BEGIN IMMEDIATE") == 1
  with pytest.raises(OSError, match="NOT NULL"):
    topic.append([Change("a", b"1"), Change(None, b"2")])
  assert len(topic.records()) == 9  # nothing of it
  topic.close()


def test_nothing_is_left_of_what_was_forgotten(tmp_path):
  """Records of all sizes come and go, so that pages split, merge and hand records to each other."""
  topic, rng, alive = topics.made(tmp_path, retained=20), random.Random(0), {}
  topic._connection.execute("PRAGMA synchronous=OFF")
  for version in range(300):
    changes = []
    for key in rng.sample(range(400), 20):
      if key in alive and rng.random() < 0.5:
        del alive[key]
        changes.append(Change(f"k{key}", b"gone", forget=True))
      else:
        alive[key] = b"<%d.%d>" % (key, version)
        changes.append(Change(f"k{key}", alive[key] * rng.choice((2, 9, 30, 90, 400))))
    topic.append(changes)
  topic.append([Change(f"other{n}", b"") for n in range(20)])  # no superseded record is recent
  topic.compact()
  content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
  assert set(re.findall(rb"<\d+\.\d+>", content)) == set(alive.values())
  topic.close()


def test_a_kill_between_forgetting_and_compacting_is_made_good(tmp_path):
  topic = topics.made(tmp_path, [Change("k", b"unspeakable " * 900), Change("other", b"x")])
  topic.append([Change("k", b"", forget=True)])
  topic.close()
  topic = Topic(str(tmp_path / "t.sqlite"), "t")
  size = (tmp_path / "t.sqlite").stat().st_size
  topic.compact()
  assert (tmp_path / "t.sqlite").stat().st_size < size - 8_000
  assert topic._connection.execute("PRAGMA user_version").fetchone() == (0,)
  topic.close()


def test_compacting_waits_for_a_follower(tmp_path):
  topic = topics.made(tmp_path, [Change("k", b"unspeakable")])
  follower = sqlite3.connect(tmp_path / "t.sqlite", isolation_level=None)
  follower.execute("BEGIN")
  assert follower.execute("SELECT count(*) FROM t_state").fetchone() == (1,)
  topic.append([Change("k", b"", forget=True)])
  topic._connection.execute("PRAGMA busy_timeout=0")
  topic.compact()
  assert b"unspeakable" in (tmp_path / "t.sqlite").read_bytes()  # the follower still reads it
  topic.append([Change("other", b"", forget=True)])
  assert topic._connection.execute("PRAGMA user_version").fetchone() == (1,)  # for the next process
  follower.execute("COMMIT")
  follower.close()
  topic.compact()
  assert not any(b"unspeakable" in path.read_bytes() for path in tmp_path.iterdir())
  topic.close()


def test_a_full_disk_changes_nothing(tmp_path):
  topic = topics.made(tmp_path, [topics.change(0)])
  large = [Change("a", os.urandom(9000)), Change("b", os.urandom(9000))]
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))  # the write fails half-way
  try:
    with pytest.raises(OSError, match="t.sqlite: disk I/O error"):
      topic.append(large)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert len(topic.records()) == 1
  topic._connection.execute("PRAGMA max_page_count=4")
  with pytest.raises(OSError, match=r"\[Errno 28\] .*t.sqlite: database or disk is full"):
    topic.append(large)
  assert len(topic.records()) == 1
  topic._connection.execute("PRAGMA max_page_count=1000")
  topic.append(large)
  topic.close()
  assert [record[0] for record in topics.records(tmp_path)] == [1, 2, 3]


def test_threads_append_side_by_side(tmp_path):
  topic = topics.made(tmp_path)

  def write(writer):
    for n in range(8):
      topic.append([Change(f"{writer}", b"%d" % n), Change(f"{writer} too", b"%d" % n)])

  threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  found = topic.records()
  assert [record.offset for record in found] == list(range(1, 65))
  for first, second in zip(found[::2], found[1::2], strict=True):
    assert (first.key + " too", first.payload) == second[1:]  # nobody came between
  for writer in range(4):
    assert [int(record.payload) for record in found if record.key == f"{writer}"] == list(range(8))
  topic.close()


def test_a_changed_bit_is_told_or_does_no_harm(tmp_path):
  """Of a topic at rest; every place of the file has its turn, a page at a time, at random bits."""
  topic = topics.made(tmp_path, [topics.change(n) for n in range(60)])
  topic.append([Change("key 1", b"", forget=True), Change("long", b"0123456789" * 2000)])
  topic.close()
  right, told, rng = topics.records(tmp_path), 0, random.Random(1)
  size = (tmp_path / "t.sqlite").stat().st_size
  for at in [*range(100), *range(100, size, 211)]:  # the header, then all else
    copy = topics.copied(tmp_path, tmp_path / "copy", ["t.sqlite"])
    topics.flip(copy / "t.sqlite", at, rng.randrange(8))
    damaged = (copy / "t.sqlite").read_bytes()
    try:
      assert topics.records(copy) == right, at
    except DataError as error:
      told += 1
      assert "t.sqlite" in str(error) and "\n" not in str(error)
      assert (copy / "t.sqlite").read_bytes() == damaged  # nothing is cut away
  assert told > size // 211 // 3


def test_a_damaged_record_is_named(tmp_path):
  topics.made(tmp_path, [Change("first", b"payload one"), Change("second", b"payload two")]).close()
  content = (tmp_path / "t.sqlite").read_bytes()
  topics.flip(tmp_path / "t.sqlite", content.index(b"payload two"), 0)
  named = r"t.sqlite: record 2 \(key 'second'\) is damaged: its checksum is wrong$"
  with pytest.raises(DataError, match=named):
    topics.records(tmp_path)
  topics.flip(tmp_path / "t.sqlite", content.index(b"payload one"), 0)
  with pytest.raises(DataError, match=r"record 1 \(key 'first'\) .* wrong, and 1 more$"):
    topics.records(tmp_path)


def test_a_checksum_is_of_offset_key_and_payload(tmp_path):
  for column, value in (("offset", 7), ("key", "b"), ("payload", "one"), ("checksum", None)):
    folder = tmp_path / column
    folder.mkdir()
    topics.made(folder, [Change("a", b"one")]).close()
    with sqlite3.connect(folder / "t.sqlite") as connection:
      connection.execute(f"UPDATE t SET {column} = ?", (value or 3,))
    connection.close()
    with pytest.raises(DataError, match="is damaged: its checksum is wrong"):
      topics.records(folder)


def test_a_damaged_note_is_told(tmp_path):
  topics.made(tmp_path).close()
  content = (tmp_path / "t.sqlite").read_bytes()
  topics.flip(tmp_path / "t.sqlite", content.index(b"oftests") + 2, 0)
  with pytest.raises(DataError, match="t.sqlite is damaged: the checksum of a note is wrong"):
    topics.records(tmp_path)


def test_files_that_are_not_whole_are_refused(tmp_path):
  topics.made(tmp_path, [Change("a", b"one")]).close()
  path = tmp_path / "t.sqlite"
  content = path.read_bytes()
  for size in (0, 100, len(content) // 2):
    path.write_bytes(content[:size])
    with pytest.raises(DataError, match="t.sqlite is damaged"):
      topics.records(tmp_path)
  path.write_bytes(content)
  with pytest.raises(DataError, match="tables are not those of topic 'other'"):
    Topic(str(path), "other")
  os.remove(path)
  (tmp_path / "t.sqlite-wal").write_bytes(b"frames")
  with pytest.raises(DataError, match="t.sqlite is missing, but its write-ahead log"):
    topics.made(tmp_path)


def test_a_topic_is_made_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
  class Crash(BaseException):
    pass

  def crash(*_):
    raise Crash

  for name in ("replace", "fsync"):
    folder = tmp_path / name
    folder.mkdir()
    for ending in ("", "-wal", "-shm", "-journal"):
      (folder / f"t.sqlite.part{ending}").write_bytes(b"left by a kill")
    with monkeypatch.context() as patch, pytest.raises(Crash):
      patch.setattr(topic_lib.os, name, crash)
      topics.made(folder, [Change("a", b"one")])
    assert os.listdir(folder) == ([] if name == "replace" else ["t.sqlite"])
    if name == "replace":
      topics.made(folder, [Change("a", b"one")]).close()
    assert topics.records(folder) == [(1, "a", b"one")]
