"""Arms compared: moments and CUPED against loops, false alarms and power against theory."""

import math

import numpy as np
import pytest

from gr4ad_jax.arms import comparison, sequence
from tests.arms import simulated

LONG = (80_000, 0.02)  # users of a simulated experiment, and a lift that is found in most of them
QUICK = (8_000, 0.065)


def _loops(first, other):
  """CUPED's difference and its standard error, by loops over users: pairs (y, x)."""
  pooled_xx = pooled_xy = 0.0
  for arm in (first, other):
    mean_y = sum(y for y, _ in arm) / len(arm)
    mean_x = sum(x for _, x in arm) / len(arm)
    pooled_xx += sum((x - mean_x) ** 2 for _, x in arm)
    pooled_xy += sum((x - mean_x) * (y - mean_y) for y, x in arm)
  theta = pooled_xy / pooled_xx
  means, variance = [], 0.0
  for arm in (first, other):
    adjusted = [y - theta * x for y, x in arm]
    means.append(sum(adjusted) / len(adjusted))
    spread = sum((a - means[-1]) ** 2 for a in adjusted) / (len(adjusted) - 1)
    variance += spread / len(adjusted)
  return means[1] - means[0], math.sqrt(variance)


@pytest.fixture
def arms():
  rng = np.random.default_rng(3)
  arm_U, y_U, x_U = simulated.outcomes(rng, 900, 0.3)
  kept = (arm_U == 0) | (rng.random(900) < 0.5)  # of unequal sizes
  return [(y_U[kept & (arm_U == arm)], x_U[kept & (arm_U == arm)]) for arm in (0, 1)]


def test_cuped_equals_loops(arms):
  pairs = [list(zip(y.tolist(), x.tolist(), strict=True)) for y, x in arms]
  value, error = _loops(*pairs)
  found = comparison.compare(*(comparison.Moments.of(*arm) for arm in arms), 0.05, 0.05)
  users = sum(map(len, pairs))
  assert found.value == pytest.approx(value, rel=1e-9)
  wide = sequence.radius(users, error * math.sqrt(users), 0.05, 0.05)
  assert found.high - found.value == pytest.approx(wide, rel=1e-9)
  assert found.low == pytest.approx(2 * found.value - found.high, rel=1e-9)
  assert found.first == pytest.approx(arms[0][0].mean())
  assert 0.05 < found.explained < 0.6


def test_moments_add_up(arms):
  y_U, x_U = arms[0]
  whole = comparison.Moments.of(y_U, x_U)
  parts = comparison.Moments.of(y_U[:50], x_U[:50]) + comparison.Moments.of(y_U[50:], x_U[50:])
  assert parts.covariances() == pytest.approx(whole.covariances())
  yy, xx, xy = whole.covariances()
  assert np.cov(y_U, x_U) == pytest.approx(np.array([[yy, xy], [xy, xx]]))


def test_what_was_known_before_but_does_not_vary_changes_nothing(arms):
  flat = [comparison.Moments.of(y, np.full(len(y), 7.0)) for y, _ in arms]
  found = comparison.compare(*flat, 0.05, 0.05)
  assert found.value == pytest.approx(arms[1][0].mean() - arms[0][0].mean())
  assert found.explained == pytest.approx(0, abs=1e-9)


def test_few_users_are_told_without_ends():
  few = comparison.Moments.of(np.ones(5), np.zeros(5))
  found = comparison.compare(few, comparison.Moments(), 0.05, 0.05)
  assert (found.low, found.high) == (-np.inf, np.inf)
  assert not found.is_clear and found.first == 1


def _share_found(how, repetitions, users, lift, seed):
  rng = np.random.default_rng(seed)
  return sum(how(rng, users, lift) for _ in range(repetitions)) / repetitions


def _two_deviations(share, repetitions):
  return 2 * math.sqrt(share * (1 - share) / repetitions)


def _judged(repetitions, users, lift):
  """Shares of experiments in which a daily look finds something, and what theory says of them."""
  days = [len(day) for day in np.array_split(np.arange(users), simulated.DAYS)]
  counts = np.cumsum(days).tolist()
  return {
    "false": _share_found(simulated.is_found, repetitions, users, 0.0, 1),
    "power": _share_found(simulated.is_found, repetitions, users, lift, 2),
    "theory": simulated.crossing_chance(simulated.drift_of(lift), counts, simulated.ALPHA),
    "usual intervals": _share_found(simulated.is_found_naively, 100, users, 0.0, 3),
  }


@pytest.mark.parametrize(
  ("repetitions", "users", "lift"), [(60, *QUICK), pytest.param(500, *LONG, marks=pytest.mark.long)]
)
def test_daily_looks(repetitions, users, lift):
  found = _judged(repetitions, users, lift)
  print(found)
  assert found["false"] <= 0.05 + _two_deviations(0.05, repetitions)
  assert 0.4 < found["theory"] < 0.9  # where a power that is off is seen
  error = abs(found["power"] - found["theory"])
  assert error < 1.5 * _two_deviations(found["theory"], repetitions)
  assert found["usual intervals"] > 0.15  # these experiments catch intervals that are too narrow
