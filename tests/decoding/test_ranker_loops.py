"""Rankers against loops: ads of the beams, an item-level head's order, ads beside those found,
filled batches.
"""

import math
import types

import jax
import numpy as np
import pytest

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding import ranker as ranker_lib
from gr4ad_jax.decoding.item_ranker import ItemRanker
from gr4ad_jax.decoding.ranker import Ranker, distinct, logp_of
from gr4ad_jax.index.index import SidIndex
from tests.decoding.table_model import CODEBOOKS, CODES, MONEY, TableModel, loop_search, make_batch

BATCH = make_batch(6, seed=3)
ECPM = EcpmBins(np.arange(2, dtype=np.float32), MONEY, 9.0)
WIDTHS = (3, 5, 8)
CONTEXTS = types.SimpleNamespace(batch=lambda requests: jax.tree.map(lambda x: x[requests], BATCH))


@pytest.fixture(scope="module")
def index():
  rng = np.random.default_rng(7)
  codes = CODES[rng.permutation(60)[:30]]
  return SidIndex.build(
    np.concatenate([codes, codes[:4], codes[:2]])[rng.permutation(36)], CODEBOOKS
  )


def ads_found(index, b, config):
  """(ad, log p, value, score) of the beams' ads, best beam first, ads of one UA-SID in table
  order.
  """
  active = sorted({tuple(codes) for codes in index.codes_NT.tolist()})
  found = []
  for beam in loop_search(BATCH, b, active, WIDTHS, config):
    own = [ad for ad, codes in enumerate(index.codes_NT.tolist()) if tuple(codes) == beam.codes]
    found += [(ad, beam.logp, beam.value, beam.score) for ad in own]
  return found


def expected_row(index, b, config, k, weight=0.0, also=None):
  found = ads_found(index, b, config)[: max(k, WIDTHS[-1]) if weight else k]
  lowest = min(row[1] for row in found), min(row[3] for row in found)
  known, rows = {row[0] for row in found}, list(found)
  for ad in [] if also is None else also:
    if ad >= 0 and ad not in known:
      known.add(ad)
      rows.append((ad, lowest[0], 0.0, lowest[1]))
  if weight:
    rows = [
      (ad, logp, worth, logp + weight * float(BATCH.item_BN[b, ad])) for ad, logp, worth, _ in rows
    ]
    rows.sort(key=lambda row: -row[3])
    score = {
      "likelihood": lambda row: row[3],
      "ecpm": lambda row: math.log(max(row[2], 1e-6)),
      "blend": lambda row: row[3] + config.value_power * math.log(max(row[2], 1e-6)),
    }[config.order]
    rows = sorted([(*row[:3], score(row)) for row in rows], key=lambda row: -row[3])
  return rows[: k if also is None else k + len(also)]


def check(ranking, index, requests, config, k, also_RC=None, **how):
  places = k if also_RC is None else k + also_RC.shape[1]
  assert all(column.shape == (len(requests), places) for column in vars(ranking).values())
  for r, b in enumerate(requests):
    rows = expected_row(
      index, b, config, k, also=None if also_RC is None else also_RC[r].tolist(), **how
    )
    assert ranking.ad_RK[r].tolist() == [row[0] for row in rows] + [-1] * (places - len(rows))
    for place, column in ((1, ranking.logp_RK), (2, ranking.value_RK), (3, ranking.score_RK)):
      np.testing.assert_allclose(
        column[r, : len(rows)], [row[place] for row in rows], rtol=1e-4, atol=2e-5
      )
    assert (
      np.isneginf(ranking.logp_RK[r, len(rows) :]).all()
      and np.isneginf(ranking.score_RK[r, len(rows) :]).all()
    )
    assert (ranking.value_RK[r, len(rows) :] == 0).all()


REQUESTS = np.array([4, 0, 5, 2, 1])


def others(index, k):
  """Ads beside those found: some of the list, one twice, padding, and ads that the beams missed."""
  rng = np.random.default_rng(0)
  also_RC = rng.integers(0, 36, (len(REQUESTS), 5))
  also_RC[:, 1], also_RC[:, 3] = also_RC[:, 0], -1
  return also_RC.astype(np.int32)


@pytest.mark.parametrize("k", [4, 20])
def test_ads_of_the_beams_in_their_order_with_their_numbers(index, k):
  config = SearchConfig(beams=WIDTHS, order="blend", value_power=0.4)
  ranker = Ranker(TableModel(), index, ECPM, config)
  check(ranker.rank({}, CONTEXTS, REQUESTS, k, batch_size=2), index, REQUESTS, config, k)
  also_RC = others(index, k)
  found = ranker.rank({}, CONTEXTS, REQUESTS, k, batch_size=2, also_RC=also_RC)
  check(found, index, REQUESTS, config, k, also_RC)
  none = ranker.rank({}, CONTEXTS, REQUESTS[:0], k, batch_size=2, also_RC=also_RC[:0])
  assert none.ad_RK.shape[0] == 0


@pytest.mark.parametrize("order", ["likelihood", "ecpm", "blend"])
def test_an_item_level_head_reorders_what_was_found(index, monkeypatch, order):
  monkeypatch.setattr(ranker_lib, "GR4ADItems", TableModel)
  config = SearchConfig(beams=WIDTHS, order=order, value_power=0.7, item_weight=0.6, guided=False)
  ranker = Ranker(TableModel(), index, ECPM, config)
  for k in (3, 12):
    check(
      ranker.rank({}, CONTEXTS, REQUESTS, k, batch_size=3), index, REQUESTS, config, k, weight=0.6
    )
  also_RC = others(index, 4)
  found = ranker.rank({}, CONTEXTS, REQUESTS, 4, batch_size=3, also_RC=also_RC)
  check(found, index, REQUESTS, config, 4, also_RC, weight=0.6)


def test_search_gives_the_beams_whatever_k(index):
  ranker = Ranker(TableModel(), index, ECPM, SearchConfig(beams=WIDTHS))
  assert ranker.search({}, CONTEXTS.batch(np.arange(2)), 3).leaf_BW.shape == (2, 8)


def test_log_p_of_ads_is_that_found_and_the_lowest_of_others():
  found = np.array([[4, 7, -1], [2, -1, -1], [-1, -1, -1], [5, 3, 8]])
  logp = np.array(
    [[-0.2, -0.5, -np.inf], [-3.0, -np.inf, -np.inf], [-np.inf] * 3, [-9.0, -1.0, -4.0]]
  )
  ads = np.array([[7, 4, 9, -1], [2, 5, -1, 0], [1, -1, 0, 2], [3, 8, 5, 6]])
  expected = [[-0.5, -0.2, -0.5, -0.5], [-3, -3, -3, -3], [0, 0, 0, 0], [-1, -4, -9, -9]]
  np.testing.assert_array_equal(logp_of(ads, found, logp), expected)


def test_distinct_of_one_column():
  np.testing.assert_array_equal(distinct(np.array([[3], [-1]])), [[3], [-1]])


class Items:
  """Scores of single ads, as given."""

  num_ads = 9

  def apply(self, variables, batch):
    return batch.item_BN[:, :9] * variables["params"]["by"]


@pytest.mark.parametrize("k", [4, 12])
def test_single_ads_are_ranked_by_score_with_their_log_softmax(k):
  ranker = ItemRanker(Items())
  for requests in (REQUESTS, REQUESTS[:0]):
    found = ranker.rank({"by": 0.5}, CONTEXTS, requests, k, batch_size=2)
    assert (
      found.ad_RK.shape == found.value_RK.shape == (len(requests), k)
      and found.ad_RK.dtype == np.int32
    )
    assert (found.value_RK == 0).all() and found.value_RK.dtype == np.float32
    for row, b in enumerate(requests):
      score = [0.5 * float(x) for x in BATCH.item_BN[b, :9]]
      best = sorted(range(9), key=lambda ad, score=score: -score[ad])[:k]
      total = math.log(sum(math.exp(x) for x in score))
      assert found.ad_RK[row].tolist() == best + [-1] * (k - len(best))
      np.testing.assert_allclose(
        found.logp_RK[row, : len(best)], [score[ad] - total for ad in best], atol=1e-5
      )
      assert np.isneginf(found.logp_RK[row, len(best) :]).all()
    np.testing.assert_array_equal(found.score_RK, found.logp_RK)
  logp, ad = ranker.search({"by": 0.5}, CONTEXTS.batch(np.arange(3)), 12)
  assert logp.shape == ad.shape == (3, 9)
