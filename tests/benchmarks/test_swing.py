"""The benchmark of Swing: its made-up log is the one described, and its figures agree."""

import numpy as np
import pytest

from gr4ad_jax.benchmarks import swing as benchmark
from gr4ad_jax.config import Config, SidConfig
from gr4ad_jax.swing import swing


def test_the_log_follows_its_power_laws(tmp_path):
  log = benchmark.power_law_log(str(tmp_path), 300_000, 2_000, seed=1)
  assert all(isinstance(column, np.memmap) and len(column) == 300_000 for column in log)
  assert (np.diff(log.request) >= 0).all() and (np.diff(log.request) <= 1).all()
  sizes = np.bincount(log.request)[:-1]  # the last may be cut short
  assert (
    sizes.min() == 5
    and sizes.max() <= benchmark.LARGEST
    and sizes.mean() == pytest.approx(9.5, rel=0.05)
  )
  assert (sizes >= 10).mean() == pytest.approx((5 / 10) ** 2, rel=0.05)
  assert (sizes >= 50).mean() == pytest.approx((5 / 50) ** 2, rel=0.2)
  count = np.sort(np.bincount(log.ad, minlength=2_000))[::-1]
  assert count[0] / 300_000 == pytest.approx(
    0.5 * np.log(2) / np.log(2_001), rel=0.1
  )  # rank 1 among all ads
  again = benchmark.power_law_log(str(tmp_path), 300_000, 2_000, seed=1)
  np.testing.assert_array_equal(again.ad, log.ad)


def test_figures_agree_with_each_other(monkeypatch):
  monkeypatch.setattr(benchmark, "caps", lambda: {"defaults": 0.5})
  config = Config(sid=SidConfig(swing_memory_mb=64))
  figures = benchmark.measure(config, 50_000, 500)
  assert (
    figures["ads_with_neighbors"] <= 500
    and figures["neighbors"] <= 500 * config.sid.swing_neighbors
  )
  assert 0 < figures["peak_rss_gib"] < 64 and figures["visits"] < 50_000 / 5
  words = benchmark.summary(figures)
  assert "50,000 events" in words and "--swing_memory_mb=64" in words and "defaults: 0.500" in words


def test_overlap_is_the_share_that_stays():
  whole = swing.Neighbors(np.array([[1, 2], [0, -1], [1, -1]]), np.ones((3, 2)))
  part = swing.Neighbors(np.array([[2, -1], [0, 2], [-1, -1]]), np.ones((3, 2)))
  assert benchmark.overlap(part, whole) == 0.5
  nothing = swing.Neighbors(np.full((3, 2), -1), np.zeros((3, 2)))
  assert benchmark.overlap(nothing, nothing) == 1
