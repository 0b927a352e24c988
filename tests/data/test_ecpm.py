"""Bins of money: ties, the heavy tail, the file."""

import numpy as np

from gr4ad_jax.data.ecpm import EcpmBins


def test_ties_at_zero_share_one_bin():
  values = np.concatenate([np.zeros(60), np.arange(1, 41)]).astype(np.float32)
  bins = EcpmBins.fit(values, 10)
  which = np.searchsorted(bins.edges, values, side="left")
  assert (which[:60] == which[0]).all() and (which[60:] > which[0]).all()
  assert bins.means[which[0]] == 0
  np.testing.assert_array_equal(np.bincount(which[60:])[which[60]:], 10)  # the rest is still even
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
  assert [path.name for path in (tmp_path / "features").iterdir()] == ["ecpm.json"]
