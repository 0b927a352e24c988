"""Sample ratio mismatch: the factor against loops, false alarms, and what is caught."""

import math

import numpy as np
import pytest

from gr4ad_jax.arms import split

SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}


def test_bayes_factor_equals_the_prediction_user_by_user():
  # The Dirichlet-multinomial predicts each next user from those before.
  rng = np.random.default_rng(0)
  counts = dict.fromkeys(SHARES, 0)
  logs = 0.0
  for name in rng.choice(list(SHARES), p=[0.6, 0.2, 0.2], size=300):
    seen = sum(counts.values())
    predicted = (split.STRENGTH * SHARES[name] + counts[name]) / (split.STRENGTH + seen)
    logs += math.log(predicted / SHARES[name])
    counts[name] += 1
  assert split.log_bayes_factor(counts, SHARES) == pytest.approx(logs, rel=1e-9)


def _days(rng, lost, users=4_000, days=28):
  """Counts at the end of each day, where a share of the users of arm b is lost."""
  counts = dict.fromkeys(SHARES, 0)
  for _ in range(days):
    for name, count in zip(SHARES, rng.multinomial(users, list(SHARES.values())), strict=True):
      counts[name] += rng.binomial(count, 1 - lost) if name == "b" else count
    yield dict(counts)


def test_false_alarms_of_daily_looks():
  rng = np.random.default_rng(1)
  repetitions = 500
  alarms = sum(split.mismatch_p(list(_days(rng, 0.0)), SHARES) < 0.05 for _ in range(repetitions))
  assert alarms / repetitions <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / repetitions)


def test_lost_users_are_caught():
  rng = np.random.default_rng(2)
  caught = sum(split.mismatch_p(list(_days(rng, 0.05)), SHARES) < 0.01 for _ in range(100))
  assert caught == 100


def test_no_user_is_no_evidence():
  assert split.mismatch_p([], SHARES) == 1.0
  assert split.mismatch_p([dict.fromkeys(SHARES, 0)], SHARES) == 1.0
