"""Losses over single ads against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.objectives import item_losses

RNG = np.random.default_rng(0)
P, M, N, S, K = 5, 3, 11, 4, 6


@pytest.fixture
def case():
  scores = RNG.normal(size=(P, N)).astype(np.float32) * 2
  target = np.stack([RNG.permutation(N)[:M] for _ in range(P)])
  mask = RNG.random((P, M)) < 0.6
  mask[0] = False
  return scores, target, mask


def logsumexp(x):
  return np.log(np.sum(np.exp(np.float64(x))))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("padded", [0, 2])
def test_softmax_loss_is_the_mean_over_real_targets(case, smoothing, padded):
  """The smoothed label is spread over the ads that there are, not over the rows of the table
  that are none.
  """
  scores, target, mask = case
  losses = []
  for p, m in zip(*np.nonzero(mask), strict=True):
    logp = scores[p] - logsumexp(scores[p])
    losses.append(-(1 - smoothing) * logp[target[p, m]] - smoothing * logp.mean())
  table = np.pad(scores, ((0, 0), (0, padded)), constant_values=-np.inf)
  found = item_losses.softmax_loss(table, np.take_along_axis(scores, target, 1), mask, smoothing)
  np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


def test_the_label_is_not_smoothed_unless_asked(case):
  scores, target, mask = case
  own = np.take_along_axis(scores, target, 1)
  np.testing.assert_array_equal(
    item_losses.softmax_loss(scores, own, mask), item_losses.softmax_loss(scores, own, mask, 0.0)
  )


def test_no_target_gives_zero_and_no_nan(case):
  scores, target, mask = case
  own, none = np.take_along_axis(scores, target, 1), np.zeros_like(mask)
  compute = jax.jit(jax.value_and_grad(lambda s: item_losses.softmax_loss(s, own, none)))
  loss, grad = compute(scores)
  assert loss == 0 and (np.asarray(grad) == 0).all()
  nothing = jnp.full(own.shape, jnp.nan)
  assert item_losses.binary_loss(nothing, nothing, none) == 0


def test_strata_are_counted_as_they_are_weighed():
  """Targets and exact ads as they are, sampled ones by e^log_weight each; what is masked counts
  nowhere.
  """
  draw = lambda *shape: (RNG.normal(size=shape) * 1.5).astype(np.float32)  # noqa: E731
  scores = draw(P, M), draw(P, S), draw(P, K)
  masks = [RNG.random(x.shape) < 0.6 for x in scores]
  log_weight = draw(K)
  total_P, losses = np.zeros(P), []
  for part, (score, mask) in enumerate(zip(scores, masks, strict=True)):
    for p, i in zip(*np.nonzero(mask), strict=True):
      total_P[p] += np.exp(float(score[p, i])) * (np.exp(float(log_weight[i])) if part == 2 else 1)
  for p, m in zip(*np.nonzero(masks[0]), strict=True):
    losses.append(np.log(total_P[p]) - scores[0][p, m])
  flat = [x for pair in zip(scores, masks, strict=True) for x in pair]
  np.testing.assert_allclose(
    item_losses.sampled_softmax_loss(*flat, log_weight), np.mean(losses), rtol=1e-5
  )


def test_sampling_every_ad_is_the_full_softmax(case):
  """The strata are targets, exact ads and the rest: with all of the rest drawn nothing is
  estimated.
  """
  scores, target, mask = case
  exact = np.stack([np.setdiff1d(np.arange(N), target[p])[:S] for p in range(P)])
  rest = np.ones((P, N), bool)
  for p in range(P):
    rest[p, exact[p]] = False
    rest[p, target[p][mask[p]]] = False
  take = np.take_along_axis
  found = item_losses.sampled_softmax_loss(
    take(scores, target, 1), mask, take(scores, exact, 1), np.ones((P, S), bool), scores, rest, 0.0
  )
  np.testing.assert_allclose(
    found, item_losses.softmax_loss(scores, take(scores, target, 1), mask), rtol=1e-5
  )


def test_a_sample_stands_for_the_whole_table():
  """Of equal scores, K drawn of N weigh as all N do."""
  score, one = np.zeros((1, 1), np.float32), np.ones((1, 1), bool)
  nothing = np.zeros((1, 1), np.float32), np.zeros((1, 1), bool)
  drawn = np.zeros((1, 8)), np.ones((1, 8), bool), np.log(40 / 8)
  found = item_losses.sampled_softmax_loss(score, one, *nothing, *drawn)
  np.testing.assert_allclose(found, np.log(41), rtol=1e-6)


def test_binary_loss(case):
  scores, target, mask = case
  own = np.take_along_axis(scores, target, 1)
  other = RNG.normal(size=own.shape).astype(np.float32)
  expected = (np.log1p(np.exp(-own)) + np.log1p(np.exp(other)))[mask].mean()
  np.testing.assert_allclose(item_losses.binary_loss(own, other, mask), expected, rtol=1e-5)


def test_shapes_that_differ_are_refused(case):
  scores, target, mask = case
  own = np.take_along_axis(scores, target, 1)
  for call in (
    lambda: item_losses.softmax_loss(scores, own[0], mask),
    lambda: item_losses.sampled_softmax_loss(own[0], mask, own, mask, own, mask, 0.0),
    lambda: item_losses.binary_loss(own, own[:, :1], mask),
  ):
    with pytest.raises(AssertionError):
      call()
