"""Balanced k-means never overfills a cluster, whatever the points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from gr4ad_jax.sid import assignment, kmeans, nearest, rows


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
  assert size.max() <= max(
    np.ceil(num_points / num_clusters), np.floor(1.2 * num_points / num_clusters)
  )
  if num_points <= num_clusters:
    assert size.max() == 1


def test_balance_on_lopsided_points():
  rng = np.random.default_rng(0)
  points = np.concatenate([rng.normal(0, 0.01, (900, 4)), rng.normal(5, 1, (100, 4))])
  _, cluster = kmeans.balanced_kmeans(points, 20, iterations=20, seed=0)
  assert np.bincount(cluster, minlength=20).max() <= 1.2 * 50


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
  points, centroids = (
    rng.normal(size=(60, 4)).astype(np.float32),
    rng.normal(size=(10, 4)).astype(np.float32),
  )
  cost = ((points[:, None] - centroids) ** 2).sum(axis=2)
  places = np.repeat(cost, 6, axis=1)
  best = places[optimize.linear_sum_assignment(places)].sum()
  cluster = assignment.assign_rows(rows.Rows(points), centroids, 6)[0]
  assert np.bincount(cluster, minlength=10).tolist() == [6] * 10
  assert best <= cost[np.arange(60), cluster].sum() + 1e-4
  assert cost[np.arange(60), cluster].sum() <= 1.05 * best


def test_more_clusters_than_candidates_fill_to_the_last_place():
  rng = np.random.default_rng(0)
  centroids = rng.normal(size=(100, 2)).astype(np.float32)
  points = np.zeros((300, 2), np.float32)  # all want the same clusters
  cluster = assignment.assign_rows(rows.Rows(points), centroids, 3)[0]
  assert np.bincount(cluster, minlength=100).tolist() == [3] * 100


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_the_scale_of_the_points_does_not_matter(scale):
  rng = np.random.default_rng(0)
  points = rng.normal(size=(200, 4))[rng.integers(100, size=200)].astype(
    np.float32
  )  # some alike, at equal distances
  expected = assignment.assign_rows(rows.Rows(points), points[:20], 10)[1].sum()
  found = assignment.assign_rows(
    rows.Rows(points * np.float32(scale)), points[:20] * np.float32(scale), 10
  )[1].sum()
  np.testing.assert_allclose(found / scale**2, expected, rtol=1e-2)


def test_nearest_by_chunks_equals_brute_force(monkeypatch):
  monkeypatch.setattr(rows, "STEP", 7)
  rng = np.random.default_rng(0)
  points, centroids = (
    rng.normal(size=(50, 5)).astype(np.float32),
    rng.normal(size=(9, 5)).astype(np.float32),
  )
  cluster, squared = nearest.nearest(points, centroids, 4)
  cost = ((points[:, None] - centroids) ** 2).sum(axis=2)
  np.testing.assert_array_equal(cluster, np.argsort(cost, axis=1)[:, :4])
  np.testing.assert_allclose(squared, np.sort(cost, axis=1)[:, :4], rtol=1e-4)


@pytest.mark.parametrize("candidates", [1, 4])
def test_nearest_by_blocks_equals_brute_force(candidates):
  rng = np.random.default_rng(1)
  points, centroids = (
    rng.normal(size=(40, 5)).astype(np.float32),
    rng.normal(size=(523, 5)).astype(np.float32),
  )
  assert 4 * nearest.BLOCK * candidates <= 523
  cluster, squared = nearest.nearest(points, centroids, candidates)
  cost = ((points[:, None] - centroids) ** 2).sum(axis=2)
  np.testing.assert_array_equal(cluster, np.argsort(cost, axis=1)[:, :candidates])
  np.testing.assert_allclose(squared, np.sort(cost, axis=1)[:, :candidates], atol=1e-5)


def test_many_clusters_are_assigned_close_to_the_best():
  rng = np.random.default_rng(0)
  num = assignment.FEW_CLUSTERS + 88  # short lists of candidates, several auctions
  points, centroids = (
    rng.normal(size=(1200, 6)).astype(np.float32),
    rng.normal(size=(num, 6)).astype(np.float32),
  )
  cost = ((points[:, None] - centroids) ** 2).sum(axis=2)
  places = np.repeat(cost, 3, axis=1)
  best = places[optimize.linear_sum_assignment(places)].sum()
  cluster, squared = assignment.assign_rows(rows.Rows(points), centroids, 3)
  assert np.bincount(cluster, minlength=num).max() == 3
  np.testing.assert_allclose(squared, cost[np.arange(1200), cluster], atol=1e-4)
  assert best - 1e-3 <= squared.sum() <= 1.05 * best
  assert squared.sum() < 0.97 * greedy(cost, 3)


def greedy(cost, capacity):
  """Total cost when points take, one after the other, the nearest cluster with room."""
  room, total = np.full(cost.shape[1], capacity), 0.0
  for row in cost:
    choice = np.argmin(np.where(room > 0, row, np.inf))
    room[choice] -= 1
    total += row[choice]
  return total


def test_a_start_of_many_clusters_has_no_point_twice():
  rng = np.random.default_rng(0)
  num = kmeans.PLUS_PLUS + 8
  points = np.repeat(rng.normal(size=(num, 2)), 2, axis=0).astype(np.float32)
  start, _ = kmeans.balanced_kmeans(points, num, iterations=0, seed=0)
  np.testing.assert_array_equal(np.unique(start, axis=0), np.unique(points, axis=0))


def test_means_are_exact_to_float32_and_do_not_overflow():
  rng = np.random.default_rng(0)
  scale = np.float32([1e6, 1, 1e-3, 0, 1e-25])
  points = rng.uniform(-1, -0.999, (4000, 5)).astype(np.float32) * scale
  cluster = (np.arange(4000) >= 2000).astype(np.int32)
  unit = kmeans.unit_of(np.abs(points).max(axis=0), 2000)
  means = kmeans.means(
    rows.Rows(points), cluster, np.zeros(4000), np.zeros((2, 5), np.float32), unit
  )
  for c in range(2):
    mean = points[cluster == c].astype(np.float64).mean(axis=0)
    assert (np.abs(means[c] - mean) <= np.maximum(scale, 1e-30) * 2**-23).all()
  with np.errstate(over="ignore"):
    assert (
      rows.Rows(points).sums(cluster, 2, unit / 2) > 0
    ).any()  # half the unit would not have been enough


@pytest.mark.filterwarnings("error")
def test_a_coordinate_of_zeros_overflows_nothing():
  points = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * np.float32([1, 0, 1])
  for clusters in (6, 1):
    centroids, cluster = kmeans.balanced_kmeans(points, clusters, iterations=2, seed=0)
    expected = np.stack([points[cluster == c].mean(axis=0) for c in range(clusters)])
    np.testing.assert_allclose(centroids, expected, rtol=1e-6)


def test_a_row_beyond_what_float32_counts_is_named():
  far = rows.Rows(np.float32([[0], [np.nan]]))
  far.begin = 2**24 + 4
  with pytest.raises(ValueError, match="row 16777222 is not"):
    kmeans._checked(far)


def test_iterations_from_a_given_start_lower_the_distortion():
  rng = np.random.default_rng(0)
  points = rng.normal(size=(2000, 8)).astype(np.float32)
  distortion = []
  for iterations in (0, 2, 8):
    centroids, cluster = kmeans.balanced_kmeans(
      points, 40, iterations=iterations, seed=0, start_CD=points[:40]
    )
    distortion.append(((points - centroids[cluster]) ** 2).sum(axis=1).mean())
  assert (
    distortion[0] > 1.1 * distortion[1] > 1.1 * 0.99 * distortion[2]
    and distortion[1] > distortion[2]
  )


def test_bad_input_is_refused_before_any_work():
  points = np.zeros((9, 2), np.float32)
  points[6, 1] = np.inf
  for bad, clusters, message in (
    (points, 2, "row 7 is not"),
    (np.zeros((0, 2)), 2, "there are none"),
    (np.zeros(3), 2, r"got shape \(3,\)"),
    (np.zeros((3, 0)), 2, r"got shape \(3, 0\)"),
    (points[:5], 0, "0 clusters"),
    (points[:5], kmeans.MOST_CLUSTERS + 1, "1 to 1048576"),
  ):
    with pytest.raises(ValueError, match=message):
      kmeans.balanced_kmeans(bad, clusters, iterations=1, seed=0)
  with pytest.raises(ValueError, match=r"the start has shape \(3, 2\); \[2, 2\]"):
    kmeans.balanced_kmeans(points[:5], 2, iterations=1, seed=0, start_CD=points[:3])
