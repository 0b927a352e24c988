"""The weights that join VSL and RSPO in one step (docs/design/method.md §3.3). Pure functions.

VSL imitates what was taken, RSPO explores: it learns an order of candidates from their rewards.
"""

import jax
import jax.numpy as jnp

from gr4ad_jax.objectives import lists


def unified_weights(
  policy_logp_BM, reward_BM, *, w0=1.0, z_max=1.0, mask_BM=None
) -> tuple[jax.Array, jax.Array]:
  """w_VSL,i = w0 exp(A_i log(1 + v_i)) and w_RL,i = w0 Z_max (1 - A_i) of each candidate i.

  A_i = |r_p(i) - r_v(i)| / (n - 1), where r_p and r_v are the ranks by likelihood and by reward
  among n candidates, says how far they disagree. Far from the ideal order the policy imitates, near
  it, it explores. Equal rewards stand in the order of likelihood, so they never disagree with it.

  Args:
    policy_logp_BM: log p_θ(y | X).
    reward_BM: v, money: finite, at most `lists.MOST_REWARD` in size. What is negative counts as 0
      in log(1 + v).
    w0: common factor.
    z_max: Z_max, the largest weight of RSPO.
    mask_BM: which candidates are real; None: all.

  Returns:
    w_VSL [B, M], from w0 to w0 (1 + v), and w_RL [B, M], from 0 to w0 Z_max. Both are 0 in padding,
    and have no gradient. In a list of one candidate A is 0.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  # No reference is needed; the policy stands in for it, to be checked alike.
  policy, _, reward, mask = lists.checked(policy_logp_BM, policy_logp_BM, reward_BM, mask_BM)
  policy = jax.lax.stop_gradient(policy)
  by_model = lists.order(mask, policy)
  by_reward = lists.order(mask, reward, policy)
  distance = jnp.abs(lists.inverse(by_model) - lists.inverse(by_reward)).astype(policy.dtype)
  # The maximum is for lists of one, whose distance is 0.
  apart = distance / jnp.maximum(mask.sum(-1, keepdims=True) - 1, 1)
  w_vsl = w0 * jnp.exp(apart * jnp.log1p(jnp.maximum(reward, 0)))
  return jnp.where(mask, w_vsl, 0), jnp.where(mask, w0 * z_max * (1 - apart), 0)
