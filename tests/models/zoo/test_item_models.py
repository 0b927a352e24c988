"""Models of single ads: what each place may see, the bias, and what sets HSTU apart."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import Config, ItemConfig
from gr4ad_jax.data.batches import HISTORY, SLOT_FEATURES
from gr4ad_jax.models.zoo import registry
from gr4ad_jax.models.zoo.hstu import HSTUBlock
from gr4ad_jax.models.zoo.items import add_to_ads, history_ads
from tests.models import tiny

GAP = SLOT_FEATURES.index("gap_days")


def build(name, **settings):
  model = dataclasses.replace(tiny.CONFIG, model=name, **settings)
  return registry.build(Config(model=model, items=ItemConfig()), tiny.NUM_ADS)


@functools.lru_cache
def system(name, bias=0.0):
  model, batch = build(name, history_bias=bool(bias)), tiny.make_batch()
  return model, tiny.draw_params(model, batch, bias=bias), batch


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_a_place_sees_the_ads_before_it_alone(name):
  model, params, batch = system(name)
  states = tiny.jit(lambda p, b: model.apply({"params": p}, b, method="states"))
  before = np.asarray(states(params, batch))
  ads = batch.slot_ad_BS.copy()
  ads[1, 3] = (ads[1, 3] + 1) % tiny.NUM_ADS  # the second request has six ads of history
  moved = np.abs(np.asarray(states(params, batch._replace(slot_ad_BS=ads))) - before).max(axis=-1)
  assert (moved[1, :4] == 0).all() and (moved[1, 4:7] > 1e-4).all() and (moved[[0, 2, 3]] == 0).all()


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_slots_other_than_the_history_change_nothing(name):
  model, params, batch = system(name)
  score = tiny.jit(lambda p, b: model.apply({"params": p}, b))
  other = batch._replace(slot_ad_BS=np.where(batch.slot_kind_BS == HISTORY, batch.slot_ad_BS, 7))
  np.testing.assert_array_equal(score(params, batch), score(params, other))
  scores = np.asarray(score(params, batch))
  assert scores.shape == (4, tiny.NUM_ADS) and np.isfinite(scores).all()
  np.testing.assert_allclose(scores[2], scores[3], atol=1e-6)  # neither has a history


def test_bias_moves_the_ads_of_the_history_alone():
  model, params, batch = system("sasrec", bias=-3.0)
  score = tiny.jit(lambda p, b: model.apply({"params": p}, b))
  moved = np.asarray(score(params, batch)) - np.asarray(score(params | {"history_bias": np.float32(0)}, batch))
  expected = np.zeros_like(moved)
  for row, ads in enumerate(np.asarray(history_ads(batch))):
    expected[row, ads[ads >= 0]] = -3.0
  np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_add_to_ads_leaves_padding_out():
  found = add_to_ads(jnp.zeros((2, 4)), jnp.array([[1, -1], [3, 0]]), 2.0)
  np.testing.assert_array_equal(found, [[0, 2, 0, 0], [2, 0, 0, 2]])


def test_hstu_reads_time_and_sasrec_does_not():
  for name, reads in (("hstu", True), ("sasrec", False)):
    model, params, batch = system(name)
    score = tiny.jit(lambda p, b, model=model: model.apply({"params": p}, b))
    features = np.abs(batch.slot_features_BSF)
    late = features.copy()
    late[1, 2, GAP] += 2.0
    pair = (score(params, batch._replace(slot_features_BSF=x)) for x in (features, late))
    assert (np.abs(np.subtract(*map(np.asarray, pair)))[1].max() > 1e-5) == reads, name


def test_hstu_does_not_normalise_over_places():
  """Softmax would give the mean of equal values whatever their number; HSTU's sum grows with it."""
  block = HSTUBlock(heads=1, dropout=0.0)
  x, days = np.ones((1, 4, 8), np.float32), np.zeros((1, 4), np.float32)
  mask = np.tril(np.ones((4, 4), bool))[None]
  params = jax.tree.map(lambda p: p + 0.3, tiny.draw_params(block, x, days, mask, False))
  seen = {}

  def watch(next_fun, args, kwargs, context):
    if context.module.name == "read_norm":
      seen["read"] = np.asarray(args[0])
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(watch):
    block.apply({"params": params}, x, days, mask, False)
  size = np.linalg.norm(seen["read"][0], axis=-1)
  assert (np.diff(size) > 0.1 * size[0]).all()
