"""The signed bias of the history: normalisation, identity, gradients; and inside the model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.features.batches import HISTORY
from gr4ad_jax.models.history_bias import RATE, biased_logp, biased_prefix_logp
from tests.models import tiny

WORLD = 12


def biased(logits, number, bias, counted=None):
  """All 12 sequences' log p', the first `number` of them being the history, `counted` of those
  scored.
  """
  return _biased(
    jnp.asarray(logits, jnp.float32), number, bias, number if counted is None else counted
  )


@jax.jit  # in one program for all numbers
def _biased(logits, number, bias, counted):
  logp = jax.nn.log_softmax(logits)[None]
  seen = jnp.arange(WORLD)[None] < number
  history, mask = logp[:, :8], jnp.arange(8)[None] < counted
  with jax.numpy_rank_promotion("raise"):
    return logp, biased_logp(
      logp, seen, history, mask, jnp.asarray([number]), jnp.asarray(bias, jnp.float32)
    )


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.floats(-4, 4), min_size=WORLD, max_size=WORLD), st.integers(0, 8), st.floats(-20, 5)
)
def test_biased_probabilities_sum_to_one(logits, number, bias):
  logp, out = biased(logits, number, bias)
  np.testing.assert_allclose(np.exp(out).sum(), 1, rtol=1e-4)
  expected = logp + bias * (np.arange(WORLD) < number)
  np.testing.assert_allclose(out, jax.nn.log_softmax(expected), atol=1e-4)


def test_no_bias_and_no_history_change_nothing():
  logits = np.random.default_rng(0).normal(size=WORLD)
  for number, bias in ((5, 0.0), (0, -3.0), (0, 3.0)):
    logp, out = biased(logits, number, bias)
    np.testing.assert_allclose(out, logp, atol=1e-6)


def test_a_part_of_an_even_history_stands_for_all_of_it():
  part, whole = (biased(np.zeros(WORLD), 8, -2.0, counted)[1] for counted in (4, 8))
  np.testing.assert_allclose(part, whole, atol=1e-6)


def test_the_estimate_is_scaled_up_and_stays_below_one():
  """Of a history of 8, 2 are scored."""
  for mass, whole in ((0.1, 0.4), (0.3, 1 - 1e-4)):  # .3 would stand for 1.2
    past = np.log([[mass / 4, 3 * mass / 4, 0.9, 0.9]])  # the last two are padding
    mask, logp = np.array([[True, True, False, False]]), np.log([[0.02, 0.05]])
    found = biased_logp(logp, np.array([[False, True]]), past, mask, np.array([8]), jnp.float32(2))
    expected = logp + [[0, 2]] - np.log(1 - whole + np.exp(2) * whole)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("bias", [1.3, -2.0])
def test_a_prefix_has_what_its_sequences_have_together(bias):
  world = np.array([(a, b, c) for a in range(3) for b in range(2) for c in range(4)])
  p = np.random.default_rng(1).dirichlet(np.full(len(world), 0.7))
  past = [2, 3, 9, 21, 2]  # the first two share a prefix of two codes; the last is a repeat
  counted = np.isin(np.arange(len(world)), past)
  weighted = p * np.where(counted, np.exp(bias), 1)
  expected, plain = np.zeros((2, len(world), 3))
  for w, codes in enumerate(world):
    for t in range(3):
      below = [all(other[: t + 1] == codes[: t + 1]) for other in world]
      plain[w, t] = np.log(p[below].sum())
      expected[w, t] = np.log(weighted[below].sum() / weighted.sum())
  past_logp = np.where([True, True, True, True, False], np.log(p[past]), -np.inf)
  found = tiny.jit(biased_prefix_logp)(
    jnp.asarray(plain, jnp.float32)[None],
    jnp.asarray(world)[None],
    jnp.asarray(world[past])[None],
    jnp.asarray(past_logp, jnp.float32)[None],
    jnp.float32(bias),
  )
  np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize("level", [-200.0, 0.0, 40.0])
@pytest.mark.parametrize("bias", [-30.0, 0.0, 10.0])
def test_gradients_are_finite_where_the_history_holds_nothing_or_all(level, bias):
  logits = jnp.where(jnp.arange(WORLD) < 6, level, 0.0)
  grads = jax.grad(lambda logits, b: biased(logits, 6, b)[1].sum(), argnums=(0, 1))(logits, bias)
  chex.assert_tree_all_finite((biased(logits, 6, bias)[1], grads))


def test_the_models_normaliser_counts_a_shared_uasid_once():
  batch = tiny.make_batch()
  model = tiny.make_model(layers=1, lazy_layers=0, history_bias=True)

  def prefixes(module, batch, codes_BMT):
    start = module.start(batch, train=False)
    before = module.score(start, codes_BMT, 1, train=False).generated_logp_BMT
    before_BMT = jnp.cumsum(before, axis=-1)
    return before_BMT, module.prefix_logp(start, before_BMT, codes_BMT)

  def forward(p, b, c):
    logp_BM = model.apply({"params": p}, b, c).logp_BM
    return logp_BM, *model.apply({"params": p}, b, c, method=prefixes)

  run = tiny.jit(forward)
  params = tiny.make_params(model, bias=2.0)
  assert (batch.slot_codes_BST[:2, 0] == batch.slot_codes_BST[:2, 2]).all()
  biases = (np.float32(b / RATE) for b in (2.0, 0.0))
  (logp, before, after), (plain, *same) = (
    run(params | {"history_bias": b}, batch, tiny.every_code(batch)) for b in biases
  )
  past = [batch.slot_codes_BST[b, batch.slot_kind_BS[b] == HISTORY] for b in range(4)]
  seen = np.array([[(code == codes).all(-1).any() for code in tiny.ALL_CODES] for codes in past])
  np.testing.assert_allclose(logp, jax.nn.log_softmax(plain + 2.0 * seen), atol=1e-5)
  np.testing.assert_allclose(*same, atol=1e-6)  # no bias moves no prefix
  assert (np.abs(after - before)[:2] > 1e-3).all() and after.shape == (4, 140, 3)
  np.testing.assert_allclose(after[2:], before[2:], atol=1e-5)  # nor does one of no history
  assert seen[:2].any(1).all() and not seen[2:].any()  # neighbours and rising ads are not history
