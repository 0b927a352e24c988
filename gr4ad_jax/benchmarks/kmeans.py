"""Balanced k-means against faiss-cpu's, which is not balanced.

It compares the time of an iteration, the *distortion* (mean squared distance of a point to its
centroid) and the largest cluster.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gr4ad_jax.benchmarks import timing
from gr4ad_jax.sid import assignment, kmeans
from gr4ad_jax.sid.rows import Rows

WIDTH = 256
POINTS_A_CLUSTER = 61  # 1,000,000 points make 16,384 clusters, 62,500 make 1,024
CLUSTERS_A_CATEGORY = 16


def measure(iterations: int, points: int, told: Callable[[str], None]) -> dict[str, Any]:
  """Iterations of either in turn, from the same start: points at random.

  Args:
    iterations: of Lloyd: assignment, then means. Both assign once more at the end, untimed.
    points: N. Clusters are the power of two at or below N / `POINTS_A_CLUSTER`.
    told: hears of each iteration.

  Raises:
    ImportError: faiss is not installed. The message names the extra.
  """
  try:
    import faiss
  except ImportError as error:
    raise ImportError("faiss is missing: pip install 'gr4ad_jax[peer]'") from error
  clusters = 1 << max((points // POINTS_A_CLUSTER).bit_length() - 1, 0)  # a power of two, or 1
  points_ND = catalogue(points, max(clusters // CLUSTERS_A_CATEGORY, 1), seed=0)
  start_CD = points_ND[np.sort(np.random.default_rng(1).choice(points, clusters, replace=False))]
  ours = _Ours(points_ND, start_CD)
  peer = _Faiss(faiss, points_ND, start_CD)
  seconds: dict[str, list[float]] = {"ours": [], "faiss": []}
  distortion: dict[str, list[float]] = {"ours": [], "faiss": []}
  for number in range(iterations):
    # In turn, so that a machine that slows down does so for both.
    for name, side in (("faiss", peer), ("ours", ours)):
      begin = time.perf_counter()
      squared = side.iterate()
      seconds[name].append(time.perf_counter() - begin)
      distortion[name].append(squared)
      told(
        f"iteration {number + 1}, {name}: {seconds[name][-1]:.2f} s, mean squared distance "
        f"{squared:.5f}"
      )
  # An iteration tells the distortion of before its means: so one more assignment at the end.
  ends = {"ours": ours.assigned(), "faiss": peer.assigned()}
  for name, (squared, _) in ends.items():
    distortion[name].append(squared)
  return {
    "machine": timing.machine(),
    "faiss": {"version": faiss.__version__, "threads": faiss.omp_get_max_threads()},
    "points": points,
    "width": WIDTH,
    "clusters": clusters,
    "iterations": iterations,
    "seconds": seconds,
    "ratio": timing.ratio(seconds["ours"], seconds["faiss"]),
    "distortion": distortion,
    "distortion_ratio": ends["ours"][0] / ends["faiss"][0],
    "largest_over_mean": {
      name: float(size_C.max() * clusters / points) for name, (_, size_C) in ends.items()
    },
  }


def catalogue(points: int, categories: int, seed: int) -> np.ndarray:
  """Unit vectors [N, WIDTH] float32 in clouds, as those of ads are.

  Each category is a cloud. Its size goes as 1 / rank. Its direction has length 1, and its points
  lie .5 to 1 from there on average, by category. Clouds are long in few directions: the principal
  axes fall off as rank^(-1/2). At last all is scaled to length 1.
  """
  rng = np.random.default_rng(seed)
  direction_KD = rng.normal(size=(categories, WIDTH)).astype(np.float32)
  direction_KD /= np.linalg.norm(direction_KD, axis=1, keepdims=True)
  spread_K = rng.uniform(0.5, 1, categories).astype(np.float32)
  axes_DD = (rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
  length_D = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
  # (D, 1) scales each axis. The squares of the lengths sum to 1, so an offset has length 1 or so.
  axes_DD *= (length_D / np.linalg.norm(length_D))[:, None]
  share_K = 1 / np.arange(1, categories + 1)
  category_N = rng.choice(categories, points, p=share_K / share_K.sum())
  vectors_ND = np.empty((points, WIDTH), np.float32)
  # A chunk at a time, as the offsets of all points would take as much memory as the points.
  for at in range(0, points, 8192):
    category = category_N[at : at + 8192]
    offset = rng.normal(size=(len(category), WIDTH)).astype(np.float32) @ axes_DD
    vectors_ND[at : at + 8192] = direction_KD[category] + spread_K[category, None] * offset
  return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


class _Ours:
  """Balanced k-means on all devices of this process, compiled before the first iteration."""

  def __init__(self, points_ND: np.ndarray, start_CD: np.ndarray):
    self._capacity = assignment.cluster_capacity(len(points_ND), len(start_CD))
    self._unit_D = kmeans.unit_of(np.abs(points_ND).max(axis=0), self._capacity)
    self._rows = Rows(points_ND)
    self._centroids_CD = start_CD
    # As many points as a whole step takes (`nearest.STEP` a device): that shape is compiled here.
    some = np.arange(min(len(points_ND), 16 * 512 * jax.local_device_count()))
    self._rows.nearest(start_CD, assignment.CANDIDATES_OF_MANY, among=some)

  def iterate(self) -> float:
    """One iteration; mean squared distance before the means moved."""
    cluster_N, squared_N = assignment.assign_rows(self._rows, self._centroids_CD, self._capacity)
    self._centroids_CD = kmeans.means(
      self._rows, cluster_N, squared_N, self._centroids_CD, self._unit_D
    )
    return float(squared_N.mean(dtype=np.float64))

  def assigned(self) -> tuple[float, np.ndarray]:
    """Mean squared distance and sizes of the clusters."""
    cluster_N, squared_N = assignment.assign_rows(self._rows, self._centroids_CD, self._capacity)
    return float(squared_N.mean(dtype=np.float64)), np.bincount(
      cluster_N, minlength=len(self._centroids_CD)
    )


class _Faiss:
  """faiss.Kmeans, all points in every iteration, with its default threads: one a core.

  Each iteration is a training of one, from the centroids of the one before.
  """

  def __init__(self, faiss: Any, points_ND: np.ndarray, start_CD: np.ndarray):
    self._faiss = faiss
    self._points_ND = points_ND
    self._centroids_CD = start_CD

  def iterate(self) -> float:
    """One iteration; mean squared distance before the means moved."""
    num_clusters = len(self._centroids_CD)
    # Without the limits faiss would take a sample, or warn of small clusters.
    options = {
      "niter": 1,
      "min_points_per_centroid": 1,
      "max_points_per_centroid": len(self._points_ND),
    }
    one = self._faiss.Kmeans(self._points_ND.shape[1], num_clusters, **options)
    one.train(self._points_ND, init_centroids=self._centroids_CD)
    self._centroids_CD = one.centroids
    # faiss tells the sum over the points.
    return float(one.obj[-1]) / len(self._points_ND)

  def assigned(self) -> tuple[float, np.ndarray]:
    """Mean squared distance and sizes of the clusters."""
    index = self._faiss.IndexFlatL2(self._points_ND.shape[1])
    index.add(self._centroids_CD)
    squared_N1, cluster_N1 = index.search(self._points_ND, 1)
    return float(squared_N1.mean(dtype=np.float64)), np.bincount(
      cluster_N1[:, 0], minlength=len(self._centroids_CD)
    )


def summary(figures: dict[str, Any]) -> str:
  """The figures in words and a table."""
  machine = figures["machine"]
  ratio = figures["ratio"]
  largest = figures["largest_over_mean"]
  lines = [
    f"{machine['device']}, {machine['cores']} cores, jax {machine['jax']} on "
    f"{machine['devices']} devices, faiss {figures['faiss']['version']} on "
    f"{figures['faiss']['threads']} threads",
    f"{figures['points']:,} x {figures['width']} into {figures['clusters']:,} clusters, "
    f"{figures['iterations']} iterations",
    "",
    (
      "| | seconds an iteration, median (low to high) | mean squared distance | largest cluster / "
      "mean |"
    ),
    "|---|---|---|---|",
  ]
  for name, title in (("ours", "balanced"), ("faiss", "faiss, not balanced")):
    spent = timing.spread(figures["seconds"][name])
    lines.append(
      f"| {title} | {spent['median']:.2f} ({spent['low']:.2f} to {spent['high']:.2f}) "
      f"| {figures['distortion'][name][-1]:.5f} | {largest[name]:.2f} |"
    )
  lines += [
    "",
    f"time, balanced over faiss: {ratio['median']:.3f} ({ratio['low']:.3f} to "
    f"{ratio['high']:.3f}); distortion, balanced over faiss: {figures['distortion_ratio']:.4f}",
  ]
  return "\n".join(lines)
