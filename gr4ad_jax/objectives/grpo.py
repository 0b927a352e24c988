"""GRPO on lists with rewards (arXiv:2402.03300, docs/design/method.md §3.4). Pure functions.

Each candidate is compared with the mean of its list. The policy may move only so far from the
reference, which is the policy as it was when the candidates were made.
"""

import jax
import jax.numpy as jnp

from gr4ad_jax.objectives import lists

MOST = 20.0  # log-ratios are cut here, so that exp is finite: exp(20) is far beyond any clip


def grpo_loss(
  policy_logp_BM, reference_logp_BM, reward_BM, *, clip=0.2, kl=0.1, mask_BM=None, smallest_std=1e-8
) -> jax.Array:
  """-mean_i [ min(r_i A_i, clip(r_i, 1 ± clip) A_i) - kl · KL_i ].

  r_i = p_θ / p_ref is the ratio. A_i = (v_i - mean v) / std v over the list is the advantage.
  KL_i = 1/r_i - 1 + log r_i, at least 0, is an estimate of the divergence from the reference.

  The list is what the reference proposed. A candidate of unknown reference (-1e8 and below) is left
  out: it has no ratio that clip or KL could hold, so log p_θ of one with A_i < 0 would fall without
  end.

  Args:
    policy_logp_BM: log p_θ(y | X).
    reference_logp_BM: log p_ref(y | X).
    reward_BM: v, money: finite, at most `lists.MOST_REWARD` in size, of either sign.
    clip: limit on the change of the ratio.
    kl: weight of the divergence from the reference.
    mask_BM: which candidates are real; None: all.
    smallest_std: lists whose standard deviation is at most this have advantages of 0, and so have
      lists of equal rewards.

  Returns:
    The loss of each list, [B] float32; 0 where the reference proposed nothing.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  policy, reference, reward, mask = lists.checked(
    policy_logp_BM, reference_logp_BM, reward_BM, mask_BM
  )
  mask &= reference > lists.UNKNOWN
  mean = lists.masked_mean(reward, mask)[:, None]
  variance = lists.masked_mean(jnp.square(reward - mean), mask)[:, None]
  most, least = (jnp.where(mask, sign * reward, -jnp.inf).max(1, keepdims=True) for sign in (1, -1))
  # The least reward is -least. Equal rewards are told by it, and not by the variance alone: their
  # mean is rounded, and the little that they differ from it by would be scaled up to 1.
  spread = (variance > smallest_std**2) & (most > -least)
  advantage = jnp.where(
    spread & mask, (reward - mean) / jnp.sqrt(jnp.where(spread, variance, 1)), 0
  )
  # Masked before the exp. Where the clip acts, the gradient is 0.
  log_ratio = jnp.clip(jnp.where(mask, policy - reference, 0), -MOST, MOST)
  ratio = jnp.exp(log_ratio)
  # The worse of both: clipping takes away the gain of going too far, never the loss of it.
  gained = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
  divergence = 1 / ratio - 1 + log_ratio
  return -lists.masked_mean(gained - kl * divergence, mask)
