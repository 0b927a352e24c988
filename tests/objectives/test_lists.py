"""What the list objectives share, and each of them against its loop: value, gradient of the
policy alone, edges.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.objectives import distillation, dpo, grpo, lists, rspo, unified
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
  "sdpo": (
    functools.partial(dpo.softmax_dpo_loss, beta=0.7),
    lambda p, f, v: loops.sdpo(p, f, v, 0.7),
  ),
  "grpo": (grpo.grpo_loss, lambda p, f, v: loops.grpo(p, f, v, 0.2, 0.1)),
  "grpo tight": (
    functools.partial(grpo.grpo_loss, clip=0.05, kl=0.7, smallest_std=0.5),
    lambda p, f, v: loops.grpo(p, f, v, 0.05, 0.7, 0.5),
  ),
  "xent": (distillation.reward_cross_entropy, lambda p, f, v: loops.cross_entropy(p, v)),
}
case = pytest.mark.parametrize("name", CASES)
ROWS, M = 40, 7
SMOOTH = (
  0,
  1,
  2,
  5,
  6,
  10,
)  # lists in which no likelihoods are equal, so that a small step changes no order


def tame(name, reward):
  """2^v overflows on heavy tails, so that gain sees their logarithm."""
  return np.sign(reward) * np.log1p(np.abs(reward)) if "exp2" in name else reward


def drawn(name, *arguments, **settings):
  policy, reference, reward, mask = draw(*arguments, **settings)
  return (
    policy,
    reference,
    np.where(mask, tame(name, np.where(mask, reward, 0)), reward).astype(reward.dtype),
    mask,
  )


@functools.cache
def found(name):
  """Lists of up to seven in float64, the loss of each, and the gradients by policy, reference
  and reward.
  """
  inputs = drawn(name, 9, ROWS, M, unknown=0.15, signed=True)
  inputs[1][0] = inputs[0][0] + 0.25 * np.arange(
    M
  )  # the first and the fifth list have a reference of all
  inputs[1][5] = np.where(inputs[3][5], inputs[0][5] - 0.3 * np.arange(M), 0)
  inputs[1][6, np.argmax(inputs[3][6])] = (
    lists.UNKNOWN
  )  # a log-probability of exactly this is unknown, too

  def loss(policy, reference, reward):
    each = CASES[name][0](policy, reference, reward, mask_BM=inputs[3])
    return each.sum(), each

  with jax.enable_x64(True):
    gradients, each = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs[:3])
  return inputs, np.asarray(each), [np.asarray(x) for x in gradients]


@case
def test_value_equals_the_loop(name):
  inputs, each, _ = found(name)
  np.testing.assert_allclose(each, by_loop(CASES[name][1], *inputs), rtol=1e-6, atol=1e-8)
  assert len(np.unique(each)) > ROWS / 2


@case
def test_gradient_equals_finite_differences_of_the_loop(name):
  (policy, reference, reward, mask), _, (gradient, _, _) = found(name)
  for b in SMOOTH:
    real = np.flatnonzero(mask[b])
    row = [x[b, real] for x in (policy, reference, reward)]
    for place, m in enumerate(real):
      up, down = (row[0] + sign * 1e-5 * (np.arange(len(real)) == place) for sign in (1, -1))
      numeric = (
        np.subtract(
          *(CASES[name][1](p.tolist(), row[1].tolist(), row[2].tolist()) for p in (up, down))
        )
        / 2e-5
      )
      np.testing.assert_allclose(gradient[b, m], numeric, rtol=1e-4, atol=1e-6)
  assert np.abs(gradient[list(SMOOTH)]).max() > 1e-3 and (gradient[~mask] == 0).all()


@case
def test_no_gradient_goes_to_the_reference_or_the_rewards(name):
  _, _, (_, of_reference, of_reward) = found(name)
  assert (of_reference == 0).all() and (of_reward == 0).all()


@case
def test_long_lists_in_float32_are_near(name):
  ours, loop = CASES[name]
  inputs = drawn(name, 5, 4, 60, np.float32, unknown=0.01, signed=True)
  expected = by_loop(loop, *inputs)
  np.testing.assert_allclose(
    jax.jit(ours)(*inputs[:3], mask_BM=inputs[3]), expected, rtol=3e-4, atol=1e-5
  )
  half = [jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)] * 3
  assert jax.eval_shape(ours, *half).dtype == jnp.float32


EDGES = (
  # policy, reference, reward, mask
  ([-3.0, 0, 0], [-2.0, 0, 0], [1.0, 0, 0], [True, False, False]),
  ([-3.0, -2.0, -9.0], [-3.0, -1.0, -4.0], [2.0, 2.0, 2.0], [True] * 3),
  ([-3.0, -2.0, 0], [-3.0, -1.0, 0], [0.0, 0.0, 7.0], [True, True, False]),
  ([-3.0, -2.0, 0], [-3.0, -1.0, 0], [-0.1, -0.1, 0], [True, True, False]),
  ([-3.0, -2.0, 0], [-3.0, -1.0, 0], [1.0, 2.0, 0], [False] * 3),
  ([-1e9, -2.0, -1e9], [-3.0, -1e9, -1e9], [3.0, 0.0, 1.0], [True] * 3),
  ([-1e9, -1e9, 0], [-1e9, -1e9, 0], [3.0, 1.0, 0], [True, True, False]),
  ([np.nan, -2.0, -3.0], [np.inf, -2.0, -1.0], [np.nan, 2.0, 1.0], [False, True, True]),
  ([-np.inf, -2.0, -3.0], [-np.inf, -2.0, -1.0], [4.0, 2.0, 1.0], [True] * 3),
  ([-1.0, -2.0, -3.0], [-1.0, -2.0, -1.0], [-1.0, -5.0, -2.0], [True] * 3),
)
EQUAL = 5  # the first lists have no two rewards


@case
def test_edges_have_finite_values_and_gradients(name):
  policy, reference, reward, mask = (jnp.asarray(column) for column in zip(*EDGES, strict=True))

  def loss(policy):
    each = CASES[name][0](policy, reference, reward, mask_BM=mask)
    return each.sum(), each

  gradient, each = jax.jit(jax.grad(loss, has_aux=True))(policy)
  assert np.isfinite(each).all() and np.isfinite(gradient).all()
  if name != "xent" and "grpo" not in name:
    assert (each[:EQUAL] == 0).all() and (gradient[:EQUAL] == 0).all()
  assert each[4] == 0 and (gradient[4] == 0).all()


def test_shapes_that_differ_are_refused():
  x = jnp.zeros((2, 3))
  for wrong in ((x[:1], x, x), (x, x[:, :2], x), (x, x, x[0]), (x, x, x, jnp.ones((2, 2), bool))):
    with pytest.raises(AssertionError):
      dpo.dpo_loss(*wrong[:3], beta=1.0, mask_BM=None if len(wrong) == 3 else wrong[3])


def test_order_is_by_each_key_in_turn_then_the_earlier_and_padding_is_last():
  rng = np.random.default_rng(0)
  first, second = (rng.integers(-2, 3, (30, 8)).astype(np.float32) for _ in range(2))
  mask = rng.random((30, 8)) < 0.7
  first[~mask] = rng.choice([np.nan, np.inf, 9.0], (~mask).sum())
  found = np.asarray(lists.order(mask, first, second))
  rank = np.asarray(lists.inverse(found))
  for b in range(30):
    real = sorted(np.flatnonzero(mask[b]), key=lambda m: (-first[b, m], -second[b, m], m))
    assert found[b, : len(real)].tolist() == real
    assert sorted(found[b]) == list(range(8)) and found.dtype == rank.dtype == np.int32
    assert [found[b, rank[b, m]] for m in range(8)] == list(range(8))


def test_extremes_are_the_likelier_of_equal_ones_then_the_earlier():
  policy = np.array([[1, 2, 2, 0, 9], [1, 1, 1, 1, 1], [3, 1, 2, 2, 7]], np.float32)
  reward = np.array([[5, 5, 5, 1, 1], [2, 2, 2, 2, 2], [-1, -4, -4, -4, 8]], np.float32)
  mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool)
  best, worst = lists.extremes(policy, reward, mask)
  np.testing.assert_array_equal(best, [[0, 1, 0, 0, 0], [0] * 5, [1, 0, 0, 0, 0]])
  np.testing.assert_array_equal(worst, [[0, 0, 0, 1, 0], [0] * 5, [0, 0, 1, 0, 0]])


def test_log_sum_exp_is_that_of_the_mask_and_of_nothing_minus_infinity():
  x = np.array(
    [[900.0, 901.0, 0.3], [-900.0, -901.5, 5.0], [0.2, 0.3, 0.4], [1.0, 2.0, 3.0]], np.float32
  )
  mask = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
  expected = [
    901 + np.log1p(np.exp(-1)),
    -900 + np.log1p(np.exp(-1.5)),
    np.log(np.exp([0.2, 0.3, 0.4]).sum()),
    -np.inf,
  ]
  np.testing.assert_allclose(lists.masked_log_sum_exp(x, mask, 1), expected, rtol=1e-6)
  np.testing.assert_allclose(lists.masked_log_sum_exp(x.T, mask.T, 0), expected, rtol=1e-6)
  gradient = jax.jit(
    jax.grad(lambda x: jnp.where(mask.any(1), lists.masked_log_sum_exp(x, mask, 1), 0).sum())
  )(x)
  share = np.where(
    mask, np.exp(np.where(mask, x - np.where(mask, x, -np.inf).max(1, keepdims=True), 0)), 0
  )
  share[:3] /= share[:3].sum(1, keepdims=True)
  np.testing.assert_allclose(gradient, share, rtol=1e-5)


def test_safe_log_and_masked_mean():
  x = jnp.asarray([0.0, 0.5, 1.0, 1.5, -2.0])
  found, gradient = jax.vmap(jax.value_and_grad(lists.safe_log))(x)
  np.testing.assert_allclose(found, [-np.inf, np.log(0.5), 0, np.log(1.5), -np.inf], rtol=1e-6)
  np.testing.assert_allclose(gradient, [0, 2, 1, 2 / 3, 0], rtol=1e-6)
  mask = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], bool)
  np.testing.assert_allclose(
    lists.masked_mean(np.full((3, 3), [2.0, 5.0, 0.7]), mask), [3.5, 0, 0.7], rtol=1e-6
  )


def test_unified_weights_equal_the_loop_and_have_no_gradient():
  policy, _, reward, mask = draw(7, 30, 6, signed=True)
  mask[:8] = np.arange(6) < np.array([[1], [2], [2], [3], [3], [6], [6], [0]])
  policy[:8], reward[:8] = np.random.default_rng(1).normal(-5, 2, (2, 8, 6))
  cases = (({"w0": 1.5, "z_max": 2.0}, (1.5, 2.0)), ({}, (1.0, 1.0)))

  @jax.jit
  def compute(policy, reward):
    def total(policy, reward):
      return sum(x.sum() for x in unified.unified_weights(policy, reward, mask_BM=mask))

    weights = [unified.unified_weights(policy, reward, mask_BM=mask, **given) for given, _ in cases]
    known = jnp.where(mask, policy, 0), jnp.where(mask, reward, 0)
    return weights, jax.grad(total, argnums=(0, 1))(*known)

  with jax.enable_x64(True):
    weights, gradients = jax.device_get(compute(policy, reward))
  for found, (_, expected) in zip(weights, cases, strict=True):
    for b in range(30):
      pair = loops.unified(policy[b][mask[b]].tolist(), reward[b][mask[b]].tolist(), *expected)
      for ours, loop in zip(found, pair, strict=True):
        np.testing.assert_allclose(ours[b][mask[b]], loop, rtol=1e-9, atol=1e-12)
        assert (ours[b][~mask[b]] == 0).all()
  assert all((gradient == 0).all() for gradient in gradients)


def test_grpo_scales_small_deviations_up_to_the_smallest_one():
  policy, reference = np.log([[0.5, 0.2, 0.3]]), np.log([[0.4, 0.4, 0.2]])
  compute = jax.jit(grpo.grpo_loss)
  with jax.enable_x64(True):
    for spread, there in ((1e-6, True), (1.1e-8, True), (0.9e-8, False)):
      reward = np.array([[1.0, 1.0 + spread * 3 / np.sqrt(2), 1.0]])
      expected = loops.grpo(policy[0], reference[0], reward[0] if there else [1.0] * 3, 0.2, 0.1)
      np.testing.assert_allclose(compute(policy, reference, reward), [expected], rtol=1e-4)
