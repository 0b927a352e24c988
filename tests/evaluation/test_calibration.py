"""Calibration repairs a distorted probability, keeps the order, and the measures equal their definitions."""

import numpy as np
import pytest

from gr4ad_jax.evaluation import calibration
from gr4ad_jax.evaluation.calibration import Calibration


def logit(p):
  return np.log(p / (1 - p))


@pytest.fixture(scope="module")
def sample():
  """True probabilities, the logits of a model that is too sure of itself and too high, what was bought, weights."""
  rng = np.random.default_rng(0)
  p = np.exp(rng.uniform(np.log(1e-3), np.log(0.5), 200_000))
  weight = rng.choice([1.0, 7.0], len(p))
  return p, 1.6 * logit(p) + 1.0, rng.random(len(p)) < p, weight


def test_a_distorted_model_is_repaired(sample):
  p, raw, bought, weight = sample
  thought = np.full(len(p), 5.0)
  made = Calibration.fit(raw, bought, weight, thought, np.where(bought, 8.0, 0.0))
  fixed = made.probability(raw)
  before, after = (calibration.by_decile(x, bought, weight) for x in (1 / (1 + np.exp(-raw)), fixed))
  assert calibration.calibration_error(before) > 0.3 and calibration.calibration_error(after) < 0.08
  assert made.value_factor == pytest.approx(8 / 5)
  order = np.argsort(raw)
  assert (np.diff(fixed[order]) >= -1e-9).all()
  assert calibration.log_loss(fixed, bought, weight) < calibration.log_loss(1 / (1 + np.exp(-raw)), bought, weight)


def test_a_curved_distortion_is_repaired_in_every_decile(sample):
  p, _, bought, weight = sample
  raw = logit(p) - 0.12 * (logit(p) + 3) ** 2
  zero = np.zeros(len(p))
  made = Calibration.fit(raw, bought, weight, zero + 1, zero)
  after = calibration.by_decile(made.probability(raw), bought, weight)
  assert calibration.calibration_error(after) < 0.08
  assert calibration.calibration_error(calibration.by_decile(1 / (1 + np.exp(-raw)), bought, weight)) > 0.15


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
  won = sum(weight[i] * weight[j] * ((score[i] > score[j]) + 0.5 * (score[i] == score[j])) for i, j in pairs)
  assert calibration.auc(score, bought, weight) == pytest.approx(won / total)
  assert np.isnan(calibration.auc(score, np.zeros(60, bool)))


def test_deciles_share_the_predicted_purchases(sample):
  p, _, bought, weight = sample
  found = calibration.by_decile(p, bought, weight)
  assert len(found) == 10
  np.testing.assert_allclose([one["predicted"] for one in found], (p * weight).sum() / 10, rtol=0.01)
  assert sum(one["observed"] for one in found) == pytest.approx((bought * weight).sum())
  assert calibration.calibration_error(found) < 0.06
