"""Estimates of the reward model against a loop: calibration, scale, clip, and batches of any
shape.
"""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.evaluation.calibration import Calibration
from gr4ad_jax.value import reward_model
from gr4ad_jax.value.reward_model import RewardModel

CALIBRATION = Calibration([-2.0, 0.0, 1.0], [-3.0, -1.0, 2.0], 1.3)
SCALE = types.SimpleNamespace(
  pair=np.zeros((1, 2)),
  user=np.zeros((1, 2)),
  value=4.0,
  clip=9.0,
  edges={"pair": np.float32(0.1), "user": 0.2},
)
PARAMS = {"w": jnp.float32(0.5)}


class Features:
  """Pairs are the numbers of request and ad; remembers the shapes that it was asked for."""

  def __init__(self):
    self.shapes = []

  def batch(self, requests, ads):
    assert requests.ndim == 1 and len(requests) == len(ads)
    self.shapes.append(ads.shape)
    return np.float32(requests), np.float32(ads)


class Model:
  """Logit and log E[value] that tell a request and an ad apart."""

  def apply(self, variables, pairs, edges):
    request, ad = pairs
    at = jnp.sin(request[:, None] * 3 + ad) * 4 + edges["pair"] - 0.1
    return at * variables["params"]["w"], jnp.cos(request[:, None] + ad * 2)


def by_hand(request, ad):
  logit, log_value = np.sin(3 * request + ad) * 2, np.cos(request + 2 * ad)
  points, corrected = CALIBRATION.logits, CALIBRATION.corrected
  if logit < points[0]:
    logit += corrected[0] - points[0]
  elif logit > points[-1]:
    logit += corrected[-1] - points[-1]
  else:
    k = 0 if logit < points[1] else 1
    logit = corrected[k] + (logit - points[k]) / (points[k + 1] - points[k]) * (
      corrected[k + 1] - corrected[k]
    )
  return 1 / (1 + np.exp(-logit)), min(np.exp(log_value) * 4.0 * 1.3, 9.0)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (64, 32), (131, 33), (3, 40)])
def test_estimates(rows, columns, monkeypatch):
  monkeypatch.setattr(
    reward_model, "_PAIRS", 64 * 40
  )  # of more columns fewer requests at once: 40 of 64 columns
  rng, features = np.random.default_rng(rows), Features()
  model = RewardModel(Model(), PARAMS, features, SCALE, CALIBRATION)
  requests = rng.integers(0, 50, rows)
  ads = np.where(rng.random((rows, columns)) < 0.8, rng.integers(0, 90, (rows, columns)), -1)
  ads[0, 0] = 3
  found = model.estimate(requests, ads)
  clipped = 0
  for b, c in np.ndindex(rows, columns):
    p, value = by_hand(int(requests[b]), int(ads[b, c])) if ads[b, c] >= 0 else (0.0, 0.0)
    clipped += value == 9.0
    np.testing.assert_allclose(
      [found.purchase_BC[b, c], found.value_BC[b, c]], [p, value], rtol=1e-3, atol=1e-6
    )
  assert found.purchase_BC.dtype == found.value_BC.dtype == np.float32
  assert clipped or rows * columns == 1
  assert len(set(features.shapes)) == 1  # one shape is compiled
  assert set(features.shapes) == {{1: (64, 32), 32: (64, 32), 33: (40, 64), 40: (40, 64)}[columns]}
  assert len(features.shapes) == -(-rows // features.shapes[0][0])


def test_very_many_ads_are_scored_a_request_at_a_time():
  features = Features()
  RewardModel(Model(), PARAMS, features, SCALE, CALIBRATION).estimate(
    np.arange(2), np.zeros((2, 70_000), int)
  )
  assert features.shapes == [(1, 70_016)] * 2


def test_no_request_or_no_ad():
  model = RewardModel(Model(), PARAMS, Features(), SCALE, CALIBRATION)
  assert [x.shape for x in model.estimate(np.zeros(0, int), np.zeros((0, 7), int))] == [(0, 7)] * 2
  assert [x.shape for x in model.estimate(np.zeros(3, int), np.zeros((3, 0), int))] == [(3, 0)] * 2


def test_a_digest_tells_models_apart():
  make = lambda params=PARAMS, scale=SCALE, calibration=CALIBRATION: (  # noqa: E731
    RewardModel(Model(), params, Features(), scale, calibration).digest
  )
  same = types.SimpleNamespace(**vars(SCALE))
  others = [types.SimpleNamespace(**vars(SCALE) | {name: 2 * getattr(SCALE, name) + 1})
            for name in ("pair", "user", "value", "clip")]  # fmt: skip
  digests = [make(scale=scale) for scale in others]
  digests += [
    make(params={"w": jnp.float32(0.25)}),
    make(calibration=Calibration([0.0], [0.0], 1.0)),
  ]
  assert make(scale=same) == make() and len({make(), *digests}) == 7
