"""VSL: value-aware supervised learning (docs/design/method.md §3.1). Pure functions on arrays.

A request has up to M targets, the ads that were taken. The model learns to generate each, and to
say what it is worth (eCPM, money); what brings more counts more.
"""

import chex
import jax
import jax.numpy as jnp


def ecpm_bin(value_BM: jax.Array, edges_V: jax.Array) -> jax.Array:
  """The bin of the eCPM token that each value lies in, [B, M] int32.

  Bin b holds edges[b-1] < value <= edges[b]. The edges are chosen so that bins have equal counts
  (`data/ecpm.py`).

  Args:
    value_BM: money of each target.
    edges_V: ascending inner edges, money; n of them cut n + 1 bins.
  """
  return jnp.searchsorted(edges_V, value_BM, side="left").astype(jnp.int32)


def value_weights(
  value_BM: jax.Array,
  depth_BM: jax.Array,
  user_value_B: jax.Array,
  mask_BM: jax.Array,
  *,
  growth: str,
  depth_weight: float,
  user_weight: float,
  value_clip: float,
) -> jax.Array:
  """How much each target counts: w = w_user · w_behavior, scaled to mean 1 over a batch's targets.

  Args:
    value_BM: money of each target, finite and at least 0, as the readers of data give it.
    depth_BM: depth of its behaviour, 0 for the shallowest; a purchase is deeper than a click.
    user_value_B: long-term value of the user, money a visit, at least 0.
    mask_BM: bool, which targets are real.
    growth: how w_behavior grows with the value: 'none', 'log' (0.1 + log(1 + value)), 'sqrt' or
      'linear'. The last two are of the value clipped at `value_clip`.
    depth_weight: w_behavior has the factor 1 + depth_weight · depth.
    user_weight: exponent of w_user = (1 + user_value)^user_weight.
    value_clip: money.

  Returns:
    [B, M] float32, 0 where masked.

  Raises:
    AssertionError: ranks or shapes that differ.
    KeyError: an unknown growth.
  """
  chex.assert_rank([value_BM, depth_BM, user_value_B], [2, 2, 1])
  chex.assert_equal_shape([value_BM, depth_BM, mask_BM])
  # A target of no value still counts a little: the log has 0.1 beside it, the others begin at 0.01.
  grown = {
    "none": jnp.ones_like(value_BM),
    "log": 0.1 + jnp.log1p(value_BM),
    "sqrt": jnp.sqrt(jnp.clip(value_BM, 0.01, value_clip)),
    "linear": jnp.clip(value_BM, 0.01, value_clip),
  }[growth]
  weight = grown * (1 + depth_weight * depth_BM) * (1 + user_value_B[:, None]) ** user_weight
  # The sum of the weights becomes the number of real targets. Padding is taken out before.
  weight = jnp.where(mask_BM, weight, 0.0)
  return weight * mask_BM.sum() / jnp.maximum(weight.sum(), 1e-9)


def vsl_loss(
  sequence_logp_BM: jax.Array,
  mtp_logp_BMT: jax.Array,
  ecpm_logits_BMV: jax.Array,
  ecpm_bin_BM: jax.Array,
  weight_BM: jax.Array,
  mask_BM: jax.Array,
  *,
  lambda_ecpm: float,
  lambda_mtp: float,
  factor_BM: jax.Array | float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """L_VSL = E[ f · (w · (L_SID + λ_e L_eCPM) + λ_mtp · L_MTP) ] over the real targets of a batch.

  Args:
    sequence_logp_BM: log p(y | X) of the UA-SID of each target; L_SID is its negative.
    mtp_logp_BMT: log p(s_t) by the multi-token-prediction (MTP) branch, which sees no code.
    ecpm_logits_BMV: scores of the eCPM bins after the UA-SID.
    ecpm_bin_BM: int32, the bin that the value of each target lies in.
    weight_BM: w, the weights of the targets (`value_weights`).
    mask_BM: bool, which targets are real.
    lambda_ecpm: λ_e, weight of the eCPM token.
    lambda_mtp: λ_mtp, weight of the MTP branch.
    factor_BM: f, on the whole loss of each target; the unified objective gives its w_VSL (§3.3).

  Returns:
    The scalar loss, and its parts as plain means by name: 'loss', 'sid', 'ecpm', 'mtp'. They are
    float32, in nats, and 0 where no target is real.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  chex.assert_rank([sequence_logp_BM, mtp_logp_BMT, ecpm_logits_BMV], [2, 3, 3])
  chex.assert_equal_shape([sequence_logp_BM, ecpm_bin_BM, weight_BM, mask_BM])
  # A batch without a real target has a loss of 0 / 1, not of 0 / 0.
  count = jnp.maximum(mask_BM.sum(), 1)
  # Of each target the log-probability of its own bin: (B, M, V) at (B, M, 1) -> (B, M).
  ecpm_logp = jnp.take_along_axis(
    jax.nn.log_softmax(ecpm_logits_BMV), ecpm_bin_BM[..., None], axis=-1
  )[..., 0]

  # Padding is cut away by a where, not by a product: 0 times a loss that is not finite is NaN.
  def mean(loss_BM):
    return jnp.where(mask_BM, loss_BM, 0.0).sum() / count

  sid = -sequence_logp_BM
  ecpm = -ecpm_logp
  mtp = -mtp_logp_BMT.sum(-1)
  loss = mean(factor_BM * (weight_BM * (sid + lambda_ecpm * ecpm) + lambda_mtp * mtp))
  return loss, {"loss": loss, "sid": mean(sid), "ecpm": mean(ecpm), "mtp": mean(mtp)}
