"""VSL: value-aware supervised learning (docs/design/method.md §3.1). Pure functions on arrays."""

import chex
import jax
import jax.numpy as jnp


def ecpm_bin(value_BM: jax.Array, edges_V: jax.Array) -> jax.Array:
  """Equal-probability bin of each value, [B, M] int32.

  Bin b holds edges[b-1] < value <= edges[b]; V edges cut V + 1 bins.
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
  """w = w_user · w_behavior, normalised to mean 1 over the batch's targets.

  Args:
    value_BM: money of each target, finite and at least 0, as the readers of data give it.
    depth_BM: its behaviour's depth, 0 the shallowest.
    user_value_B: the user's long-term value, money a visit, at least 0.
    mask_BM: which targets are real.
    growth: 'none', 'log' (0.1 + log(1 + value)), 'sqrt' or 'linear' (both of the value clipped at
      `value_clip`).
    depth_weight: w_behavior's factor is 1 + depth_weight · depth.
    user_weight: exponent of w_user = (1 + user_value)^user_weight.
    value_clip: money.

  Returns:
    [B, M] float32, zero where masked.
  """
  chex.assert_rank([value_BM, depth_BM, user_value_B], [2, 2, 1])
  chex.assert_equal_shape([value_BM, depth_BM, mask_BM])
  grown = {
    "none": jnp.ones_like(value_BM),
    "log": 0.1 + jnp.log1p(value_BM),
    "sqrt": jnp.sqrt(jnp.clip(value_BM, 0.01, value_clip)),
    "linear": jnp.clip(value_BM, 0.01, value_clip),
  }[growth]
  weight = grown * (1 + depth_weight * depth_BM) * (1 + user_value_B[:, None]) ** user_weight
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
  """E[ f · (w · (L_SID + λ_e L_eCPM) + λ_mtp · L_MTP) ] over the real targets of a batch.

  Args:
    sequence_logp_BM: log p(y | X) of each target's UA-SID.
    mtp_logp_BMT: the MTP branch's log p(s_t).
    ecpm_logits_BMV: scores of the eCPM bins after the UA-SID.
    ecpm_bin_BM: the bin that each target's value lies in.
    weight_BM: sample weights (`value_weights`).
    mask_BM: which targets are real.
    lambda_ecpm: weight of the eCPM token.
    lambda_mtp: weight of the MTP branch.
    factor_BM: f, of each target's whole loss: the unified objective's w_vsl (§3.3).

  Returns:
    The scalar loss and its parts, float32; 0 where no target is real.
  """
  chex.assert_rank([sequence_logp_BM, mtp_logp_BMT, ecpm_logits_BMV], [2, 3, 3])
  chex.assert_equal_shape([sequence_logp_BM, ecpm_bin_BM, weight_BM, mask_BM])
  count = jnp.maximum(mask_BM.sum(), 1)
  ecpm_logp = jnp.take_along_axis(
    jax.nn.log_softmax(ecpm_logits_BMV), ecpm_bin_BM[..., None], axis=-1
  )[..., 0]

  def mean(loss_BM):
    return jnp.where(mask_BM, loss_BM, 0.0).sum() / count

  sid, ecpm, mtp = -sequence_logp_BM, -ecpm_logp, -mtp_logp_BMT.sum(-1)
  loss = mean(factor_BM * (weight_BM * (sid + lambda_ecpm * ecpm) + lambda_mtp * mtp))
  return loss, {"loss": loss, "sid": mean(sid), "ecpm": mean(ecpm), "mtp": mean(mtp)}
