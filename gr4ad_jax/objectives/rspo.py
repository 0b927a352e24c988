"""RSPO: Ranking-Guided Softmax Preference Optimization (docs/design/method.md §3.2). Pure functions
on arrays.

Equal rewards stand in the order of the policy's likelihood, then of their position; neither is in
the other's E.
Lists are sorted by reward, so that E_i is a run at the end: its largest score and its mean
  log-ratio are suffix sums,
and what is left for each pair is one weight, one exponential and their sum, which are fused. Where
[B, M, M] would be large, requests are worked on some at a time, so memory does not grow with B.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from gr4ad_jax.objectives import lists

_PAIRS = 1 << 24  # pairs worked on at once: 64 MiB an array


class _Lists(NamedTuple):
  """Candidates by reward, best first, [B, M] each.

  Attributes:
    policy: log p_θ.
    reference: log p_ref.
    gain: G, the gain over maxDCG.
    rank: places whose distance weighs a pair.
    below: first place of E_i, which goes on to the last real candidate; `count` where E_i is empty.
    count: [B, 1] real candidates.
  """

  policy: jax.Array
  reference: jax.Array
  gain: jax.Array
  rank: jax.Array
  below: jax.Array
  count: jax.Array


def _suffix(accumulate, x_BM: jax.Array, begin_BM: jax.Array, empty: float) -> jax.Array:
  """`accumulate` over x from a place on to the end; `empty` from past the last place on."""
  found = accumulate(x_BM, axis=1, reverse=True)
  found = jnp.pad(found, ((0, 0), (0, 1)), constant_values=empty)
  return jnp.take_along_axis(found, begin_BM, axis=1)


def _by_reward(
  policy_logp_BM, reference_logp_BM, reward_BM, mask_BM, gain, ranks
) -> tuple[_Lists, jax.Array]:
  """The sorted lists, and where each candidate went."""
  if gain not in ("linear", "exp2") or ranks not in ("reward", "model"):
    raise ValueError(
      f"gain={gain!r}, ranks={ranks!r}: 'linear' or 'exp2', and 'reward' or 'model' are allowed"
    )
  policy, reference, reward, mask = lists.checked(
    policy_logp_BM, reference_logp_BM, reward_BM, mask_BM
  )
  order = lists.order(mask, reward, policy)
  place = jnp.broadcast_to(jnp.arange(policy.shape[1]), policy.shape)
  rank = place
  if ranks == "model":
    by_model = lists.order(mask, policy)
    rank = jnp.take_along_axis(lists.inverse(by_model), order, axis=1)
  policy, reference, reward = (
    jnp.take_along_axis(x, order, axis=1) for x in (policy, reference, reward)
  )
  count = mask.sum(1, keepdims=True)
  value = reward
  if gain == "exp2":  # in units of the largest, which would overflow; G is a ratio
    most = jnp.maximum(reward[:, :1], 0)
    value = jnp.exp2(reward - most) - jnp.exp2(-most)
  value = jnp.where(place < count, value, 0)
  # Below zero G would be negative or divided by nearly nothing, and the bound lost: the least gain
  # becomes 0 then.
  value = jnp.where(place < count, value - jnp.minimum(value.min(1, keepdims=True), 0), 0)
  best = (value / jnp.log2(2.0 + place)).sum(1, keepdims=True)
  value = jnp.where(best > 0, value / jnp.where(best > 0, best, 1), 0)
  falls = jnp.pad(
    reward[:, 1:] < reward[:, :-1], ((0, 0), (0, 1))
  )  # between this place and the next
  falls &= place + 1 < count
  below = jax.lax.cummin(jnp.where(falls, place + 1, count), axis=1, reverse=True)
  return _Lists(policy, reference, value, rank, jnp.minimum(below, count), count), lists.inverse(
    order
  )


def _weights(of: _Lists, ranks: str, row_norm: bool) -> jax.Array:
  """M_ij [B, M, M], 0 where j is not in E_i."""
  M = of.policy.shape[1]
  apart = np.arange(1, M)
  drop_of = np.append(0, 1 / np.log2(1 + apart) - 1 / np.log2(2 + apart)).astype(
    of.gain.dtype
  )  # by distance
  if ranks == "model":
    above = jnp.asarray(np.triu(np.ones((M, M), of.gain.dtype)))
    drop = jnp.asarray(drop_of)[jnp.abs(of.rank[:, :, None] - of.rank[:, None])] * above
  else:
    drop = jnp.asarray(np.triu(scipy.linalg.toeplitz(drop_of)))[None]
  # Above the diagonal the reward is no higher; of equal rewards the gains are equal too.
  real = jnp.where(jnp.arange(M) < of.count, jnp.ones_like(of.gain), 0)
  weight = drop * (of.gain[:, :, None] - of.gain[:, None]) * real[:, None]
  if row_norm or ranks == "model":  # the bound needs a sum of at most 1
    total = weight.sum(2, keepdims=True)
    weight = weight / (jnp.where(total > 0, total, 1) if row_norm else jnp.maximum(total, 1))
  return weight


def _scores(of: _Lists, delta: float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """log p_θ; the same without log p_ref; and the gate C [B, M] bool, which picks the second for
  candidate i.
  """
  ratio = of.policy - of.reference
  place = jnp.arange(of.policy.shape[1])
  shown = jnp.where(place < of.count, jax.lax.stop_gradient(ratio), 0)
  mean = (_suffix(jax.lax.cumsum, shown, of.below, 0.0) + shown) / (of.count - of.below + 1)
  return of.policy, ratio, mean < delta


def _some_at_a_time(function, *arrays) -> jax.Array:
  """`function` of arrays (or tuples of them) [B, …], at most _PAIRS pairs at once."""
  B, M = arrays[-1].shape
  if B * M * M <= _PAIRS:
    return function(*arrays)
  return jax.lax.map(lambda row: function(*jax.tree.map(lambda x: x[None], row))[0], arrays,
                     batch_size=max(1, _PAIRS // (M * M)))  # fmt: skip


def rspo_terms(
  policy_logp_BM, reference_logp_BM, reward_BM, *, beta, delta, mask_BM=None, gain="linear",
  ranks="reward", row_norm=False,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
  """L_RSPO,i of each candidate, which the unified objective weighs one by one.

  Arguments as of `rspo_loss`.

  Returns:
    Terms [B, M], 0 where a candidate does not contribute; and which do (E_i is not empty) [B, M]
    bool.
  """
  of, went = _by_reward(policy_logp_BM, reference_logp_BM, reward_BM, mask_BM, gain, ranks)

  plain, ratio, gate = _scores(of, delta)
  real = jnp.arange(of.policy.shape[1]) < of.count
  tops = [
    _suffix(jax.lax.cummax, jnp.where(real, jax.lax.stop_gradient(x), -jnp.inf), of.below, 0.0)
    for x in (plain, ratio)
  ]
  top = jnp.where(
    gate, tops[1], tops[0]
  )  # the largest of E_i, so that exp() neither overflows nor vanishes

  @jax.checkpoint  # the [B, M, M] arrays are made again in the backward pass, fused with their sums
  def pairs(of: _Lists, plain, gate, top):
    other = plain[:, None] - gate[:, :, None] * of.reference[:, None]
    exponent = beta * (other - top[:, :, None])
    exponent = jnp.where(exponent > 0, 0, exponent)  # it is 0 at most for all j that have a weight
    return (_weights(of, ranks, row_norm) * jnp.exp(exponent)).sum(2)

  total = _some_at_a_time(pairs, of, plain, gate.astype(plain.dtype), top)
  known, contributes = total > 0, of.below < of.count
  log_total = jnp.log(jnp.where(known, total, 1)) + beta * (top - jnp.where(gate, ratio, plain))
  found = jnp.where(known & contributes, jax.nn.softplus(log_total) / jnp.log(2.0), 0)
  return jnp.take_along_axis(found, went, axis=1), jnp.take_along_axis(contributes, went, axis=1)


def rspo_loss(
  policy_logp_BM, reference_logp_BM, reward_BM, *, beta, delta, mask_BM=None, gain="linear",
  ranks="reward", row_norm=False,
) -> jax.Array:  # fmt: skip
  """L_RSPO = mean_i log2(1 + Σ_{j in E_i} M_ij exp(β Δ_j - β Δ_i)), docs/design/method.md §3.2.

  Args:
    policy_logp_BM: log p_θ(y | X) of each candidate; the gradient flows through it alone.
    reference_logp_BM: log p_ref(y | X); about -1e9 where no reference proposed the candidate: the
      mean log-ratio is then large, and the gate closes by itself for every i that has such a
      candidate among E_i and i.
    reward_BM: eCPM, money: finite, at most `lists.MOST_REWARD` in size. Where a list's least gain
      is negative, all of its gains are raised by it, so that the least is 0 and the bound holds;
      from zero on they are taken as they are. A list of equal rewards has no loss.
    beta: sharpness.
    delta: the reference counts where the mean log-ratio over E_i and i is below it.
    mask_BM: which candidates are real; None: all.
    gain: 'linear' or 'exp2' (2^v - 1).
    ranks: whose ranks' distance weighs a pair: 'reward', or 'model' (rows that pass 1 are scaled
      back to it).
    row_norm: scale the weights of every i to sum 1.

  Returns:
    [B], 0 where no candidate contributes.

  Raises:
    AssertionError: shapes that differ.
    ValueError: an unknown gain or ranks.
  """
  terms_BM, contributes_BM = rspo_terms(
    policy_logp_BM, reference_logp_BM, reward_BM, beta=beta, delta=delta, mask_BM=mask_BM,
    gain=gain, ranks=ranks, row_norm=row_norm,
  )  # fmt: skip
  return lists.masked_mean(terms_BM, contributes_BM)


def ndcg_cost(
  policy_logp_BM,
  reference_logp_BM,
  reward_BM,
  *,
  delta,
  mask_BM=None,
  gain="linear",
  ranks="reward",
  row_norm=False,
) -> jax.Array:
  """mean_i Σ_{j in E_i} M_ij 1[Δ_j > Δ_i]: what `rspo_loss` bounds from above, for any β > 0.

  Source: docs/design/method.md §3.2.

  Arguments and shape as of `rspo_loss`.
  """

  of, _ = _by_reward(policy_logp_BM, reference_logp_BM, reward_BM, mask_BM, gain, ranks)
  plain, ratio, gate = _scores(of, delta)
  gap = jnp.where(
    gate[:, :, None], ratio[:, None] - ratio[:, :, None], plain[:, None] - plain[:, :, None]
  )
  cost = jnp.where(gap > 0, _weights(of, ranks, row_norm), 0).sum(2)
  return lists.masked_mean(cost, of.below < of.count)
