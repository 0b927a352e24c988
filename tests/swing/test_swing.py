"""Swing equals its formula, looks at training only, and its pairs are parted fairly."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.config import SidConfig
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.swing import by_config, pipeline, swing

BASKETS = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=12)


def by_loops(baskets, num_ads, alpha):
  """Swing's double sum, written out."""
  items = [set(basket) for basket in baskets]
  similarity = np.zeros((num_ads, num_ads))
  for i, j in itertools.permutations(range(num_ads), 2):
    both = [u for u, basket in enumerate(items) if {i, j} <= basket]
    for u, v in itertools.permutations(both, 2):
      similarity[i, j] += (len(items[u]) * len(items[v])) ** -0.5 / (
        alpha + len(items[u] & items[v])
      )
  return similarity


@settings(max_examples=40, deadline=None)
@given(baskets=BASKETS, alpha=st.sampled_from([0.0, 1.0, 5.0]))
def test_equals_the_formula(make, baskets, alpha):
  _, make_events = make
  expected = by_loops(baskets, 8, alpha)
  found = swing.fit_swing(make_events(baskets), 8, alpha=alpha, neighbors=7)
  dense = np.zeros((8, 8))
  row, slot = np.nonzero(found.ads_NK >= 0)
  dense[row, found.ads_NK[row, slot]] = found.similarity_NK[row, slot]
  np.testing.assert_allclose(dense, expected, rtol=1e-5, atol=1e-7)
  assert (np.diff(found.similarity_NK, axis=1) <= 0).all()


def test_only_training_visits_count(make):
  _, make_events = make
  found = swing.fit_swing(
    make_events([[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]], split=[0, 0, 1, 1, 2, 2]), 6
  )
  assert found.ads_NK[0, 0] == 1 and found.ads_NK[1, 0] == 0
  assert (found.ads_NK[2:] == -1).all()


def test_caps_hold_and_keep_the_strong_pair(make):
  _, make_events = make
  baskets = [[0, 1, 2 + n % 5] for n in range(200)]
  found = swing.fit_swing(make_events(baskets), 7, max_users_per_item=20, max_items_per_user=3)
  assert found.ads_NK[0, 0] == 1
  # 20 visits, 20 * 19 ordered pairs of weight 1/3, each over alpha + at least the two shared ads
  assert 0 < found.similarity_NK[0, 0] <= 20 * 19 / 3 / 3 + 1e-4
  alone = swing.fit_swing(make_events(baskets), 7, max_items_per_user=1)
  assert (alone.ads_NK == -1).all()


def test_no_training_event_gives_no_neighbour(make):
  _, make_events = make
  assert (swing.fit_swing(make_events([[0, 1]], split=[2]), 3).ads_NK == -1).all()


@pytest.mark.parametrize("held_out", [0.0, 0.3, 1.0])
def test_split_parts_unordered_pairs(shop, held_out):
  ads, events = shop
  whole = swing.fit_swing(events, len(ads))

  def pairs(neighbors):
    row, slot = np.nonzero(neighbors.ads_NK >= 0)
    return {
      frozenset(pair)
      for pair in zip(row.tolist(), neighbors.ads_NK[row, slot].tolist(), strict=True)
    }

  train, out = whole.split(held_out, seed=1)
  assert not pairs(train) & pairs(out)
  assert pairs(train) | pairs(out) == pairs(whole)
  assert abs(len(pairs(out)) / len(pairs(whole)) - held_out) < 0.1


def test_among_renumbers():
  whole = swing.Neighbors(
    np.array([[2, 1], [0, -1], [1, 0]], np.int32), np.array([[3, 2], [1, 0], [5, 4]], np.float32)
  )
  part = whole.among(np.array([0, 2]))
  np.testing.assert_array_equal(part.ads_NK, [[1, -1], [0, -1]])
  np.testing.assert_array_equal(part.similarity_NK, [[3, 0], [4, 0]])


def test_ads_of_a_user_count_where_every_visit_holds_one(make):
  _, make_events = make
  baskets = [[0, 1, 2], [1, 2], [0, 2, 3]]
  visits = make_events(baskets)
  single = dataclasses.replace(visits, request=np.arange(len(visits), dtype=np.int32))
  users, baskets_found = (
    swing.fit_swing(single, 4, neighbors=3),
    swing.fit_swing(visits, 4, neighbors=3),
  )
  np.testing.assert_array_equal(users.ads_NK, baskets_found.ads_NK)
  np.testing.assert_array_equal(users.similarity_NK, baskets_found.similarity_NK)
  assert (users.ads_NK >= 0).any()


@pytest.mark.parametrize("largest", [1, 2])
def test_a_user_s_visits_as_the_pipeline_takes_them(largest):
  rng = np.random.default_rng(0)
  visit, ad = rng.integers(5, 40, 300), rng.integers(9, size=300)
  found = list(pipeline._visits_of_ads((77, visit, ad), largest, 1000, 0))
  visits = collections.defaultdict(set)
  for number, taken in zip(visit.tolist() if largest > 1 else [77] * 300, ad.tolist(), strict=True):
    visits[number].add(taken)
  expected = [
    (one, number, tuple(sorted(ads)))
    for number, ads in sorted(visits.items())
    for one in sorted(ads)
  ]
  assert [(one, number, held) for one, (_, number, held) in found] == expected
  assert len({first for _, (first, _, _) in found}) == len(found)
  assert not list(pipeline._visits_of_ads((77, visit[:0], ad[:0]), largest, 1000, 0))


def test_neighbours_made_elsewhere_are_taken(shop, tmp_path):
  ads, events = shop
  path = str(tmp_path / "neighbors.npz")
  whole = swing.fit_swing(events, len(ads))
  config = SidConfig(swing_path=path)
  whole.save(path, by_config.swing_settings(config, 0))
  found = by_config.co_occurrence(events, len(ads), config, seed=0)
  np.testing.assert_array_equal(found.ads_NK, whole.ads_NK)
  np.testing.assert_array_equal(found.similarity_NK, whole.similarity_NK)
  with pytest.raises(DataError, match="neighbors.npz: neighbours of 120 ads; the table has 99"):
    by_config.co_occurrence(events, 99, config, seed=0)
  with pytest.raises(DataError, match="neighbors.npz: made with --seed=0; 1 is wanted"):
    by_config.co_occurrence(events, len(ads), config, seed=1)
  for name, value in {"alpha": 0.5, "neighbors": 8, "visits": 9, "basket": 9, "support": 3}.items():
    with pytest.raises(
      DataError, match=rf"neighbors.npz: made with --swing_{name}=\d+(\.0)?; {value} is wanted"
    ):
      by_config.co_occurrence(
        events, len(ads), dataclasses.replace(config, **{f"swing_{name}": value}), seed=0
      )


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_a_file_that_holds_no_neighbours_is_named(tmp_path, content):
  path = tmp_path / "neighbors.npz"
  path.write_bytes(content)
  with pytest.raises(DataError, match="neighbors.npz: not a file of Swing neighbours"):
    swing.Neighbors.load(str(path), {})
  with pytest.raises(FileNotFoundError, match="absent"):
    swing.Neighbors.load(str(tmp_path / "absent.npz"), {})
