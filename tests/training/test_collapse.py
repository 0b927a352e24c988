"""The collapse guard: entropy and coverage as they are defined, an alarm when they fall, none before."""

import logging

import numpy as np
import pytest

from gr4ad_jax.config import PreferenceConfig
from gr4ad_jax.training import collapse


def test_entropy_is_that_of_the_listed_ads_and_the_rest():
  p = np.array([[0.5, 0.25, 0.0], [1.0, 0.0, 0.0]])
  with np.errstate(divide="ignore"):
    found = collapse.diversity(np.array([[3, 1, -1], [3, -1, -1]]), np.log(p), 4)
  expected = (-0.5 * np.log(0.5) - 2 * 0.25 * np.log(0.25)) / 2
  assert found["entropy"] == pytest.approx(expected)
  assert found["coverage@10"] == 0.5


def test_alarm_below_the_share_of_the_start(caplog, tmp_path):
  config, path = PreferenceConfig(collapse_entropy=0.5, collapse_coverage=0.8), str(tmp_path / "start.json")
  guard = collapse.CollapseGuard(config, path)
  start = {"entropy": 2.0, "coverage@10": 0.5}
  with caplog.at_level(logging.WARNING):
    assert guard.check(0, start) == []
    assert guard.check(10, {"entropy": 1.01, "coverage@10": 0.41}) == []
    assert not caplog.records
    assert guard.check(20, {"entropy": 0.9, "coverage@10": 0.3}) == ["entropy", "coverage@10"]
    resumed = collapse.CollapseGuard(config, path)
    assert resumed.check(30, {"entropy": 0.9, "coverage@10": 0.45}) == ["entropy"]
  assert "at step 20 the policy's entropy is 0.9000" in caplog.text
