"""The live index against a dict: reachable UA-SIDs, their rows, merges in between and beside,
and a full overlay.
"""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.index import trie_arrays
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.live_index import IndexFull, LiveIndex

BOOKS = (3, 2, 4)
CODES = st.tuples(*(st.integers(0, size - 1) for size in BOOKS))
STEPS = st.lists(st.tuples(st.integers(0, 14), st.none() | CODES) | st.just("merge"), max_size=60)


def random_codes(count, books=BOOKS, seed=0):
  """[count, T] codes."""
  return np.random.default_rng(seed).integers(0, books, (count, len(books)))


def reachable(trie, overlay):
  """UA-SIDs that a search can reach: main children that are not dead, and added ones; a dead end
  is an error.
  """
  frontier = [((), 0)]
  for level in range(len(trie.codebooks)):
    depth_below, below = len(trie.node_code[level]), []
    assert len(trie.child_start[level]) == (len(trie.node_code[level - 1]) if level else 1) + 1
    dead = set(overlay.dead_child_TP[level].tolist()) - {-1}
    for entry in np.flatnonzero(overlay.dead_child_TP[level] >= 0):
      child = overlay.dead_child_TP[level, entry]
      start = trie.child_start[level][overlay.dead_parent_TP[level, entry] :][:2]
      assert (
        start[0] <= child < start[1]
        and trie.node_code[level][child] == overlay.dead_code_TP[level, entry]
      )
    for prefix, node in frontier:
      children = []
      if node < len(trie.child_start[level]) - 1:
        start, end = trie.child_start[level][node : node + 2]
        assert end - start <= trie.fanout[level]
        children = [(int(trie.node_code[level][child]), child) for child in range(start, end)]
      assert len({code for code, _ in children}) == len(children)
      added = np.flatnonzero(overlay.add_parent_TP[level] == node)
      new = [(int(overlay.add_code_TP[level, entry]), depth_below + int(entry)) for entry in added]
      assert not {code for code, _ in new} & {code for code, _ in children}  # never twice
      live = [child for child in children if child[1] not in dead] + new
      assert live or not prefix, f"prefix {prefix} leads nowhere"
      below += [((*prefix, code), child) for code, child in live]
    frontier = below
  assert len({codes for codes, _ in frontier}) == len(frontier)
  return {codes for codes, _ in frontier}


def check(index, model):
  """Everything the index says against {row: codes}."""
  rows = {}
  for row in sorted(model):
    rows.setdefault(model[row], []).append(row)
  assert reachable(*index.view()) == set(rows)
  assert index.num_active == len(model) and index.num_leaves == len(rows)
  for codes, expected in rows.items():
    assert index.rows_of(codes).tolist() == expected
  for depth in range(len(BOOKS)):
    for prefix in {codes[:depth] for codes in rows} | {(2, 1, 0)[:depth]}:
      assert index.codes_below(prefix) == {
        codes[depth] for codes in rows if codes[:depth] == prefix
      }


@settings(max_examples=120, deadline=None)
@given(
  start=st.lists(CODES, max_size=8),
  active=st.lists(st.booleans(), min_size=8, max_size=8),
  steps=STEPS,
)
def test_reachable_is_what_was_set(start, active, steps):
  on = active[: len(start)]
  index = LiveIndex(np.reshape(start, (-1, 3)).astype(int), BOOKS, np.array(on, bool), overlay=16)
  model = {row: codes for row, codes in enumerate(start) if on[row]}
  check(index, model)
  for step in steps:
    if step == "merge":
      index.merge()
      assert index.fill == 0
    else:
      row, codes = step
      try:
        index.set(row, codes)
      except IndexFull:
        assert index.fill >= 1
        index.merge()
        index.set(row, codes)
      model.pop(row, None)
      if codes is not None:
        model[row] = codes
    check(index, model)


@pytest.mark.parametrize("room", [4, 64])  # 4: what changes during a merge need not fit
def test_merges_beside_changes(room):
  books, rng = (6, 5, 4), np.random.default_rng(1)
  start = random_codes(300, books)
  index, model = LiveIndex(start, books, overlay=room), dict(enumerate(map(tuple, start.tolist())))
  stop = threading.Event()

  def merge():
    while not stop.is_set():
      index.merge()

  thread = threading.Thread(target=merge)
  thread.start()
  try:
    for _ in range(1500):
      row, codes = int(rng.integers(400)), tuple(rng.integers(0, books).tolist())
      codes = None if rng.random() < 0.4 else codes
      while True:
        try:
          index.set(row, codes)
          break
        except IndexFull:
          index.merge()
      model.pop(row, None)
      if codes is not None:
        model[row] = codes
      if rng.random() < 0.05:
        assert reachable(*index.view()) == set(model.values())
  finally:
    stop.set()
    thread.join()
  assert index.num_active == len(model)
  assert reachable(*index.view()) == set(model.values())
  index.merge()
  assert reachable(*index.view()) == set(model.values())


def test_a_view_never_changes():
  index = LiveIndex(random_codes(5), BOOKS)
  trie, overlay = index.view()
  before, again = reachable(trie, overlay), index.view()[1]
  assert again is overlay  # nothing happened: no copy
  for row, codes in enumerate(random_codes(5, seed=1)):
    index.set(row, codes)
  index.merge()
  assert reachable(trie, overlay) == before
  later = index.view()
  assert later[0].version != trie.version and later[1].version != overlay.version


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), limit=st.integers(0, 9), merged=st.booleans())
def test_expand_lists_the_rows_of_ranked_leaves(seed, limit, merged):
  rng = np.random.default_rng(seed)
  start = random_codes(12, seed=seed)
  index, model = LiveIndex(start, BOOKS), dict(enumerate(map(tuple, start.tolist())))
  for row in rng.integers(0, 16, 8).tolist():
    model[row] = tuple(rng.integers(0, BOOKS).tolist())
    index.set(row, model[row])
  for row in rng.integers(0, 12, 4).tolist():
    model.pop(row, None)
    index.set(row, None)
  if merged:
    index.merge()
  every = np.stack(np.meshgrid(*map(np.arange, BOOKS), indexing="ij"), -1).reshape(-1, 3)
  codes_BWT = np.stack([rng.permutation(every)[:10] for _ in range(3)])
  found_BW = rng.random((3, 10)) < 0.8
  row_BK, beam_BK = index.expand(codes_BWT, found_BW, limit)
  assert row_BK.shape == beam_BK.shape == (3, limit)
  for codes, found, rows, beams in zip(codes_BWT, found_BW, row_BK, beam_BK, strict=True):
    beam_of = {tuple(codes[beam].tolist()): int(beam) for beam in np.flatnonzero(found)}
    expected = [
      (row, beam)
      for row, beam in ((row, beam_of.get(model[row])) for row in sorted(model))
      if beam is not None
    ]
    expected.sort(key=lambda pair: pair[::-1])
    expected = expected[:limit] + [(-1, -1)] * (limit - len(expected))
    assert list(zip(rows.tolist(), beams.tolist(), strict=True)) == expected


def test_expand_agrees_with_the_fixed_index():
  codes = random_codes(60)
  fixed, index = SidIndex.build(codes, BOOKS), LiveIndex(codes, BOOKS)
  leaves = np.random.default_rng(0).permutation(fixed.num_leaves)[None]
  codes_BWT = codes[fixed.leaf_ads[fixed.leaf_start[leaves]]]
  rows = index.expand(codes_BWT, np.ones_like(leaves, bool), 30)[0]
  np.testing.assert_array_equal(rows, fixed.expand(leaves, 30))
  trie = index.arrays()
  for level in range(3):
    size = len(fixed.node_code[level])
    np.testing.assert_array_equal(trie.node_code[level][:size], fixed.node_code[level])
    np.testing.assert_array_equal(
      trie.child_start[level][: len(fixed.child_start[level])], fixed.child_start[level]
    )
    assert (trie.child_start[level][len(fixed.child_start[level]) :] == size).all()


def test_a_merge_keeps_the_shapes():
  books = (16, 16, 64)
  index = LiveIndex(random_codes(2000, books), books)
  shapes = [a.shape for a in (*index.arrays().child_start, *index.arrays().node_code)]
  for row, codes in enumerate(random_codes(100, books, seed=1), start=2000):
    index.set(row, codes)
  index.merge()
  assert index.num_active == 2100
  assert [a.shape for a in (*index.arrays().child_start, *index.arrays().node_code)] == shapes


def test_a_full_overlay_refuses_and_changes_nothing():
  index = LiveIndex(np.zeros((1, 2), int), (2, 50), overlay=16)
  for row in range(1, 17):
    index.set(row, (1, row))
  before = reachable(*index.view())
  with pytest.raises(IndexFull, match="16 entries"):
    index.set(17, (1, 17))
  assert reachable(*index.view()) == before and index.num_active == 17 and index.fill == 1
  index.merge()
  index.set(17, (1, 17))
  assert index.rows_of((1, 17)).tolist() == [17]


def test_rows_under_known_codes_fill_the_overlay_too():
  index = LiveIndex(np.zeros((1, 1), int), (1,), overlay=16)
  for row in range(1, 9):
    index.set(row, (0,))
  assert index.fill == 0.5 and index.num_leaves == 1 and len(index.rows_of((0,))) == 9


def test_no_ads_at_all():
  index = LiveIndex(np.zeros((0, 3), int), BOOKS)
  assert reachable(*index.view()) == set() and index.num_active == 0
  assert index.expand(np.zeros((1, 2, 3), int), np.ones((1, 2), bool), 4)[0].tolist() == [[-1] * 4]
  index.set(0, (2, 1, 3))
  assert reachable(*index.view()) == {(2, 1, 3)} and index.nbytes > 0


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((np.zeros((2, 2), int), BOOKS), "shape"),
    ((np.full((2, 3), 3), BOOKS), "outside its codebook"),
    ((np.zeros((2, 3), int), (1 << 21, 1 << 21, 1 << 21)), "2\\^63"),
    ((np.zeros((2, 2), int), (3, 0)), "one code or more"),
  ],
)
def test_what_cannot_be_indexed_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    LiveIndex(*arguments)


def test_what_cannot_be_set_is_refused():
  index = LiveIndex(random_codes(3), BOOKS)
  for row, codes, message in (
    (-1, None, "row -1"),
    (0, (0, 0), "shape"),
    (0, (0, 2, 0), "outside"),
  ):
    with pytest.raises(ValueError, match=message):
      index.set(row, codes)


@given(codes=CODES, other=CODES)
def test_keys_are_in_the_order_of_the_codes(codes, other):
  one, two = (int(trie_arrays.pack(np.array(c), BOOKS)) for c in (codes, other))
  assert (one < two) == (codes < other)
  assert trie_arrays.unpack(one, BOOKS) == codes
