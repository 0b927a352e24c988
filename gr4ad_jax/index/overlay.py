"""What has changed in a trie since it was made: nodes that came, and nodes that died.

A node is *dead* when no active ad is left under it. A search offers the children that the main part
has and that are not dead, and those that the overlay adds. The arrays are all the state there is.
They are short, so to look something up is to compare a whole one.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gr4ad_jax.index.trie_arrays import TrieArrays


class IndexFull(RuntimeError):
  """The overlay has no room for a further change: merge the index, then try again."""


@dataclasses.dataclass(frozen=True)
class OverlayArrays:
  """Changes of a trie of T levels, as five int32 [T, P] arrays. A parent of -1 marks a free entry.

  Nodes of both parts share one numbering. Main nodes of depth t are numbered from 0. Entry p of
  level t - 1 is node capacity_t + p of depth t. So one number says whether the parent of an added
  node is a main node or an added one.

  Attributes:
    add_parent_TP: entry p of level t is a node of depth t + 1 that the main part lacks. This is its
      parent, of depth t.
    add_code_TP: its code at level t.
    dead_parent_TP: the parent, of depth t, of a main node that is dead. It is a main node too.
    dead_child_TP: the dead node, of depth t + 1.
    dead_code_TP: its code at level t.
    version: another one after every change.
  """

  add_parent_TP: np.ndarray
  add_code_TP: np.ndarray
  dead_parent_TP: np.ndarray
  dead_child_TP: np.ndarray
  dead_code_TP: np.ndarray
  version: int


class Overlay:
  """The changes of one trie, with room for `room` entries of each kind a level.

  It is not safe for threads: `LiveIndex` holds its lock around every call.
  """

  def __init__(self, trie: TrieArrays, room: int):
    self.trie = trie
    self.room = room
    unused = np.full((5, len(trie.codebooks), room), -1, np.int32)
    # (5, T, P) taken apart along the first axis: five views [T, P].
    self._add_parent, self._add_code, self._dead_parent, self._dead_child, self._dead_code = unused

  @property
  def used(self) -> int:
    """Entries in use of the longest list."""
    return int(
      max((self._add_parent >= 0).sum(axis=1).max(), (self._dead_child >= 0).sum(axis=1).max())
    )

  @property
  def extra_leaves(self) -> int:
    """Leaves added, less leaves that are dead: how many more UA-SIDs there are than in the trie."""
    return int((self._add_parent[-1] >= 0).sum() - (self._dead_child[-1] >= 0).sum())

  def copy(self, version: int) -> OverlayArrays:
    """The state as arrays that no later change touches."""
    arrays = (
      self._add_parent,
      self._add_code,
      self._dead_parent,
      self._dead_child,
      self._dead_code,
    )
    return OverlayArrays(*(array.copy() for array in arrays), version)

  def open(self, codes: Sequence[int]) -> None:
    """Makes the UA-SID reachable: revives its dead nodes, adds those that are missing.

    Raises:
      IndexFull: an entry is missing, and the path is half made. A caller who cannot mend that sees
        to it before that each list has room.
    """
    node = 0
    for level, code in enumerate(codes):
      child = self._main_child(level, node, code)
      if child >= 0:
        # The parent first: its entry is found by the child, which the second line forgets.
        self._dead_parent[level, self._dead_child[level] == child] = -1
        self._dead_child[level, self._dead_child[level] == child] = -1
      else:
        child = self._added_child(level, node, code)
        if child < 0:
          # Its number follows from the entry, so the children below can name it as their parent.
          entry = self._unused(self._add_parent[level])
          self._add_parent[level, entry] = node
          self._add_code[level, entry] = code
          child = self.trie.capacity(level + 1) + entry
      node = child

  def close(self, codes: Sequence[int]) -> None:
    """Makes a reachable UA-SID unreachable, and every node above it that nothing is left under.

    Raises:
      IndexFull: as `open` does.
    """
    # From the leaf up: whether a node dies depends on what is left of its children. An added node
    # goes only when it has none, so no other entry names it and its own can be used again.
    path = self._path(codes)
    for level in reversed(range(len(codes))):
      parent = path[level]
      child = path[level + 1]
      entry = child - self.trie.capacity(level + 1)
      # An added node is taken back, and a main node is listed as dead.
      if entry >= 0:
        self._add_parent[level, entry] = -1
      else:
        entry = self._unused(self._dead_child[level])
        columns = (self._dead_parent, self._dead_child, self._dead_code)
        for column, value in zip(columns, (parent, child, codes[level]), strict=True):
          column[level, entry] = value
      if self._main_children(level, parent) + self._count(level, parent):
        # The parent still leads somewhere, and so do all nodes above it.
        return

  def children(self, prefix: Sequence[int]) -> set[int]:
    """Codes that lead on from a prefix of fewer than T codes."""
    node = self._path(prefix)[-1]
    level = len(prefix)
    if node < 0:
      return set()
    added = self._add_code[level, self._add_parent[level] == node]
    # All children of an added node were added, too.
    if node >= self.trie.capacity(level):
      return set(added.tolist())
    low, high = self.trie.child_start[level][node : node + 2]
    dead = self._dead_code[level, self._dead_parent[level] == node]
    # `-` binds before `|`: those of the main part less the dead, and then the added ones.
    return set(self.trie.node_code[level][low:high].tolist()) - set(dead.tolist()) | set(
      added.tolist()
    )

  def _path(self, codes: Sequence[int]) -> list[int]:
    """Nodes from the root down, dead or not; -1 from the first one that neither part has."""
    path = [0]
    # A child of the main part is preferred, though dead: `open` then revives it and adds none.
    for level, code in enumerate(codes):
      node = path[-1]
      child = -1 if node < 0 else self._main_child(level, node, code)
      path.append(self._added_child(level, node, code) if child < 0 <= node else child)
    return path

  def _main_child(self, level: int, node: int, code: int) -> int:
    """The child in the main part, dead or not; -1 where there is none, as under added nodes."""
    return self.trie.child(level, node, code) if node < self.trie.capacity(level) else -1

  def _added_child(self, level: int, node: int, code: int) -> int:
    """The child in the overlay; -1 where there is none."""
    found = np.flatnonzero((self._add_parent[level] == node) & (self._add_code[level] == code))
    return self.trie.capacity(level + 1) + int(found[0]) if len(found) else -1

  def _main_children(self, level: int, node: int) -> int:
    """Children in the main part, dead or not."""
    if node >= self.trie.capacity(level):
      return 0
    return int(self.trie.child_start[level][node + 1] - self.trie.child_start[level][node])

  def _count(self, level: int, node: int) -> int:
    """Children that are added to a node, less those that are dead."""
    return int((self._add_parent[level] == node).sum() - (self._dead_parent[level] == node).sum())

  def _unused(self, column_P: np.ndarray) -> int:
    """The first free entry of a level's list. Raises IndexFull where there is none."""
    free = np.flatnonzero(column_P < 0)
    if not len(free):
      raise IndexFull(f"all {self.room} entries of a level of the index's overlay are in use")
    return int(free[0])
