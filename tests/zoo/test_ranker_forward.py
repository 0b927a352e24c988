"""The reward model's ranker against NumPy: scores, what is dropped in training, what is not
read.
"""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from gr4ad_jax.config import RewardConfig
from gr4ad_jax.features.pair_features import PairBatch
from gr4ad_jax.zoo.ranker import Ranker
from tests.models import tiny
from tests.zoo import item_reference as reference
from tests.zoo.test_item_forward import Drops

B, C, S, F, U, G = 3, 5, 4, 3, 2, 2  # G: features of a slot
HEADS, CROSSES, DROPOUT = 2, 2, 0.2
CONFIG = RewardConfig(
  reward_width=8,
  reward_heads=HEADS,
  reward_crosses=CROSSES,
  reward_ids=8,
  reward_bins=3,
  reward_dropout=DROPOUT,
)
EDGES = {
  "pair": np.array(
    [[-1, 0.2, 0.2, 1], [0, 0.5, 0.7, 2], [-2, -1, 1, 3]], np.float32
  ),  # one piece has no width
  "user": np.array([[-1, 0, 0.3, 1], [-0.5, 0.1, 0.4, 1.5]], np.float32),
}


def make_pairs():
  """Three requests: a history of two, a full one, none. Ads: the first, the last, two that came
  later, padding.
  """
  rng = np.random.default_rng(4)
  codes = tiny.ALL_CODES[rng.integers(0, len(tiny.ALL_CODES), (B, C + S))]
  ads = np.array([[0, 29, 30, 41, -1], [8, 7, 16, 3, 29], [1, 2, 30, 0, -1]], np.int32)
  slots = np.array([[12, 30, -1, -1], [5, 29, 8, 0], [-1, -1, -1, -1]], np.int32)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return PairBatch(draw(B, C, F), draw(B, U), codes[:, :C], ads, codes[:, C:], slots, draw(B, S, G))


PAIRS = make_pairs()


def build(**settings):
  model = Ranker(dataclasses.replace(CONFIG, **settings), tiny.CODEBOOKS, tiny.NUM_ADS)
  return model, tiny.draw_params(model, PAIRS, EDGES)


def check(found, params, drops=None, dropped=lambda kind, place: False, crosses=CROSSES):
  for b in range(B):
    drop = drops.of(b) if drops else reference.keep
    expected = reference.ranker(
      params, PAIRS, b, EDGES, tiny.NUM_ADS, HEADS, crosses, drop, dropped
    )
    for ours, theirs in zip(found, expected, strict=True):
      np.testing.assert_allclose(ours[b], theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("settings", [{}, {"reward_ids": 0, "reward_crosses": 0}])
def test_scores(settings):
  model, params = build(**settings)
  assert ("ids" in params) == (not settings)
  found = tiny.jit(lambda p, x: model.apply({"params": p}, x, EDGES))(params, PAIRS)
  assert [x.shape for x in found] == [(B, C)] * 2
  check(found, params, crosses=model.config.reward_crosses)


def test_what_is_dropped_in_training(monkeypatch):
  """Two layers, and whole vectors of single ads, which teaches the codes to stand for an ad that
  is new.
  """
  model, params = build()
  drops, rng, kept = Drops(), np.random.default_rng(8), {}

  def bernoulli(key, p, shape):
    del key
    np.testing.assert_allclose(p, 1 - DROPOUT)
    kind = "slot" if shape == (B, S) else "ad"
    kept[kind] = rng.random(shape) < 0.5
    return kept[kind]

  monkeypatch.setattr(jax.random, "bernoulli", bernoulli)
  with nn.intercept_methods(drops):
    run = tiny.jit(
      lambda p, x, key: model.apply({"params": p}, x, EDGES, train=True, rngs={"dropout": key})
    )
    found = run(params, PAIRS, jax.random.key(0))
  assert drops.rates == {"dropout": DROPOUT} and set(kept) == {"slot", "ad"}
  check(found, params, drops, lambda kind, place: not kept[kind][place])


def test_padding_of_the_history_is_not_read():
  model, params = build()
  blank = PAIRS.slot_row_BS < 0
  other = PAIRS._replace(
    slot_codes_BST=np.where(blank[..., None], 0, PAIRS.slot_codes_BST),
    slot_features_BSF=np.where(blank[..., None], 7.0, PAIRS.slot_features_BSF),
  )
  run = tiny.jit(lambda p, x: model.apply({"params": p}, x, EDGES))
  for one, two in zip(run(params, PAIRS), run(params, other), strict=True):
    np.testing.assert_array_equal(one, two)
