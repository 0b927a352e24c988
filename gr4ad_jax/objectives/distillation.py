"""Cross-entropy to the normalised reward: the baseline that no comparison may leave out.

It is no preference objective: the policy simply learns the rewards, as shares of a list. Source:
docs/design/method.md §3.4 and docs/design/findings.md.
"""

import jax
import jax.numpy as jnp

from gr4ad_jax.objectives import lists


def reward_cross_entropy(
  policy_logp_BM, reference_logp_BM, reward_BM, *, mask_BM=None
) -> jax.Array:
  """-Σ_i q_i log π_i: q are the rewards over their sum, π is the policy normalised over the list.

  Args:
    policy_logp_BM: log p_θ(y | X).
    reference_logp_BM: checked, but of no effect; the call is that of the other list objectives.
    reward_BM: money: finite, at most `lists.MOST_REWARD` in size. What is negative counts as 0.
    mask_BM: which candidates are real; None: all.

  Returns:
    The loss of each list, [B] float32, at least the entropy of q; 0 where no reward is positive.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  policy, _, reward, mask = lists.checked(policy_logp_BM, reference_logp_BM, reward_BM, mask_BM)
  reward = jnp.where(mask, jnp.maximum(reward, 0), 0)
  total = reward.sum(-1, keepdims=True)
  share = reward / jnp.where(total > 0, total, 1)
  logp = policy - lists.masked_log_sum_exp(policy, mask, 1)[:, None]
  # A share of 0 counts nothing. Where no candidate is real, logp is not finite, and the where keeps
  # that out of the sum.
  return -jnp.where(share > 0, share * logp, 0).sum(-1)
