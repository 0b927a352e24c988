"""Pairs that a ranker learns from: a request's own ads, and a weighted sample of all others of
the table.
"""

from typing import NamedTuple

import numpy as np

from gr4ad_jax.config import RewardConfig
from gr4ad_jax.features.batches import RequestContexts
from gr4ad_jax.features.pair_features import PairBatch
from gr4ad_jax.features.targets import splitmix64

# 2^64 divided by the golden ratio: neighbouring counters give far apart salts.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class LabeledPairs(NamedTuple):
  """Pairs of B requests with C ads each, their labels and weights.

  Attributes:
    pairs: what the ranker reads.
    bought_BC: bool, whether the ad is a target of the request.
    value_BC: float32, its value, clipped, money; 0 where it was not bought.
    weight_BC: float32, 1 / inclusion probability; 0 in padding. Summed over a request's pairs,
      weighted sums stand for all ads of the table.
  """

  pairs: PairBatch
  bought_BC: np.ndarray
  value_BC: np.ndarray
  weight_BC: np.ndarray


def _random(requests: np.ndarray, draw: np.ndarray | int, seed: int, count: int) -> np.ndarray:
  """[B, count] uint64, a hash of (seed, draw, request, column)."""
  draw_B = np.broadcast_to(draw, len(requests)).astype(np.uint64)
  # Two rounds of hashing, so that the draw and the request do not simply add up.
  salt_B = splitmix64(
    splitmix64(np.asarray(requests, np.uint64) * _GOLDEN + np.uint64(seed)) + draw_B * _GOLDEN
  )
  return splitmix64(salt_B[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


class PairSampler:
  """Draws the pairs of a training request.

  Three strata: the targets; the ads of the context slots that are none; and the rest of the table.
    A stratum of n ads
  of which k are drawn weighs n / k each; the rest is drawn with replacement from the whole table,
  at N / k each, and what falls upon the other two is left out. So sums over the pairs are unbiased
  for sums over the table.

  Args:
    contexts: of the requests, and features of the pairs.
    config: how many are drawn of each stratum.
    clip: values count up to this, money.
    seed: of the draws.
  """

  def __init__(self, contexts: RequestContexts, config: RewardConfig, clip: float, seed: int):
    self.contexts = contexts
    self._config = config
    self._clip = clip
    self._seed = seed

  def draw(self, requests: np.ndarray, draw: np.ndarray | int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ads and weights, [B, C] each, C = targets + shown + negatives; -1 and 0 in padding.

    Args:
      requests: [B] request numbers.
      draw: which draw, one number or [B]; the same number gives the same ads.
    """
    config = self._config
    contexts = self.contexts
    requests = np.asarray(requests)
    slots_BS = contexts.slots(requests)[0]
    limits = config.reward_targets, config.reward_shown, config.reward_negatives
    outcomes = contexts.lines.outcomes
    sizes = np.diff(outcomes.first)[requests]
    width = int(sizes.max(initial=0))
    # One row of random bits, whose columns are cut up for the three strata.
    bits = _random(requests, draw, self._seed, width + slots_BS.shape[1] + limits[2])
    # (B, 1) + (width,) -> (B, width): each request's outcomes, and past its last those of the next.
    own_BX = outcomes.first[requests][:, None] + np.arange(width)
    # Which of them are its own.
    inside = np.arange(width) < sizes[:, None]
    own_BX = np.where(inside, own_BX, 0)
    inside &= outcomes.depth[own_BX] >= contexts.min_depth
    # An own ad is a target only if the user went as deep as is predicted.
    own = _sampled(np.where(inside, outcomes.ad[own_BX], -1), bits[:, :width], limits[0])

    # Sorted, for repeats to be seen and for `_contains` to search.
    slots_BS = np.sort(slots_BS, axis=1)
    # Slots of several kinds may hold the same ad; sorted, repeats stand side by side.
    again = np.zeros(slots_BS.shape, bool)
    again[:, 1:] = slots_BS[:, 1:] == slots_BS[:, :-1]
    # Targets are a stratum of their own, also where they stand in a slot.
    free = (slots_BS >= 0) & ~again & ~self.bought(requests, slots_BS)[0]
    # Behind the own columns and before the last ones are those of the slots.
    shown = _sampled(np.where(free, slots_BS, -1), bits[:, width : -limits[2]], limits[1])

    num_ads = len(contexts.codes_NT)
    # Drawn with replacement; the remainder of 64 bits is even enough for any table.
    rest_BC = (bits[:, -limits[2] :] % np.uint64(num_ads)).astype(np.int64)
    taken = _contains(slots_BS, rest_BC, num_ads) | self.bought(requests, rest_BC)[0]
    # An ad of the table stands for `num_ads / negatives` of them. One that is in another stratum is
    # dropped there, with its weight.
    rest = np.where(taken, -1, rest_BC), np.where(taken, 0, num_ads / limits[2]).astype(np.float32)
    return tuple(np.concatenate(parts, axis=1) for parts in zip(own, shown, rest, strict=True))

  def bought(self, requests: np.ndarray, ads_BC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each ad is a target of the request, and its clipped value; [B, C] bool and
    float32.
    """
    outcomes = self.contexts.lines.outcomes
    own_BC = outcomes.of(requests, ads_BC)
    # -1 gathers outcome 0; the mask drops it.
    row_BC = np.maximum(own_BC, 0)
    bought = (own_BC >= 0) & (outcomes.depth[row_BC] >= self.contexts.min_depth)
    value = np.clip(outcomes.value[row_BC], 0, self._clip)
    return bought, np.where(bought, value, 0).astype(np.float32)

  def batch(self, requests: np.ndarray, draw: np.ndarray | int = 0) -> LabeledPairs:
    """The pairs of `requests` [B] by their `draw`."""
    ads_BC, weight_BC = self.draw(requests, draw)
    bought_BC, value_BC = self.bought(requests, ads_BC)
    return LabeledPairs(self.contexts.pairs.batch(requests, ads_BC), bought_BC, value_BC, weight_BC)


def _sampled(ads_BX: np.ndarray, bits_BX: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
  """At most `limit` of each row's ads, those of the lowest random bits, and their weights; [B,
  limit] each.
  """
  # Padded up to the limit, so that all batches have one shape.
  if ads_BX.shape[1] < limit:
    more = ((0, 0), (0, limit - ads_BX.shape[1]))
    ads_BX = np.pad(ads_BX, more, constant_values=-1)
    bits_BX = np.pad(bits_BX, more)
  real = ads_BX >= 0
  # The lowest bits win; padding has the greatest number of all, which a shifted one never reaches.
  order = np.argsort(
    np.where(real, bits_BX >> np.uint64(1), np.uint64(2**64 - 1)), axis=1, kind="stable"
  )[:, :limit]
  ads = np.take_along_axis(ads_BX, order, axis=1)
  count = real.sum(axis=1, keepdims=True)
  # Each drawn ad stands for as many of its stratum: n / limit where n are more than fit.
  weight = np.where(ads >= 0, count / np.clip(count, 1, limit), 0)
  return ads.astype(np.int64), weight.astype(np.float32)


def _contains(sorted_BS: np.ndarray, ads_BC: np.ndarray, num_ads: int) -> np.ndarray:
  """[B, C] whether each ad stands in its row of `sorted_BS`."""
  # One range of numbers a row, so that a single sorted search serves all rows. The 1 gives padding,
  # -1, a number of its own row.
  shift = np.arange(len(ads_BC))[:, None] * np.int64(num_ads + 1) + 1
  key = (sorted_BS + shift).ravel()
  at = np.minimum(np.searchsorted(key, ads_BC + shift), len(key) - 1)
  return key[at] == ads_BC + shift
