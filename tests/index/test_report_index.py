"""The figures of the report on cases worked by hand, and the index both ways."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.index import index
from gr4ad_jax.sid import report
from gr4ad_jax.swing import swing

CODES = st.lists(
  st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=40
)


def test_code_quality_by_hand():
  codes = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])
  found = report.code_quality(codes, (2, 4))
  assert found["items_per_sid"] == pytest.approx(4 / 3)
  assert found["collision_rate"] == 0.5
  assert found["utilisation"] == 3 / 8
  assert found["most_in_prefix"] == 3
  first, second = found["levels"]
  assert first["largest_over_mean"] == 1.5 and first["used"] == 2
  assert second["perplexity"] == pytest.approx(2.0) and second["entropy_bits"] == pytest.approx(1.0)


def test_item_recall_by_hand():
  angle = np.array([0, 0.1, 0.2, 0.3, 3.0])
  z = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  truth = swing.Neighbors(
    np.array([[2, 4], [-1, -1], [-1, -1], [-1, -1], [-1, -1]]), np.zeros((5, 2))
  )
  known = swing.Neighbors(np.array([[1], [-1], [-1], [-1], [-1]]), np.zeros((5, 1)))
  plain = report.item_recall(z, truth)  # ad 0 ranks 1, 2, 3, 4
  assert (plain["recall@1"], plain["recall@5"], plain["queries"]) == (0, 1, 1)
  assert report.item_recall(z, truth, known)["recall@1"] == 1  # without the trained neighbour 1
  nobody = report.item_recall(z, truth, queries=np.array([1, 2]))
  assert nobody["queries"] == 0 and np.isnan(nobody["recall@1"])


@settings(max_examples=60, deadline=None)
@given(rows=CODES)
def test_index_is_the_trie_of_its_codes(rows):
  codes = np.array(rows, np.int32)
  built = index.SidIndex.build(codes, (4, 3, 2))
  assert built.num_leaves == len(set(rows))
  seen = []

  def walk(depth, node, prefix):
    if depth == 3:
      ads = built.leaf_ads[built.leaf_start[node] : built.leaf_start[node + 1]].tolist()
      assert ads == [n for n, row in enumerate(rows) if row == prefix]
      assert (built.ad_leaf[ads] == node).all()
      seen.extend(ads)
      return
    start, end = built.child_start[depth][node], built.child_start[depth][node + 1]
    children = built.node_code[depth][start:end].tolist()
    assert children == sorted({row[depth] for row in rows if row[:depth] == prefix})
    for child, code in zip(range(start, end), children, strict=True):
      walk(depth + 1, child, (*prefix, code))

  walk(0, 0, ())
  assert sorted(seen) == list(range(len(rows)))


@settings(max_examples=40, deadline=None)
@given(rows=CODES, limit=st.integers(1, 12), seed=st.integers(0, 99))
def test_expand_keeps_rank_and_index_order(rows, limit, seed):
  built = index.SidIndex.build(np.array(rows, np.int32), (4, 3, 2))
  rng = np.random.default_rng(seed)
  leaves = np.concatenate([rng.permutation(built.num_leaves), [-1]])[None, :]
  rng.shuffle(leaves[0])
  expected = [
    ad for leaf in leaves[0] if leaf >= 0 for ad in np.flatnonzero(built.ad_leaf == leaf)
  ][:limit]
  np.testing.assert_array_equal(
    built.expand(leaves, limit)[0], expected + [-1] * (limit - len(expected))
  )


def test_index_round_trip_and_errors(tmp_path):
  built = index.SidIndex.build(np.array([[1, 0], [0, 1], [1, 0]]), (2, 2))
  built.save(str(tmp_path))
  loaded = index.SidIndex.load(str(tmp_path))
  np.testing.assert_array_equal(loaded.codes_NT, built.codes_NT)
  np.testing.assert_array_equal(loaded.leaf_ads, built.leaf_ads)
  assert loaded.codebooks == (2, 2)
  for codes in (np.array([[2, 0]]), np.array([[0, -1]]), np.zeros((0, 2)), np.zeros((3, 3))):
    with pytest.raises(ValueError, match="code"):
      index.SidIndex.build(codes, (2, 2))
  with pytest.raises(FileNotFoundError):
    index.SidIndex.load(str(tmp_path / "absent"))
