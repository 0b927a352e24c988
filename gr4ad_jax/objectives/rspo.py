"""RSPO: Ranking-Guided Softmax Preference Optimization (docs/design/method.md §3.2).

Pure functions on arrays. Letters are those of §3.2: E_i are the candidates that are worth less than
candidate i, Δ is log p_θ without or with log p_ref taken off, C_i is the gate that says which, M_ij
weighs a pair, G is a gain. (M as an axis is the number of candidates.)

Lists are sorted by reward, best first. Then E_i is a run at the end of the list, and its largest
score and its mean log-ratio are accumulated from the end (suffix maxima and sums). What is left for
each pair is one weight, one exponential and their sum, which the compiler fuses. Where [B, M, M]
would be large, requests are worked on some at a time, so memory does not grow with B.

Equal rewards stand in the order of the policy's likelihood, then of their position. Neither of two
is in the other's E.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from gr4ad_jax.objectives import lists

_PAIRS = 1 << 24  # pairs worked on at once: 64 MiB an array


class _Lists(NamedTuple):
  """Candidates by reward, best first, [B, M] each. A place is a position in this order.

  Attributes:
    policy: log p_θ.
    reference: log p_ref.
    gain: G, the gain over the best possible DCG; 0 in padding.
    rank: the ranks whose distance weighs a pair.
    below: first place of E_i, which goes on to the last real candidate; `count` where E_i is empty.
    count: [B, 1] number of real candidates.
  """

  policy: jax.Array
  reference: jax.Array
  gain: jax.Array
  rank: jax.Array
  below: jax.Array
  count: jax.Array


def _suffix(accumulate, x_BM: jax.Array, begin_BM: jax.Array, empty: float) -> jax.Array:
  """`accumulate` of x from the place `begin` to the end of the list; `empty` for a `begin` of M."""
  # Reversed, it holds at each place what the places from there on have together.
  found = accumulate(x_BM, axis=1, reverse=True)
  found = jnp.pad(found, ((0, 0), (0, 1)), constant_values=empty)
  return jnp.take_along_axis(found, begin_BM, axis=1)


def _by_reward(
  policy_logp_BM, reference_logp_BM, reward_BM, mask_BM, gain, ranks
) -> tuple[_Lists, jax.Array]:
  """The sorted lists, and the place where each candidate went. Raises as `rspo_loss` does."""
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
    # Ranks by likelihood, gathered into the order by reward as all else is below.
    by_model = lists.order(mask, policy)
    rank = jnp.take_along_axis(lists.inverse(by_model), order, axis=1)
  policy, reference, reward = (
    jnp.take_along_axis(x, order, axis=1) for x in (policy, reference, reward)
  )
  count = mask.sum(1, keepdims=True)
  value = reward
  if gain == "exp2":
    # 2^v - 1, over 2^most: 2^v of money would overflow. G is a ratio, so the factor cancels.
    most = jnp.maximum(reward[:, :1], 0)
    value = jnp.exp2(reward - most) - jnp.exp2(-most)
  value = jnp.where(place < count, value, 0)
  # With negative gains the best DCG may be nearly 0 or below, and the bound of §3.2 is lost. So all
  # gains of such a list are raised by the least one, which becomes 0.
  value = jnp.where(place < count, value - jnp.minimum(value.min(1, keepdims=True), 0), 0)
  # Place k, from 0, is rank k + 1, whose discount D is log2(2 + k). The double where: a list
  # without gain must not divide by 0, not even in the branch that is not taken.
  best = (value / jnp.log2(2.0 + place)).sum(1, keepdims=True)
  value = jnp.where(best > 0, value / jnp.where(best > 0, best, 1), 0)
  # Does the reward fall between this place and the next, both real? From each place the first such
  # fall to the right is where E begins: the least of the falls' places, taken from the end.
  falls = jnp.pad(reward[:, 1:] < reward[:, :-1], ((0, 0), (0, 1)))
  falls &= place + 1 < count
  below = jax.lax.cummin(jnp.where(falls, place + 1, count), axis=1, reverse=True)
  return _Lists(policy, reference, value, rank, jnp.minimum(below, count), count), lists.inverse(
    order
  )


def _weights(of: _Lists, ranks: str, row_norm: bool) -> jax.Array:
  """M_ij, [B, M, M] with i before j; 0 where j is not in E_i."""
  M = of.policy.shape[1]
  apart = np.arange(1, M)
  # 1 / D_k - 1 / D_{k+1} by the distance k. The distance 0 is that of a candidate to itself.
  drop_of = np.append(0, 1 / np.log2(1 + apart) - 1 / np.log2(2 + apart)).astype(of.gain.dtype)
  if ranks == "model":
    above = jnp.asarray(np.triu(np.ones((M, M), of.gain.dtype)))
    drop = jnp.asarray(drop_of)[jnp.abs(of.rank[:, :, None] - of.rank[:, None])] * above
  else:
    drop = jnp.asarray(np.triu(scipy.linalg.toeplitz(drop_of)))[None]
  # Kept is what lies above the diagonal, where the reward of j is no higher than that of i. So
  # G_i - G_j is |G_i - G_j| there, and 0 for equal rewards: E_i needs no mask of its own. Padding
  # does, as its gain of 0 would look like a low reward.
  real = jnp.where(jnp.arange(M) < of.count, jnp.ones_like(of.gain), 0)
  weight = drop * (of.gain[:, :, None] - of.gain[:, None]) * real[:, None]
  # The bound needs rows that sum to 1 at most. By ranks of the reward they do (the differences of
  # discounts add up along one side); by the model's they may not, and are scaled back.
  if row_norm or ranks == "model":
    total = weight.sum(2, keepdims=True)
    weight = weight / (jnp.where(total > 0, total, 1) if row_norm else jnp.maximum(total, 1))
  return weight


def _scores(of: _Lists, delta: float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Both forms of Δ, and the gate, [B, M] each: log p_θ, log p_θ - log p_ref, and C as bool.

  Where C_i is True, the second form counts for candidate i and all of its pairs.
  """
  ratio = of.policy - of.reference
  place = jnp.arange(of.policy.shape[1])
  shown = jnp.where(place < of.count, jax.lax.stop_gradient(ratio), 0)
  # The mean log-ratio over E_i and i itself, whose number is count - below + 1.
  mean = (_suffix(jax.lax.cumsum, shown, of.below, 0.0) + shown) / (of.count - of.below + 1)
  return of.policy, ratio, mean < delta


def _some_at_a_time(function, *arrays) -> jax.Array:
  """`function` of arrays (or tuples of them) [B, …], on at most _PAIRS pairs at once.

  The last array is [B, M]. `lax.map` hands over one request without its axis, which `function`
  needs back. It runs `batch_size` of them at once.
  """
  B, M = arrays[-1].shape
  if B * M * M <= _PAIRS:
    return function(*arrays)
  return jax.lax.map(lambda row: function(*jax.tree.map(lambda x: x[None], row))[0], arrays,
                     batch_size=max(1, _PAIRS // (M * M)))  # fmt: skip


def rspo_terms(
  policy_logp_BM, reference_logp_BM, reward_BM, *, beta, delta, mask_BM=None, gain="linear",
  ranks="reward", row_norm=False,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
  """The term of each candidate i in L_RSPO; the unified objective weighs them one by one.

  Arguments and what is raised as of `rspo_loss`.

  Returns:
    The terms [B, M], 0 where a candidate does not contribute; and which do, because their E_i is
    not empty, [B, M] bool. Both are in the order of the arguments.
  """
  of, went = _by_reward(policy_logp_BM, reference_logp_BM, reward_BM, mask_BM, gain, ranks)

  plain, ratio, gate = _scores(of, delta)
  real = jnp.arange(of.policy.shape[1]) < of.count
  tops = [
    _suffix(jax.lax.cummax, jnp.where(real, jax.lax.stop_gradient(x), -jnp.inf), of.below, 0.0)
    for x in (plain, ratio)
  ]
  # The largest Δ of E_i is taken off before exp, so that it neither overflows nor vanishes. It
  # comes back in log_total, where it cancels, so it needs no gradient. An empty E_i has none: it
  # would be -inf where padding follows, and with β = 0 the product of the two is NaN.
  contributes = of.below < of.count
  top = jnp.where(contributes, jnp.where(gate, tops[1], tops[0]), 0)

  # The [B, M, M] arrays are not kept for the backward pass. They are made again, fused with their
  # sums.
  @jax.checkpoint
  def pairs(of: _Lists, plain, gate, top):
    # Δ_j under the gate of i: axis 1 is i, axis 2 is j.
    other = plain[:, None] - gate[:, :, None] * of.reference[:, None]
    exponent = beta * (other - top[:, :, None])
    # It is 0 at most for all j in E_i. Others could overflow to inf, and their weight of 0 would
    # make it NaN.
    exponent = jnp.where(exponent > 0, 0, exponent)
    return (_weights(of, ranks, row_norm) * jnp.exp(exponent)).sum(2)

  total = _some_at_a_time(pairs, of, plain, gate.astype(plain.dtype), top)
  known = total > 0
  # log Σ_j M_ij e^{β(Δ_j - Δ_i)}; softplus of it is log(1 + Σ …). For an i that contributes, too,
  # the sum may be 0 (gains that rounding made equal), and log must not see that 0.
  log_total = jnp.log(jnp.where(known, total, 1)) + beta * (top - jnp.where(gate, ratio, plain))
  found = jnp.where(known & contributes, jax.nn.softplus(log_total) / jnp.log(2.0), 0)
  # Back from places to the order of the arguments.
  return jnp.take_along_axis(found, went, axis=1), jnp.take_along_axis(contributes, went, axis=1)


def rspo_loss(
  policy_logp_BM, reference_logp_BM, reward_BM, *, beta, delta, mask_BM=None, gain="linear",
  ranks="reward", row_norm=False,
) -> jax.Array:  # fmt: skip
  """L_RSPO = mean_i log2(1 + Σ_{j in E_i} M_ij exp(β (Δ_j - Δ_i))), docs/design/method.md §3.2.

  Args:
    policy_logp_BM: log p_θ(y | X) of each candidate. The gradient flows through it alone.
    reference_logp_BM: log p_ref(y | X), about -1e9 where no reference proposed the candidate. The
      mean log-ratio is then large, so the gate closes by itself for every i that has such a
      candidate among E_i and i.
    reward_BM: eCPM, money: finite, at most `lists.MOST_REWARD` in size. Where the least gain of a
      list is negative, all of its gains are raised by it. Otherwise they are taken as they are. A
      list of equal rewards has no loss.
    beta: β, the sharpness.
    delta: δ. The reference counts where the mean log-ratio over E_i and i is below it.
    mask_BM: which candidates are real; None: all.
    gain: gain of a reward v: 'linear', which is v, or 'exp2', which is 2^v - 1.
    ranks: whose ranks' distance weighs a pair: 'reward', or 'model'. With 'model', rows of M_ij
      that sum to more than 1 are scaled back to it.
    row_norm: scale the weights of every i to sum 1.

  Returns:
    The loss of each list, [B] float32; 0 where no candidate contributes.

  Raises:
    AssertionError: ranks or shapes of the arrays that differ.
    ValueError: an unknown `gain` or `ranks`.
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
  """mean_i Σ_{j in E_i} M_ij 1[Δ_j > Δ_i]: the NDCG that is lost (docs/design/method.md §3.2).

  `rspo_loss` bounds it from above for any β > 0. Arguments, shape and what is raised are those of
  `rspo_loss`.
  """

  of, _ = _by_reward(policy_logp_BM, reference_logp_BM, reward_BM, mask_BM, gain, ranks)
  plain, ratio, gate = _scores(of, delta)
  # Δ_j - Δ_i under the gate of i: axis 1 is i, axis 2 is j.
  gap = jnp.where(
    gate[:, :, None], ratio[:, None] - ratio[:, :, None], plain[:, None] - plain[:, :, None]
  )
  cost = jnp.where(gap > 0, _weights(of, ranks, row_norm), 0).sum(2)
  # A mean does not ask for the order, so places need not be put back.
  return lists.masked_mean(cost, of.below < of.count)
