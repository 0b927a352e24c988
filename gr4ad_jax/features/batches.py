"""Request-grouped batches: one context, M targets, fixed shapes, padded and masked, from columns
in memory.
"""

import threading
from typing import NamedTuple

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.features import history, pair_features
from gr4ad_jax.features.lines import Lines, no_outcome
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.pair_features import PairFeatures
from gr4ad_jax.features.trends import Trends

PADDING, HISTORY, NEIGHBOR, RISING = range(4)  # slot kinds
SLOT_FEATURES = (*pair_features.AD_FEATURES, "neighbor_score")
USER_FEATURES = pair_features.USER_FEATURES
_PRICE = SLOT_FEATURES.index("price")


class RequestBatch(NamedTuple):
  """B requests. S context slots: history, then co-bought neighbours, then rising ads."""

  slot_kind_BS: np.ndarray  # int32, PADDING, HISTORY, NEIGHBOR or RISING
  slot_ad_BS: np.ndarray  # int32, row of the slot's ad, -1 in padding
  slot_codes_BST: np.ndarray  # int32, UA-SID of the slot's ad
  slot_features_BSF: np.ndarray  # float32, SLOT_FEATURES
  user_features_BF: np.ndarray  # float32, USER_FEATURES
  target_ad_BM: np.ndarray  # int32, row of the target's ad, -1 in padding
  target_codes_BMT: np.ndarray  # int32
  target_mask_BM: np.ndarray  # bool
  target_value_BM: np.ndarray  # float32, money
  target_depth_BM: np.ndarray  # int32, 0 is the shallowest behaviour
  user_value_B: np.ndarray  # float32, the user's mean value a visit before the request, money


def splitmix64(x: np.ndarray) -> np.ndarray:
  """SplitMix64's finaliser: a hash of 64-bit counters, such as the random key of a line in an
  epoch.
  """
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


class RequestContexts:
  """Turns request numbers into batches.

  Args:
    lines: every line that may be history or target.
    codes_NT: UA-SID of each ad.
    price_N: list price of each ad, money, NaN where unknown.
    popularity: counts that are visible to these requests.
    neighbors: co-visit neighbours.
    config: numbers of slots and targets.
    min_depth: shallowest behaviour that is a target.
    held_out: whether the requests are none that the neighbours were fitted on.
    group_N: the group of each ad, its advertiser say, where `pairs` are to know it; an integer.

  Attributes:
    pairs: features of (request, ad) pairs.
  """

  def __init__(
    self,
    lines: Lines,
    codes_NT,
    price_N,
    popularity: Trends,
    neighbors: NeighborFolds,
    config: DataConfig,
    min_depth: int = 0,
    held_out: bool = True,
    group_N: np.ndarray | None = None,
  ):
    self.lines = lines
    self.config = config
    self.popularity = popularity
    self.codes_NT = codes_NT
    self.min_depth = min_depth
    self.pairs = PairFeatures(
      lines, codes_NT, price_N, popularity, neighbors, config, held_out, group_N
    )
    num = len(lines.request_time)
    self._neighbor_ids = np.full(
      (num, config.neighbor_slots), -2, np.int32
    )  # -2: not looked up yet
    self._neighbor_scores = np.zeros((num, config.neighbor_slots), np.float16)
    self._lock = threading.Lock()  # of these two: batches are made in several threads

  def prepare(self, requests: np.ndarray) -> None:
    """Looks the neighbours of many requests up at once, so that later batches only gather."""
    with self._lock:
      unknown = self._neighbor_ids[requests, :1].ravel() == -2
    missing = requests[unknown] if self.config.neighbor_slots else requests[:0]
    for begin in range(0, len(missing), 2048):
      some = missing[begin : begin + 2048]
      rows = history.history_rows(self.lines, some, self.config.history_slots)
      self._neighbors_of(some, rows)

  def _neighbors_of(self, requests, rows_BS):
    ads = history.ads_of(self.lines, rows_BS)
    decay = history.decayed_counts(self.lines, requests, rows_BS)
    neighbors = self.pairs.neighbors
    slots = self.config.neighbor_slots
    fold = neighbors.fold_of(self.lines.request_user[requests], self.pairs.held_out)
    for number in np.unique(fold):
      some = fold == number
      ids, scores = neighbors.part(number).unseen(ads[some], decay[some], slots)
      with self._lock:
        self._neighbor_ids[requests[some]], self._neighbor_scores[requests[some]] = ids, scores

  def slots(self, requests: np.ndarray):
    """Ads of the context slots.

    Returns:
      ads [B, S] int32 (-1 in padding), kinds [B, S] int32, history lines [B, history_slots].
    """
    rows = history.history_rows(self.lines, requests, self.config.history_slots)
    parts = [history.ads_of(self.lines, rows)]
    kinds = [np.full(rows.shape[1], HISTORY)]
    if self.config.neighbor_slots:
      self.prepare(requests)
      parts.append(self._neighbor_ids[requests])
      kinds.append(np.full(self.config.neighbor_slots, NEIGHBOR))
    if self.config.rising_slots:
      bucket = self.popularity.bucket_of(self.lines.request_time[requests])
      parts.append(self.popularity.rising(bucket, self.config.rising_slots))
      kinds.append(np.full(self.config.rising_slots, RISING))
    ads = np.concatenate(parts, axis=1)
    return ads, np.where(ads >= 0, np.concatenate(kinds), PADDING).astype(np.int32), rows

  def targets(self, requests: np.ndarray, draw: np.ndarray | int = 0):
    """Draws at most M targets a request, of its outcomes, without replacement.

    Args:
      requests: [B] request numbers.
      draw: which draw, one number or [B]; the same number gives the same targets.

    Returns:
      [B, M] outcome numbers, -1 in padding.
    """
    out = np.full((len(requests), self.config.targets), -1, np.int64)
    salt_B = splitmix64(
      (np.broadcast_to(draw, len(requests)).astype(np.uint64) + np.uint64(1))
      * np.uint64(0x9E3779B97F4A7C15)
    )
    outcomes = self.lines.outcomes
    for b, r in enumerate(requests):
      own = np.arange(outcomes.first[r], outcomes.first[r + 1])
      if self.min_depth:
        own = own[outcomes.depth[own] >= self.min_depth]
      if len(own) > self.config.targets:
        order = np.argsort(splitmix64(own.astype(np.uint64) ^ salt_B[b]), kind="stable")
        own = own[order[: self.config.targets]]
      out[b, : len(own)] = own
    return out

  def batch(self, requests: np.ndarray, draw: np.ndarray | int = 0) -> RequestBatch:
    """Assembles the batch of `requests` ([B]); `draw` picks their targets (see `targets`)."""
    codes = self.codes_NT
    outcomes = self.lines.outcomes
    requests = np.asarray(requests)
    ads, kinds, rows = self.slots(requests)
    slot = np.maximum(ads, 0)
    past = rows.shape[1]
    features = np.zeros((*ads.shape, len(SLOT_FEATURES)), np.float32)
    users = self.pairs.user_features(requests)
    spent = np.expm1(2 * users[:, USER_FEATURES.index("value_per_visit")])
    if self.config.behavior_features:
      features[..., :-1] = self.pairs.ad_features(requests, ads, rows, users)
    else:
      users = np.zeros_like(users)
      features[..., _PRICE] = self.pairs.log_price(slot)
    features[:, past : past + self.config.neighbor_slots, -1] = self._neighbor_scores[requests]
    features[kinds == PADDING] = 0
    target = self.targets(requests, draw)
    row = np.maximum(target, 0)  # padding takes outcome 0, and the mask says that it is none
    if not len(outcomes.ad):  # a log in which everything was given back: no target, no outcome 0
      outcomes = no_outcome(len(outcomes.first))
    target_ad = outcomes.ad[row]
    return RequestBatch(
      slot_kind_BS=kinds,
      slot_ad_BS=ads.astype(np.int32),
      slot_codes_BST=codes[slot],
      slot_features_BSF=features,
      user_features_BF=users,
      target_ad_BM=np.where(target >= 0, target_ad, -1).astype(np.int32),
      target_codes_BMT=codes[target_ad],
      target_mask_BM=target >= 0,
      target_value_BM=np.where(target >= 0, outcomes.value[row], 0),
      target_depth_BM=outcomes.depth[row].astype(np.int32),
      user_value_B=spent,
    )


def zero_batch(config: DataConfig, levels: int, rows: int = 1) -> RequestBatch:
  """A batch of the shapes and dtypes that a config gives, all zero: what a model is initialised
  and restored with.
  """
  slots = config.history_slots + config.neighbor_slots + config.rising_slots
  targets = config.targets
  f32 = np.float32
  i32 = np.int32
  shapes = {
    "slot_kind_BS": ((slots,), i32),
    "slot_ad_BS": ((slots,), i32),
    "slot_codes_BST": ((slots, levels), i32),
    "slot_features_BSF": ((slots, len(SLOT_FEATURES)), f32),
    "user_features_BF": ((len(USER_FEATURES),), f32),
    "target_ad_BM": ((targets,), i32),
    "target_codes_BMT": ((targets, levels), i32),
    "target_mask_BM": ((targets,), bool),
    "target_value_BM": ((targets,), f32),
    "target_depth_BM": ((targets,), i32),
    "user_value_B": ((), f32),
  }
  return RequestBatch(
    **{name: np.zeros((rows, *shape), dtype) for name, (shape, dtype) in shapes.items()}
  )
