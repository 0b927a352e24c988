"""VSL of a model's outputs against a loop: every weight lands where it belongs."""

import types

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ObjectiveConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.models.outputs import Outputs
from gr4ad_jax.requests import vsl_task
from tests.models import tiny

RNG = np.random.default_rng(6)
ECPM = EcpmBins(np.array([0.5, 1.5, 2.5, 3.5], np.float32), np.arange(5, dtype=np.float32), 4.0)
BATCH = tiny.make_batch()
B, M, T = BATCH.target_codes_BMT.shape
OUT = Outputs(
  logp_BM=RNG.normal(-5, 1, (B, M)).astype(np.float32),
  generated_logp_BMT=RNG.normal(-9, 1, (B, M, T)).astype(np.float32),
  ecpm_logits_BMV=RNG.normal(0, 2, (B, M, 5)).astype(np.float32),
  mtp_logp_BMT=RNG.normal(-3, 1, (B, M, T)).astype(np.float32),
  gate_B=RNG.random(B).astype(np.float32),
)
CONFIG = ObjectiveConfig(
  lambda_ecpm=0.4, lambda_mtp=0.7, value_weight="sqrt", depth_weight=0.9, user_weight=0.6
)
FACTOR = (RNG.random((B, M)) * 2).astype(np.float32)


def by_hand(factor_BM):
  """Loss and parts by docs/design/method.md §3.1."""
  real = [at for at in np.ndindex(B, M) if BATCH.target_mask_BM[at]]
  weight = {}
  for b, m in real:
    value = min(max(float(BATCH.target_value_BM[b, m]), 0.01), ECPM.clip)
    behavior = np.sqrt(value) * (1 + 0.9 * BATCH.target_depth_BM[b, m])
    weight[b, m] = behavior * (1 + float(BATCH.user_value_B[b])) ** 0.6
  scale = len(real) / sum(weight.values())
  parts = {"loss": 0.0, "sid": 0.0, "ecpm": 0.0, "mtp": 0.0}
  for at in real:
    bin_of = sum(float(BATCH.target_value_BM[at]) > edge for edge in ECPM.edges)
    logits = np.float64(OUT.ecpm_logits_BMV[at])
    sid, mtp = -float(OUT.logp_BM[at]), -sum(float(x) for x in OUT.mtp_logp_BMT[at])
    ecpm = np.log(np.exp(logits).sum()) - logits[bin_of]
    whole = weight[at] * scale * (sid + 0.4 * ecpm) + 0.7 * mtp
    for name, part in (("loss", factor_BM[at] * whole), ("sid", sid), ("ecpm", ecpm), ("mtp", mtp)):
      parts[name] += part / len(real)
  return parts | {"copy_gate": OUT.gate_B.mean()}


@pytest.mark.parametrize("factored", [False, True])
def test_loss_and_parts(factored):
  loss, metrics = vsl_task.vsl_of(OUT, BATCH, CONFIG, ECPM, *([FACTOR] if factored else []))
  expected = by_hand(FACTOR if factored else np.ones((B, M)))
  assert set(metrics) == set(expected)
  np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
  for name, part in expected.items():
    np.testing.assert_allclose(metrics[name], part, rtol=1e-5, err_msg=name)


def test_the_model_is_asked_for_its_targets_in_training():
  asked, key = {}, jax.random.key(5)

  def apply(variables, batch, codes, **settings):
    asked.update(settings, variables=variables, codes=codes, batch=batch)
    return OUT

  loss_fn = vsl_task.make_vsl_loss(types.SimpleNamespace(apply=apply), CONFIG, ECPM)
  loss, metrics = loss_fn("parameters", BATCH, key)
  np.testing.assert_allclose(loss, by_hand(np.ones((B, M)))["loss"], rtol=1e-5)
  assert asked["variables"] == {"params": "parameters"} and asked["batch"] is BATCH
  assert (
    asked["codes"] is BATCH.target_codes_BMT
    and asked["train"] is True
    and asked["rngs"] == {"dropout": key}
  )
  np.testing.assert_allclose(metrics["loss"], loss)
