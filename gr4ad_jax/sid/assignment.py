"""Points to clusters of limited room, at low cost: an auction over each point's nearest
clusters.
"""

import math
from collections.abc import Callable

import numpy as np

from gr4ad_jax.sid.rows import Rows

BALANCE = 1.2  # largest cluster over mean cluster; even codes leave fewer ads to a prefix
FEW_CLUSTERS = 512  # up to here the longer lists of candidates are cheap
CANDIDATES, CANDIDATES_OF_MANY = (
  32,
  8,
)  # nearest clusters a point may bid for at once; N * this many are held
BIDS = 1 << 12  # points whose candidates are compared at once
RAISE, RAISE_OF_MANY = (
  0.01,
  0.05,
)  # least raise of a bid over the mean gap of a point's candidates: ends the auction


def cluster_capacity(num_points: int, num_clusters: int) -> int:
  """Points a cluster may hold: BALANCE times the mean, rounded down, or the mean rounded up
  where that is more.
  """
  return max(math.ceil(num_points / num_clusters), int(BALANCE * num_points / num_clusters))


def assign_rows(
  rows: Rows, centroids_CD: np.ndarray, capacity: int, told: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Gives each point a cluster of low squared distance, `capacity` points to a cluster at most.

  Points bid for their nearest clusters (`auction`); those that find no place there bid for the
  nearest clusters with room, until all have one. The mesh finds the nearest clusters; each process
  then holds the same auction of all points, so all processes come to the same answer.

  Args:
    rows: points.
    centroids_CD: centroids, float32; C * capacity >= N.
    capacity: places a cluster.
    told: called with the number of points whose distances are known.

  Returns:
    [N] int32 clusters; [N] float32 squared distances to their centroids; of the points of all
    processes.
  """
  num_clusters = len(centroids_CD)
  few = num_clusters <= FEW_CLUSTERS
  most = CANDIDATES if few else CANDIDATES_OF_MANY
  room_C = np.full(num_clusters, capacity)
  cluster_N, squared_N = np.full(rows.num, -1, np.int32), np.zeros(rows.num, np.float32)
  shipped = rows.ship(centroids_CD)  # once for all rounds of the auction
  left = None  # all
  while left is None or len(left):
    open_C = room_C > 0
    candidate_LR, cost_LR = rows.nearest(
      shipped, most, open_C, left, told if left is None else None
    )
    candidate_LR, cost_LR = candidate_LR[:, : open_C.sum()], cost_LR[:, : open_C.sum()]
    slot_L = auction(candidate_LR, cost_LR, room_C, RAISE if few else RAISE_OF_MANY)
    placed = np.flatnonzero(slot_L >= 0)
    here = placed if left is None else left[placed]
    cluster_N[here] = candidate_LR[placed, slot_L[placed]]
    squared_N[here] = cost_LR[placed, slot_L[placed]]
    room_C -= np.bincount(cluster_N[here], minlength=num_clusters)
    left = np.flatnonzero(slot_L < 0) if left is None else left[slot_L < 0]
  return cluster_N, squared_N


def auction(
  candidate_NR: np.ndarray, cost_NR: np.ndarray, room_C: np.ndarray, least_raise: float
) -> np.ndarray:
  """Places for points among their candidates, by an auction (Bertsekas 1988) with several places an
  object.

  Points without a cluster bid for the one whose cost plus price is least; a full cluster keeps its
  best bids and asks the lowest of them as its price. A point that would pay more than its last
  candidate costs leaves.

  Args:
    candidate_NR: clusters, ascending by cost.
    cost_NR: their costs.
    room_C: places a cluster; at least 1 where it is a candidate.
    least_raise: of a bid, over the mean gap between a point's first and last candidate.

  Returns:
    [N] which candidate each point has; -1 where it left.
  """
  slot_N = np.zeros(len(candidate_NR), np.int32)
  wanted_C = np.bincount(candidate_NR[:, 0], minlength=len(room_C))
  if (wanted_C <= room_C).all():
    return slot_N
  first, last = (float(cost_NR[:, slot].mean(dtype=np.float64)) for slot in (0, -1))
  step = (
    least_raise * (last - first) + 1e-9 * last + 1e-30
  )  # above 0 where all candidates are alike
  price_C = np.zeros(len(room_C))
  member_CK = np.full(
    (len(room_C), room_C.max()), -1, np.int32
  )  # points that hold a place, best bid first
  bid_CK = np.zeros(member_CK.shape)
  active = np.arange(len(candidate_NR), dtype=np.int32)
  slot_N[:] = -1
  while len(active):
    bids = [
      _bids(active[at : at + BIDS], candidate_NR, cost_NR, price_C, step)
      for at in range(0, len(active), BIDS)
    ]
    active, pick, bid = (np.concatenate(parts) for parts in zip(*bids, strict=True))
    del bids
    slot_N[active] = pick
    active = _settle(candidate_NR[active, pick], active, bid, member_CK, bid_CK, room_C, price_C)
    slot_N[active] = -1
  return slot_N


def _bids(
  active: np.ndarray, candidate_NR, cost_NR, price_C, step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Who of some points still bids, for which candidate, and how much: `step` more than makes
  another as good.
  """
  value_AR = cost_NR[active] + price_C[candidate_NR[active]]
  row = np.arange(len(active))
  pick = np.argmin(value_AR, axis=1).astype(np.int32)
  least = value_AR[row, pick]
  value_AR[row, pick] = np.inf
  limit = cost_NR[active, -1]  # clusters beyond the candidates cost at least this
  second = np.minimum(value_AR.min(axis=1), limit)
  stays = least <= limit
  active, pick = active[stays], pick[stays]
  return active, pick, price_C[candidate_NR[active, pick]] + ((second - least)[stays] + step)


def _settle(target_A, point_A, bid_A, member_CK, bid_CK, room_C, price_C) -> np.ndarray:
  """Clusters keep the best of their bids; members, bids and prices change in place. Returns who
  lost, ascending.
  """
  asked, of_asked = np.unique(target_A, return_inverse=True)
  held_row, held_place = np.nonzero(member_CK[asked] >= 0)
  row = np.concatenate([held_row, of_asked])
  point = np.concatenate([member_CK[asked[held_row], held_place], point_A])
  bid = np.concatenate([bid_CK[asked[held_row], held_place], bid_A])
  order = np.lexsort((point, -bid, row))  # by cluster, best bid first
  row, point, bid = row[order], point[order], bid[order]
  place = np.arange(len(row)) - np.searchsorted(row, row)
  keeps = place < room_C[asked[row]]
  member_CK[asked[row[keeps]], place[keeps]] = point[keeps]
  bid_CK[asked[row[keeps]], place[keeps]] = bid[keeps]
  last = place == room_C[asked[row]] - 1
  price_C[asked[row[last]]] = bid[last]
  return np.sort(point[~keeps])
