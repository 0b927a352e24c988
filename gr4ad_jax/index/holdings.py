"""Which rows hang under which nodes of a trie, so that a request can do without some of them.

A node is *dead* for a request when every row below it is left out. Rows below a node are those
whose UA-SIDs begin with its prefix. Their keys are a run of the sorted ones, so two binary searches
count them at any depth, and the trie's arrays stay as they are.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Set

import numpy as np

from gr4ad_jax.index.dead_nodes import Dead, Touched, TouchedLevel
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.overlay import OverlayArrays
from gr4ad_jax.index.trie_arrays import INACTIVE, pack, places, run_starts

SETS_KEPT = 64  # sets of rows that are kept of a view, those asked for last


@dataclasses.dataclass(frozen=True)
class Leaves:
  """The main part of an index, as `Holdings` reads it.

  Attributes:
    codebooks: codes a level, length T.
    leaf_key: [leaves] int64 keys, ascending.
    leaf_start: [leaves + 1]. Rows of leaf q are leaf_rows[leaf_start[q]:leaf_start[q + 1]].
    leaf_rows: [rows] int32.
    capacity: node numbers of each depth 0 … T that the trie has room for.
  """

  codebooks: tuple[int, ...]
  leaf_key: np.ndarray
  leaf_start: np.ndarray
  leaf_rows: np.ndarray
  capacity: tuple[int, ...]

  @functools.cached_property
  def first(self) -> tuple[np.ndarray, ...]:
    """First leaf of each node, an array for each depth 1 … T. The root's would be leaf 0."""
    return tuple(first[:-1] for first in self.bounds)

  @functools.cached_property
  def bounds(self) -> tuple[np.ndarray, ...]:
    """`first`, and at the end of each array the number of leaves: node n's are n to n + 1."""
    starts = (run_starts(self.leaf_key // place) for place in places(self.codebooks))
    return tuple(np.append(start, len(self.leaf_key)) for start in starts)

  @functools.cached_property
  def above(self) -> tuple[np.ndarray, ...]:
    """The node above each leaf, an int32 array for each depth 0 … T. A look-up is no search."""
    root = np.zeros(len(self.leaf_key), np.int32)
    sizes = [np.diff(bounds) for bounds in self.bounds]
    return root, *(np.repeat(np.arange(len(size), dtype=np.int32), size) for size in sizes)


@dataclasses.dataclass(frozen=True)
class _Nodes:
  """Nodes of one depth.

  Attributes:
    child: their numbers.
    parent: those of their parents in the main part, -1 for the overlay's own.
    rows: how many rows that count hang under each.
  """

  child: np.ndarray
  parent: np.ndarray
  rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Changes:
  """What has changed beside the main part, rows and their keys, sorted by key.

  Attributes:
    came_row: rows that are active under a key under which the main part lacks them.
    came_key: those keys.
    gone_row: rows that the main part has under a key that is no longer theirs.
    gone_key: those keys.
    overlay: nodes that came and nodes that died. None where the index does not change.
  """

  came_row: np.ndarray
  came_key: np.ndarray
  gone_row: np.ndarray
  gone_key: np.ndarray
  overlay: OverlayArrays | None = None

  @classmethod
  def of(
    cls, added: Mapping[int, Set[int]], gone: Mapping[int, int], overlay: OverlayArrays
  ) -> "Changes":
    """Those of a live index: key -> rows that came, row -> key that it left."""
    came = _by_key((key, row) for key, rows in added.items() for row in rows)
    return cls(*came, *_by_key((key, row) for row, key in gone.items()), overlay)

  @classmethod
  def none(cls) -> "Changes":
    """Those of an index that does not change."""
    nothing = np.zeros(0, np.int64)
    return cls(nothing, nothing, nothing, nothing)


class Holdings:
  """Rows below the nodes of one view of an index.

  Args:
    leaves: the main part.
    key_N: key of each row, INACTIVE for none.
    changes: since the main part was made.
    allowed_N: bool, the only rows that count, where not all do. Rows past its end do not.
  """

  def __init__(
    self,
    leaves: Leaves,
    key_N: np.ndarray,
    changes: Changes | None = None,
    allowed_N: np.ndarray | None = None,
  ):
    changes = changes or Changes.none()
    self.codebooks = leaves.codebooks
    self.allowed_N = allowed_N
    self._leaves = leaves
    self._key_N = key_N
    self._changes = changes
    self._places = places(leaves.codebooks)
    # id of a set's array -> what was made of it, the one asked for last at the end. It holds the
    # array, so the id of an entry is no other array's.
    self._made: collections.OrderedDict[int, Holdings] = collections.OrderedDict()
    if allowed_N is None:
      self._start = leaves.leaf_start
      self._came = changes.came_key
      self._gone = changes.gone_key
    else:
      # How many rows that count lie before each leaf: its differences count rows, as those of
      # `leaf_start` do. Masks keep the keys' order.
      counted = np.append(0, np.cumsum(_at(allowed_N, leaves.leaf_rows)))
      self._start = counted[leaves.leaf_start]
      self._came = changes.came_key[_at(allowed_N, changes.came_row)]
      self._gone = changes.gone_key[_at(allowed_N, changes.gone_row)]

  @classmethod
  def of(cls, index: SidIndex) -> "Holdings":
    """Those of an index that does not change."""
    key_N = pack(index.codes_NT, index.codebooks)
    leaf_key = key_N[index.leaf_ads[index.leaf_start[:-1]]]
    capacity = (1, *(len(codes) for codes in index.node_code))
    leaves = Leaves(index.codebooks, leaf_key, index.leaf_start, index.leaf_ads, capacity)
    return cls(leaves, key_N)

  def only(self, allowed_N: np.ndarray) -> "Holdings":
    """The same view, with none but these rows: bool, one a row.

    Made once an array, in O(N), and kept while it is among the last that were asked for: clients
    choose the sets, so without a limit they would choose how much memory is taken.
    """
    made = self._made.pop(id(allowed_N), None)
    if made is None:
      made = Holdings(self._leaves, self._key_N, self._changes, allowed_N)
    self._made[id(allowed_N)] = made
    if len(self._made) > SETS_KEPT:
      self._made.popitem(last=False)
    return made

  def without(self, rows: np.ndarray) -> "Holdings":
    """The same view without some rows. Its time grows with N, as a new mask is made."""
    # A copy: the mask may be a request's own, which others share.
    allowed_N = np.ones(len(self._key_N), bool) if self.allowed_N is None else self.allowed_N.copy()
    allowed_N[rows[rows < len(allowed_N)]] = False
    return Holdings(self._leaves, self._key_N, self._changes, allowed_N)

  def nodes(self, depth: int) -> int:
    """Node numbers of a depth, the overlay's included."""
    overlay = self._changes.overlay
    room = overlay.add_code_TP.shape[1] if overlay is not None and depth else 0
    return self._leaves.capacity[depth] + room

  def dead(self, request_E: np.ndarray, row_E: np.ndarray) -> list[Dead]:
    """The topmost nodes under which nothing is left, a list for each level 0 … T - 1.

    Args:
      request_E: request of each row that is left out, from 0, ascending.
      row_E: the row, each once a request, as `LeftOut` has them; rows without a UA-SID, and rows
        that do not count, are passed over.
    """
    request_E, key_E, _ = self._counted(request_E, row_E)
    # Whether a row is below a node that is dead already. Under a dead node all nodes are dead, so
    # what the level above says is enough.
    inside_E = np.zeros(len(key_E), bool)
    found = []
    for level, place in enumerate(self._places):
      # Sorted by request, then by key, so the rows of a node are a run at every depth.
      prefix_E = key_E // place
      first, number_E = _runs(request_E, prefix_E)
      prefix = prefix_E[first]
      left_out = np.diff(np.append(first, len(key_E)))
      # A row may have moved after this view was taken: then more are left out than there were.
      nodes = self._nodes_of(level + 1, prefix)
      dead = left_out >= nodes.rows
      listed = dead & ~inside_E[first]
      found.append(Dead(request_E[first[listed]], nodes.parent[listed], nodes.child[listed]))
      inside_E = dead[number_E]
    return found

  def touched(self, request_E: np.ndarray, row_E: np.ndarray) -> "Touched":
    """Every node with a row below it that is left out. Arguments as of `dead`."""
    request_E, key_E, row_E = self._counted(request_E, row_E)
    levels = []
    for level, place in enumerate(self._places):
      prefix_E = key_E // place
      first, number_E = _runs(request_E, prefix_E)
      nodes = self._nodes_of(level + 1, prefix_E[first])
      left_out = np.diff(np.append(first, len(key_E)))
      touched = Dead(request_E[first], nodes.parent, nodes.child)
      levels.append(TouchedLevel(touched, nodes.rows - left_out, number_E))
    return Touched(request_E, row_E, levels)

  @functools.cached_property
  def bits(self) -> list[np.ndarray]:
    """For each depth 1 … T one bit a node number: whether a row that counts hangs under it.

    uint32 words, node 32·w + b is bit b of word w.
    """
    words = []
    for depth, (bounds, place) in enumerate(zip(self._leaves.bounds, self._places, strict=True), 1):
      count = np.zeros(self.nodes(depth), np.int64)
      count[: len(bounds) - 1] = np.diff(self._start[bounds])
      for key, step in ((self._came, 1), (self._gone, -1)):
        # `add.at`, as several rows may hang under one node: `count[…] += step` adds once.
        np.add.at(count, self._nodes_of(depth, key // place).child, step)
      # 8 nodes a byte, the first in the lowest bit; little-endian words keep that order.
      bits = np.packbits(count > 0, bitorder="little")
      words.append(np.pad(bits, (0, -len(bits) % 4)).view("<u4"))
    return words

  def _nodes_of(self, depth: int, prefix: np.ndarray) -> _Nodes:
    """Existing nodes of a depth 1 … T by their prefixes, a key // the place of level depth - 1."""
    leaf_key = self._leaves.leaf_key
    place = self._places[depth - 1]
    low = np.searchsorted(leaf_key, prefix * place)
    child = np.zeros_like(low)
    parent = np.full_like(low, -1)
    rows = np.zeros_like(low)
    # The first leaf at or behind the prefix: where the main part has the node, it is below it.
    is_main = low < len(leaf_key)
    is_main[is_main] = leaf_key[low[is_main]] // place == prefix[is_main]
    leaf = low[is_main]
    child[is_main] = self._leaves.above[depth][leaf]
    parent[is_main] = self._leaves.above[depth - 1][leaf]
    # Their rows go on to the next node's first leaf.
    behind = self._leaves.bounds[depth - 1][child[is_main] + 1]
    rows[is_main] = self._start[behind] - self._start[leaf]
    # Those that came and those that left since: both lists of keys are sorted, so two searches
    # each count what lies in the run. Mostly there are none.
    for key, step in ((self._came, 1), (self._gone, -1)):
      if len(key):
        before = np.searchsorted(key, prefix * place)
        rows = rows + step * (np.searchsorted(key, (prefix + 1) * place) - before)
    if not is_main.all():
      own_key, entry = self._overlay_entries[depth - 1]
      at = np.minimum(np.searchsorted(own_key, prefix), max(len(own_key) - 1, 0))
      # A row that moved after this view was taken may hang under no node of it: the first one's
      # number stands for it then, and the next view is right again.
      came = self._leaves.capacity[depth] + entry[at] if len(own_key) else np.zeros_like(child)
      child = np.where(is_main, child, came)
    return _Nodes(child, parent, rows)

  @functools.cached_property
  def _overlay_entries(self) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each depth 1 … T: prefixes of the overlay's nodes, ascending, and their entries."""
    overlay = self._changes.overlay
    found = []
    nothing = np.zeros(0, np.int64)
    if overlay is None:
      return [(nothing, nothing)] * len(self.codebooks)
    above = nothing  # prefix of each entry of the depth above
    for level, size in enumerate(self.codebooks):
      parent = overlay.add_parent_TP[level]
      code = overlay.add_code_TP[level]
      used = np.flatnonzero(parent >= 0)
      prefix = np.full(len(parent), -1, np.int64)
      prefix[used] = self._prefix_of(level, parent[used], above) * size + code[used]
      order = used[np.argsort(prefix[used], kind="stable")]
      found.append((prefix[order], order))
      above = prefix
    return found

  def _prefix_of(self, depth: int, node: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Packed prefixes of nodes of a depth, where `above` has those of the overlay's entries."""
    if depth == 0:
      return np.zeros(len(node), np.int64)
    capacity = self._leaves.capacity[depth]
    prefix = np.empty(len(node), np.int64)
    main = node < capacity
    leaf = self._leaves.first[depth - 1][node[main]]
    prefix[main] = self._leaves.leaf_key[leaf] // self._places[depth - 1]
    prefix[~main] = above[node[~main] - capacity]
    return prefix

  def _counted(
    self, request_E: np.ndarray, row_E: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Requests, keys and rows of the rows that count, by request, then by key."""
    # `LeftOut` names a row once a request: here it would be counted twice.
    known = row_E < len(self._key_N)
    request_E = request_E[known]
    row_E = row_E[known]
    key_E = self._key_N[row_E]
    counts = key_E != INACTIVE
    if self.allowed_N is not None:
      counts &= _at(self.allowed_N, row_E)
    order = np.flatnonzero(counts)
    order = order[np.lexsort((key_E[order], request_E[order]))]
    return request_E[order], key_E[order], row_E[order]


def _at(allowed_N: np.ndarray, row: np.ndarray) -> np.ndarray:
  """Whether rows are allowed; those past the end are not."""
  # Row 0 stands in for what is past the end, so that the gather is in range; the mask drops it.
  inside = row < len(allowed_N)
  return inside & allowed_N[np.where(inside, row, 0)]


def _runs(request_E: np.ndarray, prefix_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where each run of equal (request, prefix) begins, and the number of each element's run."""
  changed = np.ones(len(prefix_E), bool)
  changed[1:] = (request_E[1:] != request_E[:-1]) | (prefix_E[1:] != prefix_E[:-1])
  return np.flatnonzero(changed), np.cumsum(changed) - 1


def _by_key(pairs: Iterable[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
  """Rows and keys of (key, row) pairs, by key."""
  # (n, 2) where there is no pair, too.
  pairs_n2 = np.array(sorted(pairs), np.int64).reshape(-1, 2)
  return pairs_n2[:, 1], pairs_n2[:, 0]
