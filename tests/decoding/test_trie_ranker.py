"""The trie on the device, and the ranker's way from requests to ads."""

import types

import jax
import numpy as np
import pytest

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding.ranker import Ranker, distinct
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.index.index import SidIndex
from tests.models import tiny

ECPM = EcpmBins(np.arange(4, dtype=np.float32), np.arange(5, dtype=np.float32), 4.0)


@pytest.fixture(scope="module")
def index():
  codes = tiny.ALL_CODES[np.random.default_rng(5).integers(0, 140, 30)]
  codes[[3, 11]] = codes[20]
  return SidIndex.build(codes, tiny.CODEBOOKS)


def test_children_walk_to_every_leaf_and_no_further(index):
  trie, found = Trie.of(index), [((), 0)]
  # By itself it would be compiled an operation at a time.
  children = jax.jit(Trie.children, static_argnums=1)
  for level in range(3):
    grown = []
    for prefix, node in found:
      c = children(trie, level, np.array([[node]]))
      child, code, valid = (np.asarray(x)[0, 0] for x in (c.node_BWC, c.code_BWC, c.valid_BWC))
      grown += [
        ((*prefix, int(c)), int(n)) for n, c, ok in zip(child, code, valid, strict=True) if ok
      ]
    found = grown
  assert sorted({tuple(row) for row in index.codes_NT.tolist()}) == [prefix for prefix, _ in found]
  for prefix, leaf in found:
    np.testing.assert_array_equal(
      index.codes_NT[index.ad_leaf == leaf], [prefix] * (index.ad_leaf == leaf).sum()
    )


@pytest.fixture(scope="module")
def ranked(index):
  """A ranker with its parameters and the four requests of the tiny batch."""
  model, batch = tiny.make_model(layers=2, lazy_layers=1), tiny.make_batch()
  contexts = types.SimpleNamespace(
    batch=lambda requests: jax.tree.map(lambda x: x[requests], batch)
  )
  ranker = Ranker(
    model, index, ECPM, SearchConfig(beams=(7, 35, 140), order="blend", value_power=0.5)
  )
  return ranker, tiny.make_params(model), contexts


def test_ranker_gives_each_ad_its_own_leafs_numbers(index, ranked):
  ranker, params, contexts = ranked
  whole = ranker.rank(
    params, contexts, np.arange(4), k=34, batch_size=3
  )  # the last batch is filled up
  beams = jax.device_get(ranker.search(params, contexts.batch(np.array([0, 1, 2])), 4))
  assert whole.ad_RK.shape == (4, 34) and (whole.ad_RK[:, 30:] == -1).all()
  assert (np.sort(whole.ad_RK[:, :30]) == np.arange(30)).all()
  for b in range(3):
    number = {
      leaf: (beams.logp_BW[b, w], beams.value_BW[b, w])
      for w, leaf in enumerate(beams.leaf_BW[b])
      if leaf >= 0
    }
    for ad, logp, value in zip(
      whole.ad_RK[b, :30], whole.logp_RK[b], whole.value_RK[b], strict=False
    ):
      assert (logp, value) == number[index.ad_leaf[ad]]


def test_distinct_keeps_the_first_of_each():
  ads = np.array([[4, 2, 4, -1, 2, 7], [1, 1, 1, 0, 0, -1]])
  np.testing.assert_array_equal(distinct(ads), [[4, 2, -1, -1, -1, 7], [1, -1, -1, 0, -1, -1]])


def test_other_ads_are_ranked_beside_those_found(ranked):
  ranker, params, contexts = ranked
  plain = ranker.rank(params, contexts, np.arange(4), k=5, batch_size=3)
  also_RC = np.stack([row[[3, 0]] for row in plain.ad_RK]).astype(np.int32)
  also_RC = np.concatenate([also_RC, np.full((4, 1), -1), (plain.ad_RK[:, :1] + 17) % 30], axis=1)
  both = ranker.rank(params, contexts, np.arange(4), k=5, batch_size=3, also_RC=also_RC)
  assert both.ad_RK.shape == (4, 9)
  for row in range(4):
    new = [] if also_RC[row, 3] in plain.ad_RK[row] else [also_RC[row, 3]]
    expected = [*plain.ad_RK[row], *new]
    assert both.ad_RK[row].tolist() == expected + [-1] * (9 - len(expected))
    np.testing.assert_allclose(both.logp_RK[row, :5], plain.logp_RK[row], atol=1e-6)
    np.testing.assert_allclose(
      both.logp_RK[row, 5 : 5 + len(new)], plain.logp_RK[row].min(), atol=1e-6
    )
    assert (
      np.isneginf(both.score_RK[row, len(expected) :]).all() and (both.value_RK[row, 5:] == 0).all()
    )


def test_ranker_does_not_depend_on_the_batch(ranked):
  ranker, params, contexts = ranked
  together = ranker.rank(params, contexts, np.array([2, 0, 1, 3]), k=5, batch_size=3)
  alone = ranker.rank(params, contexts, np.array([1, 2]), k=5, batch_size=3)
  np.testing.assert_array_equal(together.ad_RK[[2, 0]], alone.ad_RK)
  np.testing.assert_allclose(together.logp_RK[[2, 0]], alone.logp_RK, atol=1e-6)
