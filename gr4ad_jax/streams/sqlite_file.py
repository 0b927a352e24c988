"""One SQLite file, opened so that what is committed is on disk: what `topic` and `sqlite_stream`
share.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator

from gr4ad_jax.data.schema import DataError

BESIDE = ("-wal", "-shm", "-journal")  # files that SQLite keeps beside its own


def connected(path: str, busy: float = 5.0) -> sqlite3.Connection:
  """A connection, set up. The file is made where it is missing. Transactions are begun by hand.

  Args:
    path: the file.
    busy: seconds to wait for a transaction of another connection.

  Raises:
    DataError: it is no file of SQLite's, or cannot be opened.
  """
  try:
    # Any thread may use it: whoever has it holds a lock around every use.
    connection = sqlite3.connect(path, timeout=busy, isolation_level=None, check_same_thread=False)
  except sqlite3.Error as error:
    raise DataError(f"{path} is damaged or cannot be opened: {error}") from error
  try:
    # WAL: a follower can read while a writer writes. FULL: a commit is synced before it returns.
    # `secure_delete`: what is deleted is overwritten with zeros.
    for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
      connection.execute(f"PRAGMA {setting}")
  except sqlite3.Error as error:
    connection.close()
    raise DataError(f"{path} is damaged or cannot be opened: {error}") from error
  return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, path: str) -> Iterator[None]:
  """All of the block, on disk at its end, or nothing. Raises OSError where SQLite fails."""
  try:
    # Takes the lock for writing now. A transaction that began with a read might not get it later.
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")
  except BaseException as error:
    # Where the disk is full, SQLite has undone it itself.
    with contextlib.suppress(sqlite3.Error):
      if connection.in_transaction:
        connection.execute("ROLLBACK")
    if isinstance(error, sqlite3.Error):
      raise os_error(path, error) from error
    raise


def os_error(path: str, error: sqlite3.Error) -> OSError:
  """SQLite's error as the system's: a full disk by its own number, all else as input or output."""
  full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
  return OSError(errno.ENOSPC if full else errno.EIO, f"{path}: {error}")


def vacuumed(connection: sqlite3.Connection) -> bool:
  """Writes all of a file anew, so that nothing stays of what was deleted. Returns whether that is
  so; if not, a reader is in the way of the log, and the next call tries again.

  `user_version` is the file's mark that there may be traces: it is 0 afterwards.
  """
  # Where SQLite moves a record between pages, the page that it left keeps a copy in its unused
  # part, which `secure_delete` does not reach. So all of the file is written anew.
  connection.execute("VACUUM")
  # Frames of the log hold pages as they were: the log is emptied, not only written over.
  if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
    return False
  connection.execute("PRAGMA user_version = 0")
  return True


def remove(path: str) -> None:
  """Deletes a file of SQLite, and those beside it, where they are."""
  for name in (path, *(path + ending for ending in BESIDE)):
    with contextlib.suppress(FileNotFoundError):
      os.remove(name)


def sync_directory(directory: str) -> None:
  """Waits until the names of a directory's files are on disk."""
  handle = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
