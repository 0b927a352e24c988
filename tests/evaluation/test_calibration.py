"""Calibration repairs a distorted probability, keeps the order, and the measures equal their
definitions.
"""

import math

import numpy as np
import pytest
import scipy.optimize

from gr4ad_jax.evaluation import calibration
from gr4ad_jax.evaluation.calibration import Calibration


def logit(p):
  return np.log(p / (1 - p))


@pytest.fixture(scope="module")
def sample():
  """True probabilities, the logits of a model that is too sure of itself and too high, what was
  bought, weights.
  """
  rng = np.random.default_rng(0)
  p = np.exp(rng.uniform(np.log(1e-3), np.log(0.5), 60_000))
  weight = rng.choice([1.0, 7.0], len(p))
  return p, 1.6 * logit(p) + 1.0, rng.random(len(p)) < p, weight


def test_a_distorted_model_is_repaired(sample):
  p, raw, bought, weight = sample
  thought = 2 + weight + np.sqrt(p)  # values that all differ, and grow with the weight
  paid = np.where(bought, 8 + 3 * p + weight**2, 1e6)
  made = Calibration.fit(raw, bought, weight, thought, paid)
  fixed = made.probability(raw)
  before, after = (
    calibration.by_decile(x, bought, weight) for x in (1 / (1 + np.exp(-raw)), fixed)
  )
  assert calibration.calibration_error(before) > 0.3 and calibration.calibration_error(after) < 0.08
  bought_weight = [float(w) for w, b in zip(weight, bought, strict=True) if b]
  total = sum(w * v for w, v in zip(bought_weight, paid[bought].tolist(), strict=True))
  estimated = sum(w * v for w, v in zip(bought_weight, thought[bought].tolist(), strict=True))
  assert made.value_factor == pytest.approx(total / estimated)
  order = np.argsort(raw)
  assert (np.diff(fixed[order]) >= -1e-9).all()
  assert calibration.log_loss(fixed, bought, weight) < calibration.log_loss(
    1 / (1 + np.exp(-raw)), bought, weight
  )


def test_a_curved_distortion_is_repaired_in_every_decile(sample):
  p, _, bought, weight = sample
  raw = logit(p) - 0.12 * (logit(p) + 3) ** 2
  zero = np.zeros(len(p))
  made = Calibration.fit(raw, bought, weight, zero + 1, zero)
  after = calibration.by_decile(made.probability(raw), bought, weight)
  assert calibration.calibration_error(after) < 0.08
  assert (
    calibration.calibration_error(calibration.by_decile(1 / (1 + np.exp(-raw)), bought, weight))
    > 0.15
  )


def test_few_purchases_leave_the_logits_near_what_they_are():
  raw = np.linspace(-4, 0, 50)
  bought = np.arange(50) == 49
  made = Calibration.fit(raw, bought, np.full(50, 1e-3), raw * 0 + 1, raw * 0 + 1)
  np.testing.assert_allclose(logit(made.probability(raw).astype(float)), raw, atol=0.1)


def test_beyond_the_points_the_slope_is_one():
  made = Calibration([0.0, 2.0], [1.0, 1.5], 1.0)
  found = logit(made.probability(np.array([-3.0, 1.0, 4.0])).astype(float))
  np.testing.assert_allclose(found, [-2.0, 1.25, 3.5], atol=1e-4)
  same = Calibration.identity().probability(np.array([-2.0, 3.0])).astype(float)
  np.testing.assert_allclose(logit(same), [-2, 3], atol=1e-4)


def test_without_a_purchase_nothing_is_changed():
  none = np.zeros(3)
  assert Calibration.fit(none, none > 0, none + 1, none, none) == Calibration.identity()


def test_auc_counts_pairs_ties_half():
  rng = np.random.default_rng(1)
  score, bought = rng.integers(0, 5, 60), rng.random(60) < 0.4
  weight = rng.random(60)
  pairs = [(i, j) for i in np.flatnonzero(bought) for j in np.flatnonzero(~bought)]
  total = sum(weight[i] * weight[j] for i, j in pairs)
  won = sum(
    weight[i] * weight[j] * ((score[i] > score[j]) + 0.5 * (score[i] == score[j])) for i, j in pairs
  )
  assert calibration.auc(score, bought, weight) == pytest.approx(won / total)
  assert np.isnan(calibration.auc(score, np.zeros(60, bool)))


def test_deciles_share_the_predicted_purchases(sample):
  p, _, bought, weight = sample
  found = calibration.by_decile(p, bought, weight)
  assert len(found) == 10
  np.testing.assert_allclose(
    [one["predicted"] for one in found], (p * weight).sum() / 10, rtol=0.01
  )
  assert sum(one["observed"] for one in found) == pytest.approx((bought * weight).sum())
  assert calibration.calibration_error(found) < 0.06


def fitted_by_search(raw, bought, weight):
  """The drawn quadratic of largest weighted likelihood, by a general optimiser in place of
  Newton's steps.
  """
  middle, spread = (raw * weight).sum() / weight.sum(), np.sqrt(((raw - raw.mean()) ** 2).mean())
  x = (raw - middle) / spread

  def loss(a):
    z = a[0] + a[1] * x + a[2] * x**2
    softplus = np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0)
    unlikely = sum(w * (s - b * q) for w, s, b, q in zip(weight, softplus, bought, z, strict=True))
    return unlikely + ((a - np.array([middle, spread, 0])) ** 2).sum() / 2

  a = scipy.optimize.minimize(
    loss, np.array([middle, spread, 0.0]), method="BFGS", options={"gtol": 1e-7}
  ).x
  return lambda logit: (
    a[0] + a[1] * (logit - middle) / spread + a[2] * ((logit - middle) / spread) ** 2
  )


@pytest.mark.parametrize("seed", range(6))
def test_the_correction_is_the_most_likely_quadratic(seed):
  """Where odd seeds say nothing and even ones the opposite: full steps of Newton's would run
  away on five of six.
  """
  rng = np.random.default_rng(seed)
  raw = rng.normal(-1, 2 if seed < 3 else 12, 40)
  bought = rng.random(40) < (0.3 if seed % 2 else 1 / (1 + np.exp(raw)))
  weight = rng.choice([1.0, 5.0, 0.5], 40)
  thought, paid = rng.random((2, 40)) + 0.5
  curve = fitted_by_search(raw, bought, weight)
  made = Calibration.fit(raw, bought, weight, thought, paid)
  points = np.linspace(raw.min(), raw.max(), 33)
  np.testing.assert_allclose(made.logits, points, rtol=1e-12)
  highest, expected = -np.inf, []
  for point in points:  # where it would fall it is held level
    highest = max(highest, curve(point))
    expected.append(highest)
  np.testing.assert_allclose(made.corrected, expected, atol=2e-4)
  assert made.value_factor == pytest.approx(
    (paid * weight)[bought].sum() / (thought * weight)[bought].sum()
  )


def test_logits_closer_together_than_one_are_told_apart():
  rng = np.random.default_rng(9)
  raw, bought = rng.normal(-3, 0.05, 60), rng.random(60) < 0.4
  weight = np.where(np.arange(60) % 2, 3.0, 1.0)
  made = Calibration.fit(raw, bought, weight, raw * 0 + 2, raw * 0 + 1)
  curve = fitted_by_search(raw, bought, weight)
  np.testing.assert_allclose(
    made.corrected, np.maximum.accumulate(curve(np.array(made.logits))), atol=2e-4
  )


def test_logits_that_are_all_the_same_are_corrected_alike():
  made = Calibration.fit(
    np.full(8, -2.0), np.arange(8) < 4, np.full(8, 50.0), np.ones(8), np.ones(8)
  )
  assert made.probability(np.array([-2.0]))[0] == pytest.approx(0.5, abs=0.01)


def test_what_weighs_nothing_is_not_read():
  rng = np.random.default_rng(3)
  raw, bought, weight = rng.normal(size=30), rng.random(30) < 0.4, rng.random(30) + 0.1
  thought, paid = rng.random((2, 30)) + 0.5
  whole = Calibration.fit(raw, bought, weight, thought, paid)
  more = [np.append(x, y) for x, y in ((raw, [99, -99]), (bought, [True, False]), (weight, [0, 0]),
                                       (thought, [7, 7]), (paid, [9, 9]))]  # fmt: skip
  more[1] = more[1].astype(bool)
  assert Calibration.fit(*more) == whole
  only = np.array([True, False, False])
  none = np.zeros(3)
  assert Calibration.fit(none, only, np.array([0.0, 1, 1]), none, none) == Calibration.identity()
  assert Calibration.fit(none, only, np.array([1.0, 0, 0]), none, none) == Calibration.identity()


def test_one_kind_alone_changes_nothing_and_neither_do_values_of_nothing():
  raw, weight = np.array([-1.0, 0.5, 2.0]), np.ones(3)
  assert Calibration.fit(raw, raw > -9, weight, weight, weight) == Calibration.identity()
  some = raw > 1
  for thought, paid in ((0, 5), (5, 0), (0, 0)):
    assert Calibration.fit(raw, some, weight, weight * thought, weight * paid).value_factor == 1.0
  assert Calibration.fit(raw, some, weight, weight * 0.25, weight * 0.5).value_factor == 2.0


def test_slopes_beyond_points_that_are_not_at_zero():
  assert Calibration.identity() == Calibration([0.0], [0.0], 1.0)
  made = Calibration([-1.0, 2.0, 3.0], [0.5, 1.5, 1.5], 1.0)
  found = logit(made.probability(np.array([[-3.0, -1.0, 0.5], [2.5, 3.0, 5.0]])).astype(float))
  np.testing.assert_allclose(found, [[-1.5, 0.5, 1.0], [1.5, 1.5, 3.5]], atol=1e-4)
  assert made.probability(np.array([0.0])).dtype == np.float32


def test_log_loss_equals_a_loop_and_stays_finite():
  p, bought, weight = (
    np.array([0.2, 0.9, 0.5, 0.7]),
    np.array([True, True, False, False]),
    np.array([1.0, 3, 2, 5]),
  )
  each = [math.log(0.2), math.log(0.9), math.log(0.5), math.log(1 - 0.7)]
  assert calibration.log_loss(p, bought) == pytest.approx(-sum(each) / 4)
  weighted = -sum(w * x for w, x in zip(weight, each, strict=True)) / 11
  assert calibration.log_loss(p, bought, weight) == pytest.approx(weighted)
  sure = calibration.log_loss(np.array([0.0, 1.0]), np.array([True, False]))
  assert sure == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_auc_of_one_kind_is_none_and_all_pairs_count_alike_without_weights():
  score = np.array([0.1, 0.4, 0.4, 0.8])
  assert np.isnan(calibration.auc(score, np.ones(4, bool))) and np.isnan(
    calibration.auc(score, np.zeros(4, bool))
  )
  assert calibration.auc(score, np.array([False, True, False, True])) == pytest.approx(
    (1 + 0.5 + 1 + 1) / 4
  )


@pytest.mark.parametrize("weighted", [False, True])
def test_deciles_equal_a_loop(weighted):
  rng = np.random.default_rng(4)
  p, bought = rng.random(57) ** 3, rng.random(57) < 0.3
  weight = rng.choice([0.5, 2.0, 3.0], 57) if weighted else np.ones(57)
  total, so_far = (p * weight).sum(), 0.0
  predicted, observed = [0.0] * 10, [0.0] * 10
  for i in sorted(range(57), key=lambda i: p[i]):
    middle = so_far + p[i] * weight[i] / 2
    decile = min(int(10 * middle / total), 9)
    so_far += p[i] * weight[i]
    predicted[decile] += p[i] * weight[i]
    observed[decile] += bought[i] * weight[i]
  found = calibration.by_decile(p, bought, weight if weighted else None)
  assert [one["predicted"] for one in found] == pytest.approx(predicted)
  assert [one["observed"] for one in found] == pytest.approx(observed)
  assert [one["error"] for one in found] == pytest.approx(
    [o / q - 1 for o, q in zip(observed, predicted, strict=True)]
  )


def test_a_decile_without_a_pair_has_no_error():
  found = calibration.by_decile(np.array([0.3, 0.7]), np.array([True, False]))
  told = {n: one for n, one in enumerate(found) if one["predicted"]}
  assert told == {1: {"predicted": 0.3, "observed": 1.0, "error": pytest.approx(1 / 0.3 - 1)},
                  6: {"predicted": 0.7, "observed": 0.0, "error": -1.0}}  # fmt: skip
  assert all(
    one == {"predicted": 0, "observed": 0, "error": 0}
    for n, one in enumerate(found)
    if n not in told
  )
  assert len(found) == 10


def test_the_error_of_deciles_is_the_mean_of_its_sizes():
  assert calibration.calibration_error([{"error": 0.5}, {"error": -0.25}, {"error": 0.0}]) == 0.25


def test_probabilities_of_zero_have_deciles_and_no_error_where_nothing_was_bought():
  zero, bought = np.zeros(6), np.arange(6) < 2
  for weight in (None, np.full(6, 0.5)):
    found = calibration.by_decile(zero, ~bought & bought, weight)
    assert found == [{"predicted": 0.0, "observed": 0.0, "error": 0.0}] * 10
    assert calibration.calibration_error(found) == 0
  found = calibration.by_decile(zero, bought)
  assert [one["observed"] for one in found] == [2.0] + [0.0] * 9
  assert np.isnan(found[0]["error"]) and np.isnan(calibration.calibration_error(found))
  assert len(calibration.by_decile(zero[:0], bought[:0])) == 10
