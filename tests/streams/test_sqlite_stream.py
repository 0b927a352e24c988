"""Streams in a SQLite file: full disks, damage, files of something else."""

import re
import shutil
import sqlite3
import subprocess
import sys

import pytest

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.streams.sqlite_stream import SqliteStream
from tests.streams import topics
from tests.streams.streams import fill, numbers
from tests.streams.test_stream import KILLED


def test_every_commit_is_synced_and_a_batch_is_one(tmp_path):
  stream = SqliteStream(str(tmp_path / "s.sqlite"))
  said = []
  stream._writer.set_trace_callback(said.append)
  fill(stream, 50)
  assert said.count("COMMIT") == said.count("BEGIN IMMEDIATE") == 1
  assert stream._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
  assert stream._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
  stream.close()


def test_times_stand_in_the_order_of_all_topics(tmp_path):
  """Also where the clock has jumped back: what came later has no earlier time."""
  now = [100.0]
  stream = SqliteStream(str(tmp_path / "s.sqlite"), lambda: now[0])
  stream.append("ads", [{"n": 1}])
  now[0] = 120.0
  stream.append("events", [{"n": 1}])
  now[0] = 50.0
  stream.append("ads", [{"n": 2}])
  assert [record.time for record in stream.read("ads", 0)] == [100.0, 120.0]
  stream.close()


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
  stream = SqliteStream(str(tmp_path / "s.sqlite"))
  fill(stream, 3)
  stream._writer.execute("PRAGMA max_page_count=1")  # as many as it has by now
  with pytest.raises(OSError, match="s.sqlite: database or disk is full"):
    stream.append("events", [{"n": "x" * 4096}] * 9)
  assert numbers(stream) == [(n, f"k{n}", n) for n in range(1, 4)]
  stream._writer.execute("PRAGMA max_page_count=10000")  # somebody made room
  assert fill(stream, 2, start=4) == [4, 5]
  stream.close()


def test_a_damaged_record_is_named(tmp_path):
  path = tmp_path / "s.sqlite"
  stream = SqliteStream(str(path))
  stream.append("events", [{"said": "something"}, {"said": "other"}])
  stream.close()
  content = path.read_bytes()
  path.write_bytes(content.replace(b"something", b"somethinG"))
  stream = SqliteStream(str(path))
  with pytest.raises(DataError, match=r"record 1 of topic 'events' is damaged: its checksum"):
    stream.read("events", 0)
  assert [record.value for record in stream.read("events", 1)] == [{"said": "other"}]
  stream.close()


def test_a_damaged_log_is_told_and_left(tmp_path):
  folder = tmp_path / "killed"
  folder.mkdir()
  url = f"sqlite:{folder / 't.sqlite'}"
  subprocess.run([sys.executable, "-c", KILLED, url], capture_output=True, check=False)
  log = (folder / "t.sqlite-wal").read_bytes()
  stream = SqliteStream(str(topics.copied(folder, tmp_path / "whole") / "t.sqlite"))
  assert len(numbers(stream)) == 30  # as they are, the files are whole
  stream.close()
  for at in (40, len(log) // 2, len(log) - 100):
    copy = topics.copied(folder, tmp_path / "copy")
    topics.flip(copy / "t.sqlite-wal", at, 3)
    damaged = (copy / "t.sqlite-wal").read_bytes()
    with pytest.raises(DataError, match="frame .* is damaged"):
      SqliteStream(str(copy / "t.sqlite"))
    assert (copy / "t.sqlite-wal").read_bytes() == damaged
  shutil.rmtree(copy)


def test_a_file_of_something_else_is_refused(tmp_path):
  other = tmp_path / "other.sqlite"
  with sqlite3.connect(other) as connection:
    connection.execute("CREATE TABLE kept(word)")
  text = tmp_path / "text.sqlite"
  text.write_text("no database at all " * 99)
  for path, told in ((other, "is another SQLite file"), (text, "not a database")):
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{told}"):
      SqliteStream(str(path))


def test_compacting_leaves_no_byte_of_an_erased_user(tmp_path):
  stream = SqliteStream(str(tmp_path / "s.sqlite"))
  values = [
    {"user": "Wanda Unspeakable" if n % 7 == 3 else "Bob", "n": "y" * n} for n in range(300)
  ]
  stream.append("events", values, [str(n) for n in range(300)])
  assert stream.erase("events", "user", "Wanda Unspeakable") == 43
  reading = stream._reader.execute("BEGIN")
  reading.execute("SELECT count(*) FROM topics").fetchone()
  stream._writer.execute("PRAGMA busy_timeout=0")
  assert not stream.compact()  # a reader is in the way of the log
  stream._reader.execute("ROLLBACK")
  assert stream.compact()
  stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
  assert b"Wanda Unspeakable" not in stored
  assert b"Bob" in stored
  stream.close()
