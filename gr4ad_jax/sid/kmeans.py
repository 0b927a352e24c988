"""Balanced k-means: no cluster grows beyond a fixed multiple of the mean."""

import math

import numpy as np

BALANCE = 1.2  # largest cluster over mean cluster; even codes leave fewer ads to a prefix
CANDIDATES = 32  # nearest clusters a point may bid for; bounds memory to N * CANDIDATES
CHUNK = 8192  # points whose distances to all clusters are held at once


def cluster_capacity(num_points: int, num_clusters: int) -> int:
  """Points a cluster may hold: BALANCE times the mean, rounded down, or the mean rounded up where that is more."""
  return max(math.ceil(num_points / num_clusters), int(BALANCE * num_points / num_clusters))


def nearest(points_ND: np.ndarray, centroids_CD: np.ndarray, candidates: int) -> tuple[np.ndarray, np.ndarray]:
  """The nearest centroids of each point, by chunks.

  Args:
    points_ND: points.
    centroids_CD: centroids.
    candidates: R, how many; at most C.

  Returns:
    [N, R] int32 clusters, nearest first, ties by number; [N, R] float32 squared distances.
  """
  half_C = 0.5 * (centroids_CD * centroids_CD).sum(axis=1)
  clusters, distances = [], []
  for at in range(0, len(points_ND), CHUNK):
    chunk = points_ND[at : at + CHUNK]
    score = half_C - chunk @ centroids_CD.T  # (|x - c|² - |x|²) / 2
    if candidates == 1:
      order = np.argmin(score, axis=1)[:, None]
    else:
      order = np.argsort(score, axis=1, kind="stable")[:, :candidates]
    clusters.append(order.astype(np.int32))
    squared = 2 * np.take_along_axis(score, order, axis=1) + (chunk * chunk).sum(axis=1, keepdims=True)
    distances.append(np.maximum(squared, 0).astype(np.float32))
  return np.concatenate(clusters), np.concatenate(distances)


def assign_balanced(points_ND: np.ndarray, centroids_CD: np.ndarray, capacity: int) -> np.ndarray:
  """Gives each point a cluster of low squared distance, `capacity` points to a cluster at most.

  An auction (Bertsekas 1988, with several places an object): points without a cluster bid for the one whose distance
  plus price is least; a full cluster keeps its best bids and asks the lowest of them as its price. A point that would
  pay more than the step to its furthest candidate leaves, and takes the nearest cluster with room at the end.

  Args:
    points_ND: points.
    centroids_CD: centroids; C * capacity >= N.
    capacity: places a cluster.

  Returns:
    [N] int32 clusters.
  """
  num_points, num_clusters = len(points_ND), len(centroids_CD)
  candidate_NR, cost_NR = nearest(points_ND, centroids_CD, min(CANDIDATES, num_clusters))
  cluster_N = candidate_NR[:, 0].copy()
  if np.bincount(cluster_N, minlength=num_clusters).max() <= capacity:
    return cluster_N
  step = 0.01 * float((cost_NR[:, -1] - cost_NR[:, 0]).mean()) + 1e-9  # smallest raise of a bid: ends the auction
  price_C = np.zeros(num_clusters)
  bid_N = np.zeros(num_points)
  cluster_N[:] = -1
  active = np.arange(num_points)
  while len(active):
    value_AR = cost_NR[active] + price_C[candidate_NR[active]]
    pick = np.argmin(value_AR, axis=1)
    rows = np.arange(len(active))
    least = value_AR[rows, pick]
    value_AR[rows, pick] = np.inf
    limit = cost_NR[active, -1]  # clusters beyond the candidates cost at least this
    second = np.minimum(value_AR.min(axis=1), limit)
    stays = least <= limit
    active, pick, raise_by = active[stays], pick[stays], (second - least)[stays] + step
    cluster_N[active] = candidate_NR[active, pick]
    bid_N[active] = price_C[cluster_N[active]] + raise_by
    held = np.flatnonzero(cluster_N >= 0)
    held = held[np.lexsort((held, -bid_N[held], cluster_N[held]))]  # by cluster, best bid first
    place = np.arange(len(held)) - np.searchsorted(cluster_N[held], cluster_N[held])
    full = held[place == capacity - 1]
    price_C[cluster_N[full]] = bid_N[full]
    active = np.sort(held[place >= capacity])
    cluster_N[active] = -1
  return _fill(points_ND, centroids_CD, cluster_N, capacity)


def _fill(points_ND: np.ndarray, centroids_CD: np.ndarray, cluster_N: np.ndarray, capacity: int) -> np.ndarray:
  """Puts the points that have no cluster into the nearest one with room, one chunk's distances at a time."""
  room_C = capacity - np.bincount(cluster_N[cluster_N >= 0], minlength=len(centroids_CD))
  left = np.flatnonzero(cluster_N < 0)
  while len(left):
    open_clusters = np.flatnonzero(room_C > 0)
    choice, distance = nearest(points_ND[left], centroids_CD[open_clusters], 1)
    choice = open_clusters[choice[:, 0]]
    order = np.lexsort((left, distance[:, 0], choice))
    place = np.arange(len(order)) - np.searchsorted(choice[order], choice[order])
    taken = order[place < room_C[choice[order]]]
    cluster_N[left[taken]] = choice[taken]
    room_C -= np.bincount(choice[taken], minlength=len(room_C))
    left = left[cluster_N[left] < 0]
  return cluster_N


def balanced_kmeans(
  points_ND: np.ndarray, num_clusters: int, *, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Lloyd's iterations with a balanced assignment, from a k-means++ start.

  The largest cluster holds `cluster_capacity` points at most. With fewer points than clusters every point has a cluster
  of its own, and the other centroids repeat points.

  Args:
    points_ND: N >= 1 points; equal points may end in different clusters when they outnumber the places.
    num_clusters: C.
    iterations: Lloyd iterations at most; ends early when no point moves.
    seed: of the start.

  Returns:
    [C, D] float32 centroids; [N] int32 clusters.

  Raises:
    ValueError: no points, or values that are not finite.
  """
  points_ND = np.asarray(points_ND, np.float32)
  if points_ND.ndim != 2 or not len(points_ND) or not np.isfinite(points_ND).all():
    raise ValueError(f"k-means needs [N >= 1, D] finite points; got shape {points_ND.shape}")
  capacity = cluster_capacity(len(points_ND), num_clusters)
  centroids_CD = _plus_plus(points_ND, num_clusters, np.random.default_rng(seed))
  cluster_N = assign_balanced(points_ND, centroids_CD, capacity)
  for _ in range(iterations):
    centroids_CD = _means(points_ND, cluster_N, centroids_CD)
    moved_N = assign_balanced(points_ND, centroids_CD, capacity)
    if (moved_N == cluster_N).all():
      break
    cluster_N = moved_N
  return centroids_CD, cluster_N


def _means(points_ND: np.ndarray, cluster_N: np.ndarray, centroids_CD: np.ndarray) -> np.ndarray:
  """Mean of each cluster; an empty one restarts at one of the points that lie furthest from their centroid."""
  order = np.argsort(cluster_N, kind="stable")
  used, start, size = np.unique(cluster_N[order], return_index=True, return_counts=True)
  means_CD = centroids_CD.copy()
  means_CD[used] = np.add.reduceat(points_ND[order], start, axis=0) / size[:, None]
  empty = np.setdiff1d(np.arange(len(centroids_CD)), used)
  if len(empty):
    error_N = ((points_ND - means_CD[cluster_N]) ** 2).sum(axis=1)
    furthest = np.argsort(-error_N, kind="stable")[: len(empty)]
    means_CD[empty[: len(furthest)]] = points_ND[furthest]
  return means_CD


def _plus_plus(points_ND: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
  """k-means++ start (Arthur & Vassilvitskii 2007); once all points are chosen, points repeat."""
  sample_ND = points_ND[rng.permutation(len(points_ND))[: 64 * num_clusters]]  # enough points for the start of a big N
  chosen = np.empty(num_clusters, np.int64)
  squared_N = np.full(len(sample_ND), np.inf)
  for c in range(num_clusters):
    total = squared_N.sum()
    if c == 0 or total <= 0:
      chosen[c] = c % len(sample_ND)
    else:
      chosen[c] = min(np.searchsorted(np.cumsum(squared_N), rng.random() * total, side="right"), len(sample_ND) - 1)
    gap_ND = sample_ND - sample_ND[chosen[c]]
    squared_N = np.minimum(squared_N, np.einsum("nd,nd->n", gap_ND, gap_ND))
  return sample_ND[chosen].copy()
