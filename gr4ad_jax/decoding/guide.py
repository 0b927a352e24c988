"""What an item-level head says of prefixes: each node of the trie has the mean of its ads' vectors.

A beam search by log p alone loses ads that the head would rank first. Guided, it keeps the prefixes
of the largest log p + weight · ⟨state, mean vector⟩; at the last level that is what the found ads
are ranked by, but for the signed bias on the history. Nodes scored by a user's vector, level by
level: Zhu et al., "Learning Tree-based Deep Model for Recommender Systems", KDD 2018, whose nodes
learn vectors of their own.
"""

import weakref
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.decoding.exclusion import beams_on, bucket
from gr4ad_jax.index.holdings import Holdings
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.left_out import LeftOut

# So many times as many nodes as candidates are still scored faster all at once than the candidates
# one by one.
_FEW = 16


@flax.struct.dataclass
class NodeAds:
  """Which ads hang under each node of an index, on the device; made once an index.

  Attributes:
    ad_N: int32 rows of the ad table in the order of the leaves; 0 where `known_N` is false.
    known_N: bool, which of them have a vector.
    node_TN: T arrays [N] int32: node of depth t+1 that each of these ads hangs under, ascending.
    size_TC: T arrays [nodes of depth t+1] float32: ads under each node.
  """

  ad_N: jax.Array
  known_N: jax.Array
  node_TN: tuple[jax.Array, ...]
  size_TC: tuple[jax.Array, ...]

  @classmethod
  def of(cls, index: SidIndex, num_ads: int, allowed_N: np.ndarray | None = None) -> "NodeAds":
    """Those of an index; ads from row `num_ads` on came later and have no vector.

    Where not all ads are allowed, the others count for nothing.
    """
    counts_N = (
      # Without a set every ad counts.
      np.ones(len(index.leaf_ads), bool) if allowed_N is None else allowed_N[index.leaf_ads]
    )
    known_N = (index.leaf_ads < num_ads) & counts_N
    counted = np.append(0, np.cumsum(counts_N))  # allowed ads before each place
    # The first ad of each node, in the order of the leaves.
    begin = index.leaf_start
    nodes = []
    sizes = []
    # From the leaves up: a node's ads are those from its first child's first to the next node's.
    for start in reversed(index.child_start):
      size = np.diff(begin)
      nodes.append(jnp.asarray(np.repeat(np.arange(len(size), dtype=np.int32), size)))
      # A node without an allowed ad is never entered: its 1 only keeps 0 / 0 away.
      sizes.append(jnp.asarray(np.maximum(np.diff(counted[begin]), 1).astype(np.float32)))
      # The first ad of each parent is that of its first child.
      begin = begin[start]
    ad_N = np.where(known_N, index.leaf_ads, 0).astype(np.int32)
    return cls(
      jnp.asarray(ad_N), jnp.asarray(known_N), tuple(reversed(nodes)), tuple(reversed(sizes))
    )


@flax.struct.dataclass
class Thinned:
  """Nodes whose mean is another one for a request, since it does without some of their ads.

  Attributes:
    parent_TBP: int32 node of depth t that the node hangs under; -1 where the entry is unused. The
      others ascend (`exclusion.beams_on`).
    child_TBP: the node, of depth t + 1.
    left_TBP: float32 ads that are left below it; it is never entered where none is.
    ad_BE: int32 rows of the ads that the request does without; -1 for padding, and for ads
      without a vector.
    entry_TBE: int32 the entry, of the P, that each of them hangs under.
  """

  parent_TBP: jax.Array
  child_TBP: jax.Array
  left_TBP: jax.Array
  ad_BE: jax.Array
  entry_TBE: jax.Array

  @classmethod
  def of(cls, holdings: Holdings, left_out: LeftOut, num_ads: int) -> "Thinned":
    """What the requests' rows change, on the host; ads from row `num_ads` on have no vector."""
    touched = holdings.touched(left_out.request_E, left_out.row_E)
    B = left_out.requests
    room = bucket(int(np.bincount(touched.request_E, minlength=1).max()))
    T = len(touched.levels)
    # Requests ascend in `touched`; the place of an entry is its distance from its request's first.
    first_B = np.searchsorted(touched.request_E, np.arange(B))
    place_E = np.arange(len(touched.request_E)) - first_B[touched.request_E]
    ad_BE = np.full((B, room), -1, np.int32)
    ad_BE[touched.request_E, place_E] = np.where(touched.row_E < num_ads, touched.row_E, -1)
    parent_TBP, child_TBP, entry_TBE = (np.full((T, B, room), -1, np.int32) for _ in range(3))
    left_TBP = np.ones((T, B, room), np.float32)
    for level, found in enumerate(touched.levels):
      request_n = found.nodes.request_n
      begin_B = np.searchsorted(request_n, np.arange(B))
      place_n = np.arange(len(request_n)) - begin_B[request_n]
      parent_TBP[level, request_n, place_n] = found.nodes.parent_n
      child_TBP[level, request_n, place_n] = found.nodes.child_n
      # A node that loses all its ads is not entered: the 1 only keeps 0 / 0 away.
      left_TBP[level, request_n, place_n] = np.maximum(found.left_n, 1)
      entry_TBE[level, touched.request_E, place_E] = found.number_E - begin_B[touched.request_E]
    return cls(parent_TBP, child_TBP, left_TBP, ad_BE, entry_TBE)


@flax.struct.dataclass
class Guide:
  """Vectors of the nodes of an index.

  Attributes:
    vectors: T arrays [nodes of depth t+1, D] float32.
    weight: of the head beside log p.
    size_TC: ads under each node, as of `NodeAds`; read beside a `Thinned` alone.
    table_ND: vectors of the ads; read beside a `Thinned` alone, and else not held.
  """

  vectors: tuple[jax.Array, ...]
  weight: jax.Array
  size_TC: tuple[jax.Array, ...] = ()
  table_ND: jax.Array | None = None

  @classmethod
  def of(cls, table_ND: jax.Array, ads: NodeAds, weight: float) -> "Guide":
    """The guide of ads with the vectors `table_ND`; traceable. Ads without one count as zeros."""
    # (N, D) in the order of the leaves, so that the ads of a node stand together.
    ordered_ND = jnp.where(ads.known_N[:, None], table_ND[ads.ad_N], 0)
    vectors = []
    for node_N, size_C in zip(ads.node_TN, ads.size_TC, strict=True):
      sums = jax.ops.segment_sum(ordered_ND, node_N, len(size_C), indices_are_sorted=True)
      vectors.append(sums / size_C[:, None])
    return cls(tuple(vectors), jnp.asarray(weight, jnp.float32), ads.size_TC)

  def scores(self, level: int, state_BD: jax.Array, node_BX: jax.Array) -> jax.Array:
    """[B, X] weight · ⟨state, vector⟩ of nodes of depth `level` + 1."""
    vectors_ND = self.vectors[level]
    if len(vectors_ND) <= _FEW * node_BX.shape[1]:
      # (B, D) @ (D, N) -> (B, N), then the wanted ones; the other way gathers (B, X, D) first.
      return self.weight * jnp.take_along_axis(state_BD @ vectors_ND.T, node_BX, axis=1)
    return self.weight * jnp.einsum("bd,bxd->bx", state_BD, vectors_ND[node_BX])

  def thinned(
    self, level: int, state_BD: jax.Array, node_BW: jax.Array, start: jax.Array,
    score_BWC: jax.Array, thin: Thinned,
  ) -> jax.Array:  # fmt: skip
    """`scores` of the children of beams at `node_BW`, without the ads that a request lacks.

    Args:
      level: of the children.
      state_BD: of the requests.
      node_BW: where the beams stand.
      start: first child of each node of depth `level`.
      score_BWC: with all ads.
      thin: what is left out.
    """
    parent_BP = thin.parent_TBP[level]
    child_BP = thin.child_TBP[level]
    # Padding reads node 0 and is dropped at the end, since no beam stands on its parent.
    at_BP = jnp.maximum(child_BP, 0)
    rows = jnp.arange(len(child_BP))[:, None]
    mean_BP = jnp.einsum("bd,bpd->bp", state_BD, self.vectors[level][at_BP])
    # Of an ad without a vector, and of padding, nothing was summed.
    known_BE = thin.ad_BE >= 0
    vector_BED = self.table_ND[jnp.maximum(thin.ad_BE, 0)]
    dot_BE = jnp.einsum("bd,bed->be", state_BD, vector_BED)
    entry_BE = jnp.where(known_BE, thin.entry_TBE[level], child_BP.shape[1])
    # Several ads may be missing below one node: `add` sums them. Entries past the last are dropped.
    gone_BP = jnp.zeros_like(mean_BP).at[rows, entry_BE].add(dot_BE, mode="drop")
    # From the mean back to the sum, less what is gone, by the number of ads that are left.
    left_BP = (self.size_TC[level][at_BP] * mean_BP - gone_BP) / thin.left_TBP[level]
    column_BP = child_BP - start[jnp.maximum(parent_BP, 0)]
    # A node of which no beam stands on the parent has beam W, which `drop` leaves out.
    beam_BP = beams_on(parent_BP, node_BW)
    return score_BWC.at[rows, beam_BP, column_BP].set(self.weight * left_BP, mode="drop")


# One program for all indexes of a shape: which ads hang where is its argument.
_build = jax.jit(Guide.of)


class Guides:
  """The guide of each table of vectors that comes, built once while the same table comes again.

  The table is held weakly, and its guide goes with it: parameters that were replaced leave the
  device at once, and do not wait there for the next search.

  Args:
    index: the ads that exist.
    num_ads: rows of the table that are trained; ads beyond them came later.
    weight: of the head beside log p.
    allowed_N: bool, the only ads that count, where not all do.
  """

  def __init__(
    self, index: SidIndex, num_ads: int, weight: float, allowed_N: np.ndarray | None = None
  ):
    self._ads = NodeAds.of(index, num_ads, allowed_N)
    self._weight = weight
    # The last table, while it is anyone else's.
    self._table: Callable[[], jax.Array | None] = lambda: None
    self._made: list[Guide] = []  # its guide; empty where there is none

  def of(self, table_ND: jax.Array) -> Guide:
    """The guide of a table. A NumPy array may change between two calls, so its guide is built at
    each.
    """
    if not isinstance(table_ND, jax.Array):
      # A copy: on CPU the program may still read the caller's memory after it was called.
      return _build(np.array(table_ND), self._ads, self._weight)
    # Identity, not equality: comparing tables would cost more than building the guide.
    if self._table() is not table_ND:
      # The list is this table's own: should the one before it go meanwhile, it empties another.
      self._made = made = [_build(table_ND, self._ads, self._weight)]
      self._table = weakref.ref(table_ND, lambda _: made.clear())
    return self._made[0]
