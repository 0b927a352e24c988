"""What is known of users on disk: one SQLite file, written in snapshots.

A snapshot is one transaction: the users that changed since the last one, the counts of ads, and the
offset of the stream up to which they are known. So a restart reads on from there. Users of whom
nothing has come since the run's log are not in it.

Everything in it can be made again from the log and the stream.
"""

import contextlib
import io
import json
import os
import sqlite3
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.features.histories import Person
from gr4ad_jax.streams import sqlite_file, wal

_HEAD = struct.Struct("<II")  # events, bytes of the names
_COLUMNS = (("ad", "<i4"), ("time", "<i8"), ("behavior", "i1"), ("value", "<f4"),
            ("quantity", "<f4"), ("visit", "<i4"))  # fmt: skip
_FORMAT = "1"
_TABLES = (
  # With row numbers: without them SQLite would give each user of more than 1 kB a page of its own.
  "people(user_id TEXT NOT NULL UNIQUE, events BLOB NOT NULL, checksum INTEGER NOT NULL)",
  "notes(name TEXT PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
  "waiting(offset INTEGER PRIMARY KEY, value TEXT NOT NULL)",
  "erased(digest TEXT PRIMARY KEY) WITHOUT ROWID",
)


class Snapshot(NamedTuple):
  """What is written at once.

  Attributes:
    offset: of the events, up to which all of it is known.
    erasures: of the topic of erasures, likewise.
    people: users that changed.
    notes: arrays by name, each a mapping of arrays; those that are left out stay as they are.
    number: users in all that the log does not have.
    joined: offsets of events that wait no more.
    waits: (offset, value) of events that wait from now on.
    erased: digests of users that were erased.
    gone: ids of users to delete.
  """

  offset: int
  erasures: int
  people: Mapping[str, Person]
  notes: Mapping[str, Mapping[str, np.ndarray]]
  number: int
  joined: Sequence[int]
  waits: Sequence[tuple[int, Mapping[str, Any]]]
  erased: Sequence[str]
  gone: Sequence[str]


class PeopleStore:
  """The file, made where it is missing. Safe for threads.

  Args:
    path: the file.
    base: digest of the log that the users go on from.

  Attributes:
    offset: of the last snapshot's events; 0: there is none yet.
    erasures: likewise.
    number: users that the log does not have, as of it.
    server: a name of the file, and of the server that has it; the same as long as the file stays.

  Raises:
    DataError: the file is damaged, or goes on from another log.
  """

  def __init__(self, path: str, base: str):
    self._path = path
    self._lock = threading.Lock()
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    wal.check(path)
    self._connection = sqlite_file.connected(path)
    try:
      with sqlite_file.transaction(self._connection, path):
        for table in _TABLES:
          self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
      about = json.loads(self._note("about") or "null")
      made = {"format": _FORMAT, "base": base}
      # It is another log's file where the digest differs.
      if about not in (None, made):
        raise DataError(
          f"{path}: it goes on from another log; remove it, and the stream is read from its start"
        )
      with sqlite_file.transaction(self._connection, path):
        self._put("about", json.dumps(made).encode())
      self.server = self._named()
      self.offset, self.erasures, self.number = json.loads(self._note("state") or "[0, 0, 0]")
    except sqlite3.Error as error:
      self._connection.close()
      raise DataError(f"{path} is damaged: {error}") from error
    except BaseException:
      self._connection.close()
      raise

  def _named(self) -> str:
    """A name of this file, made with it."""
    found = self._note("server")
    if found is None:
      found = uuid.uuid4().hex[:12].encode()
      with sqlite_file.transaction(self._connection, self._path):
        self._put("server", found)
    return found.decode()

  def write(self, snapshot: Snapshot) -> None:
    """Writes a snapshot: all of it is on disk when this returns, or nothing.

    Raises:
      OSError: it could not be written.
    """
    # Packed outside of the lock, so that readers need not wait for it.
    rows = [(user, blob, _sum(user, blob)) for user, blob in map(_row, snapshot.people.items())]
    with self._lock, sqlite_file.transaction(self._connection, self._path):
      run = self._connection.executemany
      run("INSERT OR REPLACE INTO people VALUES (?, ?, ?)", rows)
      run("DELETE FROM people WHERE user_id = ?", [(user,) for user in snapshot.gone])
      run("DELETE FROM waiting WHERE offset = ?", [(offset,) for offset in snapshot.joined])
      waits = [(offset, json.dumps(value)) for offset, value in snapshot.waits]
      run("INSERT OR REPLACE INTO waiting VALUES (?, ?)", waits)
      run("INSERT OR IGNORE INTO erased VALUES (?)", [(digest,) for digest in snapshot.erased])
      for name, arrays in snapshot.notes.items():
        self._put(name, _packed(arrays))
      state = snapshot.offset, snapshot.erasures, snapshot.number
      self._put("state", json.dumps(state).encode())
      if snapshot.gone or snapshot.erased:
        # The mark is set in the same transaction as the deletion.
        self._connection.execute("PRAGMA user_version = 1")  # there may be traces
    self.offset = snapshot.offset
    self.erasures = snapshot.erasures
    self.number = snapshot.number

  def person(self, user_id: str) -> Person | None:
    """A user, with an empty log: the caller makes it. None where he is not in the file.

    Raises:
      DataError: what is there is not what was written.
    """
    with self._reading():
      sql = "SELECT events, checksum FROM people WHERE user_id = ?"
      row = self._connection.execute(sql, (user_id,)).fetchone()
    if row is None:
      return None
    # A flipped bit may change the type of a cell, and not its content alone.
    if not isinstance(row[0], bytes) or _sum(user_id, row[0]) != row[1]:
      raise DataError(f"{self._path}: user {user_id[:80]!r} is damaged: the checksum is wrong")
    return _person(row[0])

  def starting_with(self, prefix: str, limit: int) -> list[str]:
    """At most `limit` ids of users in the file that begin with a prefix, in order."""
    with self._reading():
      sql = "SELECT user_id FROM people WHERE user_id >= ? ORDER BY user_id LIMIT ?"
      # Sorted ids from the prefix on. The end of those with the prefix is found below.
      rows = self._connection.execute(sql, (prefix, limit)).fetchall()
    return [user for (user,) in rows if user.startswith(prefix)]

  def note(self, name: str) -> dict[str, np.ndarray] | None:
    """Arrays of a note; None where there is none yet. Raises DataError where they are damaged."""
    with self._reading():
      found = self._note(name)
    if found is None:
      return None
    with np.load(io.BytesIO(found), allow_pickle=False) as saved:
      return {name: saved[name] for name in saved.files}

  def waiting(self) -> list[tuple[int, dict[str, Any]]]:
    """(offset, value) of the events that wait for their ads, in order."""
    with self._reading():
      rows = self._connection.execute("SELECT offset, value FROM waiting ORDER BY offset")
      return [(offset, json.loads(value)) for offset, value in rows]

  def erased(self) -> set[str]:
    """Digests of the users that were erased."""
    with self._reading():
      return {digest for (digest,) in self._connection.execute("SELECT digest FROM erased")}

  def user_ids(self) -> list[str]:
    """The ids of all users in the file."""
    with self._reading():
      return [user for (user,) in self._connection.execute("SELECT user_id FROM people")]

  def compact(self) -> bool:
    """Leaves no trace of what was deleted. Returns whether that is so. Raises OSError."""
    with self._reading():
      if not self._connection.execute("PRAGMA user_version").fetchone()[0]:
        return True
      return sqlite_file.vacuumed(self._connection)

  def close(self) -> None:
    """Closes the file."""
    with self._lock:
      self._connection.close()

  def _put(self, name: str, value: bytes) -> None:
    row = (name, value, _sum(name, value))
    self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", row)

  def _note(self, name: str) -> bytes | None:
    sql = "SELECT value, checksum FROM notes WHERE name = ?"
    row = self._connection.execute(sql, (name,)).fetchone()
    if row is None:
      return None
    if not isinstance(row[0], bytes) or _sum(name, row[0]) != row[1]:
      raise DataError(f"{self._path}: note {name!r} is damaged: the checksum is wrong")
    return row[0]

  @contextlib.contextmanager
  def _reading(self) -> Iterator[None]:
    with self._lock:
      try:
        yield
      except sqlite3.DatabaseError as error:
        raise sqlite_file.os_error(self._path, error) from error


def _sum(name: str, blob: bytes) -> int:
  # The name is in the checksum, so that a blob under another's name is seen.
  return zlib.crc32(blob, zlib.crc32(f"{name}\0".encode()))


def _row(item: tuple[str, Person]) -> tuple[str, bytes]:
  """A user's id, and his events as bytes: 25 an event and the names of the visits, compressed."""
  user_id, person = item
  names = json.dumps(list(person.names), separators=(",", ":")).encode()
  arrays = person.columns | {"visit": person.visit}
  parts = [np.asarray(arrays[name], kind).tobytes() for name, kind in _COLUMNS]
  whole = b"".join([_HEAD.pack(len(person.visit), len(names)), names, *parts])
  # Level 1: fast, and histories are repetitive enough.
  return user_id, zlib.compress(whole, 1)


def _person(blob: bytes) -> Person:
  """What `_row` wrote, with an empty log."""
  # The checksum was compared before, so this cannot fail on damage.
  blob = zlib.decompress(blob)
  count, length = _HEAD.unpack_from(blob)
  at = _HEAD.size + length
  # A visit of the run's log is called ("log", number), which JSON makes a list.
  called = [tuple(n) if isinstance(n, list) else n for n in json.loads(blob[_HEAD.size : at])]
  arrays = {}
  for name, kind in _COLUMNS:
    arrays[name] = np.frombuffer(blob, kind, count, at).astype(np.dtype(kind).newbyteorder("="))
    at += arrays[name].nbytes
  visit = arrays.pop("visit")
  return Person(arrays, visit, {n: at for at, n in enumerate(called)}, visits.no_events())


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
  made = io.BytesIO()
  np.savez(made, **arrays)
  return made.getvalue()
