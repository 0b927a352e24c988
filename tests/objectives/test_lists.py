"""List objectives equal their loop versions in value, and finite differences in gradient; edges give no NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.objectives import distillation, dpo, grpo, rspo, unified
from tests.objectives import loops
from tests.objectives.draws import by_loop, draw

PAIRS = [{}, {"gain": "exp2"}, {"ranks": "model"}, {"row_norm": True}]
CASES = {
  **{
    f"rspo {pairs}": (
      functools.partial(rspo.rspo_loss, beta=0.7, delta=0.5, **pairs),
      lambda p, f, v, pairs=pairs: loops.rspo(p, f, v, beta=0.7, delta=0.5, **pairs),
    )
    for pairs in PAIRS
  },
  "dpo": (functools.partial(dpo.dpo_loss, beta=0.7), lambda p, f, v: loops.dpo(p, f, v, 0.7)),
  "sdpo": (functools.partial(dpo.softmax_dpo_loss, beta=0.7), lambda p, f, v: loops.sdpo(p, f, v, 0.7)),
  "grpo": (
    functools.partial(grpo.grpo_loss, clip=0.2, kl=0.1),
    lambda p, f, v: loops.grpo(p, f, v, 0.2, 0.1),
  ),
  "xent": (distillation.reward_cross_entropy, lambda p, f, v: loops.cross_entropy(p, v)),
}
case = pytest.mark.parametrize("name", CASES)


def tame(name, reward):
  """2^v overflows on heavy tails, so that gain sees their logarithm."""
  return np.log1p(np.maximum(reward, 0)) if "exp2" in name else reward


@case
@pytest.mark.parametrize(("M", "B", "unknown"), [(1, 4, 0), (9, 40, 0.3), (512, 2, 0.01)])
def test_value_equals_the_loop(name, M, B, unknown):
  ours, loop = CASES[name]
  policy, reference, reward, mask = draw(M, B, M, unknown=unknown)
  reward = np.where(mask, tame(name, np.where(mask, reward, 0)), reward)
  with jax.enable_x64(True):
    found = jax.jit(ours)(policy, reference, reward, mask_BM=mask)
  np.testing.assert_allclose(found, by_loop(loop, policy, reference, reward, mask), rtol=1e-5, atol=1e-7)


@case
def test_float32_is_near_and_half_precision_is_raised_to_it(name):
  ours, loop = CASES[name]
  policy, reference, reward, mask = draw(5, 30, 20, np.float32)
  reward = np.where(mask, tame(name, np.where(mask, reward, 0)), reward).astype(np.float32)
  expected = by_loop(loop, policy, reference, reward, mask)
  np.testing.assert_allclose(ours(policy, reference, reward, mask_BM=mask), expected, rtol=2e-4, atol=1e-5)
  half = [jnp.asarray(x, jnp.bfloat16) for x in (policy, reference, reward)]
  assert ours(*half, mask_BM=mask).dtype == jnp.float32


@case
@pytest.mark.parametrize("seed", range(2))
def test_gradient_equals_finite_differences(name, seed):
  ours, _ = CASES[name]
  policy, reference, reward, mask = draw(seed + 100, 3, 7, unknown=0.1)
  reward = np.where(mask, tame(name, np.where(mask, reward, 0)), reward)

  def total(x):
    return ours(jnp.where(mask, x, policy), reference, reward, mask_BM=mask).sum()

  with jax.enable_x64(True):
    point = np.where(mask, policy, 0.0)
    compute = jax.jit(total)
    gradient = jax.grad(total)(point)
    for b, m in np.argwhere(mask):
      step = np.zeros_like(point)
      step[b, m] = 1e-5
      numeric = (compute(point + step) - compute(point - step)) / 2e-5
      np.testing.assert_allclose(gradient[b, m], numeric, rtol=1e-5, atol=1e-7)
  assert (gradient[~mask] == 0).all()


@case
@pytest.mark.parametrize(
  ("policy", "reference", "reward", "mask"),
  [
    ([[-3.0]], [[-2.0]], [[1.0]], [[True]]),
    ([[-3.0, -2.0, -9.0]], [[-3.0, -1.0, -4.0]], [[2.0, 2.0, 2.0]], [[True] * 3]),
    ([[-3.0, -2.0]], [[-3.0, -1.0]], [[0.0, 0.0]], [[True] * 2]),
    ([[-3.0, -2.0]], [[-3.0, -1.0]], [[1.0, 2.0]], [[False] * 2]),
    ([[-1e9, -2.0, -1e9]], [[-3.0, -1e9, -1e9]], [[3.0, 0.0, 1.0]], [[True] * 3]),
    ([[-1e9, -1e9]], [[-1e9, -1e9]], [[3.0, 1.0]], [[True] * 2]),
    ([[np.nan, -2.0, -3.0]], [[np.inf, -2.0, -1.0]], [[np.nan, 2.0, 1.0]], [[False, True, True]]),
    ([[-1.0, -2.0, -3.0]], [[-1.0, -2.0, -1.0]], [[-1.0, -5.0, -2.0]], [[True] * 3]),
  ],
)
def test_edges_have_finite_values_and_gradients(name, policy, reference, reward, mask):
  ours, _ = CASES[name]
  policy, reference, reward = (jnp.array(x, jnp.float32) for x in (policy, reference, reward))
  value, gradient = jax.value_and_grad(lambda p: ours(p, reference, reward, mask_BM=jnp.array(mask)).sum())(policy)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  if len({float(v) for v, real in zip(reward[0], mask[0], strict=True) if real}) <= 1 and name not in ("xent", "grpo"):
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("pairs", PAIRS)
def test_ndcg_cost_equals_its_loop_and_bounds_from_below(pairs):
  """10,000 lists of the first and the last kind of pairs, fewer of the others."""
  for seed, (B, M) in enumerate([(5000, 8), (4900, 20), (100, 100)]):
    policy, reference, reward, mask = draw(seed, B, M, np.float32, unknown=0.05)
    reward = np.where(mask, np.log1p(np.where(mask, reward, 0)), reward) if pairs.get("gain") == "exp2" else reward
    cost = jax.jit(functools.partial(rspo.ndcg_cost, delta=0.5, **pairs))(policy, reference, reward, mask_BM=mask)
    some = slice(0, 60)
    lists = [x[some].astype(np.float64) for x in (policy, reference, reward)]
    expected = by_loop(functools.partial(loops.ndcg_cost, delta=0.5, **pairs), *lists, mask[some])
    np.testing.assert_allclose(cost[some], expected, rtol=1e-4, atol=1e-6)
    for beta in (0.1, 3.0):
      loss = rspo.rspo_loss(policy, reference, reward, beta=beta, delta=0.5, mask_BM=mask, **pairs)
      assert (cost <= loss * (1 + 1e-5) + 1e-6).all()


def test_pair_weights_sum_below_one_with_reward_ranks_and_not_always_with_the_models():
  """With equal likelihoods the cost of a candidate below all others is the sum of its weights."""
  worst = 0.0
  for seed in range(200):
    _, _, reward, _ = draw(seed, 1, 100)
    reward[0][~np.isfinite(reward[0])] = 0
    policy = np.random.default_rng(seed).permutation(100).astype(float)
    assert loops.weights(policy, reward[0]).sum(1).max() < 1
    lone = np.where(np.arange(100) == 50, 1.0, 0.0)
    by_model = np.zeros((100, 100))
    rank = np.arange(100)
    for j in range(100):
      if j != 50:
        apart = abs(rank[50] - rank[j])
        by_model[50, j] = 1 / np.log2(1 + apart) - 1 / np.log2(2 + apart)
    worst = max(worst, by_model.sum() * lone[50])
  assert worst > 1
  assert loops.weights(-np.arange(100.0), lone, ranks="model").sum(1).max() == pytest.approx(1)


def test_a_large_gate_drops_the_reference_and_a_missing_one_closes_it():
  policy, _, reward, mask = draw(3, 20, 12)
  reference = np.where(mask, policy - 5, 0)  # log-ratio 5 everywhere
  free = np.full_like(policy, -1e9)
  settings = {"beta": 1.0, "mask_BM": mask}
  with jax.enable_x64(True):
    closed = rspo.rspo_loss(policy, reference, reward, delta=1.0, **settings)
    unknown = rspo.rspo_loss(policy, free, reward, delta=1.0, **settings)
    opened = rspo.rspo_loss(policy, reference + np.arange(12), reward, delta=100.0, **settings)
  np.testing.assert_allclose(closed, unknown, rtol=1e-9)
  assert np.abs(np.asarray(opened - closed)).max() > 0.1


@pytest.mark.parametrize(("M", "B"), [(1, 3), (2, 20), (15, 30), (200, 4)])
def test_unified_weights_equal_the_loop(M, B):
  policy, _, reward, mask = draw(M + 7, B, M)
  with jax.enable_x64(True):
    found = unified.unified_weights(policy, reward, w0=1.5, z_max=2.0, mask_BM=mask)
  for b in range(B):
    if mask[b].any():
      expected = loops.unified(policy[b][mask[b]].tolist(), reward[b][mask[b]].tolist(), 1.5, 2.0)
      for ours, loop in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[b][mask[b]], loop, rtol=1e-9)
        assert (np.asarray(ours[b])[~mask[b]] == 0).all()


def test_terms_are_those_of_each_candidate_and_their_mean_is_the_loss():
  policy, reference, reward, mask = draw(11, 6, 10)
  settings = {"beta": 1.0, "delta": 0.5}
  with jax.enable_x64(True):
    terms, counted = rspo.rspo_terms(policy, reference, reward, mask_BM=mask, **settings)
    loss = rspo.rspo_loss(policy, reference, reward, mask_BM=mask, **settings)
  for b in range(6):
    real = np.flatnonzero(mask[b])
    expected = loops.rspo_terms(*(x[b][real].tolist() for x in (policy, reference, reward)), **settings)
    assert set(np.flatnonzero(counted[b])) == {real[i] for i in expected}
    for i, value in expected.items():
      assert terms[b, real[i]] == pytest.approx(value, rel=1e-9)
    if expected:
      assert loss[b] == pytest.approx(np.mean(list(expected.values())), rel=1e-9)


@pytest.mark.parametrize("settings", [{"gain": "square"}, {"ranks": "both"}])
def test_unknown_options_are_refused(settings):
  x = jnp.zeros((1, 2))
  with pytest.raises(ValueError, match="are allowed"):
    rspo.rspo_loss(x, x, x, beta=1.0, delta=1.0, **settings)


def test_gains_of_large_rewards_stay_finite():
  policy, reference = jnp.asarray([[-1.0, -2.0, -3.0]]), jnp.asarray([[-1.5, -1.5, -2.5]])

  def loss_of(policy, reward):
    return rspo.rspo_loss(policy, reference, reward, beta=1.0, delta=1.0, gain="exp2").sum()

  for reward, alike in (([130.0, 5.0, 1.0], [20.0, -105.0, -109.0]), ([600.0, 599.0, 3.0], [100.0, 99.0, -497.0])):
    loss, grad = jax.value_and_grad(loss_of)(policy, jnp.asarray([reward]))
    expected = loss_of(policy, jnp.asarray([alike]))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert np.isfinite(grad).all() and loss > 0
