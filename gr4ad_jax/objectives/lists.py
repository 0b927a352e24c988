"""What the list objectives share: checked arrays, masks, the order and the ranks of M candidates a
request.

The domain of all of them: rewards are finite, at most `MOST_REWARD` in size, of either sign (a
  margin may be lost).
`training/rewards.py` checks it once, where rewards are made; here, inside a compiled step, nothing
could be told. A device may take what is below float32's normal numbers (1.2e-38) for 0.
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
  """The arrays in one float dtype of at least 32 bits, and a mask; padding holds zeros, whatever
  stood there.

  Gradients flow through the policy alone. Raises AssertionError where ranks or shapes differ.
  """
  chex.assert_rank([policy_logp_BM, reference_logp_BM, reward_BM], 2)
  chex.assert_equal_shape([policy_logp_BM, reference_logp_BM, reward_BM])
  mask_BM = jnp.ones(policy_logp_BM.shape, bool) if mask_BM is None else mask_BM.astype(bool)
  chex.assert_equal_shape([policy_logp_BM, mask_BM])
  dtype = jnp.promote_types(policy_logp_BM.dtype, jnp.float32)
  policy, reference, reward = (
    jnp.where(mask_BM, x.astype(dtype), 0) for x in (policy_logp_BM, reference_logp_BM, reward_BM)
  )
  policy, reference = (jnp.where(x < LEAST_LOGP, LEAST_LOGP, x) for x in (policy, reference))
  return policy, jax.lax.stop_gradient(reference), jax.lax.stop_gradient(reward), mask_BM


def order(mask_BM: jax.Array, *keys_BM: jax.Array) -> jax.Array:
  """[B, M] int32 places, by falling first key, then second, and so on; then the earlier; padding
  last.
  """
  place_BM = jax.lax.broadcasted_iota(jnp.int32, mask_BM.shape, 1)
  falling = [jnp.where(mask_BM, -jax.lax.stop_gradient(key), jnp.inf) for key in keys_BM]
  return jax.lax.sort((*falling, place_BM), num_keys=len(keys_BM), is_stable=True)[-1]


def inverse(order_BM: jax.Array) -> jax.Array:
  """[B, M] int32 ranks, from 0, of an order: order[rank[i]] = i."""
  row_B1 = jnp.arange(len(order_BM))[:, None]
  place_BM = jax.lax.broadcasted_iota(jnp.int32, order_BM.shape, 1)
  return jnp.zeros_like(order_BM).at[row_B1, order_BM].set(place_BM, unique_indices=True)


def extremes(policy_logp_BM, reward_BM, mask_BM):
  """Best and worst candidate by reward, bool [B, M] each; of equal ones the likelier stands for
  both, then the earlier.

  Nothing is marked where a list has fewer than two rewards.
  """
  policy = jax.lax.stop_gradient(policy_logp_BM)
  high = jnp.where(mask_BM, reward_BM, -jnp.inf)
  low = jnp.where(mask_BM, reward_BM, jnp.inf)
  place = jnp.arange(policy.shape[1])[None]

  def first(among):
    return place == jnp.argmax(jnp.where(among, policy, -jnp.inf), axis=1, keepdims=True)

  most, least = high.max(1, keepdims=True), low.min(1, keepdims=True)
  there = most > least  # false where nothing is real, too
  return first(mask_BM & (reward_BM == most)) & there, first(mask_BM & (reward_BM == least)) & there


def masked_log_sum_exp(x: jax.Array, mask: jax.Array, axis: int) -> jax.Array:
  """log Σ exp(x) over the mask; -inf where it is empty, with a gradient of 0."""
  peak = jnp.where(mask, jax.lax.stop_gradient(x), -jnp.inf).max(axis, keepdims=True)
  peak = jnp.where(peak > -jnp.inf, peak, 0)
  total = jnp.where(mask, jnp.exp(jnp.where(mask, x - peak, 0)), 0).sum(axis)
  return safe_log(total) + jnp.squeeze(peak, axis)


def safe_log(x: jax.Array) -> jax.Array:
  """log(x), and -inf with a gradient of 0 where x is not positive."""
  return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), -jnp.inf)


def masked_mean(x_BM: jax.Array, mask_BM: jax.Array) -> jax.Array:
  """[B] mean over the mask; 0 where it is empty."""
  return jnp.where(mask_BM, x_BM, 0).sum(1) / jnp.maximum(mask_BM.sum(1), 1)
