"""Losses of models that score single ads: full and sampled softmax, and binary cross-entropy.

Pure functions on arrays. P are the places of the batch's histories that are learned from. Each has
up to M targets, the ads that were taken next. Logarithms are natural.
"""

import chex
import jax
import jax.numpy as jnp


def softmax_loss(
  scores_PN: jax.Array, own_PM: jax.Array, mask_PM: jax.Array, smoothing: float = 0.0
) -> jax.Array:
  """Mean of -log p(ad) over the real targets, where p is a softmax over all ads.

  Args:
    scores_PN: scores of all ads; -inf in columns that are no ad.
    own_PM: scores of the targets. They are given, not gathered from `scores_PN`: where its columns
      are cut over devices, the gradient of that gather would be an array of all columns on each.
    mask_PM: bool, which targets are real.
    smoothing: part of the label's mass that is spread evenly over all ads, 0 to 1.

  Returns:
    A scalar, nats a target; 0 where no target is real.

  Raises:
    AssertionError: an array of another rank.
  """
  chex.assert_rank([scores_PN, own_PM, mask_PM], 2)
  total_P = jax.nn.logsumexp(scores_PN, axis=-1)
  loss_PM = total_P[:, None] - own_PM
  if smoothing:
    # The mean of -log p over all ads is total - mean score. Columns that are no ad stay out of it:
    # one score of -inf would make it infinite.
    real_PN = scores_PN > -jnp.inf
    mean_P = jnp.mean(scores_PN, axis=-1, where=real_PN)
    loss_PM = (1 - smoothing) * loss_PM + smoothing * (total_P - mean_P)[:, None]
  return _mean(loss_PM, mask_PM)


def sampled_softmax_loss(
  target_score_PM: jax.Array, mask_PM: jax.Array, exact_score_PS: jax.Array,
  exact_mask_PS: jax.Array, sampled_score_PK: jax.Array, sampled_mask_PK: jax.Array,
  log_weight_K: jax.Array | float,
) -> jax.Array:  # fmt: skip
  """Mean of -log p(ad), where the total of the softmax is estimated from some ads.

  The total is the sum of e^score over all ads. Here it has three parts, called strata: the targets,
  ads that are always scored, and sampled ads, which are weighted. The estimate is unbiased where
  each ad is counted in one stratum, and a sampled one weighs 1 / (the number of times that it is
  expected).

  Args:
    target_score_PM: scores of the targets.
    mask_PM: bool, which targets are real.
    exact_score_PS: scores of ads that are always counted, such as those of the history.
    exact_mask_PS: bool, which of them count. A target that stands among them must not.
    sampled_score_PK: scores of the sampled ads.
    sampled_mask_PK: bool, which of them are in no other stratum.
    log_weight_K: logarithms of their weights. Of K ads drawn evenly it is log(N / K); of one drawn
      from a run of rows, the log of the run's length; of a batch's K targets, -log(K q), with q the
      share of the targets that an ad has (the logQ correction).

  Returns:
    A scalar, nats a target; 0 where no target is real.

  Raises:
    AssertionError: an array of another rank.
  """
  chex.assert_rank([target_score_PM, exact_score_PS, sampled_score_PK], 2)
  # w e^score = e^(score + log w), so that one log-sum-exp makes the whole total.
  scaled_PK = sampled_score_PK + log_weight_K
  parts = (
    (target_score_PM, mask_PM),
    (exact_score_PS, exact_mask_PS),
    (scaled_PK, sampled_mask_PK),
  )
  # [P, M + S + K]. What is masked is -1e9, not -inf: a place without any ad then has a finite loss,
  # which the mean leaves out. (P, 1) - (P, M): all targets of a place share its total.
  strata = jnp.concatenate([jnp.where(mask, score, -1e9) for score, mask in parts], axis=-1)
  return _mean(jax.nn.logsumexp(strata, axis=-1, keepdims=True) - target_score_PM, mask_PM)


def binary_loss(
  target_score_PM: jax.Array, negative_score_PM: jax.Array, mask_PM: jax.Array
) -> jax.Array:
  """Mean of -log σ(target) - log σ(-negative), with one negative a target.

  It is the loss of SASRec as published (Kang and McAuley, ICDM 2018).

  Args:
    target_score_PM: scores of the targets.
    negative_score_PM: for each, the score of an ad that was drawn.
    mask_PM: bool, which targets are real.

  Returns:
    A scalar, nats a target; 0 where no target is real.

  Raises:
    AssertionError: shapes that differ.
  """
  chex.assert_equal_shape([target_score_PM, negative_score_PM, mask_PM])
  # softplus(-x) is -log σ(x), without the log of a σ that was rounded to 0.
  return _mean(jax.nn.softplus(-target_score_PM) + jax.nn.softplus(negative_score_PM), mask_PM)


def _mean(loss_PM: jax.Array, mask_PM: jax.Array) -> jax.Array:
  return jnp.where(mask_PM, loss_PM, 0.0).sum() / jnp.maximum(mask_PM.sum(), 1)
