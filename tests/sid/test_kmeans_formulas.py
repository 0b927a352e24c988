"""The rules of balanced k-means by loops: capacity, sums of whole numbers, restarts, the starts,
Lloyd's iterations.
"""

import hashlib
import math

import numpy as np
import pytest

from gr4ad_jax.sid import assignment, kmeans, nearest, rows


@pytest.mark.parametrize(
  ("points", "clusters", "places"),
  [
    (100, 10, 12),
    (1000, 7, 171),
    (7, 3, 3),
    (5, 10, 1),
    (12, 12, 1),
    (3740, 256, 17),
    (10, 4, 3),
    (99, 10, 11),
  ],
)
def test_a_cluster_holds_a_fifth_more_than_the_mean(points, clusters, places):
  assert assignment.cluster_capacity(points, clusters) == places


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_cluster_is_at_its_capacity(seed):
  rng = np.random.default_rng(seed)
  points = np.concatenate([rng.normal(0, 0.01, (90, 4)), rng.normal(5, 1, (10, 4))])
  _, cluster = kmeans.balanced_kmeans(points, 10, iterations=3, seed=seed)
  assert np.bincount(cluster, minlength=10).max() == 12


def means_by_loops(points, cluster, squared, centroids, unit):
  """Sums of whole units over sizes; empty clusters take the furthest points, of equals the
  first.
  """
  furthest = sorted(range(len(points)), key=lambda n: -squared[n])
  found = []
  for c, old in enumerate(centroids):
    members = [n for n in range(len(points)) if cluster[n] == c]
    if members:
      whole = [
        sum(round(float(points[n][d]) / unit[d]) for n in members) for d in range(points.shape[1])
      ]
      found.append(
        [np.float32(whole[d] * (unit[d] / len(members))) for d in range(points.shape[1])]
      )
    else:
      found.append(points[furthest.pop(0)] if furthest else old)
  return np.array(found, np.float32)


@pytest.mark.parametrize("num", [9, 2])
def test_empty_clusters_restart_at_the_furthest_points(num):
  rng = np.random.default_rng(0)
  points = rng.normal(size=(num, 3)).astype(np.float32)
  cluster = np.array([4, 1, 4, 4, 1, 6, 4, 4, 1], np.int32)[:num]
  squared = np.array([2, 1, 5, 0, 5, 9, 3, 5, 2], np.float32)[
    :num
  ]  # 5 thrice: of equals the first rows
  centroids = rng.normal(size=(8, 3)).astype(np.float32)
  unit = kmeans.unit_of(np.abs(points).max(axis=0), 5)
  found = kmeans.means(rows.Rows(points), cluster, squared, centroids, unit)
  np.testing.assert_array_equal(found, means_by_loops(points, cluster, squared, centroids, unit))
  if num == 9:
    np.testing.assert_array_equal(found[[0, 2, 3, 5, 7]], points[[5, 2, 4, 7, 6]])
  else:  # fewer points than empty clusters: the others stay where they were
    np.testing.assert_array_equal(found[[0, 2]], points[[0, 1]])
    np.testing.assert_array_equal(found[[3, 5, 6, 7]], centroids[[3, 5, 6, 7]])


def test_the_unit_is_the_least_power_of_two_that_cannot_overflow():
  unit = kmeans.unit_of(np.float32([1, 1000, 0, 3e-39, 1.5e30]), 2000)
  for longest, found in zip([1, 1000, 3e-39, 1.5e30], unit[[0, 1, 3, 4]], strict=True):
    assert math.frexp(found)[0] == 0.5  # a power of two
    assert 2000 * (longest / found + 0.5) <= 2**31
    assert found == 2.0**-126 or 2000 * (2 * longest / found + 0.5) > 2**31 - 2000
  assert unit[2] == unit[3] == 2.0**-126 and unit[0] == 2.0**-20


def lloyd(points, centroids, iterations, unit):
  """Assignment to the nearest, then the mean; at most so many times, until nothing moves."""

  def assigned(centroids):
    squared = [
      [float(((p - c) ** 2).sum()) for c in centroids.astype(np.float64)]
      for p in points.astype(np.float64)
    ]
    return [row.index(min(row)) for row in squared], [min(row) for row in squared]

  cluster, squared = assigned(centroids)
  for _ in range(iterations):
    centroids = means_by_loops(points, cluster, squared, centroids, unit)
    moved, squared = assigned(centroids)
    if moved == cluster:
      break
    cluster = moved
  return centroids, cluster


@pytest.mark.parametrize("iterations", [0, 1, 2, 30])
def test_iterations_are_lloyd_s_where_there_is_room(monkeypatch, iterations):
  monkeypatch.setattr(assignment, "BALANCE", 100)
  rng = np.random.default_rng(5)
  points = rng.normal(size=(40, 3)).astype(np.float32)
  start = points[:6].copy()
  start[[1, 4]] = [[50, 0, 0], [0, 60, 0]]  # nobody is near: they start anew
  unit = kmeans.unit_of(np.abs(points).max(axis=0), assignment.cluster_capacity(40, 6))
  heard = []
  found = kmeans.balanced_kmeans(
    points, 6, iterations=iterations, seed=0, start_CD=start, told=lambda *now: heard.append(now)
  )
  expected = lloyd(points, start, iterations, unit)
  np.testing.assert_array_equal(found[1], expected[1])
  np.testing.assert_array_equal(found[0], expected[0])
  assert len(set(found[1].tolist())) == (6 if iterations else 4)
  assert heard[-1] == (40 * (iterations + 1),) * 2 and found[1].dtype == np.int32


def plus_plus(sample, num, rng):
  """A point at random among the sample's first, then each with odds of its squared distance to
  the chosen.
  """
  chosen = [0]
  for _ in range(1, num):
    squared = [
      min(float(((p - sample[c]) ** 2).sum(dtype=np.float32)) for c in chosen) for p in sample
    ]
    if sum(squared) > 0:
      drawn, running, at = rng.random() * sum(squared), 0.0, 0
      while at < len(sample) - 1 and running + squared[at] <= drawn:
        running += squared[at]
        at += 1
      chosen.append(at)
    else:
      chosen.append(len(chosen) % len(sample))
  return sample[chosen]


@pytest.mark.parametrize("seed", range(4))
def test_few_clusters_start_as_k_means_plus_plus_of_a_sample(seed):
  points = np.random.default_rng(9).normal(size=(300, 2)).astype(np.float32)
  for clusters in (2, 5):  # samples of 128, and of all
    rng = np.random.default_rng(seed)
    order = rng.permutation(300)
    expected = plus_plus(points[order[: 64 * clusters]], clusters, rng)
    found = kmeans.balanced_kmeans(points, clusters, iterations=0, seed=seed)[0]
    np.testing.assert_array_equal(found, expected)


def test_a_start_repeats_points_once_all_are_chosen():
  points = np.float32([[0, 1], [0, 1], [2, 2]])
  start = kmeans._start(rows.Rows(points), 5, 1)
  order = np.random.default_rng(1).permutation(3)
  sample = points[order]
  other = next(n for n in range(3) if (sample[n] != sample[0]).any())
  np.testing.assert_array_equal(start, sample[[0, other, 2, 0, 1]])


@pytest.mark.parametrize("num", [30, 7])
def test_many_clusters_start_at_distinct_points_of_a_sample(monkeypatch, num):
  assert kmeans.PLUS_PLUS == 512
  monkeypatch.setattr(kmeans, "PLUS_PLUS", 5)
  points = np.random.default_rng(2).integers(0, 3, (num, 2)).astype(np.float32)
  start = kmeans._start(rows.Rows(points), 6, 3)
  sample = [
    tuple(point) for point in points[np.random.default_rng(3).permutation(num)[:12]].tolist()
  ]
  distinct = [at for at, point in enumerate(sample) if point not in sample[:at]]
  again = [at for at in range(len(sample)) if at not in distinct]
  expected = [sample[at] for at in (distinct + again)[:6]]
  np.testing.assert_array_equal(start, expected)


@pytest.mark.parametrize(
  ("clusters", "points", "digest"),
  [(37, 300, "71268a733bf8c493"), (530, 900, "75e2e84b46f00f92")],
)
def test_the_auction_of_whole_numbers_keeps_its_outcome(clusters, points, digest):
  """Distances are whole numbers, exact in float32: the digest holds on every machine, and codes
  of a seed stay.
  """
  rng = np.random.default_rng(clusters)
  x = rng.integers(-40, 41, (points, 6)).astype(np.float32)
  x[: points // 2] //= (
    8  # half lie close together: they outbid one another, and some are left for later rounds
  )
  centroids = rng.integers(-20, 21, (clusters, 6)).astype(np.float32)
  cluster, squared = assignment.assign_rows(
    rows.Rows(x), centroids, assignment.cluster_capacity(points, clusters)
  )
  np.testing.assert_array_equal(squared, ((x - centroids[cluster]) ** 2).sum(axis=1))
  assert hashlib.sha256(cluster.astype("<i4").tobytes()).hexdigest()[:16] == digest


def auction_by_loops(candidates, costs, room, least_raise):
  """Bids in rounds, written out with lists: members of a cluster by bid, then by point."""
  num = len(candidates)
  slots = [0] * num
  if all(sum(c[0] == cluster for c in candidates) <= places for cluster, places in enumerate(room)):
    return slots
  step = least_raise * (
    np.mean([c[-1] for c in costs]) - np.mean([c[0] for c in costs])
  ) + 1e-9 * np.mean([c[-1] for c in costs])
  price = [0.0] * len(room)
  members = [[] for _ in room]
  slots, active = [-1] * num, list(range(num))
  while active:
    asked = []
    for point in active:
      values = [
        cost + price[cluster] for cost, cluster in zip(costs[point], candidates[point], strict=True)
      ]
      pick = values.index(min(values))
      slots[point] = -1
      if values[pick] <= costs[point][-1]:
        others = [value for slot, value in enumerate(values) if slot != pick]
        second = min([*others, costs[point][-1]])
        slots[point] = pick
        asked.append(
          (
            candidates[point][pick],
            point,
            price[candidates[point][pick]] + second - values[pick] + step,
          )
        )
    active = []
    for cluster, point, bid in asked:
      members[cluster].append((-bid, point))
    for cluster in {cluster for cluster, _, _ in asked}:
      members[cluster].sort()
      for _, point in members[cluster][room[cluster] :]:
        slots[point] = -1
        active.append(point)
      del members[cluster][room[cluster] :]
      if len(members[cluster]) == room[cluster]:
        price[cluster] = -members[cluster][-1][0]
    active.sort()
  return slots


@pytest.mark.parametrize("seed", range(8))
def test_an_auction_is_that_of_the_rules(monkeypatch, seed):
  monkeypatch.setattr(assignment, "BIDS", 5)
  rng = np.random.default_rng(seed)
  room = rng.integers(1, 3, 7)
  costs, candidates = [], []
  for _ in range(16):
    candidates.append(rng.choice(7, 4, replace=False).tolist())
    costs.append(
      sorted(rng.integers(1, 30, 4).tolist())
    )  # whole numbers: equal costs and equal bids too
  found = assignment.auction(np.array(candidates), np.float32(costs), room, [0.05, 0.3][seed % 2])
  assert found.tolist() == auction_by_loops(candidates, costs, room.tolist(), [0.05, 0.3][seed % 2])
  assert (found == -1).any() and (found > 0).any()
  plenty = assignment.auction(np.array(candidates), np.float32(costs), np.full(7, 16), 0.05)
  assert not plenty.any()


def test_nearest_of_some_rows_among_open_centroids(monkeypatch):
  monkeypatch.setattr(rows, "TILE", 4)
  monkeypatch.setattr(rows, "STEP", 8)
  rng = np.random.default_rng(0)
  points, centroids = (
    rng.normal(size=(21, 3)).astype(np.float32),
    rng.normal(size=(7, 3)).astype(np.float32),
  )
  cost = ((points[:, None] - centroids) ** 2).sum(axis=2)
  some, is_open = (
    np.array([0, 3, 4, 9, 12, 13, 14, 15, 19, 20]),
    np.array([1, 0, 1, 1, 0, 1, 1], bool),
  )
  heard, cut = [], rows.Rows(points)
  cluster, squared = cut.nearest(centroids, 3, is_open, some, heard.append)
  kept = np.where(is_open, cost, np.inf)[some]
  np.testing.assert_array_equal(cluster, np.argsort(kept, axis=1)[:, :3])
  np.testing.assert_allclose(squared, np.sort(kept, axis=1)[:, :3], rtol=1e-4)
  assert heard == [0, 8] and (cut.num, cut.width, cut.begin) == (21, 3, 0)
  wide = cut.nearest(centroids, 40)  # no more than there are, with what pads them infinitely far
  assert (
    wide[0].shape == (21, 16)
    and np.isinf(wide[1][:, 7:]).all()
    and np.isfinite(wide[1][:, :7]).all()
  )
  np.testing.assert_array_equal(wide[0][:, :7], np.argsort(cost, axis=1))
  assert [(begin, len(chunk)) for begin, chunk in cut.chunks()] == [(0, 8), (8, 8), (16, 5)]
  np.testing.assert_array_equal(cut.take(np.array([20, 0, 7, 7])), points[[20, 0, 7, 7]])


def test_the_nearest_of_nothing_is_nothing():
  cluster, squared = nearest.nearest(np.zeros((0, 3), np.float32), np.zeros((5, 3), np.float32), 2)
  assert cluster.shape == squared.shape == (0, 2) and cluster.dtype == np.int32


def test_equal_centroids_go_by_number_in_blocks_too():
  for count in (40, 523):
    centroids = np.ones((count, 2), np.float32)
    centroids[[7, 30]] = 0
    assert nearest.nearest(np.zeros((3, 2), np.float32), centroids, 1)[0].tolist() == [[7]] * 3


def test_as_many_clusters_as_the_limit_start_by_plus_plus(monkeypatch):
  points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
  begun = []
  plus_plus = kmeans._plus_plus
  monkeypatch.setattr(kmeans, "PLUS_PLUS", 5)
  monkeypatch.setattr(
    kmeans, "_plus_plus", lambda sample, num, rng: begun.append(num) or plus_plus(sample, num, rng)
  )
  for count in (4, 5, 6):
    assert kmeans._start(rows.Rows(points), count, 3).shape == (count, 3)
  assert begun == [4, 5]
