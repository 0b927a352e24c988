"""Balanced k-means never overfills a cluster, whatever the points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from gr4ad_jax.sid import assignment, kmeans, rows


@settings(max_examples=40, deadline=None)
@given(
  num_points=st.integers(1, 120),
  num_clusters=st.integers(1, 40),
  distinct=st.integers(1, 120),
  seed=st.integers(0, 9),
)
def test_capacity_holds_with_duplicates_and_few_points(num_points, num_clusters, distinct, seed):
  rng = np.random.default_rng(seed)
  points = rng.normal(size=(distinct, 3))[rng.integers(distinct, size=num_points)]
  centroids, cluster = kmeans.balanced_kmeans(points, num_clusters, iterations=5, seed=seed)
  assert centroids.shape == (num_clusters, 3) and np.isfinite(centroids).all()
  size = np.bincount(cluster, minlength=num_clusters)
  assert size.sum() == num_points
  assert size.max() <= max(np.ceil(num_points / num_clusters), 1.5 * num_points / num_clusters)
  if num_points <= num_clusters:
    assert size.max() == 1


def test_balance_on_lopsided_points():
  rng = np.random.default_rng(0)
  points = np.concatenate([rng.normal(0, 0.01, (900, 4)), rng.normal(5, 1, (100, 4))])
  _, cluster = kmeans.balanced_kmeans(points, 20, iterations=20, seed=0)
  assert np.bincount(cluster, minlength=20).max() <= 1.5 * 50


def test_finds_separate_groups_and_is_deterministic():
  rng = np.random.default_rng(1)
  group = rng.permutation(np.repeat(np.arange(8), 25))
  points = (np.eye(8) * 10)[group] + rng.normal(0, 0.1, (200, 8))
  centroids, cluster = kmeans.balanced_kmeans(points, 8, iterations=20, seed=3)
  assert all(len(np.unique(cluster[group == g])) == 1 for g in range(8))
  again, cluster_again = kmeans.balanced_kmeans(points, 8, iterations=20, seed=3)
  np.testing.assert_array_equal(centroids, again)
  np.testing.assert_array_equal(cluster, cluster_again)


@pytest.mark.parametrize("seed", range(4))
def test_assignment_is_close_to_the_best_one(seed):
  rng = np.random.default_rng(seed)
  points, centroids = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(10, 4)).astype(np.float32)
  cost = ((points[:, None] - centroids) ** 2).sum(axis=2)
  places = np.repeat(cost, 6, axis=1)
  best = places[optimize.linear_sum_assignment(places)].sum()
  cluster = assignment.assign_balanced(points, centroids, 6)
  assert np.bincount(cluster, minlength=10).tolist() == [6] * 10
  assert best <= cost[np.arange(60), cluster].sum() + 1e-4
  assert cost[np.arange(60), cluster].sum() <= 1.05 * best


def test_more_clusters_than_candidates_fill_to_the_last_place():
  rng = np.random.default_rng(0)
  centroids = rng.normal(size=(100, 2)).astype(np.float32)
  points = np.zeros((300, 2), np.float32)  # all want the same clusters
  cluster = assignment.assign_balanced(points, centroids, 3)
  assert np.bincount(cluster, minlength=100).tolist() == [3] * 100


def test_nearest_by_chunks_equals_brute_force(monkeypatch):
  monkeypatch.setattr(rows, "STEP", 7)
  rng = np.random.default_rng(0)
  points, centroids = rng.normal(size=(50, 5)).astype(np.float32), rng.normal(size=(9, 5)).astype(np.float32)
  cluster, squared = rows.nearest(points, centroids, 4)
  cost = ((points[:, None] - centroids) ** 2).sum(axis=2)
  np.testing.assert_array_equal(cluster, np.argsort(cost, axis=1)[:, :4])
  np.testing.assert_allclose(squared, np.sort(cost, axis=1)[:, :4], rtol=1e-4)


def test_bad_points_are_refused():
  with pytest.raises(ValueError, match="finite"):
    kmeans.balanced_kmeans(np.array([[np.nan, 0.0]]), 2, iterations=1, seed=0)
