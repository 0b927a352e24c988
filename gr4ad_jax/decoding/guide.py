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

from gr4ad_jax.sid.index import SidIndex

# times as many nodes as candidates are still scored faster all at once than candidates one by one
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
  def of(cls, index: SidIndex, num_ads: int) -> "NodeAds":
    """Those of an index; ads from row `num_ads` on came later and have no vector."""
    known_N = index.leaf_ads < num_ads
    begin, nodes, sizes = index.leaf_start, [], []  # a node's first ad, in the order of the leaves
    for start in reversed(index.child_start):
      size = np.diff(begin)
      nodes.append(jnp.asarray(np.repeat(np.arange(len(size), dtype=np.int32), size)))
      sizes.append(jnp.asarray(size.astype(np.float32)))
      begin = begin[start]
    ad_N = np.where(known_N, index.leaf_ads, 0).astype(np.int32)
    return cls(
      jnp.asarray(ad_N), jnp.asarray(known_N), tuple(reversed(nodes)), tuple(reversed(sizes))
    )


@flax.struct.dataclass
class Guide:
  """Vectors of the nodes of an index.

  Attributes:
    vectors: T arrays [nodes of depth t+1, D] float32.
    weight: of the head beside log p.
  """

  vectors: tuple[jax.Array, ...]
  weight: jax.Array

  @classmethod
  def of(cls, table_ND: jax.Array, ads: NodeAds, weight: float) -> "Guide":
    """The guide of ads with the vectors `table_ND`; traceable. Ads without one count as zeros."""
    ordered_ND = jnp.where(ads.known_N[:, None], table_ND[ads.ad_N], 0)
    vectors = []
    for node_N, size_C in zip(ads.node_TN, ads.size_TC, strict=True):
      sums = jax.ops.segment_sum(ordered_ND, node_N, len(size_C), indices_are_sorted=True)
      vectors.append(sums / size_C[:, None])
    return cls(tuple(vectors), jnp.asarray(weight, jnp.float32))

  def scores(self, level: int, state_BD: jax.Array, node_BX: jax.Array) -> jax.Array:
    """[B, X] weight · ⟨state, vector⟩ of nodes of depth `level` + 1."""
    vectors_ND = self.vectors[level]
    if len(vectors_ND) <= _FEW * node_BX.shape[1]:
      return self.weight * jnp.take_along_axis(state_BD @ vectors_ND.T, node_BX, axis=1)
    return self.weight * jnp.einsum("bd,bxd->bx", state_BD, vectors_ND[node_BX])


_build = jax.jit(
  Guide.of
)  # one program for all indexes of a shape: which ads hang where is its argument


class Guides:
  """The guide of each table of vectors that comes, built once while the same table comes again.

  The table is held weakly, and its guide goes with it: parameters that were replaced leave the
    device at once, and do
  not wait there for the next search.

  Args:
    index: the ads that exist.
    num_ads: rows of the table that are trained; ads beyond them came later.
    weight: of the head beside log p.
  """

  def __init__(self, index: SidIndex, num_ads: int, weight: float):
    self._ads, self._weight = NodeAds.of(index, num_ads), weight
    self._table: Callable[[], jax.Array | None] = lambda: (
      None
    )  # the last table, while it is anyone else's
    self._made: list[Guide] = []  # its guide; empty where there is none

  def of(self, table_ND: jax.Array) -> Guide:
    """The guide of a table. A NumPy array may change between two calls, so its guide is built at
    each.
    """
    if not isinstance(table_ND, jax.Array):
      return _build(table_ND, self._ads, self._weight)
    if self._table() is not table_ND:
      # The list is this table's own: should the one before it go meanwhile, it empties another.
      self._made = made = [_build(table_ND, self._ads, self._weight)]
      self._table = weakref.ref(table_ND, lambda _: made.clear())
    return self._made[0]
