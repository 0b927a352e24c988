"""The collapse guard: entropy and coverage as they are defined, an alarm when they fall, none
before.
"""

import logging

import numpy as np
import pytest

from gr4ad_jax.config import PreferenceConfig
from gr4ad_jax.preference import collapse


def test_entropy_is_that_of_what_is_listed_and_coverage_counts_ads():
  p = np.array([[0.3, 0.1, 0.0], [0.2, 0.0, 0.0], [0.0, 0.0, 0.0]])
  with np.errstate(divide="ignore"):
    found = collapse.diversity(np.array([[3, 1, -1], [3, -1, -1], [-1, -1, -1]]), np.log(p), 4)
  expected = (
    -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / 2
  )  # a list of one ad has none, one of no ad does not count
  assert found["entropy"] == pytest.approx(expected)
  assert found["coverage@10"] == 0.5


def test_a_policy_that_draws_its_mass_onto_few_of_the_list_loses_entropy():
  flat, sharp = np.full((1, 10), 0.02), np.array([[0.5, *[0.02] * 9]])
  ads = np.arange(10)[None]
  wide, narrow = (collapse.diversity(ads, np.log(p), 20)["entropy"] for p in (flat, sharp))
  assert narrow < 0.7 * wide


def test_alarm_below_the_share_of_the_start(caplog, tmp_path):
  config, path = (
    PreferenceConfig(collapse_entropy=0.5, collapse_coverage=0.8),
    str(tmp_path / "start.json"),
  )
  guard = collapse.CollapseGuard(config, path)
  start = {"entropy": 2.0, "coverage@10": 0.5}
  with caplog.at_level(logging.WARNING):
    assert guard.check(0, start, 64) == []
    assert guard.check(10, {"entropy": 1.01, "coverage@10": 0.41}, 64) == []
    assert not caplog.records
    assert guard.check(20, {"entropy": 0.9, "coverage@10": 0.3}, 64) == ["entropy", "coverage@10"]
    resumed = collapse.CollapseGuard(config, path)
    assert resumed.check(30, {"entropy": 0.9, "coverage@10": 0.45}, 64) == ["entropy"]
    assert (
      resumed.check(40, {"entropy": 1.9, "coverage@10": 0.1}, 16) == []
    )  # few requests cover little
  assert "at step 20 the policy's entropy is 0.9000" in caplog.text
