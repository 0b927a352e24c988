"""The place that is drawn: its frequencies are the propensities that are told."""

import numpy as np
import pytest
from scipy import stats

from gr4ad_jax.answering import explore

ENTRIES = [(row, -1.0, score, 2.0) for row, score in enumerate(np.linspace(3.0, -2.0, 80))]


@pytest.mark.parametrize("k", [1, 4])
def test_over_twenty_thousand_draws_frequencies_are_the_propensities(k):
  rng, draws = np.random.default_rng(1), 20_000
  told, count = {}, np.zeros(80)
  for _ in range(draws):
    found, chances = explore.drawn(ENTRIES, k, rng)
    assert [row for row, *_ in found[:-1]] == list(range(k - 1)) and chances[:-1] == [1.0] * (k - 1)
    row = found[-1][0]
    assert told.setdefault(row, chances[-1]) == chances[-1]
    count[row] += 1
  chance = explore.propensities(ENTRIES, k)
  assert len(chance) == 50 and not count[: k - 1].any() and not count[k + 49 :].any()
  assert stats.chisquare(count[k - 1 : k + 49], draws * chance).pvalue > 0.01
  # A draw by other chances would be noticed.
  assert stats.chisquare(count[k - 1 : k + 49], np.full(50, draws / 50)).pvalue < 1e-6


def test_propensities_are_a_softmax_of_the_scores():
  chance = explore.propensities(ENTRIES, 10)
  weights = [np.exp(score) for _, _, score, _ in ENTRIES[9:59]]
  np.testing.assert_allclose(chance, np.array(weights) / sum(weights), rtol=1e-12)
  assert chance.sum() == pytest.approx(1)


def test_what_is_uncertain_is_drawn_more_often():
  """Of two ads of one score the one of the wider spread, by its upper bound over its mean."""
  value, spread, weight = np.array([2.0, 2.0, 0.0]), np.array([0.0, 3.0, 0.5]), 1.5
  gain = explore.optimism(value, spread, weight)
  np.testing.assert_allclose(gain[:2], [0, np.log((2 + 1.5 * 3) / 2)], rtol=1e-12)
  assert np.isfinite(gain[2])  # a mean of 0 has no logarithm
  entries = [(7, -1.0, 0.5, 2.0), (9, -1.0, 0.5, 2.0), (4, -2.0, 0.1, 1.0)]
  bonus = {7: gain[0], 9: gain[1]}
  chance = explore.propensities(entries, 1, bonus)
  weights = [np.exp(0.5), np.exp(0.5) * 3.25, np.exp(0.1)]
  np.testing.assert_allclose(chance, np.array(weights) / sum(weights), rtol=1e-12)
  found, chances = explore.drawn(entries, 1, np.random.default_rng(0), bonus)
  told = explore.trial(entries, 1, found, str, bonus)
  assert told["propensity"] == chance.tolist() and chances == [chance[told["at"]]]


def test_short_lists_are_drawn_from_what_there_is():
  rng = np.random.default_rng(0)
  found, chances = explore.drawn(ENTRIES[:3], 3, rng)
  assert found == ENTRIES[:3] and chances == [1.0, 1.0, 1.0]
  assert explore.drawn(ENTRIES[:2], 3, rng) == (ENTRIES[:2], [1.0, 1.0])
  assert explore.drawn([], 3, rng) == ([], [])
  huge = [(row, 0.0, 1e5 - row, 1.0) for row in range(3)]  # no overflow
  assert sum(explore.propensities(huge, 1)) == pytest.approx(1)
