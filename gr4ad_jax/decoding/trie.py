"""The trie of existing UA-SIDs on the accelerator: arrays only, so that a search never calls the host."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.sid.index import SidIndex


@flax.struct.dataclass
class Trie:
  """T levels of an index's trie.

  Attributes:
    child_start: T arrays [nodes of depth t, + 1] int32.
    node_code: T arrays [nodes of depth t+1] int32.
    fanout: most children of any node, a level; static.
  """

  child_start: tuple[jax.Array, ...]
  node_code: tuple[jax.Array, ...]
  fanout: tuple[int, ...] = flax.struct.field(pytree_node=False)

  @classmethod
  def of(cls, index: SidIndex) -> "Trie":
    """Puts an index's trie on the default device."""
    fanout = tuple(int(np.diff(start).max()) for start in index.child_start)
    return cls(tuple(map(jnp.asarray, index.child_start)), tuple(map(jnp.asarray, index.node_code)), fanout)

  def children(self, level: int, node_BW: jax.Array):
    """Children of nodes of depth `level`.

    Returns:
      Node numbers, codes and validity, each [B, W, C], C the level's fanout.
    """
    start = self.child_start[level]
    child_BWC = start[node_BW][..., None] + jnp.arange(self.fanout[level])  # (B, W, 1) + (C,) -> (B, W, C)
    valid_BWC = child_BWC < start[node_BW + 1][..., None]
    child_BWC = jnp.where(valid_BWC, child_BWC, 0)
    return child_BWC, self.node_code[level][child_BWC], valid_BWC
