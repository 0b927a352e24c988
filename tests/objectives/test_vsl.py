"""VSL against loops, and its corner cases."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.objectives import vsl

B, M, T, V = 3, 4, 2, 5
MONEY = st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.3, 1.5, 7.77, 1e4]) | st.floats(
  0, 100, width=32, allow_subnormal=False
)


def make_inputs(seed=0):
  rng = np.random.default_rng(seed)
  mask = rng.random((B, M)) < 0.6
  mask[1], mask[0, 0] = False, True  # a request without targets
  return {
    "logp": -rng.exponential(3, (B, M)).astype(np.float32),
    "mtp": -rng.exponential(3, (B, M, T)).astype(np.float32),
    "ecpm": rng.normal(0, 3, (B, M, V)).astype(np.float32),
    "bin": rng.integers(0, V, (B, M)).astype(np.int32),
    "value": rng.exponential(20, (B, M)).astype(np.float32) * (rng.random((B, M)) < 0.8),
    "depth": rng.integers(0, 3, (B, M)).astype(np.int32),
    "user": rng.exponential(9, B).astype(np.float32),
    "mask": mask,
  }


def loop_weights(x, growth, depth_weight, user_weight, clip):
  out = np.zeros((B, M))
  for b, m in np.argwhere(x["mask"]):
    value = float(x["value"][b, m])
    clipped = min(max(value, 0.01), clip)
    grown = {
      "none": 1.0,
      "log": 0.1 + math.log(1 + value),
      "sqrt": math.sqrt(clipped),
      "linear": clipped,
    }[growth]
    out[b, m] = (
      grown * (1 + depth_weight * x["depth"][b, m]) * (1 + float(x["user"][b])) ** user_weight
    )
  return out / max(out[x["mask"]].mean(), 1e-9)


def loop_loss(x, weight, lambda_ecpm, lambda_mtp, factor=None):
  total, parts = 0.0, {"sid": 0.0, "ecpm": 0.0, "mtp": 0.0}
  factor = np.ones((B, M)) if factor is None else factor
  for b, m in np.argwhere(x["mask"]):
    scores = x["ecpm"][b, m].astype(np.float64)
    ecpm = math.log(np.exp(scores).sum()) - scores[x["bin"][b, m]]
    sid, mtp = -float(x["logp"][b, m]), -float(x["mtp"][b, m].sum())
    total += factor[b, m] * (weight[b, m] * (sid + lambda_ecpm * ecpm) + lambda_mtp * mtp)
    parts = {"sid": parts["sid"] + sid, "ecpm": parts["ecpm"] + ecpm, "mtp": parts["mtp"] + mtp}
  return {name: value / x["mask"].sum() for name, value in {"loss": total, **parts}.items()}


def weights(x, growth, depth_weight=1.5, user_weight=0.4, clip=30.0):
  columns = [jnp.asarray(x[name]) for name in ("value", "depth", "user", "mask")]
  kwargs = dict(growth=growth, depth_weight=depth_weight, user_weight=user_weight, value_clip=clip)
  with jax.numpy_rank_promotion("raise"):
    return vsl.value_weights(*columns, **kwargs), kwargs


def loss_of(x, weight, lambda_ecpm=0.3, lambda_mtp=0.2, **factor):
  columns = [jnp.asarray(x[name]) for name in ("logp", "mtp", "ecpm", "bin")]
  with jax.numpy_rank_promotion("raise"):
    columns += [jnp.asarray(weight, jnp.float32), jnp.asarray(x["mask"])]
    return vsl.vsl_loss(*columns, lambda_ecpm=lambda_ecpm, lambda_mtp=lambda_mtp, **factor)


@pytest.mark.parametrize("growth", ["none", "log", "sqrt", "linear"])
@pytest.mark.parametrize(("depth_weight", "user_weight"), [(1.5, 0.4), (0.0, 0.0)])
def test_weights_equal_a_loop_and_have_mean_one(growth, depth_weight, user_weight):
  x = make_inputs()
  found, _ = weights(x, growth, depth_weight, user_weight)
  np.testing.assert_allclose(
    found, loop_weights(x, growth, depth_weight, user_weight, 30.0), rtol=2e-5
  )
  assert (np.asarray(found)[~x["mask"]] == 0).all()
  np.testing.assert_allclose(np.asarray(found)[x["mask"]].mean(), 1, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_a_loop(seed):
  x = make_inputs(seed)
  weight = np.random.default_rng(seed).exponential(1, (B, M))
  loss, parts = loss_of(x, weight)
  expected = loop_loss(x, weight, 0.3, 0.2)
  assert loss == parts["loss"] and loss.dtype == jnp.float32
  for name, value in expected.items():
    np.testing.assert_allclose(parts[name], value, rtol=2e-5, err_msg=name)


def test_a_factor_weighs_all_of_a_targets_loss():
  x, rng = make_inputs(), np.random.default_rng(0)
  weight, factor = rng.exponential(1, (B, M)), rng.exponential(1, (B, M)).astype(np.float32)
  loss, parts = loss_of(x, weight, factor_BM=jnp.asarray(factor))
  np.testing.assert_allclose(loss, loop_loss(x, weight, 0.3, 0.2, factor)["loss"], rtol=2e-5)
  assert parts["mtp"] == loss_of(x, weight)[1]["mtp"]  # parts are told as they are


def test_padding_does_not_move_the_loss():
  x = make_inputs()
  other = dict(make_inputs(7), mask=x["mask"])
  mixed = {name: np.where(x["mask"].reshape(B, M, *(1,) * (x[name].ndim - 2)), x[name], other[name])
           for name in ("logp", "mtp", "ecpm", "bin", "value", "depth")}  # fmt: skip
  mixed = x | mixed
  before, after = (loss_of(y, weights(y, "log")[0])[0] for y in (x, mixed))
  assert (mixed["logp"] != x["logp"]).any() and before == after


def test_no_target_gives_zero_and_finite_gradients():
  x = make_inputs() | {"mask": np.zeros((B, M), bool)}
  weight, _ = weights(x, "log")

  def loss(logp, mtp, ecpm):
    return loss_of(x | {"logp": logp, "mtp": mtp, "ecpm": ecpm}, weight)[0]

  value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(x["logp"], x["mtp"], x["ecpm"])
  assert value == 0 and (np.asarray(weight) == 0).all()
  chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))


@pytest.mark.parametrize("growth", ["log", "linear"])
def test_one_target_of_little_value_weighs_one_and_is_not_shared_out(growth):
  x = make_inputs()
  x = x | {"mask": np.arange(B * M).reshape(B, M) == 1, "value": np.zeros((B, M), np.float32)}
  found, _ = weights(x, growth, 0.0, 0.0)
  np.testing.assert_allclose(found, x["mask"], rtol=1e-6)
  for name, value in loop_loss(x, np.asarray(found), 0.3, 0.2).items():
    np.testing.assert_allclose(loss_of(x, found)[1][name], value, rtol=2e-5, err_msg=name)


def test_wrong_shapes_are_refused():
  x = make_inputs()
  with pytest.raises(AssertionError):
    loss_of(x | {"mask": x["mask"][:, :2]}, np.ones((B, M)))


def test_bins_are_as_likely_as_each_other():
  values = np.random.default_rng(0).lognormal(1, 2, 8000).astype(np.float32)
  bins = EcpmBins.fit(values, 16)
  found = np.asarray(vsl.ecpm_bin(jnp.asarray(values[None]), jnp.asarray(bins.edges)))[0]
  np.testing.assert_allclose(np.bincount(found, minlength=16), 500, atol=1)


@settings(max_examples=30, deadline=None)
@given(st.lists(MONEY, min_size=1, max_size=60), st.integers(2, 8))
def test_a_value_lies_in_the_bin_whose_mean_it_went_into(values, number):
  values = np.asarray(values, np.float32)
  bins = EcpmBins.fit(values, number)
  row = np.resize(values, 60)[None]  # one shape for all examples: less is compiled
  found = np.asarray(vsl.ecpm_bin(jnp.asarray(row), jnp.asarray(bins.edges)))[0, : len(values)]
  assert bins.means.shape == (number,) and found.min() >= 0 and found.max() < number
  for b in range(number):
    here = np.minimum(values[found == b], bins.clip)
    np.testing.assert_allclose(bins.means[b], here.mean() if len(here) else 0, rtol=1e-4, atol=1e-6)
  assert (np.diff(bins.means[np.unique(found)]) >= -1e-4).all()
