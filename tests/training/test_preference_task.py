"""The preference loss: the sum that its objective says, with gradients of the policy alone."""

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ObjectiveConfig, PreferenceConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.objectives import rspo, unified, vsl
from gr4ad_jax.training.candidates import NO_REFERENCE
from gr4ad_jax.training.preference_task import PreferenceBatch, make_preference_loss
from tests.models import tiny

ECPM = EcpmBins(np.array([1, 2, 4, 8], np.float32), np.ones(5, np.float32), 20.0)
C = 6


@pytest.fixture(scope="module")
def parts():
  """A model and a batch of four requests with up to six candidates, the first two of them taken."""
  model, rng = tiny.make_model(), np.random.default_rng(1)
  batch = tiny.make_batch()
  codes = np.stack([rng.integers(0, v, (4, C)) for v in tiny.CODEBOOKS], axis=-1).astype(np.int32)
  mask = np.arange(C) < np.array([[6], [5], [3], [2]])
  taken = (np.arange(C) < 2) & mask
  batch = batch._replace(
    target_codes_BMT=codes,
    target_mask_BM=taken,
    target_value_BM=np.where(taken, rng.exponential(5, (4, C)), 0).astype(np.float32),
    target_depth_BM=np.zeros((4, C), np.int32),
  )
  reference = np.where(np.arange(C) < 4, rng.normal(-5, 1, (4, C)), NO_REFERENCE).astype(np.float32)
  reward = np.where(mask, rng.exponential(1, (4, C)), 0).astype(np.float32)
  return model, tiny.make_params(model), PreferenceBatch(batch, mask, reference, reward)


def found(parts, objective, **settings):
  model, params, batch = parts
  loss_fn = make_preference_loss(model, ObjectiveConfig(objective=objective), PreferenceConfig(**settings), ECPM, 2)
  compute = tiny.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (loss, metrics), grads = compute(params, batch, jax.random.key(0))
  return float(loss), {name: float(value) for name, value in metrics.items()}, grads


def vsl_of(parts, factor_BC=1.0):
  """VSL of the candidates that were taken, computed apart from the task."""
  model, params, batch = parts
  requests, settings = batch.requests, ObjectiveConfig()
  out = tiny.jit(model.apply)({"params": params}, requests, requests.target_codes_BMT)
  weight = vsl.value_weights(
    requests.target_value_BM, requests.target_depth_BM, requests.user_value_B, requests.target_mask_BM,
    growth="log", depth_weight=1.0, user_weight=0.0, value_clip=ECPM.clip,
  )  # fmt: skip
  bins = vsl.ecpm_bin(requests.target_value_BM, ECPM.edges)
  loss, _ = vsl.vsl_loss(
    out.logp_BM, out.mtp_logp_BMT, out.ecpm_logits_BMV, bins, weight, requests.target_mask_BM,
    lambda_ecpm=settings.lambda_ecpm, lambda_mtp=settings.lambda_mtp, factor_BM=factor_BC,
  )  # fmt: skip
  return float(loss), out.logp_BM


@pytest.mark.parametrize("objective", ["dpo", "sdpo", "grpo", "xent", "rspo"])
def test_loss_is_vsl_plus_the_weighted_list_objective(parts, objective):
  loss, metrics, grads = found(parts, objective, preference_weight=3.0)
  assert metrics["vsl"] == pytest.approx(vsl_of(parts)[0], rel=1e-5)
  assert loss == pytest.approx(metrics["vsl"] + 3 * metrics["preference"], rel=1e-5)
  assert metrics["preference"] != 0 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_unified_weighs_each_candidate(parts):
  loss, metrics, _ = found(parts, "unified", preference_weight=2.0, z_max=1.5)
  _, logp_BC = vsl_of(parts)
  batch = parts[2]
  w_vsl, w_rl = unified.unified_weights(logp_BC, batch.reward_BC, z_max=1.5, mask_BM=batch.mask_BC)
  terms, counted = rspo.rspo_terms(
    logp_BC, batch.reference_logp_BC, batch.reward_BC, beta=1.0, delta=1.0, mask_BM=batch.mask_BC, row_norm=True
  )
  expected = float((w_rl * terms)[counted].sum() / counted.sum())
  assert metrics["preference"] == pytest.approx(expected, rel=1e-4)
  assert loss == pytest.approx(vsl_of(parts, w_vsl)[0] + 2 * expected, rel=1e-4)


def test_without_reference_rspo_sees_the_policy_alone(parts):
  _, logp_BC = vsl_of(parts)
  batch = parts[2]
  _, metrics, _ = found(parts, "rspo", reference=False)
  unknown = np.full_like(batch.reference_logp_BC, NO_REFERENCE)
  expected = rspo.rspo_loss(
    logp_BC, unknown, batch.reward_BC, beta=1.0, delta=1.0, mask_BM=batch.mask_BC, row_norm=True
  )
  assert metrics["preference"] == pytest.approx(float(expected.mean()), rel=1e-4)
