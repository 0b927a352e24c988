"""Off-policy estimates: against loops, and unbiased where the truth is known."""

import numpy as np
import pytest

from gr4ad_jax.arms import off_policy

CANDIDATES = 12


def _world(rng):
  """(scores, rewards) of the candidates of 300 contexts; a rule that is not the one that draws."""
  score_XC = rng.normal(size=(300, CANDIDATES))
  chance_XC = 1 / (1 + np.exp(2 - 0.7 * score_XC - rng.normal(size=score_XC.shape)))
  return score_XC, chance_XC


def _softmax(x_XC):
  weight_XC = np.exp(x_XC - x_XC.max(axis=1, keepdims=True))
  return weight_XC / weight_XC.sum(axis=1, keepdims=True)


def _draws(rng, score_XC, chance_XC, target_XC, draws):
  """The arrays of the estimators: drawn by a softmax of the scores, 5 money a purchase."""
  propensity_XC = _softmax(score_XC)
  context_R = rng.integers(len(score_XC), size=draws)
  edge_RC = propensity_XC[context_R].cumsum(axis=1)
  ad_R = np.minimum((rng.random((draws, 1)) > edge_RC).sum(axis=1), CANDIDATES - 1)
  at = (context_R, ad_R)
  reward_R = 5.0 * (rng.random(draws) < chance_XC[at])
  predicted_XC = 5.0 * chance_XC * 0.8 + 0.2  # a model that is off
  mean_X = (target_XC * predicted_XC).sum(axis=1)
  logged = (target_XC[at], propensity_XC[at], reward_R)
  return logged, (predicted_XC[at], mean_X[context_R])


@pytest.fixture(scope="module")
def world():
  return _world(np.random.default_rng(7))


def test_estimates_equal_loops(world):
  score_XC, chance_XC = world
  target_XC = _softmax(2 * score_XC)
  logged, model = _draws(np.random.default_rng(1), score_XC, chance_XC, target_XC, 50)
  weights = [target / chance for target, chance in zip(logged[0], logged[1], strict=True)]
  paid = [w * r for w, r in zip(weights, logged[2], strict=True)]
  robust = [mean + w * (r - q) for w, r, q, mean in zip(weights, logged[2], *model, strict=True)]
  assert off_policy.ips(*logged).value == pytest.approx(sum(paid) / 50)
  assert off_policy.snips(*logged).value == pytest.approx(sum(paid) / sum(weights))
  assert off_policy.doubly_robust(*logged, *model).value == pytest.approx(sum(robust) / 50)
  squares = sum(w * w for w in weights)
  assert off_policy.effective_draws(*logged[:2]) == pytest.approx(sum(weights) ** 2 / squares)


def _truth(chance_XC, target_XC):
  return float(5.0 * (chance_XC * target_XC).sum(axis=1).mean())


def _best(score_XC):
  return np.eye(CANDIDATES)[score_XC.argmax(axis=1)]


@pytest.mark.parametrize(
  ("rule", "repetitions"),
  [("best", 150), ("even", 150)]
  + [pytest.param(r, 500, marks=pytest.mark.long) for r in ("best", "even")],
)
def test_unbiased_on_a_known_truth(world, rule, repetitions):
  score_XC, chance_XC = world
  target_XC = _best(score_XC) if rule == "best" else np.full_like(score_XC, 1 / CANDIDATES)
  truth = _truth(chance_XC, target_XC)
  rng = np.random.default_rng(5)
  found = {"ips": [], "snips": [], "dr": []}
  for _ in range(repetitions):
    logged, model = _draws(rng, score_XC, chance_XC, target_XC, 1_000)
    found["ips"].append(off_policy.ips(*logged))
    found["snips"].append(off_policy.snips(*logged))
    found["dr"].append(off_policy.doubly_robust(*logged, *model))
  spread = {}
  for name, estimates in found.items():
    values = np.array([estimate.value for estimate in estimates])
    spread[name] = values.std(ddof=1)
    assert abs(values.mean() - truth) < 3 * spread[name] / np.sqrt(repetitions), name
    # The error that is told is the spread that is there, and 95 of 100 intervals hold the truth.
    told = np.array([estimate.error for estimate in estimates])
    assert told.mean() == pytest.approx(spread[name], rel=0.2), name
    assert np.mean(np.abs(values - truth) < 1.96 * told) > 0.92, name
  assert spread["dr"] < spread["ips"]
  print(rule, truth, spread, {name: np.mean([e.value for e in found[name]]) for name in found})


def test_the_drawing_rule_itself_has_weights_of_one(world):
  score_XC, chance_XC = world
  logged, _ = _draws(np.random.default_rng(2), score_XC, chance_XC, _softmax(score_XC), 200)
  assert off_policy.ips(*logged).value == pytest.approx(logged[2].mean())
  assert off_policy.effective_draws(*logged[:2]) == pytest.approx(200)


def test_what_cannot_be_estimated_is_refused():
  none = np.zeros(0)
  one = np.ones(1)
  with pytest.raises(ValueError, match="no draw"):
    off_policy.ips(none, none, none)
  with pytest.raises(ValueError, match="propensity"):
    off_policy.ips(one, np.zeros(1), one)
  assert np.isnan(off_policy.snips(np.zeros(1), one, one).value)
