"""What the list objectives share: checked arrays, masks, and the order of M candidates a request.

A list objective learns from M candidates of a request (ads that might be shown). Each has a
*reward*, which is what it is worth, and log p by the *reference*, which is the policy as it was
when the candidates were made.

All of them ask the same of rewards: they are finite, of either sign (a margin may be lost), and at
most `MOST_REWARD` in size. `value/rewards.py` checks that once, where rewards are made. Here,
inside a compiled step, nothing could be told. A device may take numbers below float32's normal ones
(1.2e-38) for 0.
"""

import chex
import jax
import jax.numpy as jnp

LEAST_LOGP = -1e9  # log-probabilities below it are raised to it: -inf would make differences NaN
UNKNOWN = -1e8  # a reference log-probability that is not above this was not recorded
# GRPO squares differences from a mean, here at most (2e15)^2 = 4e30, and sums them over a list.
# That is finite in float32, which ends at 3.4e38, for lists of up to 8e7. `schema.LARGEST` is more:
# its squares leave no such room.
MOST_REWARD = 1e15


def checked(policy_logp_BM, reference_logp_BM, reward_BM, mask_BM):
  """The arrays in one float dtype of at least 32 bits, and a mask.

  Padding holds zeros, whatever stood there. Gradients flow through the policy alone.

  Args:
    policy_logp_BM: log p_θ(y | X) of each candidate.
    reference_logp_BM: log p_ref(y | X).
    reward_BM: rewards.
    mask_BM: which candidates are real; None: all.

  Returns:
    Policy, reference, reward and the bool mask, [B, M] each.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  chex.assert_rank([policy_logp_BM, reference_logp_BM, reward_BM], 2)
  chex.assert_equal_shape([policy_logp_BM, reference_logp_BM, reward_BM])
  mask_BM = jnp.ones(policy_logp_BM.shape, bool) if mask_BM is None else mask_BM.astype(bool)
  chex.assert_equal_shape([policy_logp_BM, mask_BM])
  dtype = jnp.promote_types(policy_logp_BM.dtype, jnp.float32)
  policy, reference, reward = (
    jnp.where(mask_BM, x.astype(dtype), 0) for x in (policy_logp_BM, reference_logp_BM, reward_BM)
  )
  # A policy that is raised is a constant there, with a gradient of 0.
  policy, reference = (jnp.where(x < LEAST_LOGP, LEAST_LOGP, x) for x in (policy, reference))
  return policy, jax.lax.stop_gradient(reference), jax.lax.stop_gradient(reward), mask_BM


def order(mask_BM: jax.Array, *keys_BM: jax.Array) -> jax.Array:
  """The candidates' places in falling order of the first key, [B, M] int32.

  Equal ones are ordered by the next key, and in the end the earlier goes first. Padding is last.
  """
  # A sort rises, so keys are negated. The place is carried along and is no key (num_keys): what
  # leaves equal candidates in their order is that the sort is stable.
  place_BM = jax.lax.broadcasted_iota(jnp.int32, mask_BM.shape, 1)
  falling = [jnp.where(mask_BM, -jax.lax.stop_gradient(key), jnp.inf) for key in keys_BM]
  return jax.lax.sort((*falling, place_BM), num_keys=len(keys_BM), is_stable=True)[-1]


def inverse(order_BM: jax.Array) -> jax.Array:
  """The ranks, from 0, that an order gives: order[rank[i]] = i. [B, M] int32."""
  # rank[order[k]] = k as a scatter: (B, 1) with (B, M) addresses row b, column order[b, k].
  row_B1 = jnp.arange(len(order_BM))[:, None]
  place_BM = jax.lax.broadcasted_iota(jnp.int32, order_BM.shape, 1)
  return jnp.zeros_like(order_BM).at[row_B1, order_BM].set(place_BM, unique_indices=True)


def extremes(policy_logp_BM, reward_BM, mask_BM):
  """Best and worst candidate by reward, each as a bool [B, M] with one True a list.

  Of several with that reward the likelier one is marked, then the earlier. Nothing is marked where
  a list has fewer than two different rewards.
  """
  policy = jax.lax.stop_gradient(policy_logp_BM)
  high = jnp.where(mask_BM, reward_BM, -jnp.inf)
  low = jnp.where(mask_BM, reward_BM, jnp.inf)
  place = jnp.arange(policy.shape[1])[None]

  def first(among):
    return place == jnp.argmax(jnp.where(among, policy, -jnp.inf), axis=1, keepdims=True)

  most = high.max(1, keepdims=True)
  least = low.min(1, keepdims=True)
  # False where nothing is real, too: -inf > inf.
  there = most > least
  return first(mask_BM & (reward_BM == most)) & there, first(mask_BM & (reward_BM == least)) & there


def masked_log_sum_exp(x: jax.Array, mask: jax.Array, axis: int) -> jax.Array:
  """log Σ exp(x) over the mask; -inf where it is empty, with a gradient of 0."""
  # The greatest is taken off, so that exp cannot overflow. It cancels, and needs no gradient. What
  # is masked must not reach exp either, where it could overflow: inf in the branch of a where that
  # is not taken still makes the gradient NaN.
  peak = jnp.where(mask, jax.lax.stop_gradient(x), -jnp.inf).max(axis, keepdims=True)
  peak = jnp.where(peak > -jnp.inf, peak, 0)
  total = jnp.where(mask, jnp.exp(jnp.where(mask, x - peak, 0)), 0).sum(axis)
  return safe_log(total) + jnp.squeeze(peak, axis)


def safe_log(x: jax.Array) -> jax.Array:
  """log(x); -inf with a gradient of 0 where x is not positive."""
  # The double where: with the outer one alone the gradient at 0 would be 0 · inf, which is NaN.
  return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), -jnp.inf)


def masked_mean(x_BM: jax.Array, mask_BM: jax.Array) -> jax.Array:
  """Mean of each row over the mask, [B]; 0 where the mask is empty."""
  return jnp.where(mask_BM, x_BM, 0).sum(1) / jnp.maximum(mask_BM.sum(1), 1)
