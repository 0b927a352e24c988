"""What the indices take of room and memory, and keys by hand."""

import numpy as np
import pytest

from gr4ad_jax.index import trie_arrays
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.live_index import LiveIndex


def test_keys_are_numbers_in_mixed_base():
  books = (3, 2, 4)
  assert trie_arrays.places(books) == (8, 4, 1)
  for key in range(24):
    codes = (key // 8, key // 4 % 2, key % 4)
    assert (
      int(trie_arrays.pack(np.array(codes), books)) == key
      and trie_arrays.unpack(key, books) == codes
    )
  assert trie_arrays.places((1 << 21, 1 << 21, (1 << 21) - 1))[0] == ((1 << 21) - 1) << 21
  for bad in ((), (4, 0), (1 << 21, 1 << 21, 1 << 21)):
    with pytest.raises(ValueError, match="2\\^63"):
      trie_arrays.places(bad)


def test_a_trie_has_room_for_an_eighth_more_nodes():
  books = (50, 40, 30)
  codes = np.array([[n % 50, n // 50 % 40, n % 30] for n in range(1000)])
  index = LiveIndex(codes, books)
  trie = index.arrays()
  distinct = [len(np.unique(codes[:, : depth + 1], axis=0)) for depth in range(3)]
  assert [trie.capacity(depth) for depth in range(4)] == [
    1,
    50,
    *[n + n // 8 + 64 for n in distinct[1:]],
  ]
  assert distinct == [50, 1000, 1000] and trie.fanout == (
    50,
    32,
    1,
  )  # 20 children of a first code: 32
  assert [len(start) for start in trie.child_start] == [2, 51, trie.capacity(2) + 1]
  arrays = (*trie.child_start, *trie.node_code)
  leaves = distinct[2]
  own = sum(array.size * 4 for array in arrays) + leaves * 8 + (leaves + 1) * 4 + 1000 * 4
  assert index.nbytes == own + 1000 * 8 + 5 * 4 * 3 * 1024


def test_shapes_are_kept_while_they_fit_and_given_up_when_far_too_large():
  books = (2, 4000)
  index = LiveIndex(np.array([[n % 2, n] for n in range(1000)]), books, overlay=4000)
  assert index.arrays().capacity(2) == 1000 + 125 + 64 and index.arrays().fanout == (2, 512)
  for row in range(1000, 1189):
    index.set(row, (0, row))
  index.merge()
  assert index.arrays().capacity(2) == 1189 and index.arrays().fanout == (2, 1024)
  index.set(1189, (0, 1189))
  index.merge()
  assert index.arrays().capacity(2) == 1190 + 148 + 64
  for row in range(660, 1190):
    index.set(row, None)
  index.merge()
  assert index.arrays().capacity(2) == 1402  # 660 nodes ask for 806, more than half of it
  for row in range(500, 660):
    index.set(row, None)
  index.merge()
  assert index.arrays().capacity(2) == 500 + 62 + 64 and index.arrays().fanout == (2, 1024)
  assert index.num_active == 500 and index.arrays().version == 4


def test_how_full_the_overlay_is_and_what_it_adds():
  index = LiveIndex(np.array([[0, 0], [0, 1], [1, 2]]), (3, 4), overlay=8)
  index.set(3, (2, 2))
  index.set(4, (2, 3))
  index.set(2, None)
  assert (index.fill, index.num_leaves, index.num_active) == (2 / 8, 4, 4)
  index.set(0, None)
  index.set(1, None)
  assert (index.fill, index.num_leaves, index.num_active) == (3 / 8, 2, 2)  # three leaves are dead
  overlay = index.overlay()
  assert (overlay.dead_child_TP >= 0).sum(axis=1).tolist() == [2, 3]
  assert (overlay.add_parent_TP >= 0).sum(axis=1).tolist() == [1, 2]
  index.set(1, (0, 1))
  index.set(1, (0, 1))  # nothing new
  assert (
    index.codes_below(()) == {0, 2}
    and index.codes_below((0,)) == {1}
    and index.codes_below((2,)) == {2, 3}
  )
  assert index.codes_below((1,)) == set() and index.codes_below((2,)) == {2, 3}
  version = index.overlay().version
  index.set(1, (0, 1))
  assert index.overlay().version == version
  index.set(40, None)  # a row never seen has no code already
  assert index.num_active == 3 and index.overlay().version == version


def test_ads_that_share_are_counted():
  index = SidIndex.build(np.array([[0, 1], [2, 1], [0, 1], [1, 0], [2, 1], [0, 1]]), (3, 2))
  assert (index.num_shared, index.num_leaves, index.fanout) == (5, 3, (3, 1))
  assert SidIndex.build(np.array([[0, 1], [1, 1]]), (2, 2)).num_shared == 0
