"""VSL as a loss of the training step: the model's outputs meet the objective."""

import jax
import jax.numpy as jnp

from gr4ad_jax.config import ObjectiveConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.outputs import Outputs
from gr4ad_jax.objectives import vsl
from gr4ad_jax.training.step import LossFn


def vsl_of(
  out: Outputs,
  batch: RequestBatch,
  config: ObjectiveConfig,
  ecpm: EcpmBins,
  factor_BM: jax.Array | float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """VSL of a batch's targets and its parts, docs/design/method.md §3.1.

  Args:
    out: of the model, on `batch.target_codes_BMT`.
    batch: requests with their targets.
    config: weights of the objective.
    ecpm: bins and clip of the eCPM token.
    factor_BM: on each target's whole loss.
  """
  weight_BM = vsl.value_weights(
    batch.target_value_BM,
    batch.target_depth_BM,
    batch.user_value_B,
    batch.target_mask_BM,
    growth=config.value_weight,
    depth_weight=config.depth_weight,
    user_weight=config.user_weight,
    value_clip=ecpm.clip,
  )
  loss, metrics = vsl.vsl_loss(
    out.logp_BM,
    out.mtp_logp_BMT,
    out.ecpm_logits_BMV,
    vsl.ecpm_bin(batch.target_value_BM, jnp.asarray(ecpm.edges)),
    weight_BM,
    batch.target_mask_BM,
    lambda_ecpm=config.lambda_ecpm,
    lambda_mtp=config.lambda_mtp,
    factor_BM=factor_BM,
  )
  return loss, {**metrics, "copy_gate": out.gate_B.mean()}


def make_vsl_loss(model: GR4AD, config: ObjectiveConfig, ecpm: EcpmBins) -> LossFn:
  """(params, batch, key) -> (loss, metrics).

  Args:
    model: the module.
    config: weights of the objective.
    ecpm: bins and clip of the eCPM token.
  """

  def loss_fn(params, batch: RequestBatch, key: jax.Array):
    out = model.apply(
      {"params": params}, batch, batch.target_codes_BMT, train=True, rngs={"dropout": key}
    )
    return vsl_of(out, batch, config, ecpm)

  return loss_fn
