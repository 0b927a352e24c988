"""What an item-level head says of prefixes: each node of the trie has the mean of its ads' vectors.

A beam search by log p alone loses ads that the head would rank first. Guided, it keeps the prefixes of the largest
log p + weight · ⟨state, mean vector⟩; at the last level that is what the found ads are ranked by, but for the signed
bias on the history. Nodes scored by a user's vector, level by level: Zhu et al., "Learning Tree-based Deep Model for
Recommender Systems", KDD 2018, whose nodes learn vectors of their own.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.sid.index import SidIndex

_FEW = 16  # times as many nodes as candidates are still scored faster all at once than candidates one by one


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
  def of(cls, table_ND: jax.Array, index: SidIndex, weight: float) -> "Guide":
    """The guide of ads with the vectors `table_ND`; traceable. Ads beyond its rows, which came later, are zeros."""
    rows, known_N = index.leaf_ads, index.leaf_ads < len(table_ND)
    ordered_ND = jnp.where(known_N[:, None], table_ND[np.where(known_N, rows, 0)], 0)
    begin, vectors = index.leaf_start, []  # a node's first ad, in the order of the leaves
    for start in reversed(index.child_start):
      size = np.diff(begin)
      node_N = np.repeat(np.arange(len(size)), size)
      sums = jax.ops.segment_sum(ordered_ND, node_N, len(size), indices_are_sorted=True)
      vectors.append(sums / size[:, None].astype(np.float32))
      begin = begin[start]
    return cls(tuple(reversed(vectors)), jnp.float32(weight))

  def scores(self, level: int, state_BD: jax.Array, node_BX: jax.Array) -> jax.Array:
    """[B, X] weight · ⟨state, vector⟩ of nodes of depth `level` + 1."""
    vectors_ND = self.vectors[level]
    if len(vectors_ND) <= _FEW * node_BX.shape[1]:
      return self.weight * jnp.take_along_axis(state_BD @ vectors_ND.T, node_BX, axis=1)
    return self.weight * jnp.einsum("bd,bxd->bx", state_BD, vectors_ND[node_BX])
