"""Which rows hang where, counted by loops; and lists of ads without those that are left out."""

import weakref

import numpy as np
import pytest

from gr4ad_jax.index.holdings import SETS_KEPT, Holdings
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.index.live_index import LiveIndex
from tests.index import churn

CODEBOOKS = (4, 5, 3)


class Walked:
  """A live index, and the node numbers of its prefixes found by walking its arrays."""

  def __init__(self, seed, changes):
    rng = np.random.default_rng(seed)
    codes_NT = np.stack([rng.integers(0, size, 60) for size in CODEBOOKS], axis=1)
    self.index = LiveIndex(codes_NT, CODEBOOKS, overlay=128)
    self.active = dict(enumerate(map(tuple, codes_NT.tolist())))
    for _ in range(changes):
      churn.change(self.index, self.active, rng, CODEBOOKS, rows=75, leaving=0.5)
    main, overlay, self.holdings = self.index.snapshot()
    self.prefix_of = [{0: ()}]  # node number -> prefix, a dict for each depth
    for level in range(len(CODEBOOKS)):
      found = {}
      for node, prefix in self.prefix_of[-1].items():
        if node < main.capacity(level):
          start, end = main.child_start[level][node : node + 2]
          for child in range(start, end):
            found[child] = (*prefix, int(main.node_code[level][child]))
      for entry, parent in enumerate(overlay.add_parent_TP[level]):
        if parent >= 0:
          prefix = self.prefix_of[-1][int(parent)]
          number = main.capacity(level + 1) + entry
          found[number] = (*prefix, int(overlay.add_code_TP[level, entry]))
      self.prefix_of.append(found)
    self.capacity = [main.capacity(depth) for depth in range(len(CODEBOOKS) + 1)]

  def below(self, prefix, rows):
    return {row for row in rows if self.active[row][: len(prefix)] == prefix}

  def dead(self, rows):
    """(prefix, prefix of its parent) of the topmost prefixes with nothing left below, by level."""
    gone = {row for row in rows if row in self.active}
    levels = []
    for depth in range(1, len(CODEBOOKS) + 1):
      prefixes = {self.active[row][:depth] for row in gone}
      levels.append({p for p in prefixes if self.below(p, self.active) <= gone})
    return [
      {p for p in level if depth == 0 or p[:-1] not in levels[depth - 1]}
      for depth, level in enumerate(levels)
    ]


@pytest.fixture(params=[(0, 0), (1, 40), (2, 70)], ids=["as built", "changed", "changed much"])
def walked(request):
  return Walked(*request.param)


def test_dead_nodes_are_those_with_nothing_left(walked):
  rng = np.random.default_rng(9)
  lists = [rng.permutation(75)[:count] for count in (0, 6, 30, 55)]
  lists[1] = np.append(lists[1], [row for row, codes in walked.active.items() if codes[0] == 2])
  left_out = LeftOut.lists(lists)
  found = walked.holdings.dead(left_out.request_E, left_out.row_E)
  some = 0
  for request, rows in enumerate(lists):
    for level, expected in enumerate(walked.dead(set(rows.tolist()))):
      here = found[level].request_n == request
      pairs = zip(found[level].child_n[here], found[level].parent_n[here], strict=True)
      prefixes = set()
      for child, parent in pairs:
        prefix = walked.prefix_of[level + 1][int(child)]
        prefixes.add(prefix)
        if child < walked.capacity[level + 1]:
          assert walked.prefix_of[level][int(parent)] == prefix[:-1]
        else:
          assert parent == -1  # the overlay's own
      assert prefixes == expected and here.sum() == len(expected)
      some += len(expected)
  assert some > 20


def test_bits_say_where_an_allowed_row_hangs(walked):
  allowed_N = np.random.default_rng(3).random(70) < 0.2  # rows 70 … 74 are past its end
  only = walked.holdings.only(allowed_N)
  rows = {row for row in walked.active if row < 70 and allowed_N[row]}
  for depth in range(1, len(CODEBOOKS) + 1):
    words = only.bits[depth - 1]
    for node, prefix in walked.prefix_of[depth].items():
      bit = bool(words[node // 32] >> np.uint32(node % 32) & 1)
      assert bit == bool(walked.below(prefix, rows)), prefix
  assert walked.holdings.only(allowed_N) is only


def test_dead_nodes_of_a_set_have_none_of_it_left(walked):
  allowed_N = np.random.default_rng(4).random(75) < 0.5
  out = [row for row in walked.active if row % 3]
  found = walked.holdings.only(allowed_N).dead(np.zeros(len(out), int), np.array(out))
  for level, dead in enumerate(found):
    for child in dead.child_n:
      prefix = walked.prefix_of[level + 1][int(child)]
      below = {row for row in walked.below(prefix, walked.active) if allowed_N[row]}
      assert below and below <= set(out)
  assert sum(len(dead.child_n) for dead in found)


def test_touched_nodes_count_what_is_left(walked):
  rows = np.array(sorted(walked.active)[::4])
  touched = walked.holdings.touched(np.zeros(len(rows), int), rows)
  gone = set(rows.tolist())
  for level, found in enumerate(touched.levels):
    prefixes = [walked.prefix_of[level + 1][int(child)] for child in found.nodes.child_n]
    assert set(prefixes) == {walked.active[row][: level + 1] for row in gone}
    for prefix, left in zip(prefixes, found.left_n, strict=True):
      assert left == len(walked.below(prefix, walked.active) - gone)
    for row, number in zip(touched.row_E, found.number_E, strict=True):
      assert prefixes[number] == walked.active[int(row)][: level + 1]


def test_rows_without_a_uasid_are_passed_over(walked):
  walked.index.set(2, None)
  _, _, holdings = walked.index.snapshot()
  request_E, row_E = np.zeros(2, int), np.array([2, 10_000])
  assert sum(len(dead.child_n) for dead in holdings.dead(request_E, row_E)) == 0


@pytest.mark.parametrize("limit", [1, 4, 60])
@pytest.mark.parametrize("filtered", [False, True])
def test_lists_go_on_behind_what_is_left_out(walked, limit, filtered):
  """Both indexes, against loops over the ranked leaves."""
  rng = np.random.default_rng(limit)
  rows = np.array(sorted(walked.active))
  codes_NT = np.array([walked.active[row] for row in rows])
  index = SidIndex.build(codes_NT, CODEBOOKS)
  leaves = np.stack([rng.permutation(index.num_leaves)[:20] for _ in range(3)])
  leaves[1, 15:] = -1
  sets = [rng.random(75) < 0.5, None, np.zeros(75, bool)] if filtered else []
  lists = [rng.permutation(75)[:count] for count in (0, 20, 50)]
  left_out = LeftOut.lists(lists, sets)
  ad_leaf = np.empty(75, int)
  ad_leaf[rows] = index.ad_leaf
  expected = np.full((3, limit), -1)
  for request, row_leaves in enumerate(leaves):
    allowed = sets[request] if sets and sets[request] is not None else np.ones(75, bool)
    found = [
      row
      for leaf in row_leaves
      for row in rows
      if ad_leaf[row] == leaf and row not in lists[request] and allowed[row]
    ][:limit]
    expected[request, : len(found)] = found
  number = LeftOut.lists(
    [[int(np.searchsorted(rows, row)) for row in some if row in walked.active] for some in lists],
    [None if one is None else one[rows] for one in sets],
  )
  plain = index.expand(leaves, limit, number)
  np.testing.assert_array_equal(np.where(plain >= 0, rows[plain], -1), expected)
  codes_BWT = codes_NT[index.leaf_ads[index.leaf_start[np.maximum(leaves, 0)]]]
  live, _ = walked.index.expand(codes_BWT, leaves >= 0, limit, left_out)
  np.testing.assert_array_equal(live, expected)


def test_parts_of_a_batch_keep_what_is_theirs():
  first, second = np.array([True, False]), np.array([False, True])
  whole = LeftOut.lists([[3, 3, 1], [], [2]], [first, None, second])
  assert whole.row_E.tolist() == [1, 3, 2] and whole.most == 2 and len(whole.sets) == 2
  part = whole.take([2, 0, 0])
  assert part.request_E.tolist() == [0, 1, 1, 2, 2] and part.row_E.tolist() == [2, 1, 3, 1, 3]
  assert [one is other for one, other in zip(part.only, (second, first, first), strict=True)]
  again = LeftOut.joined([whole.take([0, 1]), whole.take([2])])
  assert again.request_E.tolist() == whole.request_E.tolist()
  assert again.row_E.tolist() == whole.row_E.tolist() and again.only == whole.only
  assert not LeftOut.lists([[], []]) and LeftOut.lists([[]], [first])
  with pytest.raises(ValueError, match="2 sets of ads for 1 requests"):
    LeftOut.lists([[]], [first, None])
  with pytest.raises(ValueError, match="from 0 to 0"):
    LeftOut.of(1, [1], [4])


def test_a_fixed_index_has_the_holdings_of_a_live_one():
  codes_NT = np.random.default_rng(0).integers(0, 3, (40, 3))
  index = SidIndex.build(codes_NT, CODEBOOKS)
  live = LiveIndex(codes_NT, CODEBOOKS, overlay=16).snapshot()[2]
  request_E, row_E = np.zeros(30, int), np.arange(30)
  pairs = zip(Holdings.of(index).dead(request_E, row_E), live.dead(request_E, row_E), strict=True)
  for one, other in pairs:
    np.testing.assert_array_equal(one.child_n, other.child_n)
    np.testing.assert_array_equal(one.parent_n, other.parent_n)


def test_only_the_sets_that_were_asked_for_last_are_kept():
  whole = Walked(0, 20).holdings
  sets = [np.arange(75) % (n + 2) > 0 for n in range(SETS_KEPT + 1)]
  first = weakref.ref(whole.only(sets[0]))
  second = whole.only(sets[1])
  for allowed_N in sets[2:-1]:
    whole.only(allowed_N)
  assert first() is whole.only(sets[0])  # all fit, and the first was asked for again
  whole.only(sets[-1])
  assert first() is whole.only(sets[0])
  assert whole.only(sets[1]) is not second  # it was asked for longest ago
  for number in range(SETS_KEPT):
    whole.only(np.arange(75) % 7 == number % 7)
  assert first() is None
