"""log p of what is found is a probability's, whatever the bias; what orders the list stands apart
from it.

The expected numbers are made with NumPy from the model without its bias: p'(y) is p(y) e^(b · seen)
over its sum.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.answering import answers
from gr4ad_jax.config import SearchConfig
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.item_ranker import ItemRanker
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.features.batches import HISTORY
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.models.history_bias import RATE
from tests.models import tiny

FULL = (7, 35, 140)  # as wide as the tree of all UA-SIDs
VALUES = np.array([0.0, 0.5, 2.0, 7.0, 30.0], np.float32)


class System:
  """Everything that a model with a bias finds, and its forward without one, for four requests."""

  def __init__(self, copy):
    # Two ads estimate the normaliser in training; the histories here have up to six.
    sizes = {"layers": 1, "lazy_layers": 0, "history_bias": True, "history_bias_ads": 2}
    self.model, self.batch = tiny.make_model(copy=copy, **sizes), tiny.make_batch()
    self._params = tiny.make_params(self.model)
    all_codes, few_codes = (
      Trie.of(SidIndex.build(tiny.ALL_CODES[::step], tiny.CODEBOOKS)) for step in (1, 7)
    )

    def run(params, blend, few):
      trie = few_codes if few else all_codes
      how = (
        {"widths": FULL, "search": SearchConfig(order="blend", value_power=0.7)}
        if blend
        else {"widths": FULL}
      )
      return beam_search(
        self.model, {"params": params}, self.batch, trie, jnp.asarray(VALUES), **how
      )

    self._run = tiny.jit(run, static_argnames=("blend", "few"))
    forward = tiny.jit(
      lambda params: self.model.apply({"params": params}, self.batch, tiny.every_code(self.batch))
    )
    self.plain_BM = np.asarray(
      forward(self._params | {"history_bias": np.float32(0)}).logp_BM, np.float64
    )
    self.seen_BM = np.zeros(self.plain_BM.shape, bool)
    for b in range(4):
      for s in np.flatnonzero(self.batch.slot_kind_BS[b] == HISTORY):
        self.seen_BM[b, tiny.code_id(self.batch.slot_codes_BST[b, s])] = True

  def search(self, bias, blend=False, few=False):
    params = self._params | {"history_bias": np.float32(bias / RATE)}
    return jax.device_get(self._run(params, blend=blend, few=few))

  def expected(self, bias):
    """p' of the 140 UA-SIDs."""
    weight_BM = np.exp(self.plain_BM) * np.where(self.seen_BM, np.exp(bias), 1.0)
    return weight_BM / weight_BM.sum(axis=1, keepdims=True)


make_system = functools.lru_cache(System)


@pytest.fixture(params=["off", "context"])
def system(request):
  return make_system(request.param)


@pytest.mark.parametrize("bias", [4.0, pytest.param(-4.0, marks=pytest.mark.long)])
def test_log_p_is_normalised_at_every_depth_of_the_tree(system, bias):
  found, p_BM = system.search(bias), system.expected(bias)
  assert system.seen_BM.sum(axis=1).tolist() == [
    2,
    5,
    0,
    0,
  ]  # an ad of each stands twice in its history
  np.testing.assert_allclose(np.exp(found.logp_BW.astype(np.float64)).sum(axis=1), 1, atol=2e-5)
  for b in range(4):
    at = tiny.code_id(found.codes_BWT[b])
    np.testing.assert_allclose(found.logp_BW[b], np.log(p_BM[b, at]), atol=1e-4)
    for depth in (1, 2, 3):
      for w in (0, 50, 139):
        below = (tiny.ALL_CODES[:, :depth] == found.codes_BWT[b, w, :depth]).all(axis=1)
        np.testing.assert_allclose(
          found.prefix_logp_BWT[b, w, depth - 1], np.log(p_BM[b, below].sum()), atol=1e-4
        )


@pytest.mark.parametrize("bias", [4.0, pytest.param(-4.0, marks=pytest.mark.long)])
def test_a_prefix_of_the_answers_tree_has_what_its_leaves_have_together(system, bias):
  found = system.search(bias)
  for b in range(4):
    tree = answers.beam_tree(found, b)
    assert sum(np.exp(node["log_p"]) for node in tree[0]) == pytest.approx(1, abs=1e-4)
    for above, depth in ((tree[0], 1), (tree[1], 2)):
      for node in above:
        leaves = [leaf["log_p"] for leaf in tree[2] if leaf["codes"][:depth] == node["codes"]]
        assert node["log_p"] == pytest.approx(np.log(np.exp(leaves).sum()), abs=1e-4)
        assert max(leaves) <= node["log_p"] + 1e-4


def test_the_score_orders_and_keeps_its_bias():
  system, bias = make_system("context"), 4.0
  found, blended = system.search(bias), system.search(bias, blend=True)
  for b in range(4):
    at = tiny.code_id(found.codes_BWT[b])
    score = system.plain_BM[b, at] + bias * system.seen_BM[b, at]
    np.testing.assert_allclose(found.score_BW[b], score, atol=1e-4)
    at = tiny.code_id(blended.codes_BWT[b])
    np.testing.assert_allclose(blended.logp_BW[b], np.log(system.expected(bias)[b, at]), atol=1e-4)
    score = (
      system.plain_BM[b, at] + bias * system.seen_BM[b, at] + 0.7 * np.log(blended.value_BW[b])
    )
    np.testing.assert_allclose(blended.score_BW[b], score, atol=1e-4)
  for beams in (found, blended):
    assert (np.diff(beams.score_BW, axis=1) <= 0).all()
  assert (np.diff(blended.logp_BW, axis=1) > 0).any()
  apart = found.score_BW - found.logp_BW
  np.testing.assert_allclose(
    apart, apart[:, :1] + np.zeros_like(apart), atol=1e-5
  )  # one constant a request
  assert apart[1, 0] > 0.1 and np.abs(apart[2:]).max() < 1e-5  # and none without a history


def test_beams_without_an_ad_have_no_probability():
  system = make_system("off")
  found = system.search(4.0, few=True)
  empty = found.leaf_BW < 0
  assert empty.any(axis=1).all() and (~empty).sum(axis=1).tolist() == [20] * 4
  assert not np.isnan(found.prefix_logp_BWT).any()
  assert np.isneginf(found.logp_BW[empty]).all() and np.isneginf(found.score_BW[empty]).all()
  assert np.isfinite(found.logp_BW[~empty]).all() and (np.exp(found.logp_BW).sum(axis=1) < 1).all()


class AllAds:
  """A model of single ads, with given scores."""

  num_ads = 5

  def apply(self, variables, batch):
    del variables, batch
    return jnp.array([[3.0, -1.0, 0.5, 7.0, 2.0], [0.0, 0.0, 0.0, 0.0, 4.0]])


def test_log_p_over_all_ads_is_normalised():
  logp_BK, ad_BK = ItemRanker(AllAds()).search({}, tiny.make_batch(), 5)
  np.testing.assert_allclose(np.exp(logp_BK).sum(axis=1), 1, atol=1e-6)
  assert ad_BK[0].tolist() == [3, 0, 4, 2, 1] and ad_BK[1, 0] == 4
