"""The optimiser step: decay, schedule, accumulation, randomness, the finite flag."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import TrainConfig
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.step import make_train_step
from tests.training import toy


def _leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_learning_rate_rises_then_falls_to_zero():
  rate = state_lib.make_optimizer(TrainConfig(learning_rate=0.1, warmup_steps=4), 20).learning_rate
  rates = np.asarray([rate(step) for step in range(21)])
  np.testing.assert_allclose(rates[:5], [0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-6)
  assert (np.diff(rates[4:]) < 0).all() and rates[20] < 1e-8


def test_schedules_without_an_end_do_not_read_the_length():
  for total in (2, 10**9):
    made = (
      state_lib.make_optimizer(
        TrainConfig(learning_rate=0.1, warmup_steps=4, schedule=name), total
      ).learning_rate
      for name in ("constant", "inverse_sqrt")
    )
    steps = (0, 1, 2, 3, 4, 15, 35, 399)
    constant, falling = ([float(rate(step)) for step in steps] for rate in made)
    np.testing.assert_allclose(constant, [0.025, 0.05, 0.075] + [0.1] * 5, rtol=1e-6)
    # After the 4 steps of warm-up √(4 / steps done): the peak at 4, half of it at 16.
    expected = [0.025, 0.05, 0.075, 0.1, 0.1 * 0.8**0.5, 0.05, 0.1 / 3, 0.01]
    np.testing.assert_allclose(falling, expected, rtol=1e-6)


def test_warmup_is_at_most_half_of_a_short_run():
  rate = state_lib.make_optimizer(TrainConfig(learning_rate=0.1, warmup_steps=50), 6).learning_rate
  np.testing.assert_allclose(max(float(rate(step)) for step in range(6)), 0.1, rtol=1e-6)


def test_decay_touches_matrices_only():
  optimizer = state_lib.make_optimizer(
    TrainConfig(learning_rate=0.1, weight_decay=0.5, warmup_steps=0), 100
  )
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
  still = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(lambda p: optimizer.update(still, optimizer.init(p), p))(params)
  np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates["bias"], 0.0)


@pytest.mark.parametrize(("limit", "norm"), [(1.0, 1.0), (0.0, 5.0)])
def test_clip_norm_limits_the_gradient_and_zero_does_not(limit, norm):
  optimizer = state_lib.make_optimizer(TrainConfig(clip_norm=limit, weight_decay=0.0), 100)
  params = {"w": jnp.zeros(2)}
  gradient = {"w": jnp.asarray([3.0, 4.0])}
  _, opt_state = jax.jit(lambda p: optimizer.update(gradient, optimizer.init(p), p))(params)
  first_moment = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.shape == (2,)][0]
  np.testing.assert_allclose(np.linalg.norm(first_moment), 0.1 * norm, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 16])
def test_accumulated_step_equals_the_full_batch(accumulate):
  whole, step, batch_at = toy.setup(10, train=False)
  parts, split_step, _ = toy.setup(10, accumulate=accumulate, train=False)
  for number in range(3):
    whole, whole_metrics = step(whole, batch_at(number))
    parts, parts_metrics = split_step(parts, batch_at(number))
  for name, value in whole_metrics.items():
    np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-4)
  for a, b in zip(_leaves(whole.params), _leaves(parts.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def _noise_loss(params, batch, key):
  noise = jax.random.normal(key)
  return params["w"] * jnp.mean(batch), {"noise": noise, "squared": noise**2}


def _noise_state(optimizer):
  return state_lib.init_state(lambda: {"w": jnp.ones(())}, optimizer, mesh_lib.local_mesh())


def test_micro_batches_draw_their_own_noise():
  optimizer = state_lib.make_optimizer(TrainConfig(), 10)
  spread = []
  for accumulate in (1, 2):
    _, metrics = make_train_step(_noise_loss, optimizer, 0, accumulate)(
      _noise_state(optimizer), jnp.ones(4)
    )
    spread.append(float(metrics["squared"] - metrics["noise"] ** 2))
  assert spread[0] == pytest.approx(0, abs=1e-6) and spread[1] > 1e-4


def test_randomness_is_of_seed_and_step_alone():
  optimizer = state_lib.make_optimizer(TrainConfig(), 10)
  noise = {}
  for seed in (0, 1):
    step = make_train_step(_noise_loss, optimizer, seed)
    state = _noise_state(optimizer)
    for number in range(3):
      state, metrics = step(state, jnp.ones(4))
      noise[seed, number] = float(metrics["noise"])
    _, metrics = step(_noise_state(optimizer).replace(step=jnp.asarray(2, jnp.int32)), jnp.zeros(4))
    assert float(metrics["noise"]) == noise[seed, 2]
  assert len(set(noise.values())) == 6


def test_a_batch_that_cannot_be_split_is_told():
  state, step, batch_at = toy.setup(10, accumulate=3)
  with pytest.raises(ValueError, match="16 rows cannot be split into 3 micro-batches"):
    step(state, batch_at(0))


def test_the_given_state_is_donated_and_the_step_counted():
  state, step, batch_at = toy.setup(10)
  after, metrics = step(state, batch_at(0))
  assert int(after.step) == 1 and bool(metrics["finite"])
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_all_of_the_state_is_updated_in_place_and_float32():
  state, step, batch_at = toy.setup(10)
  memory = step.lower(state, batch_at(0)).compile().memory_analysis()
  assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  after, _ = step(state, batch_at(0))
  floats = [
    leaf for leaf in jax.tree.leaves((after.params, after.opt_state)) if leaf.dtype != jnp.int32
  ]
  assert len(floats) == 3 * len(jax.tree.leaves(after.params)) and {
    str(leaf.dtype) for leaf in floats
  } == {"float32"}


def test_finite_flag_falls():
  state, step, batch_at = toy.setup(10)
  batch = batch_at(0)
  _, metrics = step(state, batch | {"y": batch["y"].at[3].set(jnp.nan)})
  assert not bool(metrics["finite"])


def test_abstract_state_is_the_state_without_values():
  state, _, _ = toy.setup(10)
  net, mesh = toy.Net(), mesh_lib.local_mesh()

  def init_fn():
    return net.init(jax.random.key(0), jnp.zeros((1, 4)), False)["params"]

  planned = state_lib.abstract_state(init_fn, state_lib.make_optimizer(toy.CONFIG, 10), mesh)
  described = state_lib.abstract(state)
  assert planned == described
  assert state_lib.abstract_params(init_fn, mesh) == described.params
