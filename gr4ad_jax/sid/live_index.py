"""Rows <-> UA-SIDs under live change: a sorted main part that never changes, and a small overlay
beside it.

A change touches the overlay alone, so it costs the same at a thousand ads or ten million, and a
search finds it with its next look at the arrays. `merge` folds the overlay into a new main part
while searches and changes go on.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence, Set

import numpy as np

from gr4ad_jax.sid.holdings import Changes, Holdings, Leaves
from gr4ad_jax.sid.left_out import LeftOut
from gr4ad_jax.sid.overlay import IndexFull, Overlay, OverlayArrays
from gr4ad_jax.sid.trie_arrays import (
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
    codebooks: codes a level; their product is below 2^63.
    active_N: bool, the rows that are active; None: all.
    overlay: changes of a level that are held beside the main part.

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
    codes_NT, self.codebooks = np.asarray(codes_NT), tuple(map(int, codebooks))
    places(self.codebooks)
    check_codes(codes_NT, self.codebooks)
    self._key_N = pack(codes_NT, self.codebooks)
    if active_N is not None:
      self._key_N[~np.asarray(active_N, bool)] = INACTIVE
    self._num_active = int(np.count_nonzero(self._key_N != INACTIVE))
    self._room = overlay
    self._lock, self._merging = threading.Lock(), threading.Lock()
    self._changed: set[int] | None = (
      None  # rows changed since a merge began; None: there is no merge
    )
    self._version, self._copy = 0, None
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
    """Share of the overlay in use; rows added under UA-SIDs that exist count too, so it may pass
    1.
    """
    with self._lock:
      return max(self._overlay.used, self._num_added) / self._room

  @property
  def nbytes(self) -> int:
    """Memory of the arrays, bytes."""
    with self._lock:
      return self._main.nbytes + self._key_N.nbytes + 5 * 4 * len(self.codebooks) * self._room

  def view(self) -> tuple[TrieArrays, OverlayArrays]:
    """Main part and overlay that belong together; no later change touches them."""
    with self._lock:
      if self._copy is None or self._copy.version != self._version:
        self._copy = self._overlay.copy(self._version)
      return self._main.trie, self._copy

  def snapshot(self) -> tuple[TrieArrays, OverlayArrays, Holdings]:
    """A `view`, and which rows hang under its nodes."""
    with self._lock:
      if self._copy is None or self._copy.version != self._version:
        self._copy = self._overlay.copy(self._version)
      came = [(key, row) for key, rows in self._added.items() for row in rows]
      gone = [(key, row) for row, key in self._gone.items()]
      changes = Changes(*_by_key(came), *_by_key(gone), self._copy)
      return self._main.trie, self._copy, Holdings(self._leaves, self._key_N, changes)

  def arrays(self) -> TrieArrays:
    """The main part; see `view` for both at once."""
    return self.view()[0]

  def overlay(self) -> OverlayArrays:
    """The overlay; see `view` for both at once."""
    return self.view()[1]

  def set(self, row: int, codes: Sequence[int] | None) -> None:
    """Makes a row generable under a UA-SID and no other, or, with None, under none. All of it
    happens, or nothing.

    Raises:
      IndexFull: the overlay has no room: merge, then try again.
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
        room = max(row + 1, len(self._key_N) + len(self._key_N) // 8) - len(self._key_N)
        self._key_N = np.append(self._key_N, np.full(room, INACTIVE))
      if self._key_N[row] == key:
        return
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

    By codes, not by node numbers: a merge, or a removal, between search and expansion does no harm.

    Args:
      codes_BWT: UA-SIDs, the best first.
      found_BW: whether a beam holds one.
      limit: rows kept of a request.
      left_out: rows that the B requests do without.

    Returns:
      rows [B, limit] int32, -1 where they run out, and the beam that each came from [B, limit]
      int32, -1 likewise.
    """
    key_BW = pack(codes_BWT, self.codebooks)
    row_BK = np.full((len(key_BW), limit), -1, np.int32)
    beam_BK = row_BK.copy()
    kept_B = np.zeros(len(key_BW), int)
    with self._lock:
      for begin in range(
        0, key_BW.shape[1], max(limit, 1)
      ):  # mostly a beam holds a row: the first part is enough
        part = slice(begin, begin + limit)
        wanted = found_BW[:, part] & (kept_B < limit)[:, None]
        request, beam, row = self._flat_rows(key_BW[:, part], wanted, limit, left_out)
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
    """Folds the overlay into a new main part. For a background thread: the other methods go on
    meanwhile.

    What changes meanwhile is applied to the new part at the end. Where that needs more room than
    the overlay has, the part is built once more, with the other methods waiting.

    Args:
      before_use: called with the new trie before any view holds it, to compile for shapes that it
        may have outgrown.
    """
    with self._merging:
      with self._lock:
        self._changed, key_N, before = set(), self._key_N.copy(), self._main.trie
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
    """Takes a part built from the keys `key_N`, and what changed since; False where that does
    not fit.
    """
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
    self._main, self._overlay = main, Overlay(main.trie, self._room)
    self._added: dict[
      int, set[int]
    ] = {}  # key -> active rows that the main part does not have under it
    self._num_added = 0
    # row -> key under which the main part has it, and which is no longer its own
    self._gone: dict[int, int] = {}
    capacity = tuple(main.trie.capacity(depth) for depth in range(len(self.codebooks) + 1))
    self._leaves = Leaves(self.codebooks, main.leaf_key, main.leaf_start, main.leaf_rows, capacity)
    self._version += 1

  def _change(self, row: int, key: int) -> None:
    """Gives a row another key, and the overlay what follows. Raises IndexFull half-way where
    there is no room.
    """
    old, self._key_N[row] = int(self._key_N[row]), key
    self._version += 1
    if key != INACTIVE:
      rows = self._main.rows(key)
      at = int(np.searchsorted(rows, row))
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
    rows = self._main.rows(key)
    rows = rows[self._key_N[rows] == key]
    added = self._added.get(key)
    return np.sort(np.append(rows, np.fromiter(added, np.int32, len(added)))) if added else rows

  def _flat_rows(
    self, key_BC: np.ndarray, wanted_BC: np.ndarray, limit: int, left_out: LeftOut | None
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Request, beam and row, three arrays [n], of active rows of the wanted keys, in that order.

    Of each key the first `limit` rows at least that are not left out: so many are among a leaf's
    first `limit` and as many as may be dropped.
    """
    request, beam = np.nonzero(wanted_BC)
    key = key_BC[request, beam]
    main = self._main
    start = main.leaf_start[np.searchsorted(main.leaf_key, key)]
    size = main.leaf_start[np.searchsorted(main.leaf_key, key + 1)] - start
    if not left_out:
      size = np.minimum(size, limit + len(self._gone))
    elif not left_out.sets:
      size = np.minimum(size, limit + len(self._gone) + left_out.most)
    of = np.repeat(np.arange(len(key)), size)  # which of the wanted keys a row belongs to
    row = main.leaf_rows[np.repeat(start - np.cumsum(size) + size, size) + np.arange(len(of))]
    active = self._key_N[row] == key[of]
    if left_out:
      active &= left_out.keeps(request[of], row)
    of, row = of[active], row[active]
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
      order = np.lexsort((row, of))
      of, row = of[order], row[order]
    return request[of], beam[of], row


def _by_key(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
  """Rows and keys of (key, row) pairs, by key."""
  pairs_n2 = np.array(sorted(pairs), np.int64).reshape(-1, 2)
  return pairs_n2[:, 1], pairs_n2[:, 0]
