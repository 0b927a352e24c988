"""Losses of single (request, ad) pairs: p(purchase) and E[value | purchase]. Pure functions on
arrays.
"""

import chex
import jax
import jax.numpy as jnp


def purchase_loss(logit_BC: jax.Array, bought_BC: jax.Array, weight_BC: jax.Array) -> jax.Array:
  """Weighted binary cross-entropy, a mean over the pairs.

  With weights of 1 / inclusion probability its minimum is p(purchase) over all pairs, not over the
  sampled ones.

  Args:
    logit_BC: logits of p(purchase).
    bought_BC: bool.
    weight_BC: at least 0; 0 in padding.

  Returns:
    A scalar, nats a unit of weight; 0 where no pair weighs anything.
  """
  chex.assert_rank([logit_BC, bought_BC, weight_BC], 2)
  chex.assert_equal_shape([logit_BC, bought_BC, weight_BC])
  logit_BC = jnp.where(weight_BC > 0, logit_BC.astype(jnp.float32), 0.0)
  loss_BC = jax.nn.softplus(logit_BC) - bought_BC * logit_BC
  return (weight_BC * loss_BC).sum() / jnp.maximum(weight_BC.sum(), 1e-9)


def value_loss(
  log_mean_BC: jax.Array, value_BC: jax.Array, weight_BC: jax.Array, power: float = 1.0
) -> jax.Array:
  """Quasi-likelihood of a mean on a log scale (Wedderburn, 1974): variance proportional to
  mean^power.

  Poisson with power 1, gamma with power 2; between them Tweedie's. Its minimum is the mean, not the
  mean of the logs. With power 1 the sum of the estimates is that of the values, wherever the model
  has a bias.

  Args:
    log_mean_BC: log E[value | purchase].
    value_BC: value of the bought ads, at least 0.
    weight_BC: at least 0; 0 for what was not bought.
    power: 1 to 2.

  Returns:
    A scalar, mean over the weight, with the constant of a perfect estimate left in; 0 where no pair
    weighs anything.
  """
  chex.assert_rank([log_mean_BC, value_BC, weight_BC], 2)
  chex.assert_equal_shape([log_mean_BC, value_BC, weight_BC])
  log_mean_BC = jnp.where(weight_BC > 0, log_mean_BC.astype(jnp.float32), 0.0)
  if power == 1:
    loss_BC = jnp.exp(log_mean_BC) - value_BC * log_mean_BC
  elif power == 2:
    loss_BC = value_BC * jnp.exp(-log_mean_BC) + log_mean_BC
  else:
    spread = jnp.exp((2 - power) * log_mean_BC) / (2 - power)
    loss_BC = spread - value_BC * jnp.exp((1 - power) * log_mean_BC) / (1 - power)
  return (weight_BC * loss_BC).sum() / jnp.maximum(weight_BC.sum(), 1e-9)
