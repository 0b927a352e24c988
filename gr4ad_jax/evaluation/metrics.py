"""Ranking metrics of requests, and their bootstrap intervals over users.

A *bootstrap* draws the users anew, with replacement, many times, and looks how far a metric moves.
Every metric is a ratio of sums over requests. Recall and ndcg divide by the number of requests,
revenue by the value that could have been hit. So a draw re-weighs numerators and denominators
alike. docs/reference/metrics.md has the formulas, docs/design/evaluation.md the protocol.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax.evaluation import protocols

RESAMPLES = 1000
COVERAGE = 0.95
CHUNK_CELLS = 4_000_000  # draws held in memory at a time


@dataclasses.dataclass(frozen=True)
class Ratio:
  """A metric's parts by request.

  Attributes:
    numerator_R: [R] float64.
    denominator_R: [R] float64, in the same unit.
  """

  numerator_R: np.ndarray
  denominator_R: np.ndarray

  @property
  def value(self) -> float:
    """Sum over sum, not a mean of ratios: requests weigh as much as their denominators."""
    return float(self.numerator_R.sum() / self.denominator_R.sum())


@dataclasses.dataclass(frozen=True)
class Interval:
  """A point estimate on the real sample, with the bounds of its central 95 % bootstrap interval."""

  mean: float
  low: float
  high: float


def check_rankings(
  rankings_RK: np.ndarray, requests: protocols.EvalRequests, k: int, num_ads: int
) -> None:
  """Looks a system's lists over before they are scored.

  Args:
    rankings_RK: ad rows, best first, -1 where a list is short. A row is a request's.
    requests: what was to be ranked.
    k: the deepest cut that will be asked for.
    num_ads: N.

  Raises:
    ValueError: a wrong shape or dtype, fewer than k columns, a row outside [-1, N), or an ad twice
      in one list.
  """
  if (
    rankings_RK.ndim != 2
    or len(rankings_RK) != len(requests)
    or not np.issubdtype(rankings_RK.dtype, np.integer)
  ):
    found = f"{rankings_RK.dtype}{list(rankings_RK.shape)}"
    raise ValueError(f"rankings are {found}; integers [{len(requests)}, K] are needed")
  if rankings_RK.shape[1] < k:
    raise ValueError(
      f"rankings have {rankings_RK.shape[1]} columns; a cut at {k} needs as many (pad with -1)"
    )
  wrong = (rankings_RK < -1) | (rankings_RK >= num_ads)
  if wrong.any():
    row, column = np.argwhere(wrong)[0]
    raise ValueError(
      f"rankings row {row} names ad {rankings_RK[row, column]}; ads go from 0 to {num_ads - 1}"
    )
  # An ad twice would be hit twice. Sorted, equal ads stand side by side; padding may repeat.
  sorted_RK = np.sort(rankings_RK, axis=1)
  twice = (sorted_RK[:, 1:] == sorted_RK[:, :-1]) & (sorted_RK[:, 1:] >= 0)
  if twice.any():
    row, column = np.argwhere(twice)[0]
    raise ValueError(f"rankings row {row} names ad {sorted_RK[row, column]} more than once")


def per_request(
  rankings_RK: np.ndarray, requests: protocols.EvalRequests, ks: Sequence[int]
) -> dict[str, Ratio]:
  """recall@K, ndcg@K and revenue@K of each request. An ad is relevant or it is not.

  The *basket* is the number of targets. recall@K = hits / min(K, basket). ndcg@K is the sum of
  1 / log2(rank + 1) over the hits, divided by that of a list whose first min(K, basket) ranks are
  hits. revenue@K is the hit value over all value. It is left out where the targets carry none.

  Args:
    rankings_RK: ad rows, best first, -1 padding, no ad twice in a list (see `check_rankings`).
    requests: R requests with their targets.
    ks: cuts, none deeper than K.

  Returns:
    Metric name -> its parts [R].
  """
  hit_value_RK, hit_RK = _hits(rankings_RK, requests)
  basket_R = np.diff(requests.target_start)
  value_R = np.bincount(requests.target_row, weights=requests.target_value, minlength=len(requests))
  discount_K = 1.0 / np.log2(np.arange(rankings_RK.shape[1]) + 2)  # ranks count from 1
  # At place n - 1 stands what n hits in front come to.
  best_K = np.cumsum(discount_K)
  one_R = np.ones(len(requests))
  found = {}
  for k in ks:
    # Of a basket larger than the list, no more than k can be hit.
    reachable_R = np.minimum(k, basket_R)
    found[f"recall@{k}"] = Ratio(hit_RK[:, :k].sum(axis=1) / reachable_R, one_R)
    found[f"ndcg@{k}"] = Ratio(hit_RK[:, :k] @ discount_K[:k] / best_K[reachable_R - 1], one_R)
    if value_R.any():
      found[f"revenue@{k}"] = Ratio(hit_value_RK[:, :k].sum(axis=1), value_R)
  return found


def value_ndcg(
  rankings_RK: np.ndarray, requests: protocols.EvalRequests, ks: Sequence[int]
) -> dict[str, Ratio]:
  """NDCG with the targets' value as linear gain: value_ndcg@K.

  Arguments are those of `per_request`. A request whose targets are all of value 0 counts in neither
  part of the ratio.
  """
  hit_value_RK, _ = _hits(rankings_RK, requests)
  discount_K = 1.0 / np.log2(np.arange(rankings_RK.shape[1]) + 2)
  row = requests.target_row
  value = requests.target_value.astype(np.float64)
  # Within each request the most valuable target first: the best list. `row` ascends, so it is also
  # the request of the sorted targets, and `place` their rank from 0.
  order = np.lexsort((-value, row))
  # A running number over all targets, less that of the first target of the request.
  place = np.arange(len(row)) - requests.target_start[:-1][row]
  found = {}
  for k in ks:
    gain = np.where(place < k, value[order] / np.log2(place + 2), 0.0)
    best_R = np.bincount(row, weights=gain, minlength=len(requests))
    some_R = best_R > 0
    if some_R.any():
      got_R = hit_value_RK[:, :k] @ discount_K[:k]
      # The inner `where` keeps 0 / 0 from being computed at all; the outer one drops those rows.
      found[f"value_ndcg@{k}"] = Ratio(
        np.where(some_R, got_R / np.where(some_R, best_R, 1), 0.0), some_R.astype(float)
      )
  return found


def _hits(
  rankings_RK: np.ndarray, requests: protocols.EvalRequests
) -> tuple[np.ndarray, np.ndarray]:
  """Which ranks hold a target, and its value.

  Returns:
    [R, K] float64 values, 0 where there is no target, and [R, K] bool, whether there is one.
  """
  # One number for each pair of request and ad, so that a single bisection finds all hits. Targets
  # ascend by row, then by ad, so their keys are sorted.
  width = 1 + int(max(rankings_RK.max(initial=-1), requests.target_ad.max(initial=-1)))
  target_key = requests.target_row * width + requests.target_ad
  key_RK = np.arange(len(requests))[:, None] * width + rankings_RK  # (R, 1) + (R, K)
  # A key behind the last one has no place; the comparison below then finds no hit.
  place_RK = np.minimum(np.searchsorted(target_key, key_RK), len(target_key) - 1)
  # The key of padding, -1, is that of the last ad of the row before: so it is asked for apart.
  hit_RK = (target_key[place_RK] == key_RK) & (rankings_RK >= 0)
  return np.where(hit_RK, requests.target_value[place_RK].astype(np.float64), 0.0), hit_RK


def resample(
  ratios: Sequence[Ratio], user_R: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
  """Draws the users anew with replacement, and takes every metric of each draw.

  It is the bootstrap of Efron and Tibshirani, 1993, chapter 13. The draws depend on `user_R`,
  `resamples` and `seed` only. So metrics of different systems are *paired*: they see the same
  draws, and their difference has an interval of its own.

  Args:
    ratios: F metrics of the same R requests.
    user_R: user of each request. A user's requests are drawn together, as they are not independent.
    resamples: samples that are drawn, S.
    seed: seed of the draws.

  Returns:
    [S, F] float64. NaN where the denominator of a sample is 0.
  """
  # Numbered without gaps, so that users can be counted by number.
  user_ids, user_R = np.unique(user_R, return_inverse=True)
  users = len(user_ids)
  parts = [part for ratio in ratios for part in (ratio.numerator_R, ratio.denominator_R)]
  # Added up by user first: a sample is then a product of counts and sums, whatever R is. The 2·F
  # columns are numerator, denominator, numerator, …
  sums_UF2 = np.stack(
    [np.bincount(user_R, weights=part, minlength=users) for part in parts], axis=1
  )
  rng = np.random.default_rng(seed)
  samples = []
  for begin in range(0, resamples, max(1, CHUNK_CELLS // users)):
    size = min(max(1, CHUNK_CELLS // users), resamples - begin)
    # An offset a sample, (S, 1), lets one `bincount` count all samples: how often each user came.
    drawn_SU = rng.integers(users, size=(size, users)) + np.arange(size)[:, None] * users
    count_SU = np.bincount(drawn_SU.ravel(), minlength=size * users).reshape(size, users)
    samples.append(count_SU.astype(np.float64) @ sums_UF2)
  sums_SF2 = np.concatenate(samples)
  numerator_SF = sums_SF2[:, ::2]
  denominator_SF = sums_SF2[:, 1::2]
  return np.divide(
    numerator_SF, denominator_SF, out=np.full_like(numerator_SF, np.nan), where=denominator_SF > 0
  )


def mean_ratios(runs: Sequence[Mapping[str, Ratio]]) -> dict[str, Ratio]:
  """Averages the metrics of several seeds, request by request.

  Only numerators differ between seeds: denominators are those of the requests.
  """
  return {
    metric: Ratio(np.mean([run[metric].numerator_R for run in runs], axis=0), ratio.denominator_R)
    for metric, ratio in runs[0].items()
  }


def interval(value: float, samples_S: np.ndarray) -> Interval:
  """A value with the central 95 % of its resamples. Those without a denominator are passed over."""
  tail = (1 - COVERAGE) / 2
  low, high = np.nanquantile(samples_S, [tail, 1 - tail])
  return Interval(value, float(low), float(high))


def catalogue(
  rankings_RK: np.ndarray, popularity_N: np.ndarray, ks: Sequence[int]
) -> dict[str, float]:
  """How the recommendations spread over the ads.

  Args:
    rankings_RK: ad rows, -1 padding.
    popularity_N: lines of each ad in the history.
    ks: cuts.

  Returns:
    Three numbers for each K. coverage@K is the share of the N ads that is recommended at all.
    top_decile@K is the share of the recommendations that goes to the most popular tenth of the ads.
    gini@K is that of the ads' counts of recommendations: 0 is even, towards 1 uneven.
  """
  num_ads = len(popularity_N)
  top = np.argsort(-popularity_N, kind="stable")[: math.ceil(num_ads / 10)]
  found = {}
  for k in ks:
    shown = rankings_RK[:, :k]
    count_N = np.bincount(shown[shown >= 0], minlength=num_ads)
    total = max(1, count_N.sum())  # lists may all be empty
    # Gini of sorted counts x: Σ (2 rank - N - 1) x / (N Σ x).
    rank_N = np.arange(1, num_ads + 1)
    found[f"coverage@{k}"] = float((count_N > 0).mean())
    found[f"top_decile@{k}"] = float(count_N[top].sum() / total)
    found[f"gini@{k}"] = float(((2 * rank_N - num_ads - 1) @ np.sort(count_N)) / (num_ads * total))
  return found


def list_entropy(logp_RK: np.ndarray) -> float:
  """Mean entropy of lists, nats. Lists without an ad are left out.

  A list's probabilities are made to sum to 1. What it does not hold does not count: as one more
  outcome it would hide that a policy draws its mass onto the list.

  Args:
    logp_RK: log-probabilities of distinct outcomes, best first, -inf in padding.

  Returns:
    The mean, 0 where no list has an ad.
  """
  logp_RK = logp_RK[np.isfinite(logp_RK[:, 0])].astype(np.float64)
  if not len(logp_RK):
    return 0.0
  # Less the best of the list, (R, K) - (R, 1): else all of a list could underflow to 0.
  p_RK = np.exp(logp_RK - logp_RK[:, :1])
  p_RK /= p_RK.sum(axis=1, keepdims=True)
  # 0 · log 0 counts as 0, which log 1 gives.
  return float(-(p_RK * np.log(np.where(p_RK > 0, p_RK, 1))).sum(axis=1).mean())
