"""UA-SID <-> ads, both ways, and the trie of the codes that exist, as arrays.

Nodes of a depth are numbered in the lexicographic order of their code prefixes, so a node's children are a
contiguous run of the next depth. Depth 0 is the root; a node of depth T is a distinct UA-SID (a *leaf*).
"""

import dataclasses
import os

import numpy as np


@dataclasses.dataclass(frozen=True)
class SidIndex:
  """The index of N ads over T levels.

  Attributes:
    codebooks: codes a level, length T.
    codes_NT: UA-SID of each ad, int32.
    child_start: T arrays; node p of depth t has the children child_start[t][p] to child_start[t][p+1] of depth t+1.
    node_code: T arrays; node_code[t][q] is the code, at level t, of node q of depth t+1.
    leaf_start: [leaves+1]; ads of leaf q are leaf_ads[leaf_start[q]:leaf_start[q+1]].
    leaf_ads: [N] ad rows, ascending within a leaf (the *index order*).
    ad_leaf: [N] leaf of each ad.
  """

  codebooks: tuple[int, ...]
  codes_NT: np.ndarray
  child_start: tuple[np.ndarray, ...]
  node_code: tuple[np.ndarray, ...]
  leaf_start: np.ndarray
  leaf_ads: np.ndarray
  ad_leaf: np.ndarray

  @classmethod
  def build(cls, codes_NT: np.ndarray, codebooks: tuple[int, ...]) -> "SidIndex":
    """Sorts the ads by code and reads the trie off the order.

    Raises:
      ValueError: a code outside its level's codebook, or a shape that is not [N >= 1, T].
    """
    codes_NT = np.ascontiguousarray(codes_NT, np.int32)
    if codes_NT.ndim != 2 or codes_NT.shape[1] != len(codebooks) or not len(codes_NT):
      raise ValueError(f"codes have shape {codes_NT.shape}; {len(codebooks)} levels and at least one ad are needed")
    if (codes_NT < 0).any() or (codes_NT >= np.asarray(codebooks)).any():
      raise ValueError(f"a UA-SID code lies outside its codebook {codebooks}")
    order = np.lexsort(codes_NT.T[::-1])  # stable: equal codes keep the ads' order
    sorted_NT = codes_NT[order]
    changed = np.ones(len(order), bool)
    changed[1:] = False
    child_start, node_code = [], []
    parent_first = np.array([0])  # first sorted row of each node of the depth above
    for level in range(len(codebooks)):
      changed = changed.copy()
      changed[1:] |= sorted_NT[1:, level] != sorted_NT[:-1, level]
      first = np.flatnonzero(changed)
      child_start.append(np.append(np.searchsorted(first, parent_first), len(first)).astype(np.int32))
      node_code.append(sorted_NT[first, level])
      parent_first = first
    leaf_of_sorted = np.cumsum(changed) - 1
    ad_leaf = np.empty(len(order), np.int32)
    ad_leaf[order] = leaf_of_sorted
    leaf_start = np.append(parent_first, len(order)).astype(np.int32)
    trie = (tuple(child_start), tuple(node_code))
    return cls(tuple(codebooks), codes_NT, *trie, leaf_start, order.astype(np.int32), ad_leaf)

  @property
  def num_leaves(self) -> int:
    """Distinct UA-SIDs."""
    return len(self.leaf_start) - 1

  def expand(self, leaves: np.ndarray, limit: int) -> np.ndarray:
    """Ads of ranked leaves, in index order within a leaf, cut at `limit`.

    Args:
      leaves: [R, W] ranked leaves, -1 for none.
      limit: ads kept a row.

    Returns:
      [R, limit] int32 ad rows, -1 where the leaves run out.
    """
    leaves = np.asarray(leaves)
    size = np.where(leaves >= 0, np.diff(self.leaf_start)[leaves], 0)
    begin = np.cumsum(size, axis=1) - size
    out = np.full((len(leaves), limit), -1, np.int32)
    for extra in range(int(size.max(initial=0))):
      row, column = np.nonzero((size > extra) & (begin + extra < limit))
      out[row, begin[row, column] + extra] = self.leaf_ads[self.leaf_start[leaves[row, column]] + extra]
    return out

  def save(self, directory: str) -> None:
    """Writes `codes.npz`; the rest is rebuilt from the codes."""
    os.makedirs(directory, exist_ok=True)
    part = os.path.join(directory, "codes.part.npz")
    np.savez(part, codes=self.codes_NT, codebooks=np.asarray(self.codebooks, np.int64))
    os.replace(part, os.path.join(directory, "codes.npz"))

  @classmethod
  def load(cls, directory: str) -> "SidIndex":
    """Reads what `save` wrote. Raises FileNotFoundError where there is no index."""
    with np.load(os.path.join(directory, "codes.npz"), allow_pickle=False) as saved:
      return cls.build(saved["codes"], tuple(int(v) for v in saved["codebooks"]))
