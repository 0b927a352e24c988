"""Ads that a request does without, left out inside the search: exact, at the same beam widths.

The trie's arrays stay as they are. What is named for one request becomes short lists of the nodes
under which nothing is left; the search strikes them out among the children of its beams. A set that
many requests share ("these accounts only") becomes a bit a node. Both have fixed shapes, so another
choice of ads compiles nothing.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.index.dead_nodes import Dead
from gr4ad_jax.index.holdings import Holdings
from gr4ad_jax.index.left_out import LeftOut

# Nodes of a level that a request's list has room for where the shape must not change; a request
# that names more gets bits of its own.
ROOM = 512
_LEAST = 64  # entries of the shortest list


@flax.struct.dataclass
class Excluded:
  """What a search of B requests must not enter.

  Attributes:
    parent_TBP: int32 [T, B, P]; the main node of depth t that a dead node hangs under; -1 where
      the entry is unused, or the node is the overlay's. The others ascend (`beams_on`).
    child_TBP: the dead node, of depth t + 1; -1 where unused.
    sparse_B: bool, the requests that have bits.
    bits: T uint32 arrays [B, words]; bit of each node of depth t + 1: whether an allowed ad hangs
      under it. 0 words where no request has bits and the shape may change.
  """

  parent_TBP: jax.Array
  child_TBP: jax.Array
  sparse_B: jax.Array
  bits: tuple[jax.Array, ...]

  @classmethod
  def shapes(cls, trie: Any, rows: int, room: int) -> "Excluded":
    """Shapes, in place of arrays, of what an `Excluder` of so much room makes.

    Args:
      trie: a `Trie`, of the view of the index that is searched.
      rows: requests.
      room: entries of a list.
    """
    # Shapes alone: programs are compiled before there is a request.
    overlay = 0 if trie.overlay_TQP is None else trie.overlay_TQP.shape[-1]
    sizes = [_words(len(codes) + overlay) for codes in trie.node_code]
    lists = jax.ShapeDtypeStruct((len(sizes), rows, room), np.int32)
    bits = tuple(jax.ShapeDtypeStruct((rows, size), np.uint32) for size in sizes)
    return cls(lists, lists, jax.ShapeDtypeStruct((rows,), bool), bits)

  def strike(
    self, level: int, node_BW: jax.Array, start: jax.Array, valid_BWC: jax.Array
  ) -> jax.Array:
    """`valid_BWC`, the main children of beams at `node_BW`, without those that are dead."""

    def without(valid_BWC):
      parent_BP = self.parent_TBP[level]
      child_BP = self.child_TBP[level]
      # Past the last beam where none stands on the parent. Such places are dropped below.
      beam_BP = beams_on(parent_BP, node_BW)
      # A child's column is its distance from the first child of its parent. An unused entry has no
      # beam.
      column_BP = child_BP - start[jnp.maximum(parent_BP, 0)]
      rows = jnp.arange(len(node_BW))[:, None]
      # Beam W is past the end, and `drop` leaves such updates out.
      return valid_BWC.at[rows, beam_BP, column_BP].set(False, mode="drop")

    # A batch that leaves nothing out pays for the question alone.
    return jax.lax.cond(
      (self.parent_TBP[level] >= 0).any(), without, lambda valid: valid, valid_BWC
    )

  def allowed(self, level: int, node_BX: jax.Array) -> jax.Array:
    """[B, X] whether each request's bits have nodes of depth `level` + 1."""
    # Zero words: this search has no bits, and no request names a set.
    if not self.bits[level].shape[-1]:
      return jnp.ones(node_BX.shape, bool)

    def looked_up(node_BX):
      # A node's bit: word node // 32, place node % 32.
      word_BX = jnp.take_along_axis(self.bits[level], node_BX >> 5, axis=1)
      bit_BX = (word_BX >> (node_BX & 31).astype(jnp.uint32)) & 1
      # A request without a set may enter every node.
      return (bit_BX > 0) | ~self.sparse_B[:, None]

    return jax.lax.cond(
      self.sparse_B.any(), looked_up, lambda node: jnp.ones(node.shape, bool), node_BX
    )

  def strike_overlay(self, level: int, beam_BP: jax.Array, capacity: int, W: int) -> jax.Array:
    """The beams under which overlay entries hang, W (none) for those that are dead.

    Args:
      level: of the entries.
      beam_BP: their beams.
      capacity: number of the first entry among the nodes of depth `level` + 1.
      W: beams.
    """
    entries = beam_BP.shape[1]
    # Overlay nodes are numbered behind the main part's `capacity` nodes.
    entry_BP = self.child_TBP[level] - capacity
    entry_BP = jnp.where(entry_BP >= 0, entry_BP, entries)  # those of the main part: dropped
    rows = jnp.arange(len(beam_BP))[:, None]
    beam_BP = beam_BP.at[rows, entry_BP].set(W, mode="drop")
    node_BP = jnp.broadcast_to(capacity + jnp.arange(entries), beam_BP.shape)
    return jnp.where(self.allowed(level, node_BP), beam_BP, W)


def beams_on(parent_BP: jax.Array, node_BW: jax.Array) -> jax.Array:
  """[B, P] the beam that stands on each node; W, past the last, where none does.

  Args:
    parent_BP: nodes. Those that are not -1 ascend, as `Holdings` gives them, so the beams, which
      are few and in no order, are looked for among them: nothing is sorted.
    node_BW: where the beams stand, distinct but for empty ones.
  """
  W = node_BW.shape[1]
  P = parent_BP.shape[1]
  rows = jnp.arange(len(parent_BP))[:, None]
  # Entries of -1 repeat the node before them here, so that the binary search may pass over them.
  node_BP = jax.lax.cummax(parent_BP, axis=1)
  # A search in each request's own nodes: (B, P), (B, W) -> (B, W), the first entry of each beam.
  first_BW = jax.vmap(jnp.searchsorted)(node_BP, node_BW)
  there_BW = jnp.take_along_axis(node_BP, jnp.minimum(first_BW, P - 1), axis=1) == node_BW
  # Entry P is past the end, and `drop` leaves it out. Of several beams, of which all but the first
  # are empty, the first stays.
  entry_BW = jnp.where(there_BW, first_BW, P)
  beam_BP = jnp.full(parent_BP.shape, W).at[rows, entry_BW].min(jnp.arange(W)[None], mode="drop")
  # Entries of one node follow its first: each reads the last entry before it that has a beam. That
  # beam is its own if the nodes are the same.
  last_BP = jax.lax.cummax(jnp.where(beam_BP < W, jnp.arange(P), 0), axis=1)
  same_BP = jnp.take_along_axis(parent_BP, last_BP, axis=1) == parent_BP
  beam_BP = jnp.take_along_axis(beam_BP, last_BP, axis=1)
  return jnp.where(same_BP & (parent_BP >= 0), beam_BP, W)


def _words(nodes: int) -> int:
  """Words of 32 bits that have a bit for each node."""
  return -(-nodes // 32)


def bucket(entries: int) -> int:
  """The length of a list with so many entries: a power of two, so that few programs are made."""
  return max(_LEAST, 1 << max(entries - 1, 0).bit_length())


class Excluder:
  """Makes what the searches of batches must not enter.

  Args:
    room: entries of a list; bits are always there then, so that the shape is the same for every
      batch. None: as many entries as a batch needs, up to the next power of two, and bits where it
      has a set: another size is another program.
  """

  def __init__(self, room: int | None = None):
    self._room = room
    # On the device, by the number of requests: for batches without a set, without anything.
    self._no_bits: dict[int, tuple[jax.Array, ...]] = {}
    self._empty: dict[int, Excluded] = {}

  def of(self, holdings: Holdings, left_out: LeftOut) -> Excluded:
    """What the B requests' search must not enter, in the view of the index that is searched."""
    B = left_out.requests
    if not left_out:
      return self._nothing(holdings, B)
    set_B: list[Holdings | None] = [
      None if allowed_N is None else holdings.only(allowed_N)
      for allowed_N in left_out.only or [None] * B
    ]
    levels = _dead(holdings, left_out, set_B)
    room = self._room
    if room is None:
      most = max(int(np.bincount(dead.request_n, minlength=1).max()) for dead in levels)
      room = bucket(most)
    else:
      # Programs have a fixed room, so what does not fit goes another way.
      longer = _longer(levels, room)
      # These are too many for a list, and get bits of their own.
      for request in longer:
        named = left_out.row_E[left_out.request_E == request]
        set_B[request] = (set_B[request] or holdings).without(named)
      levels = [_kept(dead, longer) for dead in levels]
    parent_TBP, child_TBP = _lists(levels, B, room)
    sparse_B = np.array([some is not None for some in set_B])
    return Excluded(parent_TBP, child_TBP, sparse_B, self._bits(holdings, set_B))

  def _nothing(self, holdings: Holdings, B: int) -> Excluded:
    """For batches that leave nothing out: on the device already, so that nothing is sent."""
    bits = self._bits(holdings, [None] * B)
    T = len(holdings.codebooks)
    room = self._room or bucket(0)
    kept = self._empty.get(B)
    # Other bits mean that the index has grown: then these are made anew, too.
    if kept is None or kept.bits is not bits:
      unused_TBP = jnp.full((T, B, room), -1, jnp.int32)
      kept = Excluded(unused_TBP, unused_TBP, jnp.zeros(B, bool), bits)
      self._empty[B] = kept
    return kept

  def _bits(self, holdings: Holdings, set_B: Sequence[Holdings | None]) -> tuple:
    T = len(holdings.codebooks)
    B = len(set_B)
    sizes = [_words(holdings.nodes(depth)) for depth in range(1, T + 1)]
    if not any(some is not None for some in set_B):
      shapes = [(B, size if self._room else 0) for size in sizes]
      # Kept until the shape changes, so that a batch without a set sends nothing to the device.
      if [words.shape for words in self._no_bits.get(B, ())] != shapes:
        self._no_bits[B] = tuple(jnp.zeros(shape, jnp.uint32) for shape in shapes)
      return self._no_bits[B]
    words = tuple(np.zeros((B, size), np.uint32) for size in sizes)
    for request, some in enumerate(set_B):
      if some is not None:
        for level, bits in enumerate(some.bits):
          words[level][request] = bits
    return words


def _dead(holdings: Holdings, left_out: LeftOut, set_B: Sequence[Holdings | None]) -> list[Dead]:
  """Dead nodes of each level, of all requests; those with the same set are counted together."""
  if not any(some is not None for some in set_B):
    return holdings.dead(left_out.request_E, left_out.row_E)
  # Sets are told apart by identity: requests of a batch share the very same object.
  number_B = np.array([0 if some is None else id(some) for some in set_B])
  parts = []
  for number in np.unique(number_B):
    # 0 stands for no set, which the default covers.
    among = next(some for some, n in zip(set_B, number_B, strict=True) if n == number) or holdings
    here = number_B[left_out.request_E] == number
    parts.append(among.dead(left_out.request_E[here], left_out.row_E[here]))
  return [Dead.joined(level) for level in zip(*parts, strict=True)]


def _longer(levels: Sequence[Dead], room: int) -> np.ndarray:
  """Requests with more dead nodes at a level than a list has room for."""
  return np.unique(
    np.concatenate([np.flatnonzero(np.bincount(dead.request_n) > room) for dead in levels])
  )


def _kept(dead: Dead, but: np.ndarray) -> Dead:
  """Dead nodes of all requests but some."""
  kept = ~np.isin(dead.request_n, but)
  return Dead(dead.request_n[kept], dead.parent_n[kept], dead.child_n[kept])


def _lists(levels: Sequence[Dead], B: int, room: int) -> tuple[np.ndarray, np.ndarray]:
  """Parents and dead nodes as [T, B, room], -1 behind them."""
  parent_TBP = np.full((len(levels), B, room), -1, np.int32)
  child_TBP = parent_TBP.copy()
  for level, dead in enumerate(levels):
    order = np.argsort(dead.request_n, kind="stable")
    request = dead.request_n[order]
    # The place of each node among its request's: requests ascend, so the search finds where each
    # begins.
    place = np.arange(len(request)) - np.searchsorted(request, request)
    parent_TBP[level, request, place] = dead.parent_n[order]
    child_TBP[level, request, place] = dead.child_n[order]
  return parent_TBP, child_TBP
