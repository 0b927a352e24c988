"""Pointwise losses against loops; their minima are the rate and the mean that the weights stand
for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.objectives import pointwise

RNG = np.random.default_rng(1)
B, C = 3, 5
LOGIT, LOG_MEAN = RNG.normal(size=(2, B, C)).astype(np.float32) * 1.5
BOUGHT = RNG.random((B, C)) < 0.5
VALUE = RNG.exponential(2.0, (B, C)).astype(np.float32)
WEIGHT = (RNG.random((B, C)) * 4 * (RNG.random((B, C)) < 0.7)).astype(
  np.float32
)  # some of them 0, all others differ


def weighted_mean(loss_of):
  """Mean of loss_of(b, c) over the pairs, by their weights."""
  total = sum(float(WEIGHT[at]) * loss_of(at) for at in np.ndindex(B, C) if WEIGHT[at] > 0)
  return total / sum(float(WEIGHT[at]) for at in np.ndindex(B, C))


def test_purchase_loss_is_the_weighted_cross_entropy():
  def cross_entropy(at):
    p = 1 / (1 + np.exp(-float(LOGIT[at])))
    return -np.log(p) if BOUGHT[at] else -np.log(1 - p)

  found = pointwise.purchase_loss(LOGIT, BOUGHT, WEIGHT)
  np.testing.assert_allclose(found, weighted_mean(cross_entropy), rtol=1e-5)


@pytest.mark.parametrize("power", [1.0, 1.25, 1.5, 2.0])
def test_value_loss_is_the_weighted_quasi_likelihood(power):
  """-∫ (y - m) / m^power dm, by its antiderivatives."""

  def quasi(at):
    mean, value = np.exp(float(LOG_MEAN[at])), float(VALUE[at])
    if power == 1:
      return mean - value * np.log(mean)
    if power == 2:
      return value / mean + np.log(mean)
    return mean ** (2 - power) / (2 - power) - value * mean ** (1 - power) / (1 - power)

  found = pointwise.value_loss(LOG_MEAN, VALUE, WEIGHT, power)
  np.testing.assert_allclose(found, weighted_mean(quasi), rtol=1e-5)
  if power == 1:
    np.testing.assert_allclose(
      pointwise.value_loss(LOG_MEAN, VALUE, WEIGHT), found, rtol=1e-6
    )  # the default


def test_purchase_loss_is_least_at_the_weighted_rate():
  bought = jnp.array([[True, False, False, True]])
  weight = jnp.array([[1.0, 5.0, 2.0, 0.0]])
  rate = 1 / 8
  logit = float(np.log(rate / (1 - rate)))
  compute = jax.value_and_grad(
    lambda x: pointwise.purchase_loss(jnp.full((1, 4), x), bought, weight)
  )
  loss, slope = compute(logit)
  assert slope == pytest.approx(0, abs=1e-6)
  assert loss == pytest.approx(-(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)), rel=1e-5)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_value_loss_is_least_at_the_weighted_mean(power):
  value, weight = jnp.array([[4.0, 1.0, 100.0]]), jnp.array([[1.0, 2.0, 0.0]])
  slope = jax.grad(lambda x: pointwise.value_loss(jnp.full((1, 3), x), value, weight, power))
  assert slope(jnp.log(2.0)) == pytest.approx(0, abs=1e-6)
  assert slope(jnp.log(1.0)) < 0 < slope(jnp.log(3.0))


def test_nothing_weighs_nothing_whatever_stands_in_padding():
  bad = jnp.array([[jnp.inf, jnp.nan]])
  none = jnp.zeros((1, 2))
  for loss in (
    lambda x: pointwise.purchase_loss(x, jnp.array([[True, False]]), none),
    lambda x: pointwise.value_loss(x, none, none),
  ):
    value, slope = jax.value_and_grad(loss)(bad)
    assert value == 0 and np.isfinite(slope).all()


def test_small_weights_keep_their_mean():
  """The divisor is the sum of the weights, however small: 1 / inclusion probability can be
  scaled by any constant.
  """
  small = WEIGHT * 1e-4
  for loss in (
    lambda weight: pointwise.purchase_loss(LOGIT, BOUGHT, weight),
    lambda weight: pointwise.value_loss(LOG_MEAN, VALUE, weight),
  ):
    np.testing.assert_allclose(loss(small), loss(WEIGHT), rtol=1e-5)


def test_shapes_that_differ_are_refused():
  for wrong in (WEIGHT[:, :2], WEIGHT[0]):
    with pytest.raises(AssertionError):
      pointwise.purchase_loss(LOGIT, BOUGHT, wrong)
    with pytest.raises(AssertionError):
      pointwise.value_loss(LOG_MEAN, VALUE, wrong)
