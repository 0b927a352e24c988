import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.evaluation import metrics, protocols
from tests.evaluation import loops

NUM_ADS = 9
KS = (1, 3, 6)


@st.composite
def problems(draw):
  """Requests with baskets and values, and a ranking of each with some padding."""
  baskets = draw(st.lists(st.sets(st.integers(0, NUM_ADS - 1), min_size=1), min_size=1, max_size=6))
  rankings = np.full((len(baskets), max(KS)), -1, np.int32)
  for row in rankings:
    length = draw(st.integers(0, max(KS)))
    row[:length] = draw(st.permutations(range(NUM_ADS)))[:length]
  sizes = [len(basket) for basket in baskets]
  value = draw(st.lists(st.floats(0.125, 100, width=32), min_size=sum(sizes), max_size=sum(sizes)))
  requests = protocols.EvalRequests(
    split="test",
    request=np.arange(len(baskets), dtype=np.int32),
    user=np.array(
      draw(st.lists(st.integers(0, 3), min_size=len(baskets), max_size=len(baskets))), np.int32
    ),
    target_start=np.append(0, np.cumsum(sizes)),
    target_ad=np.array([ad for basket in baskets for ad in sorted(basket)], np.int32),
    target_value=np.array(value, np.float32),
  )
  return rankings, requests


def by_hand(rankings, requests, k):
  """The same metrics, a request and a rank at a time."""
  recall, ndcg, hit_value, all_value = [], [], 0.0, 0.0
  for r, ranking in enumerate(rankings):
    rows = range(requests.target_start[r], requests.target_start[r + 1])
    basket = {int(requests.target_ad[p]): float(requests.target_value[p]) for p in rows}
    hits, gain = 0, 0.0
    for rank, ad in enumerate(ranking[:k], 1):
      if int(ad) in basket:
        hits += 1
        gain += 1 / math.log2(rank + 1)
        hit_value += basket[int(ad)]
    reachable = min(k, len(basket))
    recall.append(hits / reachable)
    ndcg.append(gain / sum(1 / math.log2(rank + 1) for rank in range(1, reachable + 1)))
    all_value += sum(basket.values())
  return {
    f"recall@{k}": np.mean(recall),
    f"ndcg@{k}": np.mean(ndcg),
    f"revenue@{k}": hit_value / all_value,
  }


@settings(max_examples=40, deadline=None)
@given(problems())
def test_metrics_equal_the_loop(problem):
  rankings, requests = problem
  found = metrics.per_request(rankings, requests, KS)
  expected = {name: value for k in KS for name, value in by_hand(rankings, requests, k).items()}
  assert set(found) == set(expected)
  for name, ratio in found.items():
    assert ratio.value == pytest.approx(expected[name], abs=1e-9), name
    assert len(ratio.numerator_R) == len(requests)


@settings(max_examples=15, deadline=None)
@given(problems())
def test_best_list_scores_one(problem):
  _, requests = problem
  ideal = np.full((len(requests), NUM_ADS), -1, np.int32)
  for r in range(len(requests)):
    order = slice(requests.target_start[r], requests.target_start[r + 1])
    ads = requests.target_ad[order][np.argsort(-requests.target_value[order])]
    ideal[r, : len(ads)] = ads
  found = metrics.per_request(ideal, requests, (2, NUM_ADS))
  for name in ("recall@2", "ndcg@2", f"recall@{NUM_ADS}", f"ndcg@{NUM_ADS}", f"revenue@{NUM_ADS}"):
    assert found[name].value == pytest.approx(1.0)


def test_revenue_is_left_out_where_nothing_has_a_value():
  requests = protocols.EvalRequests(
    "test", np.array([0]), np.array([0]), np.array([0, 1]), np.array([1]), np.zeros(1, np.float32)
  )
  assert set(metrics.per_request(np.array([[1, 2]]), requests, (2,))) == {"recall@2", "ndcg@2"}


@pytest.mark.parametrize(
  ("rankings", "message"),
  [
    (np.array([[1, 2, 1], [0, 1, 2]]), "row 0 names ad 1 more than once"),
    (np.array([[1, 2, 3], [0, 9, 2]]), "row 1 names ad 9; ads go from 0 to 5"),
    (np.array([[1, 2, -2], [0, 1, 2]]), "row 0 names ad -2"),
    (np.array([[1, 2], [0, 1]]), "2 columns; a cut at 3"),
    (np.array([[1, 2, 3]]), r"int64\[1, 3\]; integers \[2, K\]"),
    (np.ones((2, 3)), r"float64\[2, 3\]"),
  ],
)
def test_bad_rankings_are_refused(shop, rankings, message):
  with pytest.raises(ValueError, match=message):
    metrics.check_rankings(rankings, protocols.eval_requests(shop, "test"), 3, len(shop.ads))


def test_padding_may_repeat(shop):
  padded = np.array([[1, -1, -1], [-1, -1, -1]])
  requests = protocols.eval_requests(shop, "test")
  metrics.check_rankings(padded, requests, 3, len(shop.ads))
  assert metrics.per_request(padded, requests, (3,))["recall@3"].value == 0


def _noisy(seed, users=400):
  rng = np.random.default_rng(seed)
  return metrics.Ratio(rng.random(users), np.ones(users)), np.arange(users)


def _interval(ratio, user, **settings):
  return metrics.interval(ratio.value, metrics.resample([ratio], user, **settings)[:, 0])


def _difference(a, b, user, **settings):
  samples_S2 = metrics.resample([a, b], user, **settings)
  return metrics.interval(a.value - b.value, samples_S2[:, 0] - samples_S2[:, 1])


def test_resamples_are_set_by_their_seed():
  ratio, user = _noisy(0)
  first, again, other = (_interval(ratio, user, seed=seed) for seed in (1, 1, 2))
  assert first == again
  assert first != other
  assert first.low < first.mean < first.high


def test_interval_has_the_width_of_the_standard_error():
  ratio, user = _noisy(0)
  found = _interval(ratio, user)
  error = ratio.numerator_R.std() / math.sqrt(len(user))
  assert found.mean == pytest.approx(ratio.numerator_R.mean())
  assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


def test_chunks_of_draws_leave_the_samples_unchanged(monkeypatch):
  ratio, user = _noisy(0, users=50)
  whole = metrics.resample([ratio], user, resamples=64)
  monkeypatch.setattr(metrics, "CHUNK_CELLS", 50 * 7)
  np.testing.assert_allclose(metrics.resample([ratio], user, resamples=64), whole, rtol=1e-12)


def test_a_users_requests_are_drawn_together():
  """Four users whose requests are ten copies: the interval is that of four draws, not of forty."""
  value = np.array([0.0, 0.0, 1.0, 1.0])
  alone = metrics.Ratio(value, np.ones(4))
  copied = metrics.Ratio(np.repeat(value, 10), np.ones(40))
  first = metrics.resample([alone], np.array([7, 3, 9, 5]))
  second = metrics.resample([copied], np.repeat([7, 3, 9, 5], 10))
  np.testing.assert_allclose(first, second)
  np.testing.assert_allclose(np.unique(first), [0, 0.25, 0.5, 0.75, 1])


def test_paired_difference_is_tighter_than_the_systems_apart():
  a, user = _noisy(0)
  b = metrics.Ratio(a.numerator_R - 0.01, a.denominator_R)
  difference = _difference(a, b, user)
  for bound in (difference.mean, difference.low, difference.high):
    assert bound == pytest.approx(0.01)
  same = _difference(a, a, user)
  assert (same.mean, same.low, same.high) == (0, 0, 0)
  unrelated = _difference(a, _noisy(1)[0], user)
  error = math.sqrt(
    2 / 12 / len(user)
  )  # of the difference of two means of independent uniform numbers
  assert (unrelated.high - unrelated.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


def test_interval_of_a_difference_covers_the_truth_about_95_times_in_100():
  covered = 0
  for trial in range(400):
    (a, user), (b, _) = _noisy(2 * trial + 1000, users=100), _noisy(2 * trial + 1001, users=100)
    found = _difference(a, b, user, resamples=400, seed=trial)
    covered += found.low <= 0 <= found.high
  assert 0.91 <= covered / 400 <= 0.985  # three standard errors about 0.95


def test_ratio_of_sums_is_resampled_as_a_ratio():
  ratio = metrics.Ratio(np.array([2.0, 30.0, 0.0]), np.array([4.0, 60.0, 0.0]))
  samples = metrics.resample([ratio], np.arange(3))[:, 0]
  np.testing.assert_allclose(samples[~np.isnan(samples)], 0.5)
  assert np.isnan(samples).any()  # a sample of the third user alone has no denominator
  assert metrics.interval(ratio.value, samples) == metrics.Interval(0.5, 0.5, 0.5)


def test_catalogue():
  popularity = np.array([9, 0, 0, 0, 0, 1, 0, 0, 0, 0])
  found = metrics.catalogue(np.array([[0, 5], [0, -1], [0, 2]]), popularity, (1, 2))
  assert found["coverage@1"] == pytest.approx(0.1)
  assert found["coverage@2"] == pytest.approx(0.3)
  assert found["top_decile@1"] == 1
  assert found["top_decile@2"] == pytest.approx(3 / 5)
  assert found["gini@1"] == pytest.approx(0.9)
  even = metrics.catalogue(np.arange(10)[None], popularity, (10,))
  assert even["gini@10"] == pytest.approx(0)


def test_value_ndcg_is_dcg_of_money_over_that_of_the_best_list(make_dataset):
  rows = [
    (0, 0, 0, 1.0, "train"),
    (0, 1, 1, 4.0, "test"),
    (0, 1, 2, 1.0, "test"),
    (0, 1, 3, 2.0, "test"),
    (1, 2, 0, 1.0, "train"),
    (1, 3, 4, 0.0, "test"),
  ]
  requests = protocols.eval_requests(make_dataset(rows, num_ads=6), "test")
  rankings = np.array([[2, 5, 1], [4, 0, 1]])
  found = metrics.value_ndcg(rankings, requests, (2, 3))
  money = dict(zip(requests.target_ad, requests.target_value, strict=True))
  best = money[1] + money[3] / np.log2(3)
  assert found["value_ndcg@2"].value == pytest.approx(money[2] / best)
  assert found["value_ndcg@3"].value == pytest.approx(
    (money[2] + money[1] / 2) / (best + money[2] / 2)
  )
  np.testing.assert_array_equal(found["value_ndcg@3"].denominator_R, [1, 0])


@pytest.mark.parametrize("behavior", ["", "cart"])
def test_a_random_log_s_metrics_equal_the_loop(bazaar, behavior):
  depth = {"": 0, "cart": 1}[behavior]
  requests = protocols.eval_requests(bazaar, "test", behavior)
  wanted = loops.baskets(bazaar, "test", depth)
  rankings = loops.random_rankings(1, len(requests), 13, 9)
  ks = (1, 4, 9)
  found = metrics.per_request(rankings, requests, ks) | metrics.value_ndcg(rankings, requests, ks)
  assert set(found) == {
    f"{name}@{k}" for k in ks for name in ("recall", "ndcg", "revenue", "value_ndcg")
  }
  for k in ks:
    for r, (_, basket) in enumerate(wanted.values()):
      for name, (above, below) in loops.parts(rankings[r], basket, k).items():
        assert found[name].numerator_R[r] == pytest.approx(above, rel=1e-5, abs=1e-9), name
        assert found[name].denominator_R[r] == pytest.approx(below, rel=1e-5), name


def test_value_ndcg_of_worthless_targets_is_left_out():
  """A request without value counts in neither part; where no request has any, there is no such
  metric.
  """
  start, ads = np.array([0, 1, 3]), np.array([1, 0, 2])
  rankings = np.array([[1, 2], [2, 0]])
  some = protocols.EvalRequests(
    "test", np.arange(2), np.arange(2), start, ads, np.array([0, 0.25, 0.5], np.float32)
  )
  found = metrics.value_ndcg(rankings, some, (1,))["value_ndcg@1"]
  assert (found.numerator_R.tolist(), found.denominator_R.tolist()) == ([0, 1], [0, 1])
  none = protocols.EvalRequests(
    "test", np.arange(2), np.arange(2), start, ads, np.zeros(3, np.float32)
  )
  assert metrics.value_ndcg(rankings, none, (1,)) == {}


def test_an_ad_of_the_largest_row_is_told_from_the_next_request_s():
  """Keys of (request, ad) do not run into one another, whichever of list and targets names the
  largest row.
  """
  start, value = np.array([0, 1, 2]), np.array([2, 4], np.float32)
  for targets, rankings in (
    ([5, 0], [[0, 1], [5, 2]]),
    ([0, 1], [[6, 7], [7, 6]]),
    ([5, 5], [[0, 1], [0, 1]]),
  ):
    requests = protocols.EvalRequests(
      "test", np.arange(2), np.arange(2), start, np.array(targets), value
    )
    assert metrics.per_request(np.array(rankings), requests, (2,))["recall@2"].value == 0
  requests = dataclasses.replace(requests, target_ad=np.array([5, 0]))
  found = metrics.per_request(np.array([[5, 1], [0, 1]]), requests, (2,))
  assert found["recall@2"].value == 1 and found["revenue@2"].value == 1


def test_every_allowed_row_passes_the_check(shop):
  requests = protocols.eval_requests(shop, "test")
  metrics.check_rankings(np.array([[0, 5, -1], [5, 0, 1]]), requests, 3, 6)
  metrics.check_rankings(np.array([[0, 5, -1, -1], [5, 0, 1, 2]]), requests, 3, 6)
  for wrong, message in (
    ([[0, 1, 2], [6, 1, 2]], "row 1 names ad 6; ads go from 0 to 5"),
    ([[1, 2, 3], [4, 0, 0]], "row 1 names ad 0 more than once"),
    ([1, 2], r"int64\[2\]"),
  ):
    with pytest.raises(ValueError, match=message):
      metrics.check_rankings(np.array(wrong), requests, 3, 6)


def test_resamples_equal_a_loop_over_drawn_users():
  rng = np.random.default_rng(5)
  user = np.array([4, 9, 4, 7, 2, 9, 4])
  above, below = rng.random((2, 7)), rng.random((2, 7))
  below[1, user != 7] = 0  # draws without user 7 have no denominator
  found = metrics.resample([metrics.Ratio(a, b) for a, b in zip(above, below, strict=True)], user)
  expected = loops.bootstrap(above, below, user)
  assert (
    found.shape == (1000, 2) and np.isnan(found[:, 1]).any() and not np.isnan(found[:, 0]).any()
  )
  np.testing.assert_allclose(found, expected, rtol=1e-9)
  seeded = metrics.resample([metrics.Ratio(above[0], below[0])], user, 30, 8)
  np.testing.assert_allclose(seeded, loops.bootstrap(above[:1], below[:1], user, 30, 8), rtol=1e-9)


def test_one_sample_at_a_time_where_users_are_more_than_a_chunk(monkeypatch):
  ratio, user = _noisy(0, users=50)
  whole = metrics.resample([ratio], user, resamples=9)
  monkeypatch.setattr(metrics, "CHUNK_CELLS", 3)
  np.testing.assert_allclose(metrics.resample([ratio], user, resamples=9), whole, rtol=1e-12)


def test_interval_is_the_central_95_percent():
  samples = np.append(np.random.default_rng(0).permutation(1001) / 10, [np.nan, np.nan])
  found = metrics.interval(7.0, samples)
  assert (found.mean, found.low, found.high) == (7.0, pytest.approx(2.5), pytest.approx(97.5))


@pytest.mark.parametrize("num_ads", [9, 10, 11, 25])
def test_spread_over_the_catalogue_equals_a_loop(num_ads):
  rankings = loops.random_rankings(num_ads, 4, num_ads, 6)
  popularity = np.random.default_rng(2).integers(
    0, 4, num_ads
  )  # with ties at the edge of the top tenth
  found = metrics.catalogue(rankings, popularity, (1, 6))
  expected = loops.spread(rankings, popularity, 1) | loops.spread(rankings, popularity, 6)
  assert found == pytest.approx(expected)
  nothing = metrics.catalogue(np.full((2, 3), -1), popularity, (3,))
  assert nothing == {"coverage@3": 0, "top_decile@3": 0, "gini@3": 0}


def test_entropy_of_lists_equals_a_loop():
  logp = np.array(
    [[-1.0, -1.5, -4.0], [-0.2, -np.inf, -np.inf], [-np.inf] * 3, [-2.0, -2.0, -np.inf]]
  )
  entropies = []
  for row in logp[[0, 1, 3]]:
    p = [math.exp(x) for x in row if x > -math.inf]
    entropies.append(-sum(x / sum(p) * math.log(x / sum(p)) for x in p))
  assert metrics.list_entropy(logp.astype(np.float32)) == pytest.approx(
    sum(entropies) / 3, rel=1e-6
  )
  assert metrics.list_entropy(logp[2:3]) == 0
