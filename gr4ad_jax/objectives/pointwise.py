"""Losses of single (request, ad) pairs: p(purchase) and E[value | purchase].

Pure functions on arrays, [B, C]: C ads for each of B requests.
"""

import chex
import jax
import jax.numpy as jnp


def purchase_loss(logit_BC: jax.Array, bought_BC: jax.Array, weight_BC: jax.Array) -> jax.Array:
  """Weighted binary cross-entropy, a mean over the pairs.

  Pairs may be a sample. With weights of 1 / (the probability that a pair was sampled) the least
  loss is at p(purchase) over all pairs, not over the sampled ones.

  Args:
    logit_BC: logits of p(purchase).
    bought_BC: bool.
    weight_BC: at least 0; 0 in padding.

  Returns:
    A scalar, nats a unit of weight; 0 where no pair weighs anything.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  chex.assert_rank([logit_BC, bought_BC, weight_BC], 2)
  chex.assert_equal_shape([logit_BC, bought_BC, weight_BC])
  # What weighs nothing becomes 0 before the loss: 0 times a logit that is not finite would be NaN.
  logit_BC = jnp.where(weight_BC > 0, logit_BC.astype(jnp.float32), 0.0)
  # log(1 + e^x) - y x is -log σ(x) for y = 1 and -log σ(-x) for y = 0.
  loss_BC = jax.nn.softplus(logit_BC) - bought_BC * logit_BC
  return (weight_BC * loss_BC).sum() / jnp.maximum(weight_BC.sum(), 1e-9)


def value_loss(
  log_mean_BC: jax.Array, value_BC: jax.Array, weight_BC: jax.Array, power: float = 1.0
) -> jax.Array:
  """Quasi-likelihood of a mean on a log scale (Wedderburn, 1974).

  The variance is taken as proportional to mean^power: Poisson's with power 1, that of a gamma
  variable with power 2, Tweedie's between. The least loss is at the mean of the values, not at the
  mean of their logarithms. With power 1, the estimates of a fitted model with a bias add up to the
  sum of the values.

  Args:
    log_mean_BC: estimate of log E[value | purchase].
    value_BC: value of the bought ads, at least 0, in the unit that the estimate has.
    weight_BC: at least 0; 0 for what was not bought.
    power: 1 to 2.

  Returns:
    A scalar, a mean over the weight; 0 where no pair weighs anything. A perfect estimate does not
    have a loss of 0: terms of the values alone are left out.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  chex.assert_rank([log_mean_BC, value_BC, weight_BC], 2)
  chex.assert_equal_shape([log_mean_BC, value_BC, weight_BC])
  # As above: padding must not bring in what is not finite.
  log_mean_BC = jnp.where(weight_BC > 0, log_mean_BC.astype(jnp.float32), 0.0)
  # With μ = e^log_mean, minus the integral of (value - μ) / μ^power: at powers 1 and 2 one of its
  # two terms becomes a logarithm.
  if power == 1:
    loss_BC = jnp.exp(log_mean_BC) - value_BC * log_mean_BC
  elif power == 2:
    loss_BC = value_BC * jnp.exp(-log_mean_BC) + log_mean_BC
  else:
    spread = jnp.exp((2 - power) * log_mean_BC) / (2 - power)
    loss_BC = spread - value_BC * jnp.exp((1 - power) * log_mean_BC) / (1 - power)
  return (weight_BC * loss_BC).sum() / jnp.maximum(weight_BC.sum(), 1e-9)
