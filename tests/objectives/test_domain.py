"""Bounds hold for every reward of the domain: of either sign, tied, nearly nothing, as large as
is allowed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.objectives import distillation, dpo, grpo, rspo, unified
from gr4ad_jax.objectives.lists import MOST_REWARD
from tests.objectives import loops
from tests.objectives.draws import by_loop

B, M = 3000, 8
PAIRS = [{}, {"gain": "exp2"}, {"ranks": "model"}, {"row_norm": True}]


@functools.cache
def domain():
  """Float32 lists: sizes from 1e-37 to the largest, one size a list or a mixture, either sign,
  zeros and ties.
  """
  rng = np.random.default_rng(0)
  policy = rng.normal(-8, 3, (B, M))
  reference = np.where(rng.random((B, M)) < 0.1, -1e9, policy + rng.normal(0.3, 1.5, (B, M)))
  sizes = np.array([1e-30, 1e-12, 1e-6, 1.0, 50.0, 1e6, 1e14, MOST_REWARD])
  size = np.where(rng.random((B, 1)) < 0.5, rng.choice(sizes, (B, 1)), rng.choice(sizes, (B, M)))
  reward = size * np.where(rng.random((B, M)) < 0.3, 1, rng.random((B, M)))
  reward *= np.where(rng.random((B, M)) < rng.choice([0, 0, 0.5, 1], (B, 1)), -1, 1)
  reward[rng.random((B, M)) < rng.choice([0, 0.3, 0.8], (B, 1))] = 0
  reward[0], reward[1] = [1, -1.5849] * 4, [MOST_REWARD, -MOST_REWARD] * 4
  reward[2:60] = reward[2:60, :1]  # all equal
  policy[5::7] = np.round(policy[5::7] / 4)
  mask = rng.random((B, M)) < 0.8
  mask[:60] = True
  return policy.astype(np.float32), reference.astype(np.float32), reward.astype(np.float32), mask


def entropy(share_BM):
  return -(share_BM * np.log(np.where(share_BM > 0, share_BM, 1))).sum(1)


@pytest.mark.parametrize("pairs", PAIRS)
def test_rspo_bounds_the_cost_of_its_order_and_its_weights_sum_to_one_at_most(pairs):
  policy, reference, reward, mask = domain()

  def all_of(beta, policy):
    loss = rspo.rspo_loss(policy, reference, reward, beta=beta, delta=0.5, mask_BM=mask, **pairs)
    cost = rspo.ndcg_cost(policy, reference, reward, delta=0.5, mask_BM=mask, **pairs)
    of, _ = rspo._by_reward(
      policy, reference, reward, mask, pairs.get("gain", "linear"), pairs.get("ranks", "reward")
    )
    return loss.sum(), (
      loss,
      cost,
      rspo._weights(of, pairs.get("ranks", "reward"), pairs.get("row_norm", False)),
    )

  compute = jax.jit(jax.grad(all_of, argnums=1, has_aux=True))
  for beta in (0.1, 3.0):
    gradient, (loss, cost, weight) = jax.device_get(compute(beta, policy))
    assert np.isfinite(loss).all() and np.isfinite(gradient).all()
    assert (weight >= 0).all() and (weight.sum(2) <= 1 + 1e-6).all() and weight.sum(2).max() > 0.6
    assert (cost >= 0).all() and (cost <= loss * (1 + 1e-5) + 1e-6).all() and cost.max() > 0.5
    assert (loss[2:60] == 0).all() and (gradient[2:60] == 0).all()
  if "gain" not in pairs:  # 2^v of most of these leaves the loop's floats
    size = np.abs(
      reward
    )  # where sizes of a list are far apart, float32 rounds differences of the small ones away
    plain = np.where(size > 0, size, np.inf).min(1) > 1e-3 * size.max(1)
    plain[np.flatnonzero(plain)[200:]] = False
    lists = [x[plain].astype(np.float64) for x in (policy, reference, reward)]
    expected = by_loop(functools.partial(loops.ndcg_cost, delta=0.5, **pairs), *lists, mask[plain])
    np.testing.assert_allclose(cost[plain], expected, rtol=1e-3, atol=1e-6)


def test_a_lost_margin_counts_by_how_much_more_is_lost():
  """Rewards of either sign are those that start at their least: the list that once had a loss of
  24,214.
  """
  policy = reference = np.array([[-2.0, -1.0]], np.float32)
  compute = jax.jit(functools.partial(rspo.rspo_loss, beta=1.0, delta=1.0))
  losses = [
    compute(policy, reference, np.array([reward], np.float32))[0]
    for reward in ([1.0, -1.5849], [2.5849, 0.0], [-1.0, -3.5849], [1e-3, -1e-3])
  ]
  np.testing.assert_allclose(losses, np.log2(1 + 1 - 1 / np.log2(3)), rtol=1e-5)


@pytest.mark.parametrize("loss", [dpo.dpo_loss, dpo.softmax_dpo_loss])
def test_dpo_reads_the_order_of_the_rewards_alone(loss):
  policy, reference, reward, mask = domain()
  compute = jax.jit(
    jax.value_and_grad(lambda p, v: loss(p, reference, v, beta=0.7, mask_BM=mask).sum())
  )
  place = np.array([np.unique(row, return_inverse=True)[1].ravel() for row in reward], np.float32)
  (value, gradient), (by_place, _) = compute(policy, reward), compute(policy, place - 3)
  assert (
    value > 0 and value == by_place and np.isfinite(gradient).all() and (gradient[2:60] == 0).all()
  )


def test_grpo_is_bounded_from_below_and_equal_rewards_teach_nothing():
  policy, reference, reward, mask = domain()

  def of(policy):
    each = grpo.grpo_loss(policy, reference, reward, mask_BM=mask)
    return each.sum(), (each, grpo.grpo_loss(policy, policy, reward, kl=0.0, mask_BM=mask))

  gradient, (each, unmoved) = jax.device_get(jax.jit(jax.grad(of, has_aux=True))(policy))
  assert np.isfinite(each).all() and np.isfinite(gradient).all()
  assert (
    each >= -1.2 - 1e-4
  ).all()  # advantages have a mean square of 1, and no ratio above 1 + clip is rewarded
  np.testing.assert_allclose(unmoved, 0, atol=1e-5)  # advantages sum to 0
  odd = np.repeat(np.float32([[1.85], [-2.22], [8.51]]), 7, axis=1)
  rounded = np.asarray(jnp.asarray(odd).sum(1) / 7)
  assert (rounded != odd[:, 0]).any()  # their mean is none of them
  alone = jax.jit(functools.partial(grpo.grpo_loss, kl=0.0))(
    policy[:3, :7], policy[:3, :7] + 0.1 * np.arange(7, dtype=np.float32), odd
  )
  assert (alone == 0).all()


def test_cross_entropy_is_at_least_the_entropy_of_the_rewards_shares():
  policy, reference, reward, mask = domain()

  def of(policy):
    each = distillation.reward_cross_entropy(policy, reference, reward, mask_BM=mask)
    return each.sum(), each

  gradient, each = jax.device_get(jax.jit(jax.grad(of, has_aux=True))(policy))
  gain = np.where(mask, np.maximum(reward, 0), 0).astype(np.float64)
  share = gain / np.maximum(gain.sum(1, keepdims=True), 1e-300)
  assert np.isfinite(each).all() and np.isfinite(gradient).all()
  assert (each >= entropy(share) * (1 - 1e-5) - 1e-5).all()
  assert (each[gain.sum(1) == 0] == 0).mean() > 0.9 and np.abs(gradient).max() <= 1 + 1e-5


def test_unified_weights_stay_between_their_ends():
  policy, _, reward, mask = domain()
  imitate, explore = jax.device_get(jax.jit(unified.unified_weights)(policy, reward, mask_BM=mask))
  most = 1 + np.maximum(reward.astype(np.float64), 0)
  assert (imitate[mask] >= 1).all() and (imitate[mask] <= (most * (1 + 1e-4))[mask]).all()
  assert (explore >= -1e-6).all() and (explore <= 1).all() and imitate.max() > 1e10
