"""DPO and S-DPO on lists with rewards (docs/design/method.md §3.4). Pure functions on arrays.

DPO compares the best candidate of a list with the worst, S-DPO the best with all that are worth
less. Δ = log p_θ - log p_ref says how much likelier a candidate has become since the reference,
which is the policy as it was when the candidates were made.

Where several have the best (or the worst) reward, the likelier one stands for them, then the
earlier. A list of equal rewards has no preference, and no loss.
"""

import jax
import jax.numpy as jnp

from gr4ad_jax.objectives import lists


def _gaps(policy, reference, chosen_BM, others_BM):
  """x_j = Δ_j - Δ_chosen of each candidate j, [B, M].

  Where log p_ref of any member is unknown, the whole list goes without reference. Members are those
  of `chosen_BM`, which has one a list, and of `others_BM`.
  """
  # (B, 1): it holds for a whole list, since a difference of Δ with and without reference means
  # nothing.
  known_B = jnp.where(chosen_BM | others_BM, reference > lists.UNKNOWN, True).all(-1, keepdims=True)
  delta = policy - jnp.where(known_B, reference, 0)
  # One is chosen, so the masked sum is its Δ: a gather without an index.
  return delta - jnp.where(chosen_BM, delta, 0).sum(-1, keepdims=True)


def dpo_loss(policy_logp_BM, reference_logp_BM, reward_BM, *, beta, mask_BM=None) -> jax.Array:
  """-log σ(β (Δ_best - Δ_worst)) of the best and the worst of a list (DPO, arXiv:2305.18290).

  Args:
    policy_logp_BM: log p_θ(y | X).
    reference_logp_BM: log p_ref(y | X). -1e8 and below counts as unknown, and the pair is compared
      without reference.
    reward_BM: money, finite, of either sign; only its order is read.
    beta: β, the sharpness.
    mask_BM: which candidates are real; None: all.

  Returns:
    The loss of each list, [B] float32; 0 where all rewards are equal.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  policy, reference, reward, mask = lists.checked(
    policy_logp_BM, reference_logp_BM, reward_BM, mask_BM
  )
  best, worst = lists.extremes(policy, reward, mask)
  gap = _gaps(policy, reference, best, worst)
  # softplus(x) is -log σ(-x). Where nothing is marked as the worst, the sum is empty.
  return jnp.where(worst, jax.nn.softplus(beta * gap), 0).sum(-1)


def softmax_dpo_loss(
  policy_logp_BM, reference_logp_BM, reward_BM, *, beta, mask_BM=None
) -> jax.Array:
  """-log σ(-log Σ_j exp(β (Δ_j - Δ_best))) over all j of lower reward than the best.

  It is S-DPO (arXiv:2406.09215). Arguments, shape and what is raised are those of `dpo_loss`.
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
  # Of an empty sum the logarithm is -inf, and softplus of that 0: no loss.
  return jax.nn.softplus(lists.masked_log_sum_exp(beta * gap, worse, 1))
