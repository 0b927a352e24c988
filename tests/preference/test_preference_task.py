"""The preference loss: the sum that its objective says, with gradients of the policy alone."""

import functools

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ObjectiveConfig, PreferenceConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.models.outputs import Outputs
from gr4ad_jax.objectives import rspo, unified, vsl
from gr4ad_jax.preference.preference_task import (
  Listed,
  PreferenceBatch,
  list_loss,
  make_preference_loss,
  taken_first,
  with_lists,
)
from gr4ad_jax.requests.candidates import NO_REFERENCE
from tests.models import tiny
from tests.objectives import loops
from tests.objectives.draws import by_loop, draw

ECPM = EcpmBins(np.array([1, 2, 4, 8], np.float32), np.ones(5, np.float32), 20.0)
C = 6


@pytest.fixture(scope="module")
def parts():
  """A model and a batch of four requests with up to six candidates, the first two of them taken."""
  model, rng = tiny.make_model(layers=1, lazy_layers=0), np.random.default_rng(1)
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


class Said:
  """A model that says its parameters: what is differentiated is the loss alone."""

  def apply(self, variables, requests, codes_BMT, *, train=False, valued=None, rngs=None):
    del requests, train, valued, rngs
    assert variables["params"]["logp_BM"].shape == codes_BMT.shape[:2]
    return Outputs(**variables["params"])


@pytest.fixture(scope="module")
def numbers(parts):
  """`parts` with a model that costs nothing."""
  B, T, V, rng = 4, len(tiny.CODEBOOKS), len(ECPM.means), np.random.default_rng(5)
  shapes = {"logp_BM": (B, C), "generated_logp_BMT": (B, C, T), "ecpm_logits_BMV": (B, C, V)}
  shapes |= {"mtp_logp_BMT": (B, C, T), "gate_B": (B,)}
  said = {name: rng.normal(-3, 1, shape).astype(np.float32) for name, shape in shapes.items()}
  return Said(), said, parts[2]


def found(parts, objective, **settings):
  model, params, batch = parts
  loss_fn = make_preference_loss(
    model, ObjectiveConfig(objective=objective), PreferenceConfig(**settings), ECPM, 2
  )
  compute = tiny.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (loss, metrics), grads = compute(params, batch, jax.random.key(0))
  return float(loss), {name: float(value) for name, value in metrics.items()}, grads


def vsl_of(parts, factor_BC=1.0):
  """VSL of the candidates that were taken, computed apart from the task."""
  model, params, batch = parts
  requests, settings = batch.requests, ObjectiveConfig()
  out = tiny.jit(model.apply)({"params": params}, requests, requests.target_codes_BMT)
  weight = vsl.value_weights(
    requests.target_value_BM, requests.target_depth_BM, requests.user_value_B,
    requests.target_mask_BM, growth="log", depth_weight=1.0, user_weight=0.0, value_clip=ECPM.clip,
  )  # fmt: skip
  bins = vsl.ecpm_bin(requests.target_value_BM, ECPM.edges)
  loss, _ = vsl.vsl_loss(
    out.logp_BM, out.mtp_logp_BMT, out.ecpm_logits_BMV, bins, weight, requests.target_mask_BM,
    lambda_ecpm=settings.lambda_ecpm, lambda_mtp=settings.lambda_mtp, factor_BM=factor_BC,
  )  # fmt: skip
  return float(loss), out.logp_BM


@pytest.mark.parametrize(
  ("of", "objective"),
  # Five compilations of the whole step; the objectives' values are compared below.
  [
    ("numbers", "rspo"),
    *(
      pytest.param("parts", name, marks=pytest.mark.long)
      for name in ("rspo", "xent", "dpo", "sdpo", "grpo")
    ),
  ],
)
def test_loss_is_vsl_plus_the_weighted_list_objective(of, objective, request):
  parts = request.getfixturevalue(of)
  loss, metrics, grads = found(parts, objective, preference_weight=3.0)
  assert metrics["vsl"] == pytest.approx(vsl_of(parts)[0], rel=1e-5)
  assert loss == pytest.approx(metrics["vsl"] + 3 * metrics["preference"], rel=1e-5)
  assert metrics["preference"] != 0 and all(
    np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)
  )


@pytest.mark.long
def test_unified_weighs_each_candidate(parts):
  loss, metrics, _ = found(parts, "unified", preference_weight=2.0, z_max=1.5)
  _, logp_BC = vsl_of(parts)
  batch = parts[2]
  w_vsl, w_rl = unified.unified_weights(logp_BC, batch.reward_BC, z_max=1.5, mask_BM=batch.mask_BC)
  terms, counted = rspo.rspo_terms(
    logp_BC,
    batch.reference_logp_BC,
    batch.reward_BC,
    beta=1.0,
    delta=1.0,
    mask_BM=batch.mask_BC,
    row_norm=True,
  )
  expected = float((w_rl * terms)[counted].sum() / counted.sum())
  assert metrics["preference"] == pytest.approx(expected, rel=1e-4)
  assert loss == pytest.approx(vsl_of(parts, w_vsl)[0] + 2 * expected, rel=1e-4)


@pytest.mark.long
def test_without_reference_rspo_sees_the_policy_alone(parts):
  _, logp_BC = vsl_of(parts)
  batch = parts[2]
  _, metrics, _ = found(parts, "rspo", reference=False)
  unknown = np.full_like(batch.reference_logp_BC, NO_REFERENCE)
  expected = rspo.rspo_loss(
    logp_BC, unknown, batch.reward_BC, beta=1.0, delta=1.0, mask_BM=batch.mask_BC, row_norm=True
  )
  assert metrics["preference"] == pytest.approx(float(expected.mean()), rel=1e-4)


LIST_LOSSES = {
  "rspo": lambda p, f, v: loops.rspo(p, f, v, 0.8, 0.4, gain="exp2", ranks="model"),
  "dpo": lambda p, f, v: loops.dpo(p, f, v, 0.8),
  "sdpo": lambda p, f, v: loops.sdpo(p, f, v, 0.8),
  "grpo": lambda p, f, v: loops.grpo(p, f, v, 0.05, 0.6),
  "xent": lambda p, f, v: loops.cross_entropy(p, v),
}
SETTINGS = PreferenceConfig(
  beta=0.8,
  delta=0.4,
  gain="exp2",
  ranks="model",
  normalize_rows=False,
  z_max=1.7,
  grpo_clip=0.05,
  grpo_kl=0.6,
)


@pytest.mark.parametrize("name", LIST_LOSSES)
def test_each_list_loss_is_a_mean_over_requests_with_the_settings_of_its_flags(name):
  policy, reference, reward, mask = draw(3, 6, 5, np.float32, unknown=0.1)
  reward = np.where(mask, np.log1p(np.where(mask, reward, 0)), 0)
  one, found = tiny.jit(functools.partial(list_loss, name, SETTINGS))(
    policy, reference, reward, mask
  )
  expected = by_loop(LIST_LOSSES[name], policy, reference, reward, mask)
  assert (
    (one == 1).all() and found == pytest.approx(expected.mean(), rel=1e-4) and expected.std() > 0
  )


def test_the_unified_sum_is_a_mean_over_all_candidates_that_contribute():
  policy, reference, reward, mask = draw(4, 6, 5, np.float32, unknown=0.1)
  reward = np.where(mask, np.log1p(np.where(mask, reward, 0)), 0)
  w_vsl, found = tiny.jit(functools.partial(list_loss, "unified", SETTINGS))(
    policy, reference, reward, mask
  )
  total, count = 0.0, 0
  for b in range(6):
    row = [x[b][mask[b]].tolist() for x in (policy, reference, reward)]
    imitate, explore = loops.unified(row[0], row[2], 1.0, 1.7)
    np.testing.assert_allclose(w_vsl[b][mask[b]], imitate, rtol=1e-5)
    for i, term in loops.rspo_terms(*row, 0.8, 0.4, gain="exp2", ranks="model").items():
      total += explore[i] * term
      count += 1
  assert count > 6 and found == pytest.approx(total / count, rel=1e-4)


def test_lists_beside_requests_add_their_weighted_loss():
  """Requests go to the one loss, lists to the other with a key of their own; a plain batch is as
  without lists.
  """
  keys = []

  def own(params, batch, key):
    keys.append(key)
    return params * batch, {"sid": batch, "loss": params * batch}

  def of_lists(params, lists, key):
    keys.append(key)
    return params + lists, {"vsl": lists, "preference": 10 * lists, "sid": -1.0}

  key = jax.random.key(0)
  loss = with_lists(own, of_lists, 0.5)
  assert loss(3.0, 4.0, key) == own(3.0, 4.0, key)
  total, metrics = loss(3.0, Listed(4.0, 7.0), key)
  assert total == 3 * 4 + 0.5 * (3 + 7)
  lists = {"lists": 10.0, "lists_vsl": 7.0, "lists_preference": 70.0}
  assert metrics == {"sid": 4.0, "vsl": 12.0, "loss": total} | lists
  drawn = {tuple(jax.random.key_data(one).tolist()) for one in keys[-2:]}
  assert len(drawn) == 2


def test_what_was_taken_stands_first_and_the_rest_is_cut(parts):
  requests, mask, reference, reward = parts[2]
  taken = np.array([[0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0] * 6, [0, 1, 0, 0, 0, 0]], bool)
  given = requests._replace(target_mask_BM=taken)
  found = taken_first(PreferenceBatch(given, mask, reference, reward), 4)
  for b, order in enumerate([[2, 4, 0, 1], [0, 1, 2, 3], [0, 1, 2, 3], [1, 0, 2, 3]]):
    for name in ("target_codes_BMT", "target_mask_BM", "target_value_BM", "target_depth_BM"):
      np.testing.assert_array_equal(
        getattr(found.requests, name)[b], getattr(given, name)[b][order]
      )
    np.testing.assert_array_equal(found.mask_BC[b], mask[b][order])
    np.testing.assert_array_equal(found.reference_logp_BC[b], reference[b][order])
    np.testing.assert_array_equal(found.reward_BC[b], reward[b][order])
  np.testing.assert_array_equal(found.requests.slot_ad_BS, given.slot_ad_BS)
