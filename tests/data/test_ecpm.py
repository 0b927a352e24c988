"""Bins of money: ties, the heavy tail, the file."""

import math
import os

import numpy as np
import pytest

from gr4ad_jax.data.ecpm import LEAST_VALUE, EcpmBins
from tests.whole_files import assert_replaced_whole


def test_ties_at_zero_share_one_bin():
  values = np.concatenate([np.zeros(60), np.arange(1, 41)]).astype(np.float32)
  bins = EcpmBins.fit(values, 10)
  which = np.searchsorted(bins.edges, values, side="left")
  assert (which[:60] == which[0]).all() and (which[60:] > which[0]).all()
  assert bins.means[which[0]] == 0
  np.testing.assert_array_equal(np.bincount(which[60:])[which[60] :], 10)  # the rest is still even
  assert len(np.unique(bins.edges)) == len(bins.edges) < 9


def test_all_values_equal():
  bins = EcpmBins.fit(np.full(20, 2.5, np.float32), 4)
  assert bins.clip == 2.5 and bins.means.sum() == 2.5 and len(bins.edges) == 1


def test_the_tail_is_clipped():
  values = np.append(np.ones(999), 1e9).astype(np.float32)
  bins = EcpmBins.fit(values, 4)
  assert bins.clip == 1 and bins.means.max() == 1


def test_file_round_trip(tmp_path):
  bins = EcpmBins.fit(np.random.default_rng(0).exponential(3, 200).astype(np.float32), 7)
  bins.save(str(tmp_path / "features"))
  back = EcpmBins.load(str(tmp_path / "features"))
  np.testing.assert_array_equal(back.edges, bins.edges)
  np.testing.assert_array_equal(back.means, bins.means)
  assert back.clip == bins.clip and back.edges.dtype == np.float32
  assert sorted(os.listdir(tmp_path / "features")) == ["SHA256SUMS", "ecpm.json"]


@pytest.mark.parametrize("bins", [2, 5, 8])
def test_bins_equal_a_loop(bins):
  rng = np.random.default_rng(bins)
  values = np.round(rng.exponential(9, 333), 1).astype(np.float32)
  values[::7] = 0
  ordered = sorted(float(value) for value in values)

  def quantile(share):
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])

  edges = sorted({np.float32(quantile(b / bins)) for b in range(1, bins)})
  clip = quantile(0.99)
  sums, counts = [0.0] * bins, [0] * bins
  for value in values:
    which = sum(edge < value for edge in edges)  # edges[b - 1] < value <= edges[b]
    sums[which] += min(float(value), clip)
    counts[which] += 1
  found = EcpmBins.fit(values, bins)
  np.testing.assert_allclose(found.edges, edges, rtol=1e-6)
  assert found.clip == pytest.approx(clip, rel=1e-6)
  np.testing.assert_allclose(
    found.means, [s / max(n, 1) for s, n in zip(sums, counts, strict=True)], rtol=1e-5
  )
  assert found.edges.dtype == found.means.dtype == np.float32


def test_the_file_is_replaced_whole(tmp_path):
  one, other = (EcpmBins.fit(np.arange(9, dtype=np.float32) * x, 4) for x in (1, 2))
  path = str(tmp_path / "ecpm.json")
  assert_replaced_whole(path, lambda: one.save(str(tmp_path)), lambda: other.save(str(tmp_path)))


def test_a_bin_of_one_value_has_that_value_as_its_mean():
  found = EcpmBins.fit(np.array([1, 2, 4, 8], np.float32), 4)
  np.testing.assert_allclose(found.means, [1, 2, 4, 8 - 0.03 * 4], rtol=1e-6)  # the last is clipped


def test_the_least_value_is_far_below_the_smallest_coin():
  assert 0 < LEAST_VALUE < 0.01 / 100
