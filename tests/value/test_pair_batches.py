"""The sample of pairs stands for the whole table: every pair weighs 1 in the mean, targets are
labelled and there.
"""

import numpy as np
import pytest

from gr4ad_jax.config import RewardConfig
from gr4ad_jax.value.pair_batches import PairSampler
from tests.data.splitmix import BITS, GOLDEN, splitmix
from tests.features import logs
from tests.features.test_pair_features import EVERY_AD, contexts_of

CONFIG = RewardConfig(reward_targets=2, reward_shown=2, reward_negatives=3)


@pytest.fixture(scope="module")
def sampler():
  return PairSampler(contexts_of(logs.make_log(seed=4, users=10)), CONFIG, clip=30.0, seed=3)


def test_every_ad_weighs_one_in_the_mean(sampler):
  requests = np.arange(0, len(sampler.contexts.lines.request_time), 14)
  total, draws = np.zeros((len(requests), logs.ADS)), 3000
  # One call for all draws: a row depends on its request and draw alone.
  row = np.tile(np.arange(len(requests)), draws)
  ads, weight = sampler.draw(requests[row], np.repeat(np.arange(draws), len(requests)))
  b, c = np.nonzero(ads >= 0)
  np.add.at(total, (row[b], ads[b, c]), weight[b, c])
  np.testing.assert_allclose(total / draws, 1, atol=0.15)
  np.testing.assert_allclose((total / draws).mean(), 1, atol=0.01)


def test_labels_and_clipped_values_are_the_requests_own(sampler):
  lines = sampler.contexts.lines
  requests = np.arange(len(lines.request_time))
  batch = sampler.batch(requests)
  rows = batch.pairs.ad_row_BC
  for b, request in enumerate(requests):
    own = {
      lines.ad[n]: lines.value[n]
      for n in range(lines.request_first[request], lines.request_first[request + 1])
    }
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


def drawn_by_hand(contexts, request, draw, seed, limits, min_depth, width):
  """A request's own ads, those shown and the rest, (ad, weight) each, in Python's whole numbers.

  `width` is the number of lines of the widest request of the call: columns of random bits are
  counted over it.
  """
  lines, targets, shown, negatives = contexts.lines, *limits
  own = range(lines.request_first[request], lines.request_first[request + 1])
  deep = [int(lines.ad[n]) if lines.depth[n] >= min_depth else -1 for n in own]
  deep += [-1] * (width - len(deep))
  slots = sorted(int(ad) for ad in contexts.slots(np.array([request]))[0][0])
  salt = splitmix((splitmix((request * GOLDEN + seed) & BITS) + draw * GOLDEN) & BITS)
  columns = width + len(slots) + negatives
  bits = [splitmix((salt + column * GOLDEN) & BITS) for column in range(1, columns + 1)]

  def sample(ads, bits, limit):
    real = sorted((bit >> 1, ad) for ad, bit in zip(ads, bits, strict=True) if ad >= 0)
    kept = [ad for _, ad in real[:limit]]
    return [(ad, len(real) / len(kept)) for ad in kept] + [(-1, 0)] * (limit - len(kept))

  free, last = [], None
  for ad in slots:
    free.append(ad if ad >= 0 and ad != last and ad not in deep else -1)
    last = ad
  rest = []
  for bit in bits[width + len(slots) :]:
    ad = bit % len(contexts.codes_NT)
    taken = ad in slots or ad in deep
    rest.append((-1, 0) if taken else (ad, len(contexts.codes_NT) / negatives))
  return (sample(deep, bits[:width], targets)
          + sample(free, bits[width : width + len(slots)], shown) + rest)  # fmt: skip


@pytest.mark.parametrize("min_depth", [0, 2])
def test_strata_equal_a_loop_in_whole_numbers(min_depth):
  contexts = contexts_of(logs.make_log(seed=4, users=10), min_depth=min_depth)
  limits = 3, 4, 5
  config = RewardConfig(reward_targets=3, reward_shown=4, reward_negatives=5)
  made = PairSampler(contexts, config, clip=30.0, seed=11)
  cut = 0
  size = np.diff(contexts.lines.request_first)
  for some, draw in (
    (np.array([5]), 2),
    (np.arange(len(size)), 0),
    (np.arange(len(size))[::-3], 3),
  ):
    ads, weight = made.draw(some, draw)
    for b, request in enumerate(some.tolist()):
      expected = drawn_by_hand(contexts, request, draw, 11, limits, min_depth, size[some].max())
      assert ads[b].tolist() == [ad for ad, _ in expected], (request, draw)
      assert weight[b].tolist() == pytest.approx([w for _, w in expected])
      cut += any(w > 1 for _, w in expected[:3])
  assert cut or min_depth == 2  # more targets than are taken
  np.testing.assert_array_equal(made.draw(np.array([5]))[0], made.draw(np.array([5]), 0)[0])
  lines = contexts.lines
  every = np.arange(len(lines.request_time))
  ads_BC = np.tile(np.append(EVERY_AD, -1), (len(every), 1))
  bought, value = made.bought(every, ads_BC)
  for b in every:
    own = {
      lines.ad[n]: lines.value[n]
      for n in range(lines.request_first[b], lines.request_first[b + 1])
      if lines.depth[n] >= min_depth
    }
    assert bought[b].tolist() == [ad in own for ad in ads_BC[b]]
    assert value[b].tolist() == pytest.approx([min(own.get(ad, 0.0), 30.0) for ad in ads_BC[b]])
  batch, drawn = made.batch(every, 2), made.draw(every, 2)
  np.testing.assert_array_equal(batch.pairs.ad_row_BC, drawn[0])
  np.testing.assert_array_equal(batch.weight_BC, drawn[1])
  np.testing.assert_array_equal(made.batch(every).pairs.ad_row_BC, made.draw(every, 0)[0])
