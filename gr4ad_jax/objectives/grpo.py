"""GRPO on lists with rewards (arXiv:2402.03300, docs/design/method.md §3.4). Pure functions on
arrays.
"""

import jax
import jax.numpy as jnp

from gr4ad_jax.objectives import lists

MOST = 20.0  # log-ratios are cut here: exp(20) is far beyond any clip


def grpo_loss(
  policy_logp_BM, reference_logp_BM, reward_BM, *, clip=0.2, kl=0.1, mask_BM=None, smallest_std=1e-8
) -> jax.Array:
  """-mean_i [ min(r_i A_i, clip(r_i, 1 ± clip) A_i) - kl · KL_i ].

  r_i = p_θ / p_ref; A_i = (v_i - mean v) / std v over the list; KL_i = 1/r_i - 1 + log r_i. The
  list is what the
  reference proposed: a candidate of unknown reference (-1e8 and below) has no ratio that clip or KL
    could hold, and
  log p_θ of one with A_i < 0 would fall without end.

  Args:
    policy_logp_BM: log p_θ(y | X).
    reference_logp_BM: log p_ref(y | X).
    reward_BM: money: finite, at most `lists.MOST_REWARD` in size, of either sign.
    clip: limit on the change of the ratio.
    kl: weight of the divergence from the reference.
    mask_BM: which candidates are real; None: all.
    smallest_std: lists of a standard deviation up to it have advantages of 0, and so have lists of
      equal rewards.

  Returns:
    [B], 0 where the reference proposed nothing.
  """
  policy, reference, reward, mask = lists.checked(
    policy_logp_BM, reference_logp_BM, reward_BM, mask_BM
  )
  mask &= reference > lists.UNKNOWN
  mean = lists.masked_mean(reward, mask)[:, None]
  variance = lists.masked_mean(jnp.square(reward - mean), mask)[:, None]
  most, least = (jnp.where(mask, sign * reward, -jnp.inf).max(1, keepdims=True) for sign in (1, -1))
  # The mean of equal rewards is rounded: what they differ from it by would be scaled up to a
  # deviation of 1.
  spread = (variance > smallest_std**2) & (most > -least)
  advantage = jnp.where(
    spread & mask, (reward - mean) / jnp.sqrt(jnp.where(spread, variance, 1)), 0
  )
  log_ratio = jnp.clip(jnp.where(mask, policy - reference, 0), -MOST, MOST)
  ratio = jnp.exp(log_ratio)
  gained = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
  divergence = 1 / ratio - 1 + log_ratio
  return -lists.masked_mean(gained - kl * divergence, mask)
