"""UA-SID <-> ads, both ways, and the trie of the codes that exist, as arrays.

A *trie* is a tree of prefixes (docs/design/method.md §1.2). Nodes of a depth are numbered in the
lexicographic order of their code prefixes, so a node's children are a contiguous run of the next
depth. Depth 0 is the root. A node of depth T is a distinct UA-SID, a *leaf*.

This index never changes. `live_index` has the one in which ads come and go.
"""

import dataclasses
import os

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.index.trie_arrays import check_codes, pack, run_starts, trie_of_keys


@dataclasses.dataclass(frozen=True)
class SidIndex:
  """The index of N ads over T levels.

  Attributes:
    codebooks: codes a level, length T.
    codes_NT: UA-SID of each ad, int32.
    child_start: T int32 arrays. Node p of depth t has the children child_start[t][p] to before
      child_start[t][p+1] of depth t+1.
    node_code: T int32 arrays. node_code[t][q] is the code, at level t, of node q of depth t+1.
    leaf_start: [leaves+1] int32. Ads of leaf q are leaf_ads[leaf_start[q]:leaf_start[q+1]].
    leaf_ads: [N] int32 ad rows, ascending within a leaf (the *index order*).
    ad_leaf: [N] int32 leaf of each ad.
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
      ValueError: a code outside its level's codebook, a shape that is not [N >= 1, T], or codebooks
        of 2^63 UA-SIDs or more.
    """
    codes_NT = np.ascontiguousarray(codes_NT, np.int32)
    check_codes(codes_NT, codebooks)
    if not len(codes_NT):
      raise ValueError("no codes: an index holds at least one ad")
    key_N = pack(codes_NT, codebooks)
    # Stable, so that ads of equal codes keep their order.
    order = np.argsort(key_N, kind="stable")
    sorted_key = key_N[order]
    # Where another UA-SID begins: one entry a leaf.
    first = run_starts(sorted_key)
    child_start, node_code = map(tuple, trie_of_keys(sorted_key[first], codebooks))
    # The end is one more entry, so that a leaf's size is a difference, for the last leaf too.
    leaf_start = np.append(first, len(order)).astype(np.int32)
    # `order` lists ads leaf by leaf, so each leaf's number is repeated and scattered back to them.
    ad_leaf = np.empty(len(order), np.int32)
    ad_leaf[order] = np.repeat(np.arange(len(first), dtype=np.int32), np.diff(leaf_start))
    return cls(
      tuple(codebooks),
      codes_NT,
      child_start,
      node_code,
      leaf_start,
      order.astype(np.int32),
      ad_leaf,
    )

  @property
  def fanout(self) -> tuple[int, ...]:
    """Most children of any node, a level."""
    return tuple(int(np.diff(start).max()) for start in self.child_start)

  @property
  def num_leaves(self) -> int:
    """Distinct UA-SIDs."""
    return len(self.leaf_start) - 1

  @property
  def num_shared(self) -> int:
    """Ads whose UA-SID is not theirs alone."""
    size = np.diff(self.leaf_start)
    return int(size[size > 1].sum())

  def expand(self, leaves: np.ndarray, limit: int, left_out: LeftOut | None = None) -> np.ndarray:
    """Ads of ranked leaves, in index order within a leaf, cut at `limit`.

    Args:
      leaves: [R, W] ranked leaves, -1 for none.
      limit: ads kept a row.
      left_out: ads that the R requests do without.

    Returns:
      [R, limit] int32 ad rows, -1 where the leaves run out.
    """
    leaves_RW = np.asarray(leaves)
    if left_out:
      return self._expand_without(leaves_RW, limit, left_out)
    # -1 reads the last entry here, and is masked below.
    start_RW = self.leaf_start[leaves_RW]
    size_RW = np.where(leaves_RW >= 0, self.leaf_start[leaves_RW + 1] - start_RW, 0)
    # How many ads the leaves before bring, in this row.
    begin_RW = np.cumsum(size_RW, axis=1) - size_RW
    # Leaves are cut before their ads are listed, so work follows the limit, not the largest leaf.
    kept_RW = np.clip(limit - begin_RW, 0, size_RW)
    row, column = np.nonzero(kept_RW)
    kept = kept_RW[row, column]
    # One entry for each ad that is kept: which of the leaves it comes from, and its place in it.
    of = np.repeat(np.arange(len(kept)), kept)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(kept) - kept, kept)
    out_RK = np.full((len(leaves_RW), limit), -1, np.int32)
    # In the list, behind the ads of the leaves before it.
    place = begin_RW[row, column][of] + nth
    out_RK[row[of], place] = self.leaf_ads[start_RW[row, column][of] + nth]
    return out_RK

  def _expand_without(self, leaves_RW: np.ndarray, limit: int, left_out: LeftOut) -> np.ndarray:
    """As `expand`: deep enough for all ads that are dropped, then without them."""
    # A request that names n ads can lose n at most. A set may drop any number: then the list is as
    # long as all leaves together.
    if left_out.sets:
      size_RW = np.diff(self.leaf_start, append=0)[leaves_RW]  # of -1 the last entry: masked below
      deep = int(np.where(leaves_RW >= 0, size_RW, 0).sum(axis=1).max(initial=0))
    else:
      deep = limit + left_out.most
    ad_RK = self.expand(leaves_RW, max(deep, limit))
    kept_RK = left_out.kept(ad_RK)
    # False sorts before True. Stable, so what is kept moves to the front in its order.
    first_RK = np.argsort(~kept_RK, axis=1, kind="stable")[:, :limit]
    return np.take_along_axis(np.where(kept_RK, ad_RK, -1), first_RK, axis=1)

  def save(self, directory: str) -> None:
    """Writes `codes.npz`. The rest is rebuilt from the codes."""
    path = os.path.join(directory, "codes.npz")
    files.save_arrays(path, codes=self.codes_NT, codebooks=np.asarray(self.codebooks, np.int64))

  @classmethod
  def load(cls, directory: str) -> "SidIndex":
    """Reads what `save` wrote.

    Raises:
      FileNotFoundError: there is no index.
      files.DamagedError: the file is another than was written.
    """
    codes_NT, codebooks = files.load_arrays(
      os.path.join(directory, "codes.npz"), "codes", "codebooks"
    )
    return cls.build(codes_NT, tuple(int(size) for size in codebooks))
