"""Points to clusters of limited room, at low cost: an auction over each point's nearest clusters.

Exact assignment would need all N·C costs at once. Here a point knows the costs of a few clusters
alone, its *candidates*, and bids for those.
"""

import math
from collections.abc import Callable

import numpy as np

from gr4ad_jax.sid.rows import Rows

BALANCE = 1.2  # largest cluster over mean cluster; even codes leave fewer ads to a prefix
FEW_CLUSTERS = 512  # up to here the longer lists of candidates are cheap
# Nearest clusters that a point may bid for at once. N times as many are held in memory.
CANDIDATES = 32
CANDIDATES_OF_MANY = 8
BIDS = 1 << 12  # points whose candidates are compared at once
# Least raise of a bid, over the mean gap between a point's first and last candidate. Without one,
# points that want the same places could outbid each other by nothing for ever.
RAISE = 0.01
RAISE_OF_MANY = 0.05


def cluster_capacity(num_points: int, num_clusters: int) -> int:
  """Points that a cluster may hold: `BALANCE` times the mean, rounded down.

  It is the mean rounded up where that is more, so that all points find a place.
  """
  return max(math.ceil(num_points / num_clusters), int(BALANCE * num_points / num_clusters))


def assign_rows(
  rows: Rows, centroids_CD: np.ndarray, capacity: int, told: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Gives each point a cluster of low squared distance, `capacity` points to a cluster at most.

  Points bid for their nearest clusters (`auction`). Those that find no place there bid for the
  nearest clusters with room, in another round, until all have one. The mesh finds the nearest
  clusters. Each process then holds the same auction of all points, so all come to one answer.

  Args:
    rows: points.
    centroids_CD: centroids, float32. C * capacity >= N is needed, so that all points find a place.
    capacity: places a cluster.
    told: called with the number of points whose distances are known.

  Returns:
    [N] int32 clusters and [N] float32 squared distances to their centroids, for the points of all
    processes.
  """
  num_clusters = len(centroids_CD)
  few = num_clusters <= FEW_CLUSTERS
  most = CANDIDATES if few else CANDIDATES_OF_MANY
  room_C = np.full(num_clusters, capacity)
  cluster_N = np.full(rows.num, -1, np.int32)
  squared_N = np.zeros(rows.num, np.float32)
  # Once for all rounds of the auction.
  shipped = rows.ship(centroids_CD)
  left = None  # rows without a cluster, ascending; None is all of them
  while left is None or len(left):
    open_C = room_C > 0
    candidate_LR, cost_LR = rows.nearest(
      shipped, most, open_C, left, told if left is None else None
    )
    # Where fewer clusters are open than are asked for, the last columns name none: they are cut.
    candidate_LR = candidate_LR[:, : open_C.sum()]
    cost_LR = cost_LR[:, : open_C.sum()]
    slot_L = auction(candidate_LR, cost_LR, room_C, RAISE if few else RAISE_OF_MANY)
    placed = np.flatnonzero(slot_L >= 0)
    # `slot_L` counts among the L rows that asked. `here` are their numbers among all N.
    here = placed if left is None else left[placed]
    cluster_N[here] = candidate_LR[placed, slot_L[placed]]
    squared_N[here] = cost_LR[placed, slot_L[placed]]
    room_C -= np.bincount(cluster_N[here], minlength=num_clusters)
    left = np.flatnonzero(slot_L < 0) if left is None else left[slot_L < 0]
  return cluster_N, squared_N


def auction(
  candidate_NR: np.ndarray, cost_NR: np.ndarray, room_C: np.ndarray, least_raise: float
) -> np.ndarray:
  """Places for points among their candidates, by an auction (Bertsekas 1988).

  Points without a cluster bid for the one whose cost plus price is least. A full cluster keeps its
  best bids, and asks the lowest of them as its price. A point leaves where even its best cluster,
  price included, costs more than its last candidate does alone.

  Args:
    candidate_NR: clusters, ascending by cost.
    cost_NR: their costs.
    room_C: places a cluster, at least 1 where it is a candidate.
    least_raise: of a bid, over the mean gap between a point's first and last candidate.

  Returns:
    [N] int32, which candidate each point has, -1 where it left.
  """
  slot_N = np.zeros(len(candidate_NR), np.int32)
  # No auction where each has room for all that like it best: the plain nearest cluster is optimal.
  wanted_C = np.bincount(candidate_NR[:, 0], minlength=len(room_C))
  if (wanted_C <= room_C).all():
    return slot_N
  first, last = (float(cost_NR[:, slot].mean(dtype=np.float64)) for slot in (0, -1))
  # The two small terms keep it above 0 where all candidates cost the same, or nothing at all.
  step = least_raise * (last - first) + 1e-9 * last + 1e-30
  price_C = np.zeros(len(room_C))
  # K is the room of the widest cluster. Points that hold a place stand in front, best bid first.
  member_CK = np.full((len(room_C), room_C.max()), -1, np.int32)
  bid_CK = np.zeros(member_CK.shape)
  active = np.arange(len(candidate_NR), dtype=np.int32)
  slot_N[:] = -1
  while len(active):
    bids = [
      _bids(active[at : at + BIDS], candidate_NR, cost_NR, price_C, step)
      for at in range(0, len(active), BIDS)
    ]
    active, pick, bid = (np.concatenate(parts) for parts in zip(*bids, strict=True))
    # Before `_settle` sorts, since the parts would be held twice.
    del bids
    slot_N[active] = pick
    # Who lost bids again in the next turn: whose bid was refused, and who was pushed out.
    active = _settle(candidate_NR[active, pick], active, bid, member_CK, bid_CK, room_C, price_C)
    slot_N[active] = -1
  return slot_N


def _bids(
  active: np.ndarray, candidate_NR, cost_NR, price_C, step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Who of some points still bids, for which candidate, and how much.

  A bid is the price at which the point's second choice would be as good, plus `step`.
  """
  # (C,) gathered by (A, R): what each candidate costs with its price.
  value_AR = cost_NR[active] + price_C[candidate_NR[active]]
  row = np.arange(len(active))
  pick = np.argmin(value_AR, axis=1).astype(np.int32)
  least = value_AR[row, pick]
  # So that the next minimum is the second best.
  value_AR[row, pick] = np.inf
  # Clusters beyond the candidates cost at least this.
  limit = cost_NR[active, -1]
  second = np.minimum(value_AR.min(axis=1), limit)
  stays = least <= limit
  active = active[stays]
  pick = pick[stays]
  return active, pick, price_C[candidate_NR[active, pick]] + ((second - least)[stays] + step)


def _settle(target_A, point_A, bid_A, member_CK, bid_CK, room_C, price_C) -> np.ndarray:
  """Clusters keep the best of their bids. Members, bids and prices change in place.

  Returns:
    Who lost, ascending.
  """
  # Only clusters that got a bid are looked at. Their members stand beside the new bidders, with
  # what they bid before. `row` is a cluster's place in `asked`.
  asked, of_asked = np.unique(target_A, return_inverse=True)
  held_row, held_place = np.nonzero(member_CK[asked] >= 0)
  row = np.concatenate([held_row, of_asked])
  point = np.concatenate([member_CK[asked[held_row], held_place], point_A])
  bid = np.concatenate([bid_CK[asked[held_row], held_place], bid_A])
  # By cluster, then best bid, then lowest point: equal bids are settled alike on every process.
  order = np.lexsort((point, -bid, row))
  row = row[order]
  point = point[order]
  bid = bid[order]
  place = np.arange(len(row)) - np.searchsorted(row, row)  # place within its cluster, from 0
  keeps = place < room_C[asked[row]]
  member_CK[asked[row[keeps]], place[keeps]] = point[keeps]
  bid_CK[asked[row[keeps]], place[keeps]] = bid[keeps]
  # Who has a full cluster's last place sets its price. A cluster with room left costs nothing yet.
  last = place == room_C[asked[row]] - 1
  price_C[asked[row[last]]] = bid[last]
  return np.sort(point[~keeps])
