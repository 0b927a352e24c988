"""GRPO on lists with rewards (arXiv:2402.03300, method.md §3.4). Pure functions on arrays."""

import jax
import jax.numpy as jnp

from gr4ad_jax.objectives import lists

MOST = 20.0  # log-ratios are cut here: exp(20) is far beyond any clip


def grpo_loss(
  policy_logp_BM, reference_logp_BM, reward_BM, *, clip=0.2, kl=0.1, mask_BM=None, smallest_std=1e-8
) -> jax.Array:
  """-mean_i [ min(r_i A_i, clip(r_i, 1 ± clip) A_i) - kl · KL_i ].

  r_i = p_θ / p_ref; A_i = (v_i - mean v) / std v over the list; KL_i = 1/r_i - 1 + log r_i. The list is what the
  reference proposed: a candidate of unknown reference (below -1e8) has no ratio that clip or KL could hold, and log p_θ
  of one with A_i < 0 would fall without end.

  Args:
    policy_logp_BM: log p_θ(y | X).
    reference_logp_BM: log p_ref(y | X).
    reward_BM: money.
    clip: limit on the change of the ratio.
    kl: weight of the divergence from the reference.
    mask_BM: which candidates are real; None: all.
    smallest_std: lists of a smaller standard deviation have advantages of 0.

  Returns:
    [B], 0 where the reference proposed nothing.
  """
  policy, reference, reward, mask = lists.checked(policy_logp_BM, reference_logp_BM, reward_BM, mask_BM)
  mask &= reference > lists.UNKNOWN
  mean = lists.masked_mean(reward, mask)[:, None]
  variance = lists.masked_mean(jnp.square(reward - mean), mask)[:, None]
  spread = variance > smallest_std**2
  advantage = jnp.where(spread & mask, (reward - mean) / jnp.sqrt(jnp.where(spread, variance, 1)), 0)
  log_ratio = jnp.clip(jnp.where(mask, policy - reference, 0), -MOST, MOST)
  ratio = jnp.exp(log_ratio)
  gained = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
  divergence = 1 / ratio - 1 + log_ratio
  return -lists.masked_mean(gained - kl * divergence, mask)
