"""Losses over single ads: full and sampled softmax, and binary cross-entropy. Pure functions on
arrays.
"""

import chex
import jax
import jax.numpy as jnp


def softmax_loss(
  scores_PN: jax.Array, own_PM: jax.Array, mask_PM: jax.Array, smoothing: float = 0.0
) -> jax.Array:
  """Mean of −log p(ad) over the real targets, p a softmax over all ads.

  Args:
    scores_PN: of all ads; -inf where there is none.
    own_PM: those of the targets. They are given, not taken off `scores_PN`: where its columns are
      cut over devices, the gradient of that gather would be an array of all columns on each.
    mask_PM: which are real.
    smoothing: mass of the label that is spread evenly over all ads.

  Returns:
    A scalar, 0 where no target is real.
  """
  chex.assert_rank([scores_PN, own_PM, mask_PM], 2)
  total_P = jax.nn.logsumexp(scores_PN, axis=-1)
  loss_PM = total_P[:, None] - own_PM
  if smoothing:
    real_PN = scores_PN > -jnp.inf
    mean_P = jnp.mean(scores_PN, axis=-1, where=real_PN)
    loss_PM = (1 - smoothing) * loss_PM + smoothing * (total_P - mean_P)[:, None]
  return _mean(loss_PM, mask_PM)


def sampled_softmax_loss(
  target_score_PM: jax.Array, mask_PM: jax.Array, exact_score_PS: jax.Array,
  exact_mask_PS: jax.Array, sampled_score_PK: jax.Array, sampled_mask_PK: jax.Array,
  log_weight_K: jax.Array | float,
) -> jax.Array:  # fmt: skip
  """Mean of −log p(ad), the softmax' total estimated from strata: targets, ads scored exactly, and
  sampled ads.

  The total is the sum of e^score over the targets, over the exact ads, and a weighted one over the
  sampled: an unbiased estimate where each ad is counted in one stratum, and a sampled one weighs 1
  / the number of times it is expected.

  Args:
    target_score_PM: of the targets.
    mask_PM: which are real.
    exact_score_PS: of ads that are always counted, such as the history's.
    exact_mask_PS: which of them count; a target that stands among them must not.
    sampled_score_PK: of the sampled ads.
    sampled_mask_PK: which of them are in no other stratum.
    log_weight_K: log of their weights: log(N / K) of K drawn evenly; of one drawn from a run of
      rows, log of the run's length; of a batch's K targets, −log(K q) with q an ad's share of the
      targets (the logQ correction).

  Returns:
    A scalar, 0 where no target is real.
  """
  chex.assert_rank([target_score_PM, exact_score_PS, sampled_score_PK], 2)
  scaled_PK = sampled_score_PK + log_weight_K
  parts = (
    (target_score_PM, mask_PM),
    (exact_score_PS, exact_mask_PS),
    (scaled_PK, sampled_mask_PK),
  )
  strata = jnp.concatenate([jnp.where(mask, score, -1e9) for score, mask in parts], axis=-1)
  return _mean(jax.nn.logsumexp(strata, axis=-1, keepdims=True) - target_score_PM, mask_PM)


def binary_loss(
  target_score_PM: jax.Array, negative_score_PM: jax.Array, mask_PM: jax.Array
) -> jax.Array:
  """Mean of −log σ(target) − log σ(−negative), one negative a target (SASRec as published).

  Args:
    target_score_PM: of the targets.
    negative_score_PM: of a drawn ad for each.
    mask_PM: which are real.
  """
  chex.assert_equal_shape([target_score_PM, negative_score_PM, mask_PM])
  return _mean(jax.nn.softplus(-target_score_PM) + jax.nn.softplus(negative_score_PM), mask_PM)


def _mean(loss_PM: jax.Array, mask_PM: jax.Array) -> jax.Array:
  return jnp.where(mask_PM, loss_PM, 0.0).sum() / jnp.maximum(mask_PM.sum(), 1)
