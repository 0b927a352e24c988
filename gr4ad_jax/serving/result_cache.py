"""Answers of the last minute, kept under a digest of all that they depend on, and dropped with any ad they name.

Adding an ad drops nothing: until it expires, a kept answer may lack an ad that is newer than itself.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

_REMOVALS = 4096  # of late, against which an answer that was on its way is checked


def digest(*parts: Any) -> bytes:
  """A key for whatever JSON can write; mappings count by content, not by order."""
  return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).digest()


@dataclasses.dataclass(frozen=True)
class _Entry:
  answer: Any
  rows: frozenset[int]
  schedule: int
  expires: float


class ResultCache:
  """Bounded, least recently used first out; safe for use from several threads.

  Args:
    seconds: life of an entry; 0 keeps nothing.
    entries: most that are held.
    clock: monotonic seconds.
  """

  def __init__(self, seconds: float, entries: int, clock: Callable[[], float] = time.monotonic):
    self._seconds, self._most, self._clock = seconds, entries, clock
    self._entries: collections.OrderedDict[bytes, _Entry] = collections.OrderedDict()
    self._keys_of_row: dict[int, set[bytes]] = {}
    self._removed: collections.deque[tuple[int, int]] = collections.deque(maxlen=_REMOVALS)  # (moment, row)
    self._moment = 0
    self._lock = threading.Lock()

  def __len__(self):
    return len(self._entries)

  @property
  def moment(self) -> int:
    """Counts removals. Read it before an answer is computed, and hand it to `put`."""
    return self._moment

  def get(self, key: bytes, schedule: int = 0) -> Any | None:
    """The answer under a key, if it was searched at least as widely as `schedule`; else None."""
    with self._lock:
      entry = self._entries.get(key)
      if entry is not None and entry.expires <= self._clock():
        self._forget(key)
        entry = None
      if entry is None or entry.schedule < schedule:
        return None
      self._entries.move_to_end(key)
      return entry.answer

  def put(self, key: bytes, answer: Any, rows: Iterable[int], moment: int, schedule: int = 0) -> bool:
    """Keeps an answer that names the ads `rows`; not if one of them was dropped since `moment`. Returns whether."""
    entry = _Entry(answer, frozenset(rows), schedule, self._clock() + self._seconds)
    with self._lock:
      if self._seconds <= 0 or self._changed_since(moment, entry.rows):
        return False
      self._forget(key)
      self._entries[key] = entry
      for row in entry.rows:
        self._keys_of_row.setdefault(row, set()).add(key)
      while len(self._entries) > self._most:
        self._forget(next(iter(self._entries)))
      return True

  def drop(self, row: int) -> int:
    """Forgets every answer that names an ad, kept or on its way. Returns how many were kept."""
    with self._lock:
      self._moment += 1
      self._removed.append((self._moment, row))
      keys = list(self._keys_of_row.get(row, ()))
      for key in keys:
        self._forget(key)
      return len(keys)

  def clear(self) -> None:
    """Forgets everything."""
    with self._lock:
      self._entries.clear()
      self._keys_of_row.clear()

  def _changed_since(self, moment: int, rows: frozenset[int]) -> bool:
    if self._moment - moment > len(self._removed):
      return True  # more was dropped than is remembered
    newer = itertools.takewhile(lambda removal: removal[0] > moment, reversed(self._removed))
    return any(row in rows for _, row in newer)

  def _forget(self, key: bytes) -> None:
    entry = self._entries.pop(key, None)
    for row in entry.rows if entry else ():
      keys = self._keys_of_row[row]
      keys.discard(key)
      if not keys:
        del self._keys_of_row[row]
