"""Rows <-> UA-SIDs while ads come and go: a sorted main part, and a small overlay beside it.

The *main part* never changes. The *overlay* lists what has changed since it was made. A change
touches the overlay alone, so it costs the same at a thousand ads or ten million. A search finds it
with its next look at the arrays. `merge` folds the overlay into a new main part while searches and
changes go on.

A *row* is an ad's number in the catalogue. A *key* is a UA-SID as one int64 (`trie_arrays`).
"""

import contextlib
import threading
from collections.abc import Callable, Sequence, Set

import numpy as np

from gr4ad_jax.index.holdings import Changes, Holdings, Leaves
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.index.overlay import IndexFull, Overlay, OverlayArrays
from gr4ad_jax.index.trie_arrays import (
  INACTIVE,
  MainPart,
  TrieArrays,
  check_codes,
  pack,
  places,
  unpack,
)

__all__ = ["IndexFull", "LiveIndex", "OverlayArrays", "TrieArrays"]


class LiveIndex:
  """The index of the rows 0 … N-1, of which the *active* ones can be generated. Safe for threads.

  Args:
    codes_NT: UA-SID of each row.
    codebooks: codes a level. Their product is below 2^63.
    active_N: bool, the rows that are active. None: all.
    overlay: entries of each list of changes, a level, that have room beside the main part.

  Raises:
    ValueError: codes of the wrong shape or outside their codebook, or codebooks whose UA-SIDs do
      not fit 63 bits.
  """

  def __init__(
    self,
    codes_NT,
    codebooks: Sequence[int],
    active_N: np.ndarray | None = None,
    overlay: int = 1024,
  ):
    codes_NT = np.asarray(codes_NT)
    self.codebooks = tuple(map(int, codebooks))
    places(self.codebooks)
    check_codes(codes_NT, self.codebooks)
    self._key_N = pack(codes_NT, self.codebooks)
    if active_N is not None:
      self._key_N[~np.asarray(active_N, bool)] = INACTIVE
    self._num_active = int(np.count_nonzero(self._key_N != INACTIVE))
    self._room = overlay
    # `_lock` guards all state. `_merging` lets one merge run at a time, and is held for all of it.
    # A merge takes `_lock` inside it, but not while it sorts.
    self._lock = threading.Lock()
    self._merging = threading.Lock()
    # Rows that changed since a merge began. None: there is no merge.
    self._changed: set[int] | None = None
    self._version = 0
    self._copy = None
    self._use(MainPart.build(self._key_N, self.codebooks))

  @property
  def num_active(self) -> int:
    """Rows that can be generated."""
    return self._num_active

  @property
  def num_leaves(self) -> int:
    """Distinct UA-SIDs of active rows."""
    with self._lock:
      return len(self._main.leaf_key) + self._overlay.extra_leaves

  @property
  def fill(self) -> float:
    """Share of the overlay in use, by which a merge is called for. It may pass 1.

    Rows added under UA-SIDs that exist take no entry, but `expand` looks them up one by one. So
    they count too.
    """
    with self._lock:
      return max(self._overlay.used, self._num_added) / self._room

  @property
  def nbytes(self) -> int:
    """Memory of the arrays, bytes."""
    with self._lock:
      return self._main.nbytes + self._key_N.nbytes + 5 * 4 * len(self.codebooks) * self._room

  def view(self) -> tuple[TrieArrays, OverlayArrays]:
    """Main part and overlay that belong together. No later change touches them."""
    with self._lock:
      # One copy for all searches between two changes.
      if self._copy is None or self._copy.version != self._version:
        self._copy = self._overlay.copy(self._version)
      return self._main.trie, self._copy

  def snapshot(self) -> tuple[TrieArrays, OverlayArrays, Holdings]:
    """A `view`, and which rows hang under its nodes."""
    with self._lock:
      if self._copy is None or self._copy.version != self._version:
        self._copy = self._overlay.copy(self._version)
      changes = Changes.of(self._added, self._gone, self._copy)
      return self._main.trie, self._copy, Holdings(self._leaves, self._key_N, changes)

  def arrays(self) -> TrieArrays:
    """The main part. `view` gives both at once."""
    return self.view()[0]

  def overlay(self) -> OverlayArrays:
    """The overlay. `view` gives both at once."""
    return self.view()[1]

  def set(self, row: int, codes: Sequence[int] | None) -> None:
    """Makes a row generable under a UA-SID and no other, or, with None, under none.

    All of it happens, or nothing.

    Raises:
      IndexFull: the overlay has no room. Merge, then try again.
      ValueError: a negative row, or codes that are no UA-SID.
    """
    key = INACTIVE
    if codes is not None:
      check_codes(np.asarray(codes)[None], self.codebooks)
      key = int(pack(np.asarray(codes), self.codebooks))
    if row < 0:
      raise ValueError(f"row {row} is not allowed: rows are counted from 0")
    with self._lock:
      if row >= len(self._key_N):
        # An eighth more at least, so that rows that come one by one are not copied each time.
        room = max(row + 1, len(self._key_N) + len(self._key_N) // 8) - len(self._key_N)
        self._key_N = np.append(self._key_N, np.full(room, INACTIVE))
      if self._key_N[row] == key:
        return
      # Asked before anything is touched. One free entry a list and level is enough: a change opens
      # one path, so it adds a node a level at most, and closes one, so one a level may die.
      if self._overlay.used >= self._room:
        raise IndexFull(f"all {self._room} entries of a level of the index's overlay are in use")
      self._num_active += int(key != INACTIVE) - int(self._key_N[row] != INACTIVE)
      self._change(row, key)
      if self._changed is not None:
        self._changed.add(row)

  def rows_of(self, codes: Sequence[int]) -> np.ndarray:
    """[n] active rows of a UA-SID, ascending."""
    with self._lock:
      return self._rows(int(pack(np.asarray(codes), self.codebooks)))

  def codes_below(self, prefix: Sequence[int]) -> Set[int]:
    """Codes that active rows have right after a prefix of fewer than T codes."""
    with self._lock:
      return self._overlay.children(prefix)

  def expand(
    self, codes_BWT: np.ndarray, found_BW: np.ndarray, limit: int, left_out: LeftOut | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Active rows of ranked UA-SIDs, ascending within one, cut at `limit`.

    UA-SIDs are named by codes, not by node numbers. So a merge, or a removal, between the search
    and this call does no harm.

    Args:
      codes_BWT: UA-SIDs, the best first.
      found_BW: bool, whether a beam holds one.
      limit: rows kept of a request.
      left_out: rows that the B requests do without.

    Returns:
      [B, limit] int32 rows, and [B, limit] int32 beams that they came from. Both are -1 where the
      rows run out.
    """
    key_BW = pack(codes_BWT, self.codebooks)
    row_BK = np.full((len(key_BW), limit), -1, np.int32)
    beam_BK = row_BK.copy()
    kept_B = np.zeros(len(key_BW), int)
    with self._lock:
      # `limit` beams at a time: mostly each holds a row, so the first part is enough. The 1 lets
      # `range` pass where nothing is asked for.
      for begin in range(0, key_BW.shape[1], max(limit, 1)):
        part = slice(begin, begin + limit)
        wanted = found_BW[:, part] & (kept_B < limit)[:, None]
        request, beam, row = self._flat_rows(key_BW[:, part], wanted, limit, left_out)
        # The n rows stand by request. `first` is where each request's begin, so `at` is a row's
        # place in its request's answer, after those of earlier parts.
        first = np.searchsorted(request, np.arange(len(kept_B)))
        at = kept_B[request] + np.arange(len(request)) - first[request]
        kept_B += np.bincount(request, minlength=len(kept_B))
        keep = at < limit
        row_BK[request[keep], at[keep]] = row[keep]
        beam_BK[request[keep], at[keep]] = begin + beam[keep]
        if (kept_B >= limit).all():
          break
    return row_BK, beam_BK

  def merge(self, before_use: Callable[[TrieArrays], None] = lambda trie: None) -> None:
    """Folds the overlay into a new main part. Other threads' searches and changes go on meanwhile.

    What changes meanwhile is applied to the new part at the end. Where that needs more room than
    the overlay has, the part is built once more, with the other methods waiting.

    Args:
      before_use: called with the new trie before any view holds it. It may compile a search for
        shapes that were outgrown. In the rare second build it is not called.
    """
    with self._merging:
      # The picture of the keys and the start of `_changed` are one step under the lock: no change
      # falls between them.
      with self._lock:
        self._changed = set()
        key_N = self._key_N.copy()
        before = self._main.trie
      try:
        main = MainPart.build(key_N, self.codebooks, before)
        before_use(main.trie)
        with self._lock:
          if not self._replay(main, key_N):
            self._use(MainPart.build(self._key_N, self.codebooks, main.trie))
      finally:
        with self._lock:
          self._changed = None

  def _replay(self, main: MainPart, key_N: np.ndarray) -> bool:
    """Takes a part built from the keys `key_N`, then what changed since.

    Returns:
      Whether it fitted. Where not, the keys are right, but main part and overlay are not: the
      caller has to build them anew before it lets go of the lock.
    """
    # First back to the keys that the part was built from, so that `_change` sees each row leave the
    # key under which the part has it. Rows of after the picture were not there.
    later = {row: int(self._key_N[row]) for row in self._changed}
    for row in later:
      self._key_N[row] = key_N[row] if row < len(key_N) else INACTIVE
    self._use(main)
    with contextlib.suppress(IndexFull):
      for row, key in later.items():
        if self._key_N[row] != key:
          self._change(row, key)
      return True
    for row, key in later.items():
      self._key_N[row] = key
    return False

  def _use(self, main: MainPart) -> None:
    """Takes a main part that holds all that is active."""
    self._main = main
    self._overlay = Overlay(main.trie, self._room)
    # Key -> active rows that the main part does not have under it.
    self._added: dict[int, set[int]] = {}
    self._num_added = 0
    # Row -> key under which the main part has it, and which is no longer its own.
    self._gone: dict[int, int] = {}
    capacity = tuple(main.trie.capacity(depth) for depth in range(len(self.codebooks) + 1))
    self._leaves = Leaves(self.codebooks, main.leaf_key, main.leaf_start, main.leaf_rows, capacity)
    self._version += 1

  def _change(self, row: int, key: int) -> None:
    """Gives a row another key, and the overlay what follows from it.

    Raises:
      IndexFull: there is no room. The change is then half done; `set` asks before, `_replay` mends.
    """
    old, self._key_N[row] = int(self._key_N[row]), key
    self._version += 1
    # The new UA-SID opens before the old one closes: prefixes that both share stay as they are.
    if key != INACTIVE:
      rows = self._main.rows(key)
      at = int(np.searchsorted(rows, row))
      # A row that comes back to where the main part has it is no longer gone; others are added.
      if at == len(rows) or rows[at] != row:
        self._added.setdefault(key, set()).add(row)
        self._num_added += 1
      else:
        del self._gone[row]
      self._overlay.open(unpack(key, self.codebooks))
    if old != INACTIVE:
      added = self._added.get(old, set())
      if row in added:
        added.remove(row)
        self._num_added -= 1
        if not added:
          del self._added[old]
      else:
        self._gone[row] = old
      if not len(self._rows(old)):
        self._overlay.close(unpack(old, self.codebooks))

  def _rows(self, key: int) -> np.ndarray:
    """[n] active rows of a key, ascending."""
    rows = self._main.rows(key)
    rows = rows[self._key_N[rows] == key]  # less those that have left it
    added = self._added.get(key)
    return np.sort(np.append(rows, np.fromiter(added, np.int32, len(added)))) if added else rows

  def _flat_rows(
    self, key_BC: np.ndarray, wanted_BC: np.ndarray, limit: int, left_out: LeftOut | None
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Request, beam and row of the active rows of wanted keys: three arrays [n], in that order.

    Of each key the first `limit` rows that are not left out are among them, where it has so many.
    """
    request, beam = np.nonzero(wanted_BC)
    key = key_BC[request, beam]
    main = self._main
    # Both searches end at the same place where the main part lacks the key: size 0.
    start = main.leaf_start[np.searchsorted(main.leaf_key, key)]
    size = main.leaf_start[np.searchsorted(main.leaf_key, key + 1)] - start
    # Work must not grow with a leaf that thousands of rows share. Of its first rows at most so many
    # are dropped as have left any leaf, or as a request names; the rest are `limit` at least. A set
    # of allowed ads may drop any number: then the whole leaf is looked at.
    if not left_out:
      size = np.minimum(size, limit + len(self._gone))
    elif not left_out.sets:
      size = np.minimum(size, limit + len(self._gone) + left_out.most)
    of = np.repeat(np.arange(len(key)), size)  # which of the wanted keys a row belongs to
    # Several runs start … start + size - 1 as one gather [n]: a running number, less the number at
    # which the run began, plus its start.
    row = main.leaf_rows[np.repeat(start - np.cumsum(size) + size, size) + np.arange(len(of))]
    active = self._key_N[row] == key[of]
    if left_out:
      active &= left_out.keeps(request[of], row)
    of = of[active]
    row = row[active]
    more = (
      [(at, new) for at, k in enumerate(key.tolist()) for new in self._added.get(k, ())]
      if self._added
      else []
    )
    if more:
      added = np.array(more)
      if left_out:
        added = added[left_out.keeps(request[added[:, 0]], added[:, 1])]
      of = np.append(of, added[:, 0])
      row = np.append(row, added[:, 1])
      order = np.lexsort((row, of))  # by key, in its rank; then by row
      of = of[order]
      row = row[order]
    return request[of], beam[of], row
