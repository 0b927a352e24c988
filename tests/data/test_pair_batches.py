"""The sample of pairs stands for the whole table: every pair weighs 1 in the mean, targets are labelled and there."""

import numpy as np
import pytest

from gr4ad_jax.config import RewardConfig
from gr4ad_jax.data.pair_batches import PairSampler
from tests.data import logs
from tests.data.test_pair_features import EVERY_AD, contexts_of

CONFIG = RewardConfig(reward_targets=2, reward_shown=2, reward_negatives=3)


@pytest.fixture(scope="module")
def sampler():
  return PairSampler(contexts_of(logs.make_log(seed=4, users=10)), CONFIG, clip=30.0, seed=3)


def test_every_ad_weighs_one_in_the_mean(sampler):
  requests = np.arange(0, len(sampler.contexts.lines.request_time), 5)
  total, draws = np.zeros((len(requests), logs.ADS)), 3000
  for draw in range(draws):
    ads, weight = sampler.draw(requests, draw)
    b, c = np.nonzero(ads >= 0)
    np.add.at(total, (b, ads[b, c]), weight[b, c])
  np.testing.assert_allclose(total / draws, 1, atol=0.15)
  np.testing.assert_allclose((total / draws).mean(), 1, atol=0.01)


def test_labels_and_clipped_values_are_the_requests_own(sampler):
  lines = sampler.contexts.lines
  requests = np.arange(len(lines.request_time))
  batch = sampler.batch(requests)
  rows = batch.pairs.ad_row_BC
  for b, request in enumerate(requests):
    own = {lines.ad[n]: lines.value[n] for n in range(lines.request_first[request], lines.request_first[request + 1])}
    for ad, bought, value in zip(rows[b], batch.bought_BC[b], batch.value_BC[b], strict=True):
      assert bought == (ad in own)
      assert value == pytest.approx(min(own.get(ad, 0.0), 30.0))
    assert batch.bought_BC[b].sum() == min(len(own), 2)
  assert (batch.weight_BC[rows < 0] == 0).all()


def test_a_draw_depends_on_its_number_and_the_request_alone(sampler):
  requests = np.array([3, 8, 5])
  one, two = sampler.draw(requests, 4), sampler.draw(requests[::-1], 4)
  np.testing.assert_array_equal(one[0], two[0][::-1])
  assert any((sampler.draw(requests, draw)[0] != one[0]).any() for draw in range(5, 9))
  assert set(np.unique(one[0])) <= {-1, *EVERY_AD}
