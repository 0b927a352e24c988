"""Files of records that survive a crash: a record counts when its length and its checksum are right.

A record on disk: length and CRC-32 of the payload, 4 bytes each, little-endian; then the payload.
"""

import contextlib
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator

from gr4ad_jax.data.schema import DataError

MAX_RECORD = 1 << 24  # bytes of a payload
_HEAD = struct.Struct("<II")
_log = logging.getLogger(__name__)


def framed(payload: bytes) -> bytes:
  """A record. Raises DataError for a payload that is empty or longer than `MAX_RECORD`."""
  if not 0 < len(payload) <= MAX_RECORD:
    raise DataError(f"a record of {len(payload)} bytes is not allowed: 1 to {MAX_RECORD}")
  return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def read(path: str, *, cut: bool = False) -> Iterator[bytes]:
  """Payloads of a file, in order.

  Args:
    path: the file.
    cut: whether a crash may have left half a record at the end. The file is then cut at the first record that is not
      whole, with a line in the log. A journal is read so; it is the file that was being written.

  Raises:
    DataError: a record is damaged, and `cut` is not set.
  """
  with open(path, "r+b" if cut else "rb") as file:
    good, size = 0, os.fstat(file.fileno()).st_size
    while good < size:
      head = file.read(_HEAD.size)
      length, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
      payload = file.read(length) if length <= MAX_RECORD else b""
      if not payload or len(payload) != length or zlib.crc32(payload) != checksum:
        if not cut:
          raise DataError(f"{path}: the record at byte {good} of {size} is damaged")
        _log.warning("%s: half a record at its end, %d bytes, is cut off: it was never acknowledged", path, size - good)
        file.truncate(good)
        os.fsync(file.fileno())
        return
      good = file.tell()
      yield payload


def write_whole(path: str, payloads: Iterable[bytes]) -> None:
  """Writes a file of records that is either there as a whole, on disk, or not at all."""
  part = path + ".part"
  try:
    with open(part, "wb") as file:
      for payload in payloads:
        file.write(framed(payload))
      file.flush()
      os.fsync(file.fileno())
    os.replace(part, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(part)  # the disk may be full: take no room
    raise
  sync_directory(os.path.dirname(path))


def sync_directory(directory: str) -> None:
  """Waits until the names of a directory's files are on disk."""
  handle = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


class Journal:
  """The end of a file of records. Safe for threads; one `fsync` serves all that wait for one.

  Args:
    path: the file; it exists, and all its records are whole.
  """

  def __init__(self, path: str):
    self._handle = os.open(path, os.O_WRONLY)
    self._on_disk = self._end = os.fstat(self._handle).st_size
    self._pending: list[bytes] = []
    self._appending, self._writing = threading.Lock(), threading.Lock()
    self.failed = False  # whether the last attempt to write failed

  @property
  def size(self) -> int:
    """Bytes, with those that wait to be written."""
    return self._end

  def append(self, payload: bytes) -> int:
    """Takes a record to be written, and returns what `wait` takes. Nothing is written yet.

    Raises:
      DataError: see `framed`.
    """
    record = framed(payload)
    with self._appending:
      self._pending.append(record)
      self._end += len(record)
      return self._end

  def wait(self, position: int) -> None:
    """Returns when the records up to a position are on disk.

    Raises:
      OSError: they could not be written, for example because the disk is full. They are kept, and the next call tries
        again.
    """
    if self._on_disk >= position:
      return
    with self._writing:  # one thread writes for all; those that wait here mostly find their record written
      if self._on_disk >= position:
        return
      with self._appending:
        records, end = len(self._pending), self._end
        data = b"".join(self._pending)
      try:
        self._write(data)
      except OSError:
        self.failed = True
        raise
      self.failed = False
      with self._appending:
        del self._pending[:records]
      self._on_disk = end

  def flush(self) -> None:
    """`wait` for all records."""
    self.wait(self._end)

  def close(self) -> None:
    """Writes what waits, and closes the file. What was written may still be waited for."""
    try:
      self.flush()
    finally:
      handle, self._handle = self._handle, -1  # so that a late write cannot reach another file of the same number
      os.close(handle)

  def _write(self, data: bytes) -> None:
    """Writes from the place up to which the file is known to be right: an attempt that failed is written over."""
    done = 0
    while done < len(data):
      done += os.pwrite(self._handle, data[done : done + (1 << 26)], self._on_disk + done)
    os.fsync(self._handle)
