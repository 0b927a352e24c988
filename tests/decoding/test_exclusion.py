"""Ads left out inside the search: it is that of an index that was built without them."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ItemConfig, SearchConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding.exclusion import Excluded, Excluder, beams_on
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.decoding.searcher import Searcher, TrieFeed
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.features.batches import HISTORY
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.index.live_index import LiveIndex
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.zoo.gr4ad_items import GR4ADItems
from tests.index import churn
from tests.models import tiny

CODEBOOKS, ADS = (16, 12, 8), 1_500  # 1,536 UA-SIDs: about 580 hold no ad, many hold several
BEAMS = (6, 20, 40)
ECPM = EcpmBins(np.arange(4, dtype=np.float32), np.arange(5, dtype=np.float32), 4.0)
KINDS = {
  "plain": {},
  "history bias": {"history_bias": True, "copy": "off"},
  "items": {"model": "gr4ad_items", "copy": "off"},
}


def make_index(seed=0):
  rng = np.random.default_rng(seed)
  codes = np.stack([rng.integers(0, size, ADS) for size in CODEBOOKS], axis=1)
  codes[:300, 0] = rng.integers(0, 3, 300)  # some prefixes are full, others nearly empty
  return SidIndex.build(codes, CODEBOOKS)


@functools.lru_cache
def system(kind):
  """A model of random weights, its parameters, an index, and requests with histories of its ads."""
  config = dataclasses.replace(tiny.CONFIG, **KINDS[kind])
  if kind == "items":
    model = GR4ADItems(config, CODEBOOKS, "none", ItemConfig(), ADS - 200)  # 200 came later
  else:
    model = GR4AD(config, CODEBOOKS, "none")
  index, batch = make_index(), tiny.make_batch()
  ads = np.random.default_rng(4).integers(0, ADS, batch.slot_ad_BS.shape)
  batch = batch._replace(
    slot_ad_BS=np.where(batch.slot_ad_BS >= 0, ads, -1).astype(np.int32),
    slot_codes_BST=index.codes_NT[ads],
  )
  return model, tiny.make_params(model, bias=-1.0), batch, index


def test_dead_entries_of_an_overlay_lose_their_beams_the_first_one_too():
  """Four entries behind ten main nodes: dead are entries 0 and 2 in the first request, 3 in the
  second. What is dead in the main part, and the unused rest of a list, strikes no entry.
  """
  child_BP = np.array([[10, 12, 3], [13, 9, -1]], np.int32)
  unused = np.zeros((1, 2, 3), np.int32)
  bits = (np.zeros((2, 0), np.uint32),)
  excluded = Excluded(unused, child_BP[None], np.zeros(2, bool), bits)
  beam_BP = np.array([[0, 1, 2, 0], [2, 2, 1, 0]], np.int32)
  found = excluded.strike_overlay(0, jax.numpy.asarray(beam_BP), 10, 9)
  assert found.tolist() == [[9, 1, 9, 0], [2, 2, 1, 9]]


def contexts(batch):
  return types.SimpleNamespace(batch=lambda rows: jax.tree.map(lambda x: x[rows], batch))


def make_ranker(kind, search):
  """A ranker over the whole index; rankers of the same settings share their programs."""
  model, _, _, index = system(kind)
  ranker = Ranker(model, index, ECPM, search)
  ranker._searcher = _searcher(kind, search)
  return ranker


@functools.lru_cache
def _searcher(kind, search):
  return Searcher(system(kind)[0], ECPM, search)


def rebuilt(kind, keep, search, k):
  """Lists of each request by a ranker over an index that never had the other ads.

  Its trie is padded to the shape of the whole one, so that it is searched by the same program.
  """
  model, params, batch, index = system(kind)
  whole, found = Trie.of(index), []
  for request, rows in enumerate(keep):
    small = SidIndex.build(index.codes_NT[rows], CODEBOOKS)
    ad_leaf = np.full(ADS, -1, np.int32)
    ad_leaf[rows] = small.ad_leaf
    named = dataclasses.replace(
      small, leaf_ads=rows[small.leaf_ads].astype(np.int32), ad_leaf=ad_leaf
    )
    ranker = make_ranker(kind, search)
    own = Ranker(model, named, ECPM, search)
    own._searcher, own._trie = ranker._searcher, _padded(own._trie, whole)
    found.append(own.rank(params, contexts(batch), np.array([request]), k, batch_size=4))
  return [np.concatenate([getattr(one, f) for one in found]) for f in vars(found[0])]


def _padded(trie, whole):
  def pad(column, like, value):
    return np.append(column, np.full(len(like) - len(column), value, np.int32))

  pairs = zip(trie.child_start, whole.child_start, strict=True)
  start = tuple(pad(mine, like, mine[-1]) for mine, like in pairs)
  pairs = zip(trie.node_code, whole.node_code, strict=True)
  return Trie(start, tuple(pad(mine, like, 0) for mine, like in pairs), None, whole.fanout)


def check_equal(found, expected):
  ad_RK, logp_RK, value_RK, score_RK = expected
  np.testing.assert_array_equal(found.ad_RK, ad_RK)
  np.testing.assert_allclose(found.logp_RK, logp_RK, atol=2e-5)
  np.testing.assert_allclose(found.value_RK, value_RK, atol=2e-4)
  np.testing.assert_allclose(found.score_RK, score_RK, atol=2e-4)


def lists_of(batch, index, counts, seed=1):
  """For each request so many ads at random, its history's ads and whole prefixes among them."""
  rng, lists = np.random.default_rng(seed), []
  for request, count in enumerate(counts):
    rows = rng.permutation(ADS)[:count]
    if count:
      history = batch.slot_ad_BS[request][batch.slot_kind_BS[request] == HISTORY]
      deep = np.flatnonzero(index.codes_NT[:, 0] == request)  # all of a first code
      deeper = np.flatnonzero((index.codes_NT[:, :2] == (request + 5, 3)).all(-1))
      rows = np.concatenate([history, deep, deeper, rows])[:count]
    lists.append(rows)
  return lists


@pytest.mark.parametrize(
  ("kind", "settings", "counts"),
  [
    ("plain", {}, (0, 40, 300, 1000)),
    pytest.param(
      "plain",
      {"precut": "blocks", "order": "blend", "ecpm_beams": 18},
      (1000, 300, 1, 0),
      marks=pytest.mark.long,
    ),
    pytest.param("history bias", {}, (300, 40, 0, 1000), marks=pytest.mark.long),
    pytest.param("items", {"item_weight": 0.7}, (0, 40, 300, 1000), marks=pytest.mark.long),
  ],
)
def test_the_search_is_that_of_an_index_without_the_ads(kind, settings, counts):
  model, params, batch, index = system(kind)
  search = SearchConfig(beams=BEAMS, **settings)
  lists = lists_of(batch, index, counts)
  keep = [np.setdiff1d(np.arange(ADS), rows) for rows in lists]
  ranker = make_ranker(kind, search)
  found = ranker.rank(
    params, contexts(batch), np.arange(4), 15, batch_size=4, left_out=LeftOut.lists(lists)
  )
  check_equal(found, rebuilt(kind, keep, search, 15))
  # It has to matter: the unrestricted search answers something else.
  plain = ranker.rank(params, contexts(batch), np.arange(4), 15, batch_size=4)
  for request, rows in enumerate(lists):
    assert not np.isin(found.ad_RK[request], rows).any()
    assert len(rows) < 300 or (plain.ad_RK[request] != found.ad_RK[request]).any()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["plain", "items"])
def test_only_some_ads_and_not_these_of_them(kind):
  model, params, batch, index = system(kind)
  search = SearchConfig(beams=BEAMS, item_weight=0.7 if kind == "items" else 0.0)
  allowed_N = np.random.default_rng(2).random(ADS) < 0.2
  allowed_N[index.codes_NT[:, 0] == 3] = False
  lists = [np.flatnonzero(allowed_N)[::step] for step in (2, 5, 9)] + [np.array([], int)]
  keep = [np.setdiff1d(np.flatnonzero(allowed_N), rows) for rows in lists]
  left_out = LeftOut.lists(lists, [allowed_N] * 4)
  found = make_ranker(kind, search).rank(
    params, contexts(batch), np.arange(4), 15, batch_size=4, left_out=left_out
  )
  check_equal(found, rebuilt(kind, keep, search, 15))


def test_requests_of_one_batch_may_have_sets_of_their_own():
  model, params, batch, index = system("plain")
  rng, search = np.random.default_rng(5), SearchConfig(beams=BEAMS)
  first, second = rng.random(ADS) < 0.1, rng.random(ADS) < 0.5
  sets = [first, None, second, first]
  keep = [np.arange(ADS) if one is None else np.flatnonzero(one) for one in sets]
  found = make_ranker("plain", search).rank(
    params, contexts(batch), np.arange(4), 15, 4, left_out=LeftOut.lists([[]] * 4, sets)
  )
  check_equal(found, rebuilt("plain", keep, search, 15))


def test_lists_are_full_while_unseen_ads_exist():
  model, params, batch, index = system("plain")
  kept = 45
  lists = [np.random.default_rng(n).permutation(ADS)[kept:] for n in range(4)]
  found = Ranker(model, index, ECPM, SearchConfig(beams=(40, 40, 40))).rank(
    params, contexts(batch), np.arange(4), 40, 4, left_out=LeftOut.lists(lists)
  )
  for request, rows in enumerate(lists):
    assert (found.ad_RK[request] >= 0).all()
    assert not np.isin(found.ad_RK[request], rows).any()


def test_in_a_guided_search_all_requests_have_one_set():
  model, params, batch, index = system("items")
  sets = [np.ones(ADS, bool), None, None, None]
  ranker = Ranker(model, index, ECPM, SearchConfig(beams=BEAMS))
  with pytest.raises(ValueError, match="one set"):
    ranker.rank(params, contexts(batch), np.arange(4), 5, 4, left_out=LeftOut.lists([[]] * 4, sets))


class Live:
  """A live index that changes, and one program that searches it."""

  ROOM = 128

  def __init__(self):
    self.model, params, self.batch, index = system("plain")
    self.codes_NT = index.codes_NT.copy()
    self.index = LiveIndex(self.codes_NT, CODEBOOKS, overlay=256)
    self.feed, self.excluder = TrieFeed(self.index), Excluder(self.ROOM)
    self.searcher = Searcher(self.model, ECPM, SearchConfig(), room=self.ROOM)
    self.variables = self.searcher.variables(params)
    row = jax.tree.map(lambda x: x[:1], self.batch)
    self.searcher.prepare(self.variables, row, (4,), (BEAMS,), self.feed.trie())
    self.active = dict(enumerate(map(tuple, self.codes_NT.tolist())))

  def rows(self, left_out, k):
    trie, holdings = self.feed.latest()
    excluded = self.excluder.of(holdings, left_out)
    beams = jax.device_get(self.searcher.search(self.variables, self.batch, trie, BEAMS, excluded))
    return self.index.expand(beams.codes_BWT, beams.leaf_BW >= 0, k, left_out)[0]

  def expected(self, left_out, k):
    found = []
    for request in range(4):
      rows = np.array(sorted(self.active))
      rows = rows[left_out.keeps(np.full(len(rows), request), rows)]
      codes = np.array([self.active[row] for row in rows])
      index = SidIndex.build(codes, CODEBOOKS)
      trie = _padded(Trie.of(index), self.feed.trie())  # one program for all
      row = contexts(self.batch).batch([request])
      beams = jax.device_get(self.searcher.compiled_on_demand(self.variables, row, trie, BEAMS))
      own = index.expand(beams.leaf_BW, k)[0]
      found.append(np.where(own >= 0, rows[own], -1))
    return np.stack(found)


@pytest.mark.long
@pytest.mark.parametrize("steps", [2, 12])
def test_a_changing_index_is_searched_without_the_ads(steps):
  live, rng = Live(), np.random.default_rng(3)
  for step in range(steps):
    for _ in range(60):
      churn.change(live.index, live.active, rng, CODEBOOKS, rows=ADS + 40, leaving=0.6)
    if step % 3 == 2:
      live.index.merge()
    # The third request names more than a list has room for; the last has a set as well.
    lists = [rng.permutation(ADS + 40)[:count] for count in (0, 90, 900, 60)]
    came = [row for row in live.active if row >= ADS]
    lists[1] = np.append(lists[1], came)
    sets = [None, None, None, rng.random(ADS + 20) < 0.3]
    left_out = LeftOut.lists(lists, sets)
    np.testing.assert_array_equal(live.rows(left_out, 12), live.expected(left_out, 12))


def test_beams_are_found_among_nodes_that_ascend_but_for_gaps():
  """By loops: nodes repeat, -1 stands anywhere, a request has none, empty beams stand on node 0."""
  rng = np.random.default_rng(4)
  node_BP = np.sort(rng.integers(0, 12, (6, 9)), axis=1).astype(np.int32)
  node_BP[rng.random((6, 9)) < 0.3] = -1
  node_BP[0] = -1
  node_BP[1, :2] = 0
  beam_BW = np.stack([rng.permutation(12)[:7] for _ in range(6)]).astype(np.int32)
  beam_BW[1, 0] = 0
  beam_BW[1, 4:] = 0  # empty ones, behind the beam that stands there
  beam_BW[2, 5:] = -1
  found_BP = np.asarray(jax.jit(beams_on)(node_BP, beam_BW))
  for b in range(6):
    for p, node in enumerate(node_BP[b]):
      standing = [w for w, at in enumerate(beam_BW[b]) if at == node and node >= 0]
      assert found_BP[b, p] == (standing[0] if standing else 7), (b, p)
  assert (found_BP < 7).any() and (found_BP[node_BP >= 0] == 7).any()
