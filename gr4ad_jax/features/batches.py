"""Request-grouped batches: one context, M targets, fixed shapes, padded and masked, from columns
in memory.
"""

import copy
import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import promotions as promotions_lib
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.features import ages, history, pair_features
from gr4ad_jax.features.lines import Lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.pair_features import PairFeatures
from gr4ad_jax.features.targets import Followed, drawn
from gr4ad_jax.features.trends import Trends

PADDING, HISTORY, NEIGHBOR, RISING = range(4)  # slot kinds
SLOT_FEATURES = (*pair_features.AD_FEATURES, "neighbor_score")
USER_FEATURES = pair_features.USER_FEATURES
_PRICE = SLOT_FEATURES.index("price")
_DECAYED = SLOT_FEATURES.index("decayed_count")
# The features by codes stand side by side.
_CODED = slice(
  SLOT_FEATURES.index(pair_features.CODE_FEATURES[0]),
  SLOT_FEATURES.index(pair_features.CODE_FEATURES[-1]) + 1,
)


def slot_features(config: DataConfig) -> tuple[str, ...]:
  """Names of the slots' features, those of --promotions and of --ad_age last."""
  # Last, so that the columns of runs without them keep their places.
  promoted = promotions_lib.FEATURES if config.promotions else ()
  aged = ages.FEATURES if config.ad_age else ()
  return (*SLOT_FEATURES, *promoted, *aged)


class RequestBatch(NamedTuple):
  """B requests. S context slots: history, then co-bought neighbours, then rising ads."""

  slot_kind_BS: np.ndarray  # int32, PADDING, HISTORY, NEIGHBOR or RISING
  slot_ad_BS: np.ndarray  # int32, row of the slot's ad, -1 in padding
  slot_codes_BST: np.ndarray  # int32, UA-SID of the slot's ad
  slot_features_BSF: np.ndarray  # float32, `slot_features`
  user_features_BF: np.ndarray  # float32, USER_FEATURES
  target_ad_BM: np.ndarray  # int32, row of the target's ad, -1 in padding
  target_codes_BMT: np.ndarray  # int32
  target_mask_BM: np.ndarray  # bool
  target_value_BM: np.ndarray  # float32, money
  target_depth_BM: np.ndarray  # int32, 0 is the shallowest behaviour
  user_value_B: np.ndarray  # float32, the user's mean value a visit before the request, money


class Known(NamedTuple):
  """What is known of B requests before UA-SIDs are looked up: all of a context that outlives a
  change of codes. Examples on disk hold it.
  """

  slot_ad_BS: np.ndarray  # int32, row of the slot's ad, -1 in padding
  slot_features_BSF: np.ndarray  # float32, SLOT_FEATURES, those by codes 0
  user_features_BF: np.ndarray  # float32, USER_FEATURES
  user_value_B: np.ndarray  # float32, the user's mean value a visit before the request, money
  decay_BH: np.ndarray  # float64, decayed counts of the H history slots


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
    created_N: when each ad was created, unix seconds, -1 where unknown. Needed with --ad_age.
    promotions: what was displayed and mailed, with --promotions.
    user_ids: ids of the lines' users, whose stores the promotions know.

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
    created_N: np.ndarray | None = None,
    promotions: Promotions | None = None,
    user_ids: Sequence[str] = (),
  ):
    self._promotions = promotions
    # A shop's promotions are looked up by the user's home shop, so the names are needed once, here.
    self._store_U = None if promotions is None else promotions.stores_of(user_ids)
    self.lines = lines
    self.config = config
    self.popularity = popularity
    self.codes_NT = codes_NT
    self.min_depth = min_depth
    self.pairs = PairFeatures(
      lines, codes_NT, price_N, popularity, neighbors, config, held_out, group_N, created_N
    )
    num = len(lines.request_time)
    # Both tables are filled as requests are asked for, and kept for later epochs.
    # -2: not looked up yet.
    self._neighbor_ids = np.full((num, config.neighbor_slots), -2, np.int32)
    # float16 is enough for a score that is one feature among many, and halves the table.
    self._neighbor_scores = np.zeros((num, config.neighbor_slots), np.float16)
    self._lock = threading.Lock()  # of these two: batches are made in several threads

  def prepare(self, requests: np.ndarray) -> None:
    """Looks the neighbours of many requests up at once, so that later batches only gather."""
    with self._lock:
      # One column tells for all: a request's neighbours are looked up together or not at all.
      unknown = self._neighbor_ids[requests, :1].ravel() == -2
    missing = requests[unknown] if self.config.neighbor_slots else requests[:0]
    # In pieces, so that the histories of all requests never lie in memory at once.
    for begin in range(0, len(missing), 2048):
      self._neighbors_of(missing[begin : begin + 2048])

  @functools.cached_property
  def _past(self) -> "RequestContexts":
    """The same requests with their histories alone in the slots: what a retriever reads."""
    past = copy.copy(self)
    past.config = dataclasses.replace(self.config, neighbor_slots=0, rising_slots=0)
    past._neighbor_scores = self._neighbor_scores[:, :0]
    return past

  def _neighbors_of(self, requests):
    slots = self.config.neighbor_slots
    neighbors = self.pairs.neighbors
    if neighbors.retriever:
      past = self._past.batch(requests)
      read = past.slot_ad_BS, past.slot_features_BSF, past.user_features_BF
      self._keep(requests, *neighbors.retriever.unseen(*read, slots))
      return
    rows = history.history_rows(self.lines, requests, self.config.history_slots)
    ads = history.ads_of(self.lines, rows)
    decay = history.decayed_counts(self.lines, requests, rows)
    # A user's own visits are in the sums of all folds but his own, so users go fold by fold.
    fold = neighbors.fold_of(self.lines.request_user[requests], self.pairs.held_out)
    for number in np.unique(fold):
      some = fold == number
      self._keep(requests[some], *neighbors.part(number).unseen(ads[some], decay[some], slots))

  def _keep(self, requests, ids, scores):
    with self._lock:
      self._neighbor_ids[requests] = ids
      self._neighbor_scores[requests] = scores

  def slots(self, requests: np.ndarray):
    """Ads of the context slots.

    Returns:
      ads [B, S] int32 (-1 in padding), kinds [B, S] int32, history lines [B, history_slots].
    """
    rows = history.history_rows(self.lines, requests, self.config.history_slots)
    parts = [history.ads_of(self.lines, rows)]
    # The order of the parts is that of the slot kinds, see `slot_kinds`.
    if self.config.neighbor_slots:
      self.prepare(requests)
      parts.append(self._neighbor_ids[requests])
    if self.config.rising_slots:
      bucket = self.popularity.bucket_of(self.lines.request_time[requests])
      parts.append(self.popularity.rising(bucket, self.config.rising_slots))
    ads = np.concatenate(parts, axis=1)
    return ads, slot_kinds(ads, self.config), rows

  def targets(self, requests: np.ndarray, draw: np.ndarray | int = 0):
    """Draws at most M targets a request, of its outcomes, without replacement.

    Args:
      requests: [B] request numbers.
      draw: which draw, one number or [B]; the same number gives the same targets.

    Returns:
      [B, M] outcome numbers, -1 in padding.
    """
    followed = self.followed(np.asarray(requests))
    # Numbers of outcomes count through the whole log, while places count in this batch's runs
    # alone.
    place_BM = drawn(followed, draw, self.config.targets, self.min_depth)
    # (B, M) + (B, 1) -> (B, M); a place that holds nothing stays -1.
    start_B = np.cumsum(followed.size_B) - followed.size_B
    return np.where(place_BM >= 0, place_BM + (followed.first_B - start_B)[:, None], -1)

  def followed(self, requests: np.ndarray) -> Followed:
    """The outcomes of `requests` [B]."""
    outcomes = self.lines.outcomes
    first_B = outcomes.first[requests].astype(np.int64)
    size_B = outcomes.first[requests + 1] - first_B
    # The runs of outcomes as one gather: a running number, moved to where each run lies.
    own_P = np.arange(size_B.sum()) + np.repeat(first_B - np.cumsum(size_B) + size_B, size_B)
    return Followed(
      first_B, size_B, outcomes.ad[own_P], outcomes.depth[own_P], outcomes.value[own_P]
    )

  def known(self, requests: np.ndarray) -> Known:
    """What is known of `requests` [B], UA-SIDs aside."""
    ads, kinds, rows = self.slots(requests)
    users = self.pairs.user_features(requests)
    # The inverse of the feature's own scale, log(1 + value) / 2.
    spent = np.expm1(2 * users[:, USER_FEATURES.index("value_per_visit")])
    past = rows.shape[1]
    decays = history.decayed_counts(self.lines, requests, rows)
    # Without behaviour a model sees which ads there were and what they cost, and nothing else.
    if self.config.behavior_features:
      # With a column more, which is the neighbours' scores here.
      features = self.pairs.ad_features(requests, ads, rows, users, False, decays)
    else:
      users = np.zeros_like(users)
      features = np.zeros((*ads.shape, len(SLOT_FEATURES)), np.float32)
      features[..., _PRICE] = np.where(
        kinds == PADDING, 0, self.pairs.log_price(np.maximum(ads, 0))
      )
    # The scores go where the neighbours' slots are; of all other slots this column stays 0.
    features[:, past : past + self.config.neighbor_slots, -1] = self._neighbor_scores[requests]
    if self._promotions is not None:
      store_B = self._store_U[self.lines.request_user[requests]]
      shown = self._promotions.features(store_B, self.lines.request_time[requests], ads)
      features = np.concatenate([features, shown], axis=-1)
    if self.config.ad_age:
      features = np.concatenate([features, self.pairs.ages(requests, ads)[..., None]], axis=-1)
    return Known(ads.astype(np.int32), features, users, spent, decays)

  def batch(self, requests: np.ndarray, draw: np.ndarray | int = 0) -> RequestBatch:
    """Assembles the batch of `requests` ([B]); `draw` picks their targets (see `targets`)."""
    requests = np.asarray(requests)
    known = self.known(requests)
    followed = self.followed(requests)
    return assembled(known, followed, self.codes_NT, self.config, draw, self.min_depth)


def assembled(
  known: Known,
  followed: Followed,
  codes_NT,
  config: DataConfig,
  draw: np.ndarray | int = 0,
  min_depth: int = 0,
) -> RequestBatch:
  """The batch of what is known of B requests and what followed them: UA-SIDs are looked up, their
  features made, and targets drawn. `known`'s arrays become the batch's, and are written to.

  Args:
    known, followed: of the same requests, in memory or from disk.
    codes_NT: UA-SID of each ad.
    config: numbers of slots and targets.
    draw: picks the targets (see `RequestContexts.targets`).
    min_depth: shallowest behaviour that is a target.
  """
  kinds = slot_kinds(known.slot_ad_BS, config)
  # Padding takes ad 0 here. What is gathered of it is masked by the slot's kind.
  slot = np.maximum(known.slot_ad_BS, 0)
  features = known.slot_features_BSF
  if config.behavior_features:
    # Made of the n cells that hold an ad, and put back: (n, 3) -> (B, S, F) at some columns.
    past = known.slot_ad_BS[:, : config.history_slots]
    cell = (known.slot_ad_BS >= 0).ravel().nonzero()[0]
    of_cell = features.reshape(-1, features.shape[-1])
    own = history.own_decays(of_cell[cell, _DECAYED])
    about = codes_NT, slot.ravel().take(cell), cell // slot.shape[1], past, known.decay_BH, own
    of_cell[cell, _CODED] = np.stack(history.code_features(*about), axis=1)
  place_BM = drawn(followed, draw, config.targets, min_depth)
  mask = place_BM >= 0

  # The gather reads the last outcome where the place is -1; the mask drops that.
  def taken(column_P):
    """[B, M] of the targets, 0 in padding. Where nothing followed, there is no outcome 0."""
    return np.where(mask, column_P[place_BM], 0) if len(column_P) else np.zeros(mask.shape)

  ad = taken(followed.ad_P).astype(np.int32)
  return RequestBatch(
    slot_kind_BS=kinds,
    slot_ad_BS=known.slot_ad_BS,
    slot_codes_BST=codes_NT.take(slot, axis=0),
    slot_features_BSF=features,
    user_features_BF=known.user_features_BF,
    target_ad_BM=np.where(mask, ad, -1).astype(np.int32),
    target_codes_BMT=codes_NT[ad],  # padding takes ad 0, and the mask says that it is none
    target_mask_BM=mask,
    target_value_BM=taken(followed.value_P).astype(np.float32),
    target_depth_BM=taken(followed.depth_P).astype(np.int32),
    user_value_B=known.user_value_B,
  )


def slot_kinds(ads_BS: np.ndarray, config: DataConfig) -> np.ndarray:
  """[B, S] int32 kinds of slots: they follow from the place, and from whether there is an ad."""
  sizes = config.history_slots, config.neighbor_slots, config.rising_slots
  # The order of the context: `slots` joins its parts in the same one.
  kinds_S = np.repeat(np.array((HISTORY, NEIGHBOR, RISING), np.int32), sizes)
  return np.where(ads_BS >= 0, kinds_S, np.int32(PADDING))


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
    "slot_features_BSF": ((slots, len(slot_features(config))), f32),
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
