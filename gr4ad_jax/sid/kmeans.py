"""Balanced k-means, over a mesh and from disk: no cluster grows beyond a fixed multiple of the
mean.
"""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from gr4ad_jax.sid import assignment
from gr4ad_jax.sid.rows import Rows, Sliceable

# clusters up to which the start is k-means++; it goes C times through a sample of 64 C points
PLUS_PLUS = 512
MOST_CLUSTERS = 1 << 20
_NONE = 2**31 - 1  # beyond every row


def balanced_kmeans(
  points_ND: Sliceable,
  num_clusters: int,
  *,
  iterations: int,
  seed: int,
  start_CD: np.ndarray | None = None,
  mesh: Mesh | None = None,
  told: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Lloyd's iterations with a balanced assignment.

  The largest cluster holds `assignment.cluster_capacity` points at most. With fewer points than
  clusters every point has a cluster of its own, and the other centroids repeat points.

  The points may be any array that can be sliced by rows, as a memory-mapped one; an iteration reads
  them twice, a few thousand a device at a time. What is held at most, at the auction's first round,
  is some 210 bytes a point above
  `assignment.FEW_CLUSTERS` clusters, 400 up to there: its candidates and their distances, its bids,
    and their order.

  The result does not depend on the number of devices, to the bit: see `rows.Rows` for the
  distances; clusters are decided from all of them in a fixed order; and the sums that make the
  centroids are of whole numbers. Their unit is, by coordinate, the power of two that lets the
  largest cluster's sum just fit in 31 bits: it moves a mean by some √(capacity) / 2^32 of the
  greatest value, below float32's own rounding up to 100,000 points a cluster.

  Args:
    points_ND: points; of this process, the p-th run of all where the mesh has several. Equal points
      may end in different clusters when they outnumber the places.
    num_clusters: C.
    iterations: Lloyd iterations at most; ends early when no point moves.
    seed: of the start: k-means++ up to `PLUS_PLUS` clusters, then points at random, distinct where
      there are as many.
    start_CD: centroids to start from instead.
    mesh: devices to compute on; None: all of this process.
    told: hears how much is done, and of how much at most: points times passes.

  Returns:
    [C, D] float32 centroids; [N] int32 clusters of this process' points.

  Raises:
    ValueError: no points, values that are not finite, a number of clusters out of range, or a start
      of another shape.
  """
  points_ND = points_ND if hasattr(points_ND, "shape") else np.asarray(points_ND, np.float32)
  if len(points_ND.shape) != 2 or not points_ND.shape[1]:
    raise ValueError(f"k-means needs [N >= 1, D >= 1] points; got shape {tuple(points_ND.shape)}")
  if not 1 <= num_clusters <= MOST_CLUSTERS:
    raise ValueError(f"k-means into {num_clusters} clusters is not allowed: 1 to {MOST_CLUSTERS}")
  if start_CD is not None and np.shape(start_CD) != (num_clusters, points_ND.shape[1]):
    raise ValueError(
      f"the start has shape {np.shape(start_CD)}; [{num_clusters}, {points_ND.shape[1]}] is needed"
    )
  rows = Rows(points_ND, mesh)
  longest_D = _checked(rows)
  capacity = assignment.cluster_capacity(rows.num, num_clusters)
  unit_D = unit_of(longest_D, capacity)
  total = rows.num * (iterations + 1)

  def assign(centroids_CD: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
    heard = told and (lambda count: told(done * rows.num + count, total))
    return assignment.assign_rows(rows, centroids_CD, capacity, heard)

  centroids_CD = (
    _start(rows, num_clusters, seed) if start_CD is None else np.asarray(start_CD, np.float32)
  )
  cluster_N, squared_N = assign(centroids_CD, 0)
  for iteration in range(1, iterations + 1):
    centroids_CD = means(rows, cluster_N, squared_N, centroids_CD, unit_D)
    moved_N, squared_N = assign(centroids_CD, iteration)
    if (moved_N == cluster_N).all():
      break
    cluster_N = moved_N
  if told:
    told(total, total)
  return centroids_CD, rows.mine(cluster_N)


def _checked(rows: Rows) -> np.ndarray:
  """The greatest absolute value of each coordinate, [D].

  Raises:
    ValueError: there is no point, or one is not finite; on every process.
  """
  longest_D, bad = np.zeros(rows.width, np.float32), _NONE
  for begin, chunk in rows.chunks():
    finite = np.isfinite(chunk).all(axis=1)
    if not finite.all():
      bad = begin + int(np.argmin(finite))
      break
    longest_D = np.maximum(longest_D, np.abs(chunk).max(axis=0))
  bad = -int(rows.most(np.int32(-bad)))
  if not rows.num or bad < _NONE:
    raise ValueError(
      "k-means needs finite points; " + (f"row {bad + 1} is not" if rows.num else "there are none")
    )
  return rows.most(longest_D)


def unit_of(longest_D: np.ndarray, capacity: int) -> np.ndarray:
  """The powers of two that coordinates are counted in, [D]: `capacity` of the greatest make at
  most 2^31 - 1 units.
  """
  least_D = (
    longest_D.astype(np.float64) * capacity / (2**31 - 1 - capacity)
  )  # rounding may add half
  return 2.0 ** np.ceil(np.log2(np.maximum(least_D, 2.0**-126)))  # its inverse is a float32


def means(
  rows: Rows,
  cluster_N: np.ndarray,
  squared_N: np.ndarray,
  centroids_CD: np.ndarray,
  unit_D: np.ndarray,
) -> np.ndarray:
  """Mean of each cluster; an empty one restarts at one of the points that lie furthest from their
  centroid.

  Args:
    rows: points.
    cluster_N: cluster of each.
    squared_N: squared distance of each to its centroid.
    centroids_CD: centroids they were assigned to.
    unit_D: see `unit_of`, for the largest cluster.

  Returns:
    [C, D] float32.
  """
  num_clusters = len(centroids_CD)
  size_C = np.bincount(cluster_N, minlength=num_clusters)
  sum_CD = rows.sums(cluster_N, num_clusters, unit_D)
  means_CD = (sum_CD * (unit_D / np.maximum(size_C, 1)[:, None])).astype(np.float32)
  empty = np.flatnonzero(size_C == 0)
  furthest = np.argsort(-squared_N, kind="stable")[: len(empty)]
  means_CD[empty] = centroids_CD[empty]
  means_CD[empty[: len(furthest)]] = rows.take(furthest)
  return means_CD


def _start(rows: Rows, num_clusters: int, seed: int) -> np.ndarray:
  """Centroids to start from, [C, D]; once all points are chosen, points repeat."""
  rng = np.random.default_rng(seed)
  order = rng.permutation(rows.num)
  if num_clusters <= PLUS_PLUS:
    return _plus_plus(
      rows.take(order[: 64 * num_clusters]), num_clusters, rng
    )  # enough points for a start
  sample_SD = rows.take(order[: 2 * num_clusters])
  _, first = np.unique(sample_SD, axis=0, return_index=True)
  chosen = np.concatenate([np.sort(first), np.setdiff1d(np.arange(len(sample_SD)), first)])
  return sample_SD[chosen[np.arange(num_clusters) % len(chosen)]]


def _plus_plus(sample_SD: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
  """k-means++ start (Arthur & Vassilvitskii 2007); once all points are chosen, points repeat."""
  chosen = np.empty(num_clusters, np.int64)
  squared_S = np.full(len(sample_SD), np.inf)
  for c in range(num_clusters):
    total = squared_S.sum()
    if c == 0 or total <= 0:
      chosen[c] = c % len(sample_SD)
    else:
      chosen[c] = min(
        np.searchsorted(np.cumsum(squared_S), rng.random() * total, side="right"),
        len(sample_SD) - 1,
      )
    gap_SD = sample_SD - sample_SD[chosen[c]]
    squared_S = np.minimum(squared_S, np.einsum("sd,sd->s", gap_SD, gap_SD))
  return sample_SD[chosen].copy()
