"""Lists of a model with an item-level head: what scores an ad, and what --order makes of it."""

import types

import jax
import numpy as np
import pytest

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.decoding.ranker import Ranker
from tests.decoding.test_guide import ADS, ECPM, TABLE, forward, search
from tests.decoding.test_guide import system as system  # noqa: PLC0414  a fixture
from tests.zoo import item_reference as reference

WEIGHT, POWER, K = 0.6, 0.7, ADS + 3


@pytest.fixture(scope="module")
def known(system):
  """log p, eCPM and the head's score of every ad for each request, [4, ADS] each, no search
  asked.
  """
  model, params, batch, _ = system
  out = forward()
  p_BNV = np.exp(out.ecpm_logits_BMV - out.ecpm_logits_BMV.max(-1, keepdims=True))
  value = (p_BNV * ECPM.means).sum(-1) / p_BNV.sum(-1)
  head = np.zeros((4, ADS))  # 0 of ads that came after the training
  for b in range(4):
    ads = [
      ad if kind == 1 else -1
      for ad, kind in zip(batch.slot_ad_BS[b], batch.slot_kind_BS[b], strict=True)
    ]
    c = model.config
    states = reference.encoder(params, ads, c.heads, c.encoder_layers, c.encoder_causal, TABLE)
    head[b, :TABLE] = params["items"][:TABLE] @ states[sum(ad >= 0 for ad in ads)]
  return out.logp_BM, value, head


@pytest.mark.parametrize(
  ("order", "guided"),
  [
    pytest.param("likelihood", False, marks=pytest.mark.long),
    ("ecpm", False),
    pytest.param("blend", False, marks=pytest.mark.long),
    ("blend", True),
  ],
)
def test_the_list_is_ordered_by_what_is_asked_for(system, known, order, guided):
  model, params, batch, index = system
  contexts = types.SimpleNamespace(
    batch=lambda requests: jax.tree.map(lambda x: x[requests], batch)
  )
  config = SearchConfig(
    beams=(7, 35, 140), item_weight=WEIGHT, guided=guided, order=order, value_power=POWER
  )
  ranker = Ranker(model, index, ECPM, config)
  found = ranker.rank(params, contexts, np.arange(4), K, batch_size=3)
  logp, value, head = known
  score = logp + WEIGHT * head
  key = {"likelihood": score, "ecpm": np.log(value), "blend": score + POWER * np.log(value)}[order]
  rows = np.arange(4)[:, None]
  ads = found.ad_RK[:, :ADS]
  assert (np.sort(ads) == np.arange(ADS)).all() and (found.ad_RK[:, ADS:] == -1).all()
  for ours, theirs in ((found.logp_RK, logp), (found.value_RK, value), (found.score_RK, key)):
    np.testing.assert_allclose(ours[:, :ADS], theirs[rows, ads], rtol=1e-4, atol=1e-4)
  assert (np.diff(key[rows, ads]) < 1e-4).all()
  assert np.isneginf(found.score_RK[:, ADS:]).all()
  if order == "ecpm":  # of all ads that the beams found, not of the likeliest k
    short = ranker.rank(params, contexts, np.arange(4), 4, batch_size=3)
    np.testing.assert_array_equal(short.ad_RK, ads[:, :4])
    # 7 and 41 share a UA-SID, and so an eCPM; the better score goes first
    for b in range(4):
      first, second = (ad for ad in ads[b] if ad in (7, 41))
      assert score[b, first] > score[b, second]


def test_the_guide_has_the_heads_weight(system):
  model, params, batch, index = system
  ranker = Ranker(model, index, ECPM, SearchConfig(beams=(3, 6, 5), item_weight=2.0))
  codes = np.asarray(ranker.search(params, batch, 1).codes_BWT)
  np.testing.assert_array_equal(codes, search(system, (3, 6, 5), 2.0).codes_BWT)
  assert (codes != np.asarray(search(system, (3, 6, 5), 4.0).codes_BWT)).any()
