"""The confidence sequence: its formula, its tuning, and that it holds however often one looks."""

import math

import numpy as np
import pytest

from gr4ad_jax.arms import sequence
from tests.arms import simulated


def test_radius_is_theorem_2_2():
  t, sigma, alpha, rho = 400, 3.0, 0.05, 0.1
  inside = (t * rho * rho + 1) / (t * t * rho * rho) * 2 * math.log((t * rho**2 + 1) ** 0.5 / alpha)
  assert sequence.radius(t, sigma, alpha, rho) == pytest.approx(sigma * inside**0.5, rel=1e-12)
  # 1.96 * 3 / 20 = .294 would be the usual one, of one look.
  assert 0.4 < sequence.radius(t, sigma, alpha, rho) < 0.5


def test_nothing_is_told_of_few_observations():
  assert sequence.radius(sequence.LEAST - 1, 1.0, 0.05, 0.1) == math.inf
  assert sequence.radius(sequence.LEAST, 1.0, 0.05, 0.1) < math.inf


@pytest.mark.parametrize(("count", "alpha"), [(500, 0.05), (80_000, 0.01)])
def test_rho_makes_the_interval_narrowest_at_the_count(count, alpha):
  best = sequence.rho_for(count, alpha)
  tried = best * np.linspace(0.5, 2, 301)
  widths = [sequence.radius(count, 1.0, alpha, rho) for rho in tried]
  assert tried[int(np.argmin(widths))] == pytest.approx(best, rel=0.01)


def test_theory_knows_the_one_look():
  # With one look the crossing chance is that of a normal variable, in closed form.
  count, drift = 1_000, 0.1
  bound = math.sqrt(count) * sequence.radius(count, 1.0, 0.05, sequence.rho_for(count, 0.05))
  tail = [0.5 * math.erfc((bound + sign * drift * math.sqrt(count)) / 2**0.5) for sign in (1, -1)]
  assert simulated.crossing_chance(drift, [count], 0.05) == pytest.approx(sum(tail), abs=1e-4)


def test_theory_stays_below_alpha_without_a_difference():
  counts = [1_000 * day for day in range(1, 29)]
  assert 0.005 < simulated.crossing_chance(0.0, counts, 0.05) < 0.05
