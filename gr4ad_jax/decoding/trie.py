"""The trie of existing UA-SIDs on the accelerator: arrays only, so that a search never calls the
host.

A large main part, and beside it a small *overlay* of what has changed since: nodes that came, and
nodes under which nothing is left. The shapes stay, so a change of the index needs no compilation.
Nodes of a depth are numbered through
both: main nodes from 0, entry p of the overlay after them.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.decoding.exclusion import Excluded
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.live_index import OverlayArrays, TrieArrays

NO_NODE = -2  # of an empty beam: nothing hangs under it


@flax.struct.dataclass
class Children:
  """What may follow each beam: C main children a beam, and P overlay entries that hang under any of
  them.

  Attributes:
    node_BWC: main children.
    code_BWC: their codes.
    valid_BWC: whether they are there.
    beam_BP: beam under which an overlay entry hangs, W where under none; None without an overlay.
    code_P: its code; None without an overlay.
  """

  node_BWC: jax.Array
  code_BWC: jax.Array
  valid_BWC: jax.Array
  beam_BP: jax.Array | None = None
  code_P: jax.Array | None = None


@flax.struct.dataclass
class Trie:
  """T levels of an index's trie.

  Attributes:
    child_start: T arrays [nodes of depth t, + 1] int32.
    node_code: T arrays [nodes of depth t+1] int32.
    overlay_TQP: [T, 5, P] int32: parent and code of nodes that came, parent, number and code of
      main nodes that went; -1 in unused entries. None where the index does not change.
    fanout: most children of any main node, a level; static.
  """

  child_start: tuple[jax.Array, ...]
  node_code: tuple[jax.Array, ...]
  overlay_TQP: jax.Array | None
  fanout: tuple[int, ...] = flax.struct.field(pytree_node=False)

  @classmethod
  def of(cls, main: SidIndex | TrieArrays) -> "Trie":
    """Puts an index's main part on the default device."""
    return cls(
      tuple(map(jnp.asarray, main.child_start)),
      tuple(map(jnp.asarray, main.node_code)),
      None,
      main.fanout,
    )

  def with_overlay(self, overlay: OverlayArrays) -> "Trie":
    """The same main part with another overlay; a few kilobytes go to the device."""
    # Rows of the overlay's array, in the order in which `children` takes them apart.
    came = (overlay.add_parent_TP, overlay.add_code_TP)
    went = (overlay.dead_parent_TP, overlay.dead_child_TP, overlay.dead_code_TP)
    return self.replace(overlay_TQP=jnp.asarray(np.stack([*came, *went], axis=1)))

  def children(self, level: int, node_BW: jax.Array, excluded: Excluded | None = None) -> Children:
    """Children of nodes of depth `level`, without those that a request is not to enter."""
    start = self.child_start[level]
    # `child_start` has one bound more than there are nodes.
    nodes = self.child_start[level].shape[0] - 1
    # Empty beams and overlay nodes have numbers outside; the clip keeps the gather in range.
    main_BW = jnp.clip(node_BW, 0, nodes - 1)
    # (B, W, 1) + (C,) -> (B, W, C).
    child_BWC = start[main_BW][..., None] + jnp.arange(self.fanout[level])
    # Neither empty nor of the overlay.
    here_BW = node_BW == main_BW
    valid_BWC = here_BW[..., None] & (child_BWC < start[main_BW + 1][..., None])
    # Places past a node's last child read child 0, and are masked.
    child_BWC = jnp.where(valid_BWC, child_BWC, 0)
    if excluded is not None:
      valid_BWC = excluded.strike(level, node_BW, start, valid_BWC)
      allowed_BX = excluded.allowed(level, child_BWC.reshape(len(node_BW), -1))
      valid_BWC = valid_BWC & allowed_BX.reshape(valid_BWC.shape)
    code_BWC = self.node_code[level][child_BWC]
    if self.overlay_TQP is None:
      return Children(child_BWC, code_BWC, valid_BWC)
    add_parent_P, add_code_P, dead_parent_P, dead_child_P, _ = self.overlay_TQP[level]
    # Overlay entries of children that are gone: their parents' beams, and their columns there.
    dead_BP = _beam_of(dead_parent_P, node_BW)
    column_P = dead_child_P - start[jnp.clip(dead_parent_P, 0, nodes - 1)]
    rows = jnp.arange(len(node_BW))[:, None]
    valid_BWC = valid_BWC.at[rows, dead_BP, column_P].set(False, mode="drop")
    add_BP = _beam_of(add_parent_P, node_BW)
    if excluded is not None:
      add_BP = excluded.strike_overlay(
        level, add_BP, self.node_code[level].shape[0], node_BW.shape[1]
      )
    return Children(child_BWC, code_BWC, valid_BWC, add_BP, add_code_P)

  def overlay_node(self, level: int, entry: jax.Array) -> jax.Array:
    """Numbers of overlay entries among the nodes of depth `level` + 1."""
    return self.node_code[level].shape[0] + entry


def _beam_of(parent_P: jax.Array, node_BW: jax.Array) -> jax.Array:
  """[B, P] the beam that stands on each parent node; W, past the last, where none does."""
  # W beams and P entries are few, so all pairs are compared.
  # (P, 1) == (B, 1, W) -> (B, P, W).
  match_BPW = (parent_P[:, None] == node_BW[:, None]) & (parent_P >= 0)[:, None]
  return jnp.where(match_BPW.any(-1), match_BPW.argmax(-1), node_BW.shape[1])
