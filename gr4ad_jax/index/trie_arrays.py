"""Rows sorted by UA-SID, and the trie of their codes, read off that order.

A UA-SID is packed into one int64 *key* whose order is the lexicographic order of the codes. So one
sort of whole numbers makes the trie. Its arrays never change, and have room at their ends.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

INACTIVE = -1  # key of a row that no UA-SID leads to


@dataclasses.dataclass(frozen=True)
class TrieArrays:
  """T levels of a trie, as the accelerator takes them.

  Every array is longer than its nodes need, so that a new version seldom has other shapes: another
  shape means another compiled search. Depth 0 is the root. A node's children are a contiguous run
  of the next depth, in the order of their codes.

  Attributes:
    codebooks: codes a level, length T.
    child_start: T int32 arrays [capacity_t + 1]. Node p of depth t has the children
      child_start[t][p] to before child_start[t][p + 1] of depth t + 1. Padding repeats the end, so
      that a node that only pads has no children.
    node_code: T int32 arrays [capacity_{t+1}], the code, at level t, of a node of depth t + 1.
    fanout: most children of a node of depth t, rounded up to a power of two, at most codebooks[t].
    version: another one for every trie that an index makes.
  """

  codebooks: tuple[int, ...]
  child_start: tuple[np.ndarray, ...]
  node_code: tuple[np.ndarray, ...]
  fanout: tuple[int, ...]
  version: int

  def capacity(self, depth: int) -> int:
    """Node numbers of a depth that the arrays have room for. It is 1 at depth 0, the root's."""
    return len(self.node_code[depth - 1]) if depth else 1

  def child(self, level: int, node: int, code: int) -> int:
    """The child, by a code, of a node of depth `level`; -1 where it has none."""
    # Children are in the order of their codes, so the code is found by bisection of their run.
    low, high = self.child_start[level][node : node + 2]
    at = low + int(np.searchsorted(self.node_code[level][low:high], code))
    return int(at) if at < high and self.node_code[level][at] == code else -1


@dataclasses.dataclass(frozen=True)
class MainPart:
  """A trie with the rows at its leaves.

  Attributes:
    trie: the arrays.
    leaf_key: [leaves] int64 keys, ascending.
    leaf_start: [leaves + 1] int32. Rows of leaf q are leaf_rows[leaf_start[q]:leaf_start[q + 1]].
    leaf_rows: [active rows] int32, ascending within a leaf.
  """

  trie: TrieArrays
  leaf_key: np.ndarray
  leaf_start: np.ndarray
  leaf_rows: np.ndarray

  @classmethod
  def build(
    cls, key_N: np.ndarray, codebooks: tuple[int, ...], before: TrieArrays | None = None
  ) -> "MainPart":
    """Sorts the rows that have a key.

    Args:
      key_N: int64 keys, INACTIVE for none.
      codebooks: codes a level.
      before: the trie that this one takes the place of: its shapes are kept while they fit.
    """
    active = np.flatnonzero(key_N != INACTIVE).astype(np.int32)
    key = key_N[active]
    # Stable, so that rows of one key stay ascending.
    order = np.argsort(key, kind="stable")
    rows = active[order]
    key = key[order]
    start = run_starts(key)
    leaf_key = key[start]
    trie = _pad(*trie_of_keys(leaf_key, codebooks), codebooks, before)
    return cls(trie, leaf_key, np.append(start, len(rows)).astype(np.int32), rows)

  def rows(self, key: int) -> np.ndarray:
    """Rows of a key, ascending; an empty array where there is none."""
    # Keys are distinct whole numbers: where the key is missing, both searches end at one place.
    start, end = self.leaf_start[np.searchsorted(self.leaf_key, (key, key + 1))]
    return self.leaf_rows[start:end]

  @property
  def nbytes(self) -> int:
    """Memory of the arrays, bytes."""
    own = (self.leaf_key, self.leaf_start, self.leaf_rows)
    return sum(array.nbytes for array in (*own, *self.trie.child_start, *self.trie.node_code))


def places(codebooks: Sequence[int]) -> tuple[int, ...]:
  """What one code more at each level adds to a key: places of a number with mixed bases.

  Raises:
    ValueError: keys do not fit 63 bits, or a codebook is empty.
  """
  if not codebooks or min(codebooks) < 1 or math.prod(codebooks) >= 1 << 63:
    raise ValueError(
      f"codebooks {tuple(codebooks)}: one code or more a level, and fewer than 2^63 UA-SIDs, are "
      "needed"
    )
  return tuple(math.prod(codebooks[level + 1 :]) for level in range(len(codebooks)))


def check_codes(codes_NT: np.ndarray, codebooks: Sequence[int]) -> None:
  """Raises ValueError for a shape that is not [N, T], or a code outside its codebook."""
  if codes_NT.ndim != 2 or codes_NT.shape[1] != len(codebooks):
    raise ValueError(f"codes have shape {codes_NT.shape}; {len(codebooks)} levels are needed")
  if any(
    (codes < 0).any() or (codes >= size).any()
    for codes, size in zip(codes_NT.T, codebooks, strict=True)
  ):
    raise ValueError(f"a UA-SID code lies outside its codebook {tuple(codebooks)}")


def pack(codes: np.ndarray, codebooks: Sequence[int]) -> np.ndarray:
  """Codes [..., T] to int64 keys [...]. Codes are not checked: `check_codes` does that."""
  codes = np.asarray(codes)
  key = np.zeros(codes.shape[:-1], np.int64)
  for level, place in enumerate(places(codebooks)):
    key += codes[..., level].astype(np.int64) * place
  return key


def unpack(key: int, codebooks: Sequence[int]) -> tuple[int, ...]:
  """The T codes of one key."""
  return tuple(
    int(key) // place % size for place, size in zip(places(codebooks), codebooks, strict=True)
  )


def trie_of_keys(
  leaf_key: np.ndarray, codebooks: Sequence[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """`child_start` and `node_code`, without padding, of ascending distinct keys [leaves]."""
  # From the root down. A key without its last places is a prefix; prefixes of ascending keys are
  # ascending too, so a node is a run of equal ones.
  child_start = []
  node_code = []
  parent_first = np.zeros(1, np.int64)  # first leaf of each node of the depth above
  for place, size in zip(places(codebooks), codebooks, strict=True):
    prefix = leaf_key // place
    first = run_starts(prefix)
    # A node's first child begins at the same leaf as the node.
    child_start.append(np.append(np.searchsorted(first, parent_first), len(first)).astype(np.int32))
    node_code.append((prefix[first] % size).astype(np.int32))
    parent_first = first
  return child_start, node_code


def run_starts(ascending: np.ndarray) -> np.ndarray:
  """Where each run of equal values begins, int64."""
  changed = np.ones(len(ascending), bool)
  np.not_equal(ascending[1:], ascending[:-1], out=changed[1:])
  return np.flatnonzero(changed)


def _pad(child_start, node_code, codebooks, before: TrieArrays | None) -> TrieArrays:
  """The trie with room for an eighth more nodes; in the shapes of `before` where it fits them."""
  levels = range(len(codebooks))
  capacity = [1]
  fanout = []
  for level in levels:
    nodes = len(node_code[level])
    most = int(np.diff(child_start[level]).max(initial=1))
    # A power of two, so that the fanout, which compiled searches depend on, seldom changes.
    fanout.append(min(codebooks[level], 1 << (most - 1).bit_length()))
    # There are no more nodes than prefixes. 64 more give a small catalogue room too.
    capacity.append(min(math.prod(codebooks[: level + 1]), nodes + nodes // 8 + 64))
    if before is not None:
      fanout[-1] = max(fanout[-1], before.fanout[level])
      # Shapes of before are kept, unless they are more than twice what is needed now.
      if nodes <= before.capacity(level + 1) <= 2 * capacity[-1]:
        capacity[-1] = before.capacity(level + 1)
  starts = [
    np.append(a, np.full(capacity[t] + 1 - len(a), a[-1], np.int32))
    for t, a in enumerate(child_start)
  ]
  codes = [
    np.append(a, np.zeros(capacity[t + 1] - len(a), np.int32)) for t, a in enumerate(node_code)
  ]
  return TrieArrays(
    tuple(codebooks),
    tuple(starts),
    tuple(codes),
    tuple(fanout),
    before.version + 1 if before else 0,
  )
