"""Pointwise losses: their minima are the rate and the mean that the weights stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.objectives import pointwise


def test_purchase_loss_is_least_at_the_weighted_rate():
  bought = jnp.array([[True, False, False, True]])
  weight = jnp.array([[1.0, 5.0, 2.0, 0.0]])
  rate = 1 / 8
  logit = float(np.log(rate / (1 - rate)))
  compute = jax.value_and_grad(lambda x: pointwise.purchase_loss(jnp.full((1, 4), x), bought, weight))
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
