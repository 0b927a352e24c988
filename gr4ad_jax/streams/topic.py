"""An append-only topic in one SQLite file: what was appended is on disk, in order, under an offset.

A *topic* is a list of records that only grows. A record has a key and a payload, and its *offset*
is its number. A *follower* is another process that reads what comes.

The file holds three things:
  NAME        the topic, a table: offset (1, 2, ...), key, payload, checksum
  NAME_state  a view: the latest record of each key, which is the key's current state
  notes       a table of texts by name: what the topic is of

The latest record of a key stays for ever. Of earlier ones those stay that are among the last
`RETAINED` offsets, so a follower that was away for less sees every change, and one that was away
for longer sees every key's state. A record may *forget* its key: all earlier records of the key go
with the same transaction, and `compact` leaves none of their bytes.
"""

import contextlib
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.streams import sqlite_file, wal

RETAINED = 10_000  # offsets within which superseded records are kept


class Record(NamedTuple):
  """A record as it is read."""

  offset: int
  key: str
  payload: bytes


class Change(NamedTuple):
  """A record to append. `forget` says whether earlier records of its key are deleted."""

  key: str
  payload: bytes
  forget: bool = False


class Topic:
  """A topic, opened for writing. Safe for threads. One process at a time may have it.

  Args:
    path: a file that `create` made.
    name: of the topic, a Python identifier. It stands in statements as it is.
    retained: as `RETAINED` says.

  Attributes:
    notes: as they were given to `create`.

  Raises:
    DataError: a bit of the file is not what was written. The line names the file and the first
      record, page or frame that is wrong. The file stays as it is.
  """

  def __init__(self, path: str, name: str, retained: int = RETAINED):
    self._path = path
    self._name = name
    self._retained = retained
    self._lock = threading.Lock()
    # Before SQLite opens the file, since it would take a damaged log for a short one.
    wal.check(path)
    self._connection = sqlite_file.connected(path)
    try:
      self.notes = self._checked()
    except BaseException:
      self._connection.close()
      raise
    with contextlib.suppress(sqlite3.Error):  # the disk may be full
      # Into the file goes what a process that was killed left in the log.
      self._pragma("wal_checkpoint(TRUNCATE)")
    # The file itself says whether it may hold traces of what was forgotten: a kill changes nothing.
    self._marked = bool(self._pragma("user_version"))
    self._trace = self._marked

  @classmethod
  def create(
    cls, path: str, name: str, notes: Mapping[str, str], changes: Iterable[Change] = ()
  ) -> None:
    """Makes a topic's file. After a crash at any point it is there as a whole, or not at all.

    Args:
      path: where there is no file yet.
      name: of the topic.
      notes: texts by name.
      changes: the first records.

    Raises:
      DataError: a write-ahead log without its file: the file was lost.
      OSError: it cannot be written.
    """
    if os.path.exists(path + "-wal"):
      raise DataError(f"{path} is missing, but its write-ahead log {path}-wal is there")
    # A `.part` of a crash goes first, with what SQLite kept beside it: its log must not be read
    # into the new file.
    part = path + ".part"
    sqlite_file.remove(part)
    try:
      connection = sqlite_file.connected(part)
      with contextlib.closing(connection), sqlite_file.transaction(connection, part):
        for sql in _schema(name).values():
          connection.execute(sql)
        for key, value in notes.items():
          row = (key, value, _checksum(0, key, value.encode()))
          connection.execute("INSERT INTO notes VALUES (?, ?, ?)", row)
        for offset, change in enumerate(changes, start=1):
          _insert(connection, name, offset, change)
      # Closing has moved all of the write-ahead log into the file, and synced it.
      os.replace(part, path)
      sqlite_file.sync_directory(os.path.dirname(path))
    except sqlite3.Error as error:
      raise sqlite_file.os_error(path, error) from error
    finally:
      sqlite_file.remove(part)

  def states(self) -> list[Record]:
    # In a statement as it is: names of topics are checked words.
    """The latest record of each key, in order of their offsets."""
    return self._select(f"SELECT offset, key, payload FROM {self._name}_state")

  def records(self, after: int = 0) -> list[Record]:
    """The records that are kept, in order, from behind an offset on."""
    return self._select(f"SELECT offset, key, payload FROM {self._name} WHERE offset > ?", after)

  def append(self, changes: Sequence[Change]) -> None:
    """Appends records in one transaction: all of them are on disk when this returns, or none is.

    Raises:
      OSError: they could not be written, for example because the disk is full.
    """
    name = self._name
    connection = self._connection
    with self._lock:
      with sqlite_file.transaction(connection, self._path):
        # Offsets go on after the last one, also when that record is gone.
        (before,) = connection.execute(f"SELECT ifnull(max(offset), 0) FROM {name}").fetchone()
        for offset, change in enumerate(changes, start=before + 1):
          _insert(connection, name, offset, change)
          # What is superseded within the last offsets stays; the sweep below meets it later.
          until = offset - 1 if change.forget else offset - self._retained
          connection.execute(
            f"DELETE FROM {name} WHERE key = ? AND offset <= ?", (change.key, until)
          )
        # The sweep: offsets that have just fallen out of the last `retained` ones. Of these, what
        # has a later record of its key goes.
        later = f"SELECT 1 FROM {name} AS later WHERE later.key = {name}.key"
        connection.execute(
          f"DELETE FROM {name} WHERE offset > ? AND offset <= ? "
          f"AND EXISTS ({later} AND later.offset > {name}.offset)",
          (before - self._retained, before + len(changes) - self._retained),
        )
        forgets = any(change.forget for change in changes)
        # In the same transaction, so that the mark is there if and only if the deletion is.
        if forgets and not self._marked:
          connection.execute("PRAGMA user_version = 1")
      self._marked = self._marked or forgets
      self._trace = self._trace or forgets

  def compact(self) -> None:
    """Leaves no trace of what was forgotten since the last time, and gives its room back.

    It writes all of the file anew. Its time grows with the topic, and writers wait for it. Where
    nothing was forgotten it does nothing.

    Raises:
      OSError: it could not be written. Nothing is lost, and the next call tries again.
    """
    with self._lock, self._as_os_error():
      if self._trace:
        # First: where the next line fails, marking once more does no harm.
        self._marked = False
        # Where it could not be vacuumed, the next call tries again.
        self._trace = not sqlite_file.vacuumed(self._connection)

  def close(self) -> None:
    """Closes the file. The write-ahead log goes into it."""
    with self._lock:
      self._connection.close()

  def _select(self, sql: str, *values: Any) -> list[Record]:
    with self._lock, self._as_os_error():
      rows = self._connection.execute(sql + " ORDER BY offset", values).fetchall()
    return list(map(Record._make, rows))

  def _pragma(self, name: str) -> Any:
    return self._connection.execute(f"PRAGMA {name}").fetchone()[0]

  @contextlib.contextmanager
  def _as_os_error(self) -> Iterator[None]:
    """Turns what SQLite raises into an OSError that names the file."""
    try:
      yield
    except sqlite3.Error as error:
      raise sqlite_file.os_error(self._path, error) from error

  def _checked(self) -> dict[str, str]:
    """Looks at all of the file; returns the notes. Raises DataError for the first thing wrong."""
    # SQLite's own check sees pages and indices. It cannot see a bit that flipped inside a payload,
    # hence the checksums.
    try:
      # The first thing wrong is enough.
      # Of the pages, and of the index by key.
      if (found := self._pragma("integrity_check(1)")) != "ok":
        raise DataError(f"{self._path} is damaged: {' '.join(found.split())}")
      found = dict(
        self._connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql NOT NULL")
      )
      if found != _schema(self._name):
        raise DataError(
          f"{self._path} is damaged: its tables are not those of topic {self._name!r}"
        )
      rows = self._connection.execute(f"SELECT * FROM {self._name} ORDER BY offset")
      bad = [row for row in rows if not _is_whole(*row)]
      notes = self._connection.execute("SELECT 0, name, CAST(value AS BLOB), checksum FROM notes")
      notes = notes.fetchall()
    except sqlite3.Error as error:
      raise DataError(f"{self._path} is damaged: {error}") from error
    if not all(_is_whole(*note) for note in notes):
      raise DataError(f"{self._path} is damaged: the checksum of a note is wrong")
    if bad:
      offset, key = bad[0][:2]
      more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
      raise DataError(
        f"{self._path}: record {offset} (key {key!r}) is damaged: its checksum is wrong{more}"
      )
    return {key: value.decode() for _, key, value, _ in notes}


def _schema(name: str) -> dict[str, str]:
  """Statements that make the tables, by what they make."""
  return {
    name: f"CREATE TABLE {name}(offset INTEGER PRIMARY KEY, key TEXT NOT NULL, "
    "payload BLOB NOT NULL, checksum INTEGER NOT NULL)",
    f"{name}_key": f"CREATE INDEX {name}_key ON {name}(key, offset)",
    # SQLite takes the other columns of a group from the row that has its maximum.
    f"{name}_state": f"CREATE VIEW {name}_state AS SELECT max(offset) AS offset, key, payload, "
    f"checksum FROM {name} GROUP BY key",
    "notes": "CREATE TABLE notes(name TEXT PRIMARY KEY, value TEXT NOT NULL, "
    "checksum INTEGER NOT NULL) WITHOUT ROWID",
  }


def _insert(connection: sqlite3.Connection, name: str, offset: int, change: Change) -> None:
  """Writes one record, with its checksum, inside the caller's transaction."""
  checksum = _checksum(offset, change.key, change.payload)
  row = (offset, change.key, change.payload, checksum)
  connection.execute(f"INSERT INTO {name} VALUES (?, ?, ?, ?)", row)


def _checksum(offset: int, key: str, payload: bytes) -> int:
  """A CRC-32 of all of a record, so that one that moved to another offset is seen too."""
  return zlib.crc32(payload, zlib.crc32(f"{offset}\0{key}\0".encode()))


def _is_whole(offset: Any, key: Any, payload: Any, checksum: Any) -> bool:
  """Whether a row is what was written."""
  # A bit that flips may change a value's type too, for SQLite keeps the type with the value.
  types = isinstance(key, str) and isinstance(payload, bytes)
  return types and _checksum(offset, key, payload) == checksum
