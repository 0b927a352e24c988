"""A signed bias on the ads of the history, in the score of a whole ad (docs/design/method.md §2.4).

The copy path is a mixture, which can only add mass (probability) to the ads of the history H. Where
people do not take the same ad twice, mass has to go away:

  p'(y) = p(y) e^{b · 1[y in H]} / Z,  Z = 1 - P(H) + e^b P(H),

where P(H) is the model's own mass on H, and b is learned.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

NAME = "history_bias"  # of the parameter
RATE = 10.0  # b of a parameter of 1


def signed_bias(module: nn.Module) -> jax.Array:
  """The scalar b of a module: `RATE` times its parameter `NAME`, which starts at 0.

  Adam moves a parameter by about the learning rate a step, which suits weights. Where people take
  nothing twice, b has to fall in the same steps until the history has no mass left, so it moves
  `RATE` times as far.
  """
  return RATE * module.param(NAME, nn.with_logical_partitioning(nn.initializers.zeros, ()), ())


def biased_logp(
  logp_BM: jax.Array,
  seen_BM: jax.Array,
  history_logp_BH: jax.Array,
  history_mask_BH: jax.Array,
  history_size_B: jax.Array,
  bias: jax.Array,
) -> jax.Array:
  """log p'(y | X), normalised over all UA-SIDs.

  Args:
    logp_BM: log p(y | X) before the bias.
    seen_BM: bool, whether y is in the history.
    history_logp_BH: log p of some distinct sequences of the history; H is their number here.
    history_mask_BH: bool, which of them are real.
    history_size_B: number of distinct UA-SIDs in the whole history. Where it is more than were
      scored, the mass of those is scaled up to it.
    bias: scalar b.

  Returns:
    [B, M] float32.

  Raises:
    AssertionError: an array of another rank.
  """
  chex.assert_rank(
    [logp_BM, seen_BM, history_logp_BH, history_mask_BH, history_size_B, bias], [2, 2, 2, 2, 1, 0]
  )
  counted_B = history_mask_BH.sum(-1)
  mass_B = (
    jnp.where(history_mask_BH, jnp.exp(history_logp_BH), 0.0).sum(-1)
    * history_size_B
    / jnp.maximum(counted_B, 1)
  )
  # An estimate that was scaled up can pass 1. At a b far below 0, Z would then be 0 or less, and
  # from its log nothing could be learned.
  mass_B = jnp.clip(mass_B, 0.0, 1 - 1e-4)
  # log Z as log1p((e^b - 1) P(H)): at b = 0, where training starts, it is 0 without rounding.
  return logp_BM + jnp.where(seen_BM, bias, 0.0) - jnp.log1p(jnp.expm1(bias) * mass_B)[:, None]


def biased_prefix_logp(
  logp_BWT: jax.Array,
  codes_BWT: jax.Array,
  past_codes_BST: jax.Array,
  past_logp_BS: jax.Array,
  bias: jax.Array,
) -> jax.Array:
  """log p'(s_<=t | X) of every prefix of W sequences, normalised over all UA-SIDs.

  A prefix has the mass p of all sequences below it. The part p_H of the history's among them counts
  e^b times, the rest once: p'(prefix) = (p - p_H + e^b p_H) / Z. Z is the same sum of the empty
  prefix, below which all sequences are. So a prefix has what its sequences have together.

  Args:
    logp_BWT: log p of each prefix before the bias; -inf for beams that are empty.
    codes_BWT: int32 codes of the sequences.
    past_codes_BST: int32 UA-SIDs of the slots.
    past_logp_BS: log p, before the bias, of the history's distinct sequences; -inf in other slots.
    bias: scalar b.

  Returns:
    [B, W, T] float32, -inf where `logp_BWT` is.

  Raises:
    AssertionError: an array of another rank.
  """
  chex.assert_rank([logp_BWT, codes_BWT, past_codes_BST, past_logp_BS, bias], [3, 3, 3, 2, 0])
  T = logp_BWT.shape[-1]
  # log p of the slots that still agree with a sequence; every level takes some away (-inf). No
  # code has been compared yet, so each of the W sequences has all S: (B, 1, S) -> (B, W, S).
  below_BWS = jnp.broadcast_to(past_logp_BS[:, None], (*logp_BWT.shape[:2], past_logp_BS.shape[1]))
  log_z_B1 = _log_factor(jax.nn.logsumexp(past_logp_BS, axis=-1, keepdims=True), bias)
  found = []
  for t in range(T):
    # (B, W, 1) == (B, 1, S) -> (B, W, S): past codes that a beam takes again.
    same_BWS = codes_BWT[:, :, None, t] == past_codes_BST[:, None, :, t]
    below_BWS = jnp.where(same_BWS, below_BWS, -jnp.inf)
    if t < T - 1:
      # log(p_H / p) of the prefix.
      log_share_BW = jax.nn.logsumexp(below_BWS, axis=-1) - logp_BWT[..., t]
      factor_BW = _log_factor(log_share_BW, bias)
    # A whole sequence is of the history or is not. Its share is 1 or 0, which is asked for here,
    # because a computed share that rounding leaves below 1 would take away part of b.
    else:
      factor_BW = jnp.where(jnp.isfinite(below_BWS).any(-1), bias, 0.0)
    biased_BW = logp_BWT[..., t] + factor_BW - log_z_B1
    # An empty beam keeps -inf. Its share is -inf - -inf, which is no number.
    found.append(jnp.where(jnp.isneginf(logp_BWT[..., t]), -jnp.inf, biased_BW))
  return jnp.stack(found, axis=-1)


def _log_factor(log_share: jax.Array, bias: jax.Array) -> jax.Array:
  """log(1 - share + e^b share), of a share in [0, 1] that rounding may have put above 1.

  It is exact at shares of 0 and 1: logaddexp takes a side of -inf for nothing.
  """
  log_share = jnp.minimum(log_share, 0.0)
  return jnp.logaddexp(jnp.log1p(-jnp.exp(log_share)), bias + log_share)
