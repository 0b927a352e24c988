"""Changes kept in a directory: a snapshot, and the journals that came after it.

  snapshot         the state, up to a journal's number
  journal.000007   changes since; the highest number is being written
  lock             held by the process that writes

A record holds the whole state of one thing after a change, so applying a record twice does no harm. That makes a
snapshot simple: 1. a new journal begins; 2. the snapshot of all before it is written and renamed; 3. the older journals
are deleted. After a crash at any point, what is there still holds every change.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.locks import InUseError, Lock
from gr4ad_jax.serving import journal

_FORMAT = 1


class ChangeLog:
  """The changes of one directory; it is made where it is missing.

  Args:
    directory: the directory; one `ChangeLog` at a time may have it.
    digest: of what the changes are changes of.

  Raises:
    DataError: another process has the directory, a file is damaged or missing, or the changes are of something else.
  """

  def __init__(self, directory: str, digest: str):
    os.makedirs(directory, exist_ok=True)
    self._directory, self._digest = directory, digest
    try:
      self._lock = Lock(os.path.join(directory, "lock"))
    except InUseError as error:
      raise DataError(f"{directory}: in use by another process") from error
    try:
      self._first = self._first_journal()
      self._numbers = self._journals()
      self._journal: journal.Journal | None = None
    except BaseException:
      self._lock.close()
      raise

  @property
  def size(self) -> int:
    """Bytes of the journal that is being written."""
    return self._journal.size

  @property
  def snapshot_size(self) -> int:
    """Bytes of the snapshot, 0 where there is none."""
    return os.path.getsize(self._snapshot) if os.path.exists(self._snapshot) else 0

  def replay(self) -> Iterator[bytes]:
    """Every record, in order. To be read to its end, once, before the first `append`."""
    if os.path.exists(self._snapshot):
      records = journal.read(self._snapshot)
      expected, count = self._header(self._snapshot, next(records, b"{}"))["records"], 0
      for record in records:
        count += 1
        yield record
      if count != expected:
        raise DataError(f"{self._snapshot}: {count} records, {expected} were written")
    for number in self._numbers:
      path = self._path(number)
      self._header(path, next(journal.read(path), b"{}"))  # written as a whole, so never cut
      yield from itertools.islice(journal.read(path, cut=number == self._numbers[-1]), 1, None)
    self._journal = journal.Journal(self._path(self._numbers[-1]))

  def append(self, payload: bytes) -> Callable[[], None]:
    """Takes a record. Returns a function that returns when it is on disk, or raises OSError.

    Raises:
      DataError: a record that is empty or too long.
    """
    return functools.partial(self._journal.wait, self._journal.append(payload))

  def flush(self) -> None:
    """Returns when every record is on disk. Raises OSError where that fails."""
    self._journal.flush()

  def check(self) -> None:
    """Raises OSError where earlier records could not be written, and still cannot."""
    if self._journal.failed:
      self._journal.flush()

  def rotate(self) -> None:
    """Begins a new journal. Nobody may append meanwhile; the state at this moment is what `snapshot` takes."""
    self._journal.flush()
    number = self._numbers[-1] + 1
    self._begin(number)
    before, self._journal = self._journal, journal.Journal(self._path(number))
    self._numbers.append(number)
    before.close()

  def snapshot(self, records: Iterable[bytes], count: int) -> None:
    """Puts a snapshot of the state at the last `rotate` in the place of what came before it.

    Args:
      records: the state.
      count: how many there are.
    """
    number = self._numbers[-1]
    header = self._encoded({"journal": number, "records": count})
    journal.write_whole(self._snapshot, (payload for part in ((header,), records) for payload in part))
    for older in self._numbers[:-1]:
      os.remove(self._path(older))
    self._numbers = [number]

  def close(self) -> None:
    """Writes what waits, and gives the directory free."""
    try:
      if self._journal is not None:
        self._journal.close()
    finally:
      self._lock.close()

  @property
  def _snapshot(self) -> str:
    return os.path.join(self._directory, "snapshot")

  def _path(self, number: int) -> str:
    return os.path.join(self._directory, f"journal.{number:06d}")

  def _first_journal(self) -> int:
    """Number of the first journal that the snapshot does not hold."""
    if not os.path.exists(self._snapshot):
      return 1
    return self._header(self._snapshot, next(journal.read(self._snapshot), b"{}"))["journal"]

  def _journals(self) -> list[int]:
    """Numbers of the journals after the snapshot; older ones, left by a crash, are deleted."""
    found = (re.fullmatch(r"journal\.(\d{6,})", name) for name in os.listdir(self._directory))
    numbers = sorted(int(match[1]) for match in found if match)
    for number in numbers:
      if number < self._first:
        os.remove(self._path(number))
    numbers = [number for number in numbers if number >= self._first]
    if not numbers and not os.path.exists(self._snapshot):
      self._begin(self._first)
      numbers = [self._first]
    if numbers != list(range(self._first, self._first + len(numbers))) or not numbers:
      missing = next(n for n in range(self._first, self._first + len(numbers) + 1) if n not in numbers)
      raise DataError(f"{self._path(missing)}: no such file; the changes in it are lost")
    return numbers

  def _begin(self, number: int) -> None:
    journal.write_whole(self._path(number), [self._encoded({"journal": number})])

  def _encoded(self, header: dict[str, Any]) -> bytes:
    return json.dumps({"format": _FORMAT, "digest": self._digest} | header).encode()

  def _header(self, path: str, payload: bytes) -> dict[str, Any]:
    header = json.loads(payload)
    if header.get("format") != _FORMAT:
      raise DataError(f"{path}: format {header.get('format')!r}, {_FORMAT} is read")
    if header["digest"] != self._digest:
      raise DataError(f"{path}: holds the changes of another index; move the folder away to begin without changes")
    return header
