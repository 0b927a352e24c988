"""Reads a `live` folder of the form before SQLite, to carry its changes over. Nothing here writes.

  snapshot         the state, up to a journal's number
  journal.000007   changes since; the highest number is the one that was being written

Both are records: length and CRC-32 of the payload, 4 bytes each, little-endian; then the payload.
The first record of a file is its header, the others hold an ad each, as it was after a change.
"""

import json
import logging
import os
import re
import struct
import zlib
from typing import Any

from gr4ad_jax.data.schema import DataError

ANOTHER = "{}: holds the changes of another index; move the folder away to begin without changes"
_MAX_RECORD = 1 << 24  # bytes of a payload
_HEAD = struct.Struct("<II")
_FORMAT = 1
_log = logging.getLogger(__name__)


def files(directory: str) -> list[str]:
  """Names of the files that hold changes in the old form."""
  names = os.listdir(directory)
  return sorted(name for name in names if re.fullmatch(r"snapshot|journal\.\d{6,}", name))


def payloads(directory: str, digest: str) -> list[bytes]:
  """Payloads of all changes, in order.

  Args:
    directory: the folder.
    digest: of what the changes are changes of.

  Raises:
    DataError: a file is damaged or missing, or the changes are of something else.
  """
  first = 1
  found = []
  names = files(directory)
  if "snapshot" in names:
    path = os.path.join(directory, "snapshot")
    header, found = _read(path, digest, last=False)
    first = header["journal"]
    if len(found) != header["records"]:
      raise DataError(f"{path}: {len(found)} records, {header['records']} were written")
  numbers = sorted(int(name.partition(".")[2]) for name in names if name != "snapshot")
  # What stands in journals before it is in the snapshot.
  numbers = [number for number in numbers if number >= first]
  # With a snapshot there is always its journal; without one there may be nothing at all.
  if numbers or found or "snapshot" in names:
    for number in range(first, max(numbers, default=first) + 1):
      path = os.path.join(directory, f"journal.{number:06d}")
      if number not in numbers:
        raise DataError(f"{path}: no such file; the changes in it are lost")
      found += _read(path, digest, last=number == numbers[-1])[1]
  return found


def _read(path: str, digest: str, *, last: bool) -> tuple[dict[str, Any], list[bytes]]:
  """Header of a file, and its payloads; `last`: a crash may have left half a record at its end."""
  with open(path, "rb") as file:
    content = file.read()
  found = []
  at = 0
  while at < len(content):
    # Filled up, so that a head that was cut short can be unpacked. It is then found to be damaged.
    head = content[at : at + _HEAD.size].ljust(_HEAD.size, b"\0")
    length, checksum = _HEAD.unpack(head)
    end = at + _HEAD.size + length
    payload = content[at + _HEAD.size : end]
    whole = 0 < length <= _MAX_RECORD and end <= len(content) and zlib.crc32(payload) == checksum
    if not whole:
      # Zeros are what a file system may leave behind the end. What others follow was whole.
      torn = end >= len(content) or not any(content[at:])
      if not last or not found or not torn:
        raise DataError(f"{path}: the record at byte {at} of {len(content)} is damaged")
      cut = len(content) - at
      _log.warning("%s: half a record at its end, %d bytes, was never acknowledged", path, cut)
      break
    found.append(payload)
    at = end
  header = json.loads(found[0]) if found else {}
  if header.get("format") != _FORMAT:
    raise DataError(f"{path}: format {header.get('format')!r}, {_FORMAT} is read")
  if header["digest"] != digest:
    raise DataError(ANOTHER.format(path))
  return header, found[1:]
