"""DPO and S-DPO on lists with rewards (docs/design/method.md §3.4). Pure functions on arrays.

Of equal rewards the likelier stands for the best and for the worst, then the earlier. A list of
equal rewards has no preference, and no loss.
"""

import jax
import jax.numpy as jnp

from gr4ad_jax.objectives import lists


def _gaps(policy, reference, chosen_BM, others_BM):
  """x_j = Δ_j - Δ_chosen [B, M]. Where the reference of any of the list's members is unknown, it
  is left out.
  """
  known_B = jnp.where(chosen_BM | others_BM, reference > lists.UNKNOWN, True).all(-1, keepdims=True)
  delta = policy - jnp.where(known_B, reference, 0)
  return delta - jnp.where(chosen_BM, delta, 0).sum(-1, keepdims=True)


def dpo_loss(policy_logp_BM, reference_logp_BM, reward_BM, *, beta, mask_BM=None) -> jax.Array:
  """-log σ(β (Δ_best - Δ_worst)) of the best and the worst of a list; Δ = log p_θ - log p_ref
  (arXiv:2305.18290).

  Args:
    policy_logp_BM: log p_θ(y | X).
    reference_logp_BM: log p_ref(y | X); -1e8 and below counts as unknown, and the pair is compared
      without reference.
    reward_BM: money, finite, of either sign; only its order is read.
    beta: sharpness.
    mask_BM: which candidates are real; None: all.

  Returns:
    [B], 0 where all rewards are equal.
  """
  policy, reference, reward, mask = lists.checked(
    policy_logp_BM, reference_logp_BM, reward_BM, mask_BM
  )
  best, worst = lists.extremes(policy, reward, mask)
  gap = _gaps(policy, reference, best, worst)
  return jnp.where(worst, jax.nn.softplus(beta * gap), 0).sum(-1)


def softmax_dpo_loss(
  policy_logp_BM, reference_logp_BM, reward_BM, *, beta, mask_BM=None
) -> jax.Array:
  """-log σ(-log Σ_j exp(β Δ_j - β Δ_best)) over all j of lower reward than the best (S-DPO,
  arXiv:2406.09215).

  Arguments and shape as of `dpo_loss`.
  """
  policy, reference, reward, mask = lists.checked(
    policy_logp_BM, reference_logp_BM, reward_BM, mask_BM
  )
  best, _ = lists.extremes(policy, reward, mask)
  worse = (
    (reward < jnp.where(best, reward, 0).sum(-1, keepdims=True))
    & mask
    & best.any(-1, keepdims=True)
  )
  gap = _gaps(policy, reference, best, worse)
  return jax.nn.softplus(lists.masked_log_sum_exp(beta * gap, worse, 1))
