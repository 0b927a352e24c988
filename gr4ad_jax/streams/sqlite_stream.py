"""A stream in one SQLite file: the embedded default, for the processes of one machine.

Each topic is a table of its own, `topic_NAME`. The table `topics` has a row a topic: the first
offset that is kept, the last one that was given, bytes of the values, and when the last record
came. The table `positions` has what consumers have come to.

Appends that arrive together share one synced transaction (`group_commit`); those of other processes
wait for it. Every record has a checksum, and whoever reads it compares.
"""

import contextlib
import fcntl
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.streams import sqlite_file, stream, wal
from gr4ad_jax.streams.group_commit import GroupCommit
from gr4ad_jax.streams.stream import FellBehind, Record

_FORMAT = 1_201  # PRAGMA application_id: a file of ours, in this form
_LOOK = 0.02  # seconds between two looks at what other processes have appended
_BUSY = 60.0  # seconds that a process waits for another's transaction, or for its compaction
_PART = 10_000  # records that are removed, or looked through, at once
_BACK = 1.0  # seconds that a clock may go back without a word
_log = logging.getLogger(__name__)


class _Batch:
  """Records of one call on their way to the disk; `offsets` is set when they are there."""

  def __init__(self, topic: str, records: list[tuple[str, bytes]]):
    self.topic = topic
    self.records = records
    self.offsets: list[int | None] = []


class SqliteStream:
  """A `Stream` in a file, made where it is missing.

  Args:
    path: the file. SQLite keeps `-wal` and `-shm` beside it while it is open.
    clock: seconds since 1970.

  Raises:
    DataError: the file is damaged, or something else. It stays as it is.
    OSError: it cannot be opened.
  """

  def __init__(self, path: str, clock: stream.Clock = stream.CLOCK):
    self._path = path
    self._clock = clock
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    self._handle = _shared(path)
    try:
      # Two connections: who reads does not wait for a disk that syncs.
      self._writer = self._opened()
      self._reader = self._opened()
    except BaseException:
      os.close(self._handle)
      raise
    self._write_lock = threading.Lock()
    self._read_lock = threading.Lock()
    self._group_lock = threading.Lock()
    self._group = GroupCommit(self._group_lock, self._write, lambda batch: None)
    self._grown = threading.Condition()
    self._made: set[str] = set()  # topics whose tables are known to be there

  def append(
    self, topic: str, values: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None
  ) -> list[int | None]:
    """See `Stream.append`."""
    stream.check_topic(topic)
    batch = _Batch(topic, stream.encoded(values, keys))
    if not batch.records:
      return []
    with self._group_lock:
      waiting = self._group.add(batch)
    self._group.wait(waiting)
    with self._grown:
      self._grown.notify_all()
    return batch.offsets

  def read(self, topic: str, after: int, limit: int = 1000) -> list[Record]:
    """See `Stream.read`."""
    # One transaction, so that `first` is of the same moment as the rows.
    with self._reading() as connection:
      first, _ = self._bounds(connection, topic)
      if after + 1 < first:
        raise FellBehind(topic, after, first)
      sql = f"SELECT offset, time, key, value, checksum FROM topic_{topic} WHERE offset > ?"
      rows = [] if not first else connection.execute(f"{sql} LIMIT ?", (after, limit)).fetchall()
    return [self._record(topic, *row) for row in rows]

  def wait(self, topic: str, after: int, timeout: float) -> bool:
    """See `Stream.wait`."""
    until = time.monotonic() + timeout
    while self.end(topic) <= after:
      left = until - time.monotonic()
      if left <= 0:
        return False
      with self._grown:  # this process' appends wake it; for others' it looks
        self._grown.wait(min(left, _LOOK))
    return True

  def end(self, topic: str) -> int:
    """See `Stream.end`."""
    with self._reading() as connection:
      return self._bounds(connection, topic)[1]

  def position(self, topic: str, consumer: str) -> int:
    """See `Stream.position`."""
    stream.check_topic(topic)
    with self._reading() as connection:
      sql = "SELECT offset FROM positions WHERE topic = ? AND consumer = ?"
      row = connection.execute(sql, (topic, consumer)).fetchone()
    return row[0] if row else 0

  def commit(self, topic: str, consumer: str, offset: int) -> None:
    """See `Stream.commit`."""
    stream.check_topic(topic)
    with self._writing() as connection:
      row = (topic, consumer, offset)
      connection.execute("INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", row)

  def retain(self, topic: str, seconds: float | None = None, size: int | None = None) -> int:
    """See `Stream.retain`."""
    stream.check_topic(topic)
    before = None if seconds is None else self._clock() - seconds
    removed = 0
    # In parts, so that appends wait for none of them long.
    while part := self._remove_oldest(topic, before, size):
      removed += part
    return removed

  def erase(self, topic: str, field: str, value: str) -> int:
    """See `Stream.erase`."""
    erased = 0
    with self._reading() as connection:
      first, last = self._bounds(connection, topic)
    # What comes meanwhile is not looked at: whoever erases sees to it that no more comes.
    for begin in range(max(first - 1, 0), last, _PART):
      with self._reading() as connection:
        found = connection.execute(
          f"SELECT offset, length(value) FROM topic_{topic} WHERE offset > ? AND offset <= ? "
          "AND json_extract(value, ?) = ?",
          (begin, min(begin + _PART, last), f"$.{field}", value),
        ).fetchall()
      if found:
        with self._writing() as connection:
          offsets = [(offset,) for offset, _ in found]
          connection.executemany(f"DELETE FROM topic_{topic} WHERE offset = ?", offsets)
          taken = sum(length for _, length in found)
          sql = "UPDATE topics SET bytes = bytes - ? WHERE name = ?"
          connection.execute(sql, (taken, topic))
          # In the same transaction, so that the mark is there if and only if the deletion is.
          connection.execute("PRAGMA user_version = 1")
        erased += len(found)
    return erased

  def compact(self) -> bool:
    """See `Stream.compact`. It writes the file anew; appends wait."""
    with self._write_lock, self._as_os_error():
      if self._pragma("user_version") == 0:
        return True
      return sqlite_file.vacuumed(self._writer)

  def close(self) -> None:
    """See `Stream.close`."""
    self._group.flush()
    with self._write_lock, self._read_lock:
      self._reader.close()
      self._writer.close()
      if self._handle >= 0:
        os.close(self._handle)
        self._handle = -1

  # The file

  def _opened(self) -> sqlite3.Connection:
    connection = sqlite_file.connected(self._path, _BUSY)
    try:
      found = connection.execute("PRAGMA application_id").fetchone()[0]
      empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
      if found != _FORMAT and not empty:
        raise DataError(f"{self._path} is another SQLite file, not a stream")
      with sqlite_file.transaction(connection, self._path):
        connection.execute(f"PRAGMA application_id = {_FORMAT}")
        connection.execute(
          "CREATE TABLE IF NOT EXISTS topics(name TEXT PRIMARY KEY, first INTEGER NOT NULL, "
          "last INTEGER NOT NULL, bytes INTEGER NOT NULL, time REAL NOT NULL) WITHOUT ROWID"
        )
        connection.execute(
          "CREATE TABLE IF NOT EXISTS positions(topic TEXT, consumer TEXT, "
          "offset INTEGER NOT NULL, PRIMARY KEY(topic, consumer)) WITHOUT ROWID"
        )
    except sqlite3.Error as error:
      connection.close()
      raise DataError(f"{self._path} is damaged or cannot be opened: {error}") from error
    except BaseException:
      connection.close()
      raise
    return connection

  def _pragma(self, name: str) -> Any:
    return self._writer.execute(f"PRAGMA {name}").fetchone()[0]

  def _bounds(self, connection: sqlite3.Connection, topic: str) -> tuple[int, int]:
    """The first offset that is kept, and the last that was given; 0 and 0 where there is none."""
    stream.check_topic(topic)
    sql = "SELECT first, last FROM topics WHERE name = ?"
    return connection.execute(sql, (topic,)).fetchone() or (0, 0)

  def _write(self, batches: list[_Batch]) -> None:
    """Brings the batches of several calls to the disk, in one transaction."""
    with self._writing() as connection:
      for batch in batches:
        batch.offsets = self._insert(connection, batch)

  def _insert(self, connection: sqlite3.Connection, batch: _Batch) -> list[int | None]:
    """Writes the records of one call inside the caller's transaction; returns their offsets."""
    topic = batch.topic
    if topic not in self._made:
      self._make(connection, topic)
    # Of all topics, so that records of two have their times in the order in which they came.
    sql = "SELECT last, (SELECT max(time) FROM topics) FROM topics WHERE name = ?"
    last, latest = connection.execute(sql, (topic,)).fetchone()
    now = self._clock()
    if now < latest - _BACK:
      _log.warning(
        "topic %s: the clock went back %.1f s; its times stand still", topic, latest - now
      )
    now = max(now, latest)  # so that times ascend with offsets, and retention finds a prefix
    sql = f"INSERT OR IGNORE INTO topic_{topic} VALUES (?, ?, ?, ?, ?)"
    offsets: list[int | None] = []
    length = 0
    for key, text in batch.records:
      offset = last + 1
      row = (offset, now, key or None, text.decode(), _checksum(offset, key, text))
      if connection.execute(sql, row).rowcount:  # 0: the key is there
        last = offset
        length += len(text)
        offsets.append(offset)
      else:
        offsets.append(None)
    connection.execute(
      "UPDATE topics SET last = ?, time = ?, bytes = bytes + ? WHERE name = ?",
      (last, now, length, topic),
    )
    return offsets

  def _make(self, connection: sqlite3.Connection, topic: str) -> None:
    """Makes a topic's table inside the caller's transaction."""
    # NULL, and not "", is the key of a record without one: a unique column may have many of those.
    connection.execute(
      f"CREATE TABLE IF NOT EXISTS topic_{topic}(offset INTEGER PRIMARY KEY, time REAL NOT NULL, "
      "key TEXT UNIQUE, value TEXT NOT NULL, checksum INTEGER NOT NULL)"
    )
    connection.execute("INSERT OR IGNORE INTO topics VALUES (?, 1, 0, 0, 0)", (topic,))

  def _remove_oldest(self, topic: str, before: float | None, size: int | None) -> int:
    """Removes at most `_PART` of the oldest records, of those that shall go. Returns how many."""
    with self._writing() as connection:
      sql = "SELECT first, bytes FROM topics WHERE name = ?"
      first, total = connection.execute(sql, (topic,)).fetchone() or (0, 0)
      if not first:
        return 0
      # JSON is ASCII here, so characters are bytes.
      sql = f"SELECT offset, time, length(value) FROM topic_{topic} LIMIT {_PART}"
      until = 0
      count = 0
      for offset, moment, length in connection.execute(sql):
        old = before is not None and moment < before
        if not old and (size is None or total <= size):
          break
        until = offset
        count += 1
        total -= length
      if count:
        connection.execute(f"DELETE FROM topic_{topic} WHERE offset <= ?", (until,))
        sql = "UPDATE topics SET first = ?, bytes = ? WHERE name = ?"
        connection.execute(sql, (until + 1, total, topic))
      return count

  def _record(
    self, topic: str, offset: int, moment: float, key: str | None, text: Any, found: int
  ) -> Record:
    key = key or ""
    # A bit that flips may change a value's type too, for SQLite keeps the type with the value.
    whole = isinstance(text, str) and isinstance(key, str)
    if not whole or found != _checksum(offset, key, text.encode(errors="replace")):
      raise DataError(
        f"{self._path}: record {offset} of topic {topic!r} is damaged: its checksum is wrong"
      )
    return Record(offset, moment, key, json.loads(text))

  @contextlib.contextmanager
  def _reading(self) -> Iterator[sqlite3.Connection]:
    """The reader, in one transaction: what it sees is of one moment."""
    with self._read_lock, self._as_os_error():
      self._reader.execute("BEGIN")
      try:
        yield self._reader
      finally:
        if self._reader.in_transaction:
          self._reader.execute("ROLLBACK")

  @contextlib.contextmanager
  def _writing(self) -> Iterator[sqlite3.Connection]:
    with self._write_lock, sqlite_file.transaction(self._writer, self._path):
      yield self._writer

  @contextlib.contextmanager
  def _as_os_error(self) -> Iterator[None]:
    try:
      yield
    except sqlite3.DatabaseError as error:
      # "malformed" is an error of its own kind: what is on disk is not what was written.
      code = getattr(error, "sqlite_errorcode", 0) & 0xFF
      if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        raise DataError(f"{self._path} is damaged: {error}") from error
      raise sqlite_file.os_error(self._path, error) from error


def _shared(path: str) -> int:
  """A handle on `PATH.lock` that other processes may share. Who is alone checks the log first."""
  handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # While nobody has it open: a log that is written to meanwhile would look damaged.
      wal.check(path)
    except BlockingIOError:
      pass
    fcntl.flock(handle, fcntl.LOCK_SH)
  except BaseException:
    os.close(handle)
    raise
  return handle


def _checksum(offset: int, key: str, text: bytes) -> int:
  """Of a record at its offset, so that one that moved to another is seen too."""
  return stream.checksum(key, text, offset & 0xFFFFFFFF)
