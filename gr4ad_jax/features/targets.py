"""What followed requests, and which of it is drawn as their targets."""

from typing import NamedTuple

import numpy as np


class Followed(NamedTuple):
  """What followed B requests: P outcomes (`lines.Outcomes`) in order of request."""

  first_B: np.ndarray  # int64, number of each request's first outcome, of all that there are
  size_B: np.ndarray  # int64, outcomes of each request
  ad_P: np.ndarray  # int32, row of the ad
  depth_P: np.ndarray  # int8, depth of the behaviour
  value_P: np.ndarray  # float32, money


def splitmix64(x: np.ndarray) -> np.ndarray:
  """SplitMix64's finaliser: a hash of 64-bit counters, such as the random key of a line in an
  epoch.
  """
  # The constants are those of SplitMix64. Unsigned products wrap around, which is meant.
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def drawn(
  followed: Followed, draw: np.ndarray | int, targets: int, min_depth: int = 0
) -> np.ndarray:
  """Draws at most `targets` outcomes a request, without replacement.

  Args:
    followed: P outcomes of B requests.
    draw: which draw, one number or [B]; the same number gives the same targets.
    targets: M.
    min_depth: shallowest behaviour that is a target.

  Returns:
    [B, M] places in `followed`'s columns, -1 in padding. Where all of a request's are taken they
    keep their order, else they stand in that of their hashes.
  """
  size_B = followed.size_B
  # One salt a request. 1 is added because a product of 0 would have the hash 0.
  salt_B = splitmix64(
    (np.broadcast_to(draw, len(size_B)).astype(np.uint64) + np.uint64(1))
    * np.uint64(0x9E3779B97F4A7C15)
  )
  row_P = np.repeat(np.arange(len(size_B)), size_B)
  # Shallower behaviour is no target. What is left keeps its places among all outcomes.
  place_P = np.flatnonzero(followed.depth_P >= min_depth)
  row_P = row_P[place_P]
  count_B = np.bincount(row_P, minlength=len(size_B))
  start_B = np.cumsum(size_B) - size_B
  # Numbered among all outcomes of the log, so that the hash is the same in any batch.
  number_P = place_P + (followed.first_B - start_B)[row_P]
  hash_P = splitmix64(number_P.astype(np.uint64) ^ salt_B[row_P])
  # Where all fit, nothing is drawn: a hash of 0 keeps them in their order.
  hash_P = np.where(count_B[row_P] > targets, hash_P, np.uint64(0))
  # Stable, so that equal hashes keep the outcomes' order.
  order = np.lexsort((hash_P, row_P))
  # The rank of each outcome among its request's, in the drawn order.
  rank_P = np.arange(len(row_P)) - (np.cumsum(count_B) - count_B)[row_P[order]]
  kept = rank_P < targets
  out_BM = np.full((len(size_B), targets), -1, np.int64)
  out_BM[row_P[order][kept], rank_P[kept]] = place_P[order][kept]
  return out_BM
