"""Answers of the last minute, kept under a digest of all that they depend on, and dropped with any
ad they name.

Adding an ad drops nothing: until it expires, a kept answer may lack an ad that is newer than
itself. Answers are kept as bytes, so that what they take is known: a client can make as many keys
as it likes, and the memory stays bounded.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from gr4ad_jax.answering.messages import Query

_REMOVALS = 4096  # of late, against which an answer that was on its way is checked
_ENTRY_BYTES = 1000  # of an entry's objects and its places in the tables, beside the answer
_ROW_BYTES = 400  # of an ad that it names: in a set, and the key in that ad's own set


def digest(*parts: Any) -> bytes:
  """A key for whatever JSON can write; mappings count by content, not by order."""
  return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).digest()


def key(query: Query, step: int, seconds: float, version: int = 0) -> bytes:
  """The digest of all that an answer depends on.

  Args:
    query: what is asked. Moments within the life of an entry count as one.
    step: of the checkpoint that answers.
    seconds: life of an entry.
    version: of what is known of the user: an answer of before the last event is none of now.
  """
  # Moments of one span share their answers: the cache forgets after a span anyway.
  now = None if query.now is None else int(query.now // max(seconds, 1.0))
  # Whether the cache may be asked, and the deadline, change no answer.
  about = query.user, query.history, query.k, now, query.explain, query.wanted
  return digest(*about, step, version)


@dataclasses.dataclass(frozen=True)
class _Entry:
  answer: bytes
  rows: frozenset[int]
  schedule: Any
  expires: float

  @property
  def nbytes(self) -> int:
    """An upper estimate of all that it takes."""
    return len(self.answer) + _ENTRY_BYTES + _ROW_BYTES * len(self.rows)


class ResultCache:
  """Bounded, least recently used first out; safe for use from several threads.

  Args:
    seconds: life of an entry; 0 keeps nothing.
    entries: most that are held.
    clock: monotonic seconds.
    most_bytes: most that they may take together.
  """

  def __init__(
    self,
    seconds: float,
    entries: int,
    clock: Callable[[], float] = time.monotonic,
    most_bytes: int = 64 << 20,
  ):
    self._seconds = seconds
    self._most = entries
    self._clock = clock
    self._most_bytes = most_bytes
    self._entries: collections.OrderedDict[bytes, _Entry] = collections.OrderedDict()
    self._bytes = 0
    # (expires, key), as they came.
    self._by_age: collections.deque[tuple[float, bytes]] = collections.deque()
    self._keys_of_row: dict[int, set[bytes]] = {}
    # (moment, row).
    self._removed: collections.deque[tuple[int, int]] = collections.deque(maxlen=_REMOVALS)
    self._moment = 0
    self._lock = threading.Lock()

  def __len__(self):
    return len(self._entries)

  @property
  def nbytes(self) -> int:
    """Bytes that the entries take, by an upper estimate; at most `most_bytes`."""
    return self._bytes

  @property
  def moment(self) -> int:
    """Counts removals. Read it before an answer is computed, and hand it to `put`."""
    return self._moment

  def get(self, key: bytes, schedule: Any = 0) -> Any | None:
    """The answer under a key, if it was searched at least as widely as `schedule`; else None."""
    with self._lock:
      self._forget_expired()
      entry = self._entries.get(key)
      # A list of a narrower search would be worse than what the load allows now.
      if entry is None or entry.schedule < schedule:
        return None
      # The least recently used one stands first.
      self._entries.move_to_end(key)
    # What is read was written by `put` alone: it is never what a client sent.
    return pickle.loads(entry.answer)

  def put(
    self, key: bytes, answer: Any, rows: Iterable[int], moment: int, schedule: Any = 0
  ) -> bool:
    """Keeps an answer that names the ads `rows`; not if one of them was dropped since `moment`.
    Returns whether.

    `schedule` says how widely it was searched: a number, or beam widths, of which the wider one is
      the greater.
    """
    expires = self._clock() + self._seconds
    entry = _Entry(
      pickle.dumps(answer, pickle.HIGHEST_PROTOCOL), frozenset(rows), schedule, expires
    )
    with self._lock:
      self._forget_expired()
      too_large = entry.nbytes > self._most_bytes
      # Checked under the lock, so that no removal falls between the check and the entry.
      if self._seconds <= 0 or too_large or self._changed_since(moment, entry.rows):
        return False
      # An older entry under the same key goes with its places in the tables.
      self._forget(key)
      self._entries[key] = entry
      self._bytes += entry.nbytes
      self._by_age.append((expires, key))
      for row in entry.rows:
        self._keys_of_row.setdefault(row, set()).add(key)
      while len(self._entries) > self._most or self._bytes > self._most_bytes:
        self._forget(next(iter(self._entries)))
      # Most of the pairs are of entries that left early.
      if len(self._by_age) > 2 * len(self._entries) + 16:
        self._by_age = collections.deque(pair for pair in self._by_age if self._is_current(*pair))
      return True

  def drop(self, row: int) -> int:
    """Forgets every answer that names an ad, kept or on its way. Returns how many were kept."""
    with self._lock:
      # Counted before the keys are looked up. An answer that is put meanwhile waits for the lock,
      # and finds the removal.
      self._moment += 1
      self._removed.append((self._moment, row))
      # A copy, as `_forget` takes keys out of the set itself.
      keys = list(self._keys_of_row.get(row, ()))
      for key in keys:
        self._forget(key)
      return len(keys)

  def clear(self) -> None:
    """Forgets everything."""
    with self._lock:
      self._entries.clear()
      self._by_age.clear()
      self._keys_of_row.clear()
      self._bytes = 0

  def _changed_since(self, moment: int, rows: frozenset[int]) -> bool:
    if self._moment - moment > len(self._removed):
      # More was dropped than is remembered, so nothing is sure.
      return True
    # Removals ascend, so the newest ones stand at the end.
    newer = itertools.takewhile(lambda removal: removal[0] > moment, reversed(self._removed))
    return any(row in rows for _, row in newer)

  def _is_current(self, expires: float, key: bytes) -> bool:
    """Whether a pair of `_by_age` is of an entry that is held, not of one that was replaced or
    has left.
    """
    entry = self._entries.get(key)
    return entry is not None and entry.expires == expires

  def _forget_expired(self) -> None:
    now = self._clock()
    while self._by_age and self._by_age[0][0] <= now:
      expires, key = self._by_age.popleft()
      if self._is_current(expires, key):
        self._forget(key)

  def _forget(self, key: bytes) -> None:
    entry = self._entries.pop(key, None)
    self._bytes -= entry.nbytes if entry else 0
    for row in entry.rows if entry else ():
      keys = self._keys_of_row[row]
      keys.discard(key)
      if not keys:
        del self._keys_of_row[row]
