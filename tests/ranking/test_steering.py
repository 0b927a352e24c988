"""Steered lists against the greedy rule as a loop, one list and one place at a time."""

import dataclasses
import math
import types

import numpy as np
import pytest

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.ranking import steering
from gr4ad_jax.ranking.steering import Steering

ADS = 30


@pytest.fixture(scope="module")
def found():
  rng = np.random.default_rng(1)
  ad_RC = np.stack([rng.permutation(ADS)[:12] for _ in range(5)]).astype(np.int32)
  score_RC = -np.sort(rng.exponential(1.0, ad_RC.shape).astype(np.float32), axis=1)
  ad_RC[1, 4:] = -1
  ad_RC[2, :] = -1
  score_RC[ad_RC < 0] = -np.inf
  value_RC = np.where(ad_RC >= 0, rng.exponential(2.0, ad_RC.shape), 0).astype(np.float32)
  return Ranking(ad_RC, np.where(ad_RC >= 0, score_RC - 1, -np.inf), value_RC, score_RC)


UNIT = steering.unit(np.random.default_rng(2).normal(size=(ADS, 4)).astype(np.float32))
MEMBER = np.random.default_rng(3).random(ADS) < 0.3


def by_hand(ads, scores, how, k):
  left = [(int(ad), float(score)) for ad, score in zip(ads, scores, strict=True) if ad >= 0]
  chosen = []
  for place in range(1, k + 1):
    if not left:
      break
    those = left
    have = sum(bool(MEMBER[ad]) for ad, _ in chosen)
    if how.share and have < math.floor(how.share * place + 1e-9):
      those = [one for one in left if MEMBER[one[0]]] or left

    def worth(one):
      likeness = max((float(UNIT[one[0]] @ UNIT[ad]) for ad, _ in chosen), default=0.0)
      return one[1] - how.diversity * max(likeness, 0.0)

    best = max(those, key=worth)
    chosen.append(best)
    left.remove(best)
  return [ad for ad, _ in chosen] + [-1] * (k - len(chosen))


@pytest.mark.parametrize("diversity", [0.0, 0.7, 30.0])
@pytest.mark.parametrize("share", [0.0, 0.34, 1.0])
def test_each_place_goes_to_the_best_by_the_rule(found, diversity, share):
  how = Steering(diversity, UNIT, share, MEMBER)
  given = steering.steer(found, how, 7)
  expected = [by_hand(*row, how, 7) for row in zip(found.ad_RK, found.score_RK, strict=True)]
  assert given.ad_RK.tolist() == expected
  if not how:
    np.testing.assert_array_equal(given.ad_RK, found.ad_RK[:, :7])
  for r in range(5):  # each ad keeps its own numbers
    for ad, logp, value, score in zip(
      given.ad_RK[r], given.logp_RK[r], given.value_RK[r], given.score_RK[r], strict=True
    ):
      if ad >= 0:
        at = found.ad_RK[r].tolist().index(ad)
        assert (logp, value) == (found.logp_RK[r, at], found.value_RK[r, at])
        assert score == found.score_RK[r, at]
      else:
        assert (logp, value, score) == (-np.inf, 0, -np.inf)


def test_a_quota_holds_at_every_depth_while_candidates_last(found):
  share = 0.5
  given = steering.steer(found, Steering(share=share, group_N=MEMBER), 8).ad_RK
  for row, candidates in zip(given, found.ad_RK, strict=True):
    there = int(MEMBER[candidates[candidates >= 0]].sum())
    for m in range(1, int((row >= 0).sum()) + 1):
      assert MEMBER[row[:m]].sum() >= min(math.floor(share * m), there)


def test_alike_ads_come_apart():
  ad_RC = np.array([[0, 1, 2]], np.int32)
  score_RC = np.array([[-1.0, -1.1, -2.0]], np.float32)
  ranking = Ranking(ad_RC, score_RC, np.ones((1, 3), np.float32), score_RC)
  vectors = steering.unit(np.array([[1.0, 0.0], [1.0, 0.0], [-0.2, 1.0]]))
  # The second is the first once more; the third is against it, and gains nothing by that.
  for diversity, expected in ((0.8, [0, 1]), (1.0, [0, 2])):
    got = steering.steer(ranking, Steering(diversity=diversity, vector_ND=vectors), 2)
    assert got.ad_RK.tolist() == [expected]


def _ranking(ads, scores):
  ad_RK, score_RK = np.array(ads, np.int32), np.array(scores, np.float32)
  return Ranking(ad_RK, score_RK - 1, np.where(ad_RK >= 0, 3.0, 0.0), score_RK)


def test_two_searches_come_together():
  first = _ranking([[4, 2, 9], [1, -1, -1]], [[-1, -2, -3], [-5, -np.inf, -np.inf]])
  second = _ranking([[2, 7], [-1, -1]], [[-2, -2.5], [-np.inf, -np.inf]])
  both = steering.together(first, second)
  assert both.ad_RK.tolist() == [[4, 2, 7, 9, -1], [1, -1, -1, -1, -1]]
  assert both.score_RK[0, :4].tolist() == [-1, -2, -2.5, -3]
  assert both.logp_RK[0, :4].tolist() == [-2, -3, -3.5, -4]
  assert (both.value_RK == np.where(both.ad_RK >= 0, 3, 0)).all()


def test_the_group_is_searched_for_where_places_are_kept_for_it():
  """Its best ads stand behind all candidates of the first search."""
  score_N = -np.arange(12.0)
  group_N = np.arange(12) >= 8
  asked = []

  def rank(most, left_out):
    asked.append((most, bool(left_out)))
    ads = np.arange(12)
    kept = ads if left_out is None else ads[left_out.kept(np.tile(ads, (2, 1)))[0]]
    found = np.tile(kept[:most], (2, 1))
    return _ranking(found, score_N[found])

  search = dataclasses.replace(SearchConfig(), rerank_candidates=6)
  config = types.SimpleNamespace(search=dataclasses.replace(search, quota_share=0.4))
  how = Steering(share=0.4, group_N=group_N)
  # Ad 8 is one that the requests do without anyway, and none beyond ad 10 is allowed.
  without = LeftOut.lists([[8], [8]], [np.arange(11) < 11] * 2)
  found = steering.search(rank, how, config, 5, 2, without)
  assert found.ad_RK.tolist() == [[0, 1, 9, 2, 10]] * 2
  assert asked == [(6, True), (2, True)]
  asked.clear()
  plain = types.SimpleNamespace(search=search)
  assert steering.search(rank, Steering(), plain, 3, 2).ad_RK.tolist() == [[0, 1, 2]] * 2
  assert asked == [(3, False)]


def test_a_group_within_each_set():
  group_N = np.array([True, False, True, True])
  small = np.array([True, True])
  left_out = LeftOut.lists([[], [3], []], [small, None, small]).inside(group_N)
  kept = left_out.kept(np.tile(np.arange(5), (3, 1)))
  assert kept.tolist() == [
    [True, False, False, False, False],
    [True, False, True, False, False],
    [True, False, False, False, False],
  ]
  assert len(left_out.sets) == 2  # what is made of a set is made once
  assert LeftOut.lists([()]).inside(group_N).kept(np.arange(4)[None]).tolist() == [group_N.tolist()]


def test_groups_by_name():
  account_N = np.array([0, 0, 1, 1, 2])
  lines_N = np.array([50, 30, 0, 10, 10])
  assert steering.group("small_accounts", account_N, lines_N).tolist() == [0, 0, 1, 1, 1]
  assert steering.group("tail_ads", account_N, lines_N).tolist() == [0, 0, 1, 1, 1]
  assert steering.group("new_ads", account_N, lines_N).tolist() == [0, 0, 1, 0, 0]
