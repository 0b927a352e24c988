"""RSPO beyond its value: its terms, its gate, its weights, the lists worked on some at a time,
and what is refused.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.objectives import rspo
from tests.objectives import loops
from tests.objectives.draws import draw

SETTINGS = {"beta": 1.0, "delta": 0.5}


def inner(jaxpr):
  """All equations of a program, those of its inner programs too."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for part in value if isinstance(value, (tuple, list)) else (value,):
        if hasattr(part := getattr(part, "jaxpr", part), "eqns"):
          yield from inner(part)


def test_terms_are_those_of_each_candidate_and_their_mean_is_the_loss():
  policy, reference, reward, mask = draw(11, 12, 10, signed=True)

  def both(*arguments):
    return rspo.rspo_terms(*arguments, mask_BM=mask, **SETTINGS), rspo.rspo_loss(
      *arguments, mask_BM=mask, **SETTINGS
    )

  with jax.enable_x64(True):
    (terms, counted), loss = jax.device_get(jax.jit(both)(policy, reference, reward))
  assert (terms[~counted] == 0).all()
  for b in range(12):
    real = np.flatnonzero(mask[b])
    expected = loops.rspo_terms(
      *(x[b][real].tolist() for x in (policy, reference, reward)), **SETTINGS
    )
    assert set(np.flatnonzero(counted[b])) == {real[i] for i in expected}
    for i, value in expected.items():
      assert terms[b, real[i]] == pytest.approx(value, rel=1e-9)
    assert loss[b] == (pytest.approx(np.mean(list(expected.values())), rel=1e-9) if expected else 0)


@pytest.mark.parametrize(
  ("lists_at_once", "pairs"),
  [
    (0.5, {}),
    (3, {"ranks": "model"}),
    *(
      pytest.param(*case, marks=pytest.mark.long)
      for case in ((0.5, {"ranks": "model"}), (1, {}), (1, {"ranks": "model"}), (3, {}))
    ),
  ],
)
def test_lists_worked_on_some_at_a_time_have_the_same_terms_and_gradients(
  monkeypatch, pairs, lists_at_once
):
  B, M = 7, 6
  policy, reference, reward, mask = draw(2, B, M, np.float32, unknown=0.1)
  policy, reference, reward = (np.where(mask, x, 0) for x in (policy, reference, reward))

  def loss(policy):
    return rspo.rspo_loss(policy, reference, reward, mask_BM=mask, **SETTINGS, **pairs).sum()

  whole = jax.jit(jax.value_and_grad(loss))(policy)
  monkeypatch.setattr(rspo, "_PAIRS", int(lists_at_once * M * M))
  parts = jax.jit(jax.value_and_grad(lambda policy: loss(policy)))(
    policy
  )  # another function: nothing is remembered
  assert whole[0] > 0.1
  np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)
  np.testing.assert_allclose(parts[1], whole[1], rtol=1e-5, atol=1e-7)
  sizes = {
    var.aval.size for equation in inner(jax.make_jaxpr(lambda policy: loss(policy))(policy).jaxpr)
    for var in equation.outvars
  }  # fmt: skip
  assert max(size for size in sizes if size % (M * M) == 0) == max(int(lists_at_once), 1) * M * M


@pytest.mark.long
def test_pairs_worked_on_at_once_take_64_mib_an_array_and_are_not_kept_for_the_backward_pass():
  assert rspo._PAIRS * np.dtype(np.float32).itemsize == 64 << 20
  x = np.arange(24, dtype=np.float32).reshape(2, 12)
  loss = functools.partial(rspo.rspo_loss, **SETTINGS)
  backward = jax.jit(lambda policy: jax.vjp(lambda policy: loss(policy, x, x), policy)[1])(-x)
  kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= 2 * 12 * 12]
  assert not kept


def test_pair_weights_by_the_models_ranks_are_scaled_back_to_one():
  """One dominant reward in mid-list: what its row sums to by the reward's ranks and by the
  model's.
  """
  n = 100
  policy, reward = -np.arange(float(n)), np.where(np.arange(n) == 50, 1.0, 0.0)
  unscaled = sum(
    1 / np.log2(1 + abs(50 - j)) - 1 / np.log2(2 + abs(50 - j)) for j in range(n) if j != 50
  )
  assert unscaled > 1.5
  for ranks, total in (("model", 1.0), ("reward", 1 - 1 / np.log2(1 + n))):
    settings = {**SETTINGS, "ranks": ranks}
    with jax.enable_x64(True):
      compute = jax.jit(functools.partial(rspo.rspo_loss, **settings))
      loss = compute(policy[None], policy[None], reward[None])
    assert loops.weights(policy, reward, ranks=ranks).sum(1).max() == pytest.approx(total)
    assert loss[0] == pytest.approx(loops.rspo(policy, policy, reward, **settings), rel=1e-9)


def test_the_reference_counts_where_the_mean_log_ratio_is_below_delta():
  policy = np.array([[-1.0, -2.0, -4.0]])
  reward = np.array([[3.0, 2.0, 1.0]])
  reference = policy - 0.5  # a log-ratio of exactly .5 everywhere
  weight = loops.weights(policy[0], reward[0])
  with_reference = np.mean([np.log2(1 + weight[0, 1] + weight[0, 2]), np.log2(1 + weight[1, 2])])
  alone = np.mean([
    np.log2(1 + weight[0, 1] * np.exp(-1) + weight[0, 2] * np.exp(-3)),
    np.log2(1 + weight[1, 2] * np.exp(-2)),
  ])  # fmt: skip
  loss_of, cost_of = jax.jit(functools.partial(rspo.rspo_loss, beta=1.0)), jax.jit(rspo.ndcg_cost)
  for delta, expected in ((0.5 + 1e-9, with_reference), (0.5, alone), (0.4, alone)):
    with jax.enable_x64(True):
      found = loss_of(policy, reference, reward, delta=delta)
      cost = cost_of(policy + 2 * (reward == 2), reference, reward, delta=delta)
    assert found[0] == pytest.approx(expected, rel=1e-9)
    # the second candidate is now the likeliest, and its log-ratio 2.5: one pair stands the wrong
    # way round
    assert cost[0] == pytest.approx(weight[0, 1] / 2)


def test_a_missing_reference_closes_the_gate():
  policy, _, reward, mask = draw(3, 20, 12)
  reference = np.where(mask, policy - 5, 0)  # a log-ratio of 5
  free = np.full_like(policy, -1e9)
  with jax.enable_x64(True):
    compute = jax.jit(functools.partial(rspo.rspo_loss, beta=1.0, mask_BM=mask))
    closed, unknown = (compute(policy, x, reward, delta=1.0) for x in (reference, free))
    opened = compute(policy, reference + np.arange(12), reward, delta=100.0)
  np.testing.assert_allclose(closed, unknown, rtol=1e-9)
  assert np.abs(np.asarray(opened - closed)).max() > 0.1


def test_a_sharpness_of_zero_leaves_the_weights_alone():
  policy, reference, reward, mask = draw(5, 9, 8)
  assert not mask.all(1).all()  # padding follows the last candidates of some lists

  def loss(policy):
    loss_B = rspo.rspo_loss(policy, reference, reward, mask_BM=mask, beta=0.0, delta=0.5)
    return loss_B.sum(), loss_B

  slope, found = jax.jit(jax.grad(loss, has_aux=True))(policy)
  for b in range(9):
    real = (x[b][mask[b]].tolist() for x in (policy, reference, reward))
    expected = list(loops.rspo_terms(*real, beta=0.0, delta=0.5).values())
    assert found[b] == pytest.approx(np.mean(expected or [0]), rel=1e-5)
  np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize(
  "settings", [{"gain": "square"}, {"ranks": "both"}, {"gain": "exp2", "ranks": "x"}]
)
def test_unknown_options_are_refused(settings):
  x = jnp.zeros((1, 2))
  with pytest.raises(ValueError, match="are allowed"):
    rspo.rspo_loss(x, x, x, beta=1.0, delta=1.0, **settings)


def test_gains_of_large_rewards_stay_finite():
  policy, reference = jnp.asarray([[-1.0, -2.0, -3.0]]), jnp.asarray([[-1.5, -1.5, -2.5]])

  @jax.jit
  def loss_of(policy, reward):
    return rspo.rspo_loss(policy, reference, reward, beta=1.0, delta=1.0, gain="exp2").sum()

  for reward, alike in (
    ([130.0, 5.0, 1.0], [20.0, -105.0, -109.0]),
    ([600.0, 599.0, 3.0], [100.0, 99.0, -497.0]),
  ):
    loss, grad = jax.value_and_grad(loss_of)(policy, jnp.asarray([reward]))
    np.testing.assert_allclose(loss, loss_of(policy, jnp.asarray([alike])), rtol=1e-4)
    assert np.isfinite(grad).all() and loss > 0
