"""Beams chosen with an item-level head's help."""

import dataclasses
import functools
import gc
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import ItemConfig, SearchConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding import guide as guide_lib
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.guide import Guide, Guides, NodeAds
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.live_index import LiveIndex
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.zoo.gr4ad_items import GR4ADItems
from tests.models import tiny

ADS, TABLE = 60, 45  # 15 ads came after the training
ECPM = EcpmBins(np.arange(4, dtype=np.float32), np.arange(5, dtype=np.float32), 4.0)


def make_index():
  rng = np.random.default_rng(3)
  codes = tiny.ALL_CODES[rng.permutation(len(tiny.ALL_CODES))[:ADS]]
  codes[7] = codes[41]  # two ads share a UA-SID
  return SidIndex.build(codes, tiny.CODEBOOKS)


@functools.cache
def make_system():
  config = dataclasses.replace(tiny.CONFIG, model="gr4ad_items", copy="off")
  model = GR4ADItems(config, tiny.CODEBOOKS, "none", ItemConfig(), TABLE)
  return model, tiny.make_params(model), tiny.make_batch(), make_index()


@pytest.fixture(scope="module")
def system():
  return make_system()


@functools.cache
def _program(widths, guided):
  """Compiled once for all weights of the guide."""
  model, _, batch, index = make_system()
  trie, ads = Trie.of(index), NodeAds.of(index, TABLE)

  def run(params, weight):
    guide = Guide.of(params[row_tables.NAME], ads, weight) if guided else None
    return beam_search(
      model, {"params": params}, batch, trie, ECPM.means, widths=widths, guide=guide
    )

  return tiny.jit(run)


def search(system, widths, weight=None):
  """Beams of the tiny batch; guided where there is a weight."""
  return _program(widths, weight is not None)(system[1], weight or 0.0)


@functools.cache
def forward():
  """What the model makes of the UA-SIDs of all ads, for each request."""
  model, params, batch, index = make_system()
  codes_BNT = np.repeat(index.codes_NT[None], len(batch.slot_ad_BS), 0)
  run = tiny.jit(lambda params: model.apply({"params": params}, batch, codes_BNT))
  return jax.device_get(run(params))


def vectors_by_hand(index, table_ND, depth):
  found = {}
  for ad, codes in enumerate(index.codes_NT):
    vector = table_ND[ad] if ad < len(table_ND) else np.zeros(table_ND.shape[1])
    found.setdefault(tuple(codes[:depth].tolist()), []).append(vector)
  return {prefix: np.mean(vectors, axis=0) for prefix, vectors in found.items()}


def test_a_node_has_the_mean_of_its_ads_vectors():
  index = make_index()
  table_ND = np.random.default_rng(0).normal(size=(TABLE, 8)).astype(np.float32)
  guide = Guide.of(jnp.asarray(table_ND), NodeAds.of(index, TABLE), 2.0)
  prefixes = [()]
  for level, (start, code) in enumerate(zip(index.child_start, index.node_code, strict=True)):
    prefixes = [
      (*prefix, int(c)) for p, prefix in enumerate(prefixes) for c in code[start[p] : start[p + 1]]
    ]
    expected = vectors_by_hand(index, table_ND, level + 1)
    assert len(guide.vectors[level]) == len(prefixes) == len(expected)
    np.testing.assert_allclose(
      guide.vectors[level], [expected[prefix] for prefix in prefixes], atol=1e-6
    )


def test_scores_are_the_same_all_at_once_and_one_by_one(monkeypatch):
  rng = np.random.default_rng(1)
  guide = Guide.of(
    jnp.asarray(rng.normal(size=(TABLE, 8)), jnp.float32), NodeAds.of(make_index(), TABLE), 3.0
  )
  state_BD, node_BX = rng.normal(size=(2, 8)).astype(np.float32), rng.integers(0, 5, (2, 4))
  at_once = guide.scores(1, state_BD, node_BX)
  monkeypatch.setattr(guide_lib, "_FEW", 0)
  np.testing.assert_allclose(guide.scores(1, state_BD, node_BX), at_once, atol=1e-5)
  np.testing.assert_allclose(
    at_once, 3 * np.einsum("bd,bxd->bx", state_BD, guide.vectors[1][node_BX]), atol=1e-5
  )


@pytest.mark.long
def test_a_wide_guided_search_finds_the_same_log_p(system):
  plain, guided = (search(system, (7, 35, 140), weight) for weight in (None, 5.0))
  np.testing.assert_array_equal(guided.leaf_BW, plain.leaf_BW)
  np.testing.assert_allclose(guided.logp_BW, plain.logp_BW, atol=1e-5)


def test_each_level_keeps_the_prefixes_of_the_largest_sum(system):
  model, params, batch, index = system
  widths = 3, 6, 5
  found = search(system, widths, 4.0)
  logp_BNT = forward().generated_logp_BMT
  state_BD = np.asarray(
    tiny.jit(lambda params: model.apply({"params": params}, batch, method="last_state"))(params)
  )
  table_ND = np.asarray(params[row_tables.NAME])[:TABLE]
  for b, state in enumerate(state_BD):
    kept = {()}
    for level, width in enumerate(widths):
      vectors, score = vectors_by_hand(index, table_ND, level + 1), {}
      for ad, codes in enumerate(index.codes_NT):
        prefix = tuple(codes[: level + 1].tolist())
        if prefix[:-1] in kept:
          score[prefix] = logp_BNT[b, ad, : level + 1].sum() + 4.0 * state @ vectors[prefix]
      kept = set(sorted(score, key=score.get, reverse=True)[:width])
    assert {tuple(codes.tolist()) for codes in found.codes_BWT[b]} == kept


def test_an_overlay_is_refused(system):
  model, params, batch, index = system
  main, overlay = LiveIndex(index.codes_NT, tiny.CODEBOOKS, overlay=16).view()
  trie, guide = (
    Trie.of(main).with_overlay(overlay),
    Guide.of(params[row_tables.NAME], NodeAds.of(index, TABLE), 1.0),
  )
  with pytest.raises(ValueError, match="overlay"):
    beam_search(model, {"params": params}, batch, trie, ECPM.means, widths=(3, 3, 3), guide=guide)


@pytest.mark.long
def test_narrow_guided_beams_hold_what_the_head_ranks_first(system):
  model, params, batch, index = system
  contexts = types.SimpleNamespace(
    batch=lambda requests: jax.tree.map(lambda x: x[requests], batch)
  )
  ads_BN = np.repeat(np.arange(TABLE)[None], len(batch.slot_ad_BS), 0)
  best_B = np.asarray(model.apply({"params": params}, batch, ads_BN, method="item_scores")).argmax(
    1
  )
  first = {}
  for guided in (False, True):
    config = SearchConfig(beams=(7, 8, 8), item_weight=1000.0, guided=guided)
    first[guided] = (
      Ranker(model, index, ECPM, config).rank(params, contexts, np.arange(4), k=1).ad_RK[:, 0]
    )
  assert (first[True] == best_B).sum() > (first[False] == best_B).sum()


def test_a_guide_is_built_once_a_table_and_compiled_once_a_shape(monkeypatch):
  table = jnp.asarray(np.random.default_rng(0).normal(size=(TABLE + 3, 8)), jnp.float32)
  begun, traced = [], []

  def counted(*inputs):
    traced.append(1)
    return Guide.of(*inputs)

  build = jax.jit(counted)
  monkeypatch.setattr(guide_lib, "_build", lambda *inputs: (begun.append(1), build(*inputs))[1])
  codes = make_index().codes_NT
  guides, others = (
    Guides(SidIndex.build(rows, tiny.CODEBOOKS), TABLE, 2.0) for rows in (codes, codes[::-1])
  )
  first = guides.of(table)
  assert guides.of(table) is first and (len(begun), len(traced)) == (1, 1)
  changed = guides.of(table + 1)
  assert (len(begun), len(traced)) == (2, 1) and (changed.vectors[0] != first.vectors[0]).any()
  other = others.of(table)  # another index of the same shape: another guide by the same program
  assert (len(begun), len(traced)) == (3, 1) and (other.vectors[2] != first.vectors[2]).any()
  written = np.asarray(table).copy()
  before = guides.of(written)
  written += 1
  np.testing.assert_array_equal(guides.of(written).vectors[0], changed.vectors[0])
  assert (before.vectors[0] != changed.vectors[0]).any()


def test_a_guide_goes_with_its_table():
  gc.freeze()  # what other tests have left is not looked through
  table = jnp.asarray(np.random.default_rng(1).normal(size=(TABLE, 8)), jnp.float32)
  guides = Guides(make_index(), TABLE, 2.0)
  held = [weakref.ref(table), *map(weakref.ref, guides.of(table).vectors)]
  gc.collect()
  assert all(of() is not None for of in held)  # while the table is in use, so is its guide
  del table
  gc.collect()
  assert [of() for of in held] == [None] * len(held)


def test_searches_of_one_policy_share_its_guide_and_one_program(system, monkeypatch):
  model, params, batch, index = system
  params = jax.device_put(params)
  ranker = Ranker(model, index, ECPM, SearchConfig(beams=(3, 4, 4), item_weight=3.0))
  built = []
  build = guide_lib._build
  monkeypatch.setattr(guide_lib, "_build", lambda *inputs: (built.append(1), build(*inputs))[1])
  first, again = (jax.device_get(ranker.search(params, batch, 1)) for _ in range(2))
  moved = jax.device_get(
    ranker.search(params | {row_tables.NAME: -params[row_tables.NAME]}, batch, 1)
  )
  assert len(built) == 2 and ranker._searcher._run._cache_size() == 1
  np.testing.assert_array_equal(first.leaf_BW, again.leaf_BW)
  assert (moved.leaf_BW != first.leaf_BW).any()
