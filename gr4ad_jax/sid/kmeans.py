"""Balanced k-means, over a mesh and from disk (docs/design/method.md §1.2).

*Balanced* says that no cluster grows beyond a fixed multiple of the mean.
"""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from gr4ad_jax.sid import assignment
from gr4ad_jax.sid.nearest import Sliceable
from gr4ad_jax.sid.rows import Rows

# Clusters up to which the start is k-means++. It goes C times through a sample of 64 C points, so
# its work grows with C²; beyond, points at random have to do.
PLUS_PLUS = 512
MOST_CLUSTERS = 1 << 20
_NONE = 2**31 - 1  # "no bad row": an int32, because `Rows.most` takes those, and beyond every row


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

  One of *Lloyd's iterations* moves each centroid to the mean of its points, and then assigns the
  points anew. The largest cluster holds `assignment.cluster_capacity` points at most. With fewer
  points than clusters every point has a cluster of its own, and the other centroids repeat points.

  The points may be any array that can be sliced by rows, as a memory-mapped one. An iteration reads
  them twice, a few thousand a device at a time. Most is held in the auction's first round: a
  point's candidates with their distances, its bid, and the order of the bids. That is some 210
  bytes a point above `assignment.FEW_CLUSTERS` clusters, and 400 up to there.

  The result does not depend on the number of devices, to the bit. For the distances `rows.Rows`
  says why. Clusters are decided from all distances in a fixed order. The sums that make the
  centroids are of whole numbers. Their unit is, by coordinate, the power of two that lets the
  largest cluster's sum just fit in 31 bits. It moves a mean by some √(capacity) / 2^32 of the
  greatest value. That is below float32's own rounding up to 100,000 points a cluster.

  Args:
    points_ND: points of this process: the p-th run of all points where the mesh has several
      processes. Equal points may end in different clusters when they outnumber the places.
    num_clusters: C.
    iterations: Lloyd iterations at most. It ends early when no point moves.
    seed: of the start, which is k-means++ up to `PLUS_PLUS` clusters. Beyond, it is points at
      random, distinct as far as a sample of 2 C has distinct ones.
    start_CD: centroids to start from instead.
    mesh: devices to compute on. None: all of this process.
    told: hears how much is done, and of how much at most, in points times passes.

  Returns:
    [C, D] float32 centroids, and [N] int32 clusters of this process' points.

  Raises:
    ValueError: no points, values that are not finite, a number of clusters out of range, or a start
      of another shape.
  """
  points_ND = points_ND if hasattr(points_ND, "shape") else np.asarray(points_ND, np.float32)
  _check_shapes(points_ND, num_clusters, start_CD)
  rows = Rows(points_ND, mesh)
  longest_D = _checked(rows)
  capacity = assignment.cluster_capacity(rows.num, num_clusters)
  start_CD = (
    _start(rows, num_clusters, seed) if start_CD is None else np.asarray(start_CD, np.float32)
  )
  unit_D = unit_of(longest_D, capacity)
  centroids_CD, cluster_N = _lloyd(rows, start_CD, iterations, capacity, unit_D, told)
  return centroids_CD, rows.mine(cluster_N)


def _lloyd(
  rows: Rows,
  centroids_CD: np.ndarray,
  iterations: int,
  capacity: int,
  unit_D: np.ndarray,
  told: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
  """The iterations from given centroids: [C, D] centroids, and the clusters of all points."""
  total = rows.num * (iterations + 1)

  def assign(centroids_CD: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
    heard = told and (lambda count: told(done * rows.num + count, total))
    return assignment.assign_rows(rows, centroids_CD, capacity, heard)

  cluster_N, squared_N = assign(centroids_CD, 0)
  # Centroids first, then clusters: what is returned are the clusters *of* the returned centroids,
  # and the levels below code what is left over of exactly those.
  for iteration in range(1, iterations + 1):
    centroids_CD = means(rows, cluster_N, squared_N, centroids_CD, unit_D)
    moved_N, squared_N = assign(centroids_CD, iteration)
    if (moved_N == cluster_N).all():
      break
    cluster_N = moved_N
  if told:
    told(total, total)
  return centroids_CD, cluster_N


def _check_shapes(points_ND: Sliceable, num_clusters: int, start_CD: np.ndarray | None) -> None:
  """Raises ValueError for what can be told before a point is read."""
  if len(points_ND.shape) != 2 or not points_ND.shape[1]:
    raise ValueError(f"k-means needs [N >= 1, D >= 1] points; got shape {tuple(points_ND.shape)}")
  if not 1 <= num_clusters <= MOST_CLUSTERS:
    raise ValueError(f"k-means into {num_clusters} clusters is not allowed: 1 to {MOST_CLUSTERS}")
  if start_CD is not None and np.shape(start_CD) != (num_clusters, points_ND.shape[1]):
    raise ValueError(
      f"the start has shape {np.shape(start_CD)}; [{num_clusters}, {points_ND.shape[1]}] is needed"
    )


def _checked(rows: Rows) -> np.ndarray:
  """The greatest absolute value of each coordinate over all processes, [D] float32.

  Raises:
    ValueError: there is no point, or one is not finite. Every process raises it, so that none
      waits for the others in a collective operation.
  """
  longest_D = np.zeros(rows.width, np.float32)
  bad = _NONE
  for begin, chunk in rows.chunks():
    finite = np.isfinite(chunk).all(axis=1)
    if not finite.all():
      bad = begin + int(np.argmin(finite))
      break
    longest_D = np.maximum(longest_D, np.abs(chunk).max(axis=0))
  # The first bad row of all processes. There is `most` alone, so the least is sought with the sign
  # turned.
  bad = -int(rows.most(np.int32(-bad)))
  if not rows.num or bad < _NONE:
    raise ValueError(
      "k-means needs finite points; " + (f"row {bad + 1} is not" if rows.num else "there are none")
    )
  return rows.most(longest_D)


def unit_of(longest_D: np.ndarray, capacity: int) -> np.ndarray:
  """The powers of two that coordinates are counted in, [D] float64.

  A sum of `capacity` of the greatest values is at most 2^31 - 1 units, so it fits an int32.
  """
  # Each of the `capacity` values may be rounded up by half a unit, so that room is kept free.
  least_D = longest_D.astype(np.float64) * capacity / (2**31 - 1 - capacity)
  # Not below 2^-126, the least normal float32: its inverse must be a float32 too, and a coordinate
  # that is 0 everywhere needs some unit.
  return 2.0 ** np.ceil(np.log2(np.maximum(least_D, 2.0**-126)))


def means(
  rows: Rows,
  cluster_N: np.ndarray,
  squared_N: np.ndarray,
  centroids_CD: np.ndarray,
  unit_D: np.ndarray,
) -> np.ndarray:
  """Mean of each cluster. An empty one restarts at a point that lies far from its centroid.

  Args:
    rows: points.
    cluster_N: cluster of each.
    squared_N: squared distance of each to its centroid.
    centroids_CD: centroids that they were assigned to.
    unit_D: units of the sums, as `unit_of` gives them for the largest cluster.

  Returns:
    [C, D] float32.
  """
  num_clusters = len(centroids_CD)
  size_C = np.bincount(cluster_N, minlength=num_clusters)
  sum_CD = rows.sums(cluster_N, num_clusters, unit_D)
  # (D,) / (C, 1) -> (C, D), in float64 up to the end. The 1 keeps empty clusters from dividing by
  # 0; their rows are overwritten below.
  means_CD = (sum_CD * (unit_D / np.maximum(size_C, 1)[:, None])).astype(np.float32)
  empty = np.flatnonzero(size_C == 0)
  # Stable, so that of equal distances the first row comes first, on every process.
  furthest = np.argsort(-squared_N, kind="stable")[: len(empty)]
  # With fewer points than empty clusters, the rest of those keep their old centroids.
  means_CD[empty] = centroids_CD[empty]
  means_CD[empty[: len(furthest)]] = rows.take(furthest)
  return means_CD


def _start(rows: Rows, num_clusters: int, seed: int) -> np.ndarray:
  """Centroids to start from, [C, D]. Once all points are chosen, points repeat."""
  rng = np.random.default_rng(seed)
  order = rng.permutation(rows.num)
  if num_clusters <= PLUS_PLUS:
    # A sample of 64 points a cluster is enough for a start; Lloyd's iterations see all points.
    return _plus_plus(rows.take(order[: 64 * num_clusters]), num_clusters, rng)
  # Twice as many as needed, so that enough distinct ones are among them. Those come first, in the
  # order of the draw (`np.unique` sorts by value, which would favour small ones); then the repeats.
  sample_SD = rows.take(order[: 2 * num_clusters])
  _, first = np.unique(sample_SD, axis=0, return_index=True)
  chosen = np.concatenate([np.sort(first), np.setdiff1d(np.arange(len(sample_SD)), first)])
  return sample_SD[chosen[np.arange(num_clusters) % len(chosen)]]


def _plus_plus(sample_SD: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
  """k-means++ start (Arthur & Vassilvitskii 2007): far points are likely to be chosen next.

  A point is drawn with a chance that grows with its squared distance to the nearest point chosen
  before. Once all points are chosen, points repeat.
  """
  chosen = np.empty(num_clusters, np.int64)
  squared_S = np.full(len(sample_SD), np.inf)
  for c in range(num_clusters):
    total = squared_S.sum()
    # The first has nothing to be far from; the sample is in random order, so its row 0 is a draw.
    # A total of 0: every point is, or equals, a chosen one.
    if c == 0 or total <= 0:
      chosen[c] = c % len(sample_SD)
    else:
      # The inverse of the cumulated weights at a uniform number. The last sum may be rounded below
      # that number; then the search gives one past the end.
      chosen[c] = min(
        np.searchsorted(np.cumsum(squared_S), rng.random() * total, side="right"),
        len(sample_SD) - 1,
      )
    gap_SD = sample_SD - sample_SD[chosen[c]]
    squared_S = np.minimum(squared_S, np.einsum("sd,sd->s", gap_SD, gap_SD))
  return sample_SD[chosen].copy()
