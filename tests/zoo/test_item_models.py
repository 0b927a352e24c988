"""Models of single ads: what each place may see, and what changes nothing. Their values:
test_item_forward.py.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import Config, ItemConfig
from gr4ad_jax.features.batches import HISTORY
from gr4ad_jax.zoo import registry
from gr4ad_jax.zoo.items import add_to_ads
from tests.models import tiny


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
  assert (
    (moved[1, :4] == 0).all() and (moved[1, 4:7] > 1e-4).all() and (moved[[0, 2, 3]] == 0).all()
  )


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_slots_other_than_the_history_change_nothing(name):
  model, params, batch = system(name)
  score = tiny.jit(lambda p, b: model.apply({"params": p}, b))
  other = batch._replace(slot_ad_BS=np.where(batch.slot_kind_BS == HISTORY, batch.slot_ad_BS, 7))
  np.testing.assert_array_equal(score(params, batch), score(params, other))
  scores = np.asarray(score(params, batch))
  assert scores.shape == (4, tiny.NUM_ADS) and np.isfinite(scores).all()
  np.testing.assert_allclose(scores[2], scores[3], atol=1e-6)  # neither has a history


def test_add_to_ads_leaves_padding_out():
  found = add_to_ads(jnp.zeros((2, 4)), jnp.array([[1, -1], [3, 0]]), 2.0)
  np.testing.assert_array_equal(found, [[0, 2, 0, 0], [2, 0, 0, 2]])
